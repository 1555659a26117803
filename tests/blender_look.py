"""Run as a program of its own, as Blender brings libraries of its own: imports a file and draws it.

Arguments: the file, a JSON of what to draw, a folder for PNGs. The JSON holds `size` (height, width) and
`views`: for each a name and either null, for the file's own camera, or a Z-up camera-to-world matrix with the
field of view along the longer side in radians. Colours are drawn unlit. Prints what was found as JSON.
"""

import json
import sys
from pathlib import Path

import bpy
import numpy as np
from mathutils import Matrix

IMPORTERS = {".glb": "import_scene.gltf", ".obj": "wm.obj_import", ".usdz": "wm.usd_import"}


def open_file(path):
    bpy.ops.wm.read_factory_settings(use_empty=True)
    group, name = IMPORTERS[Path(path).suffix].split(".")
    return getattr(getattr(bpy.ops, group), name)(filepath=path)


def base_color(material):
    shader = next(node for node in material.node_tree.nodes if node.type == "BSDF_PRINCIPLED")
    links = shader.inputs["Base Color"].links
    return shader, links[0].from_node if links else None


def describe(objects):
    mesh = objects[0].data
    shader, picture = base_color(mesh.materials[0])
    places = np.empty(len(mesh.vertices) * 3, np.float32)
    mesh.vertices.foreach_get("co", places)
    matrix = np.array(objects[0].matrix_world)
    places = places.reshape(-1, 3) @ matrix[:3, :3].T + matrix[:3, 3]
    attributes = {}
    for attribute in mesh.attributes:
        if attribute.domain == "POINT" and attribute.data_type == "FLOAT":
            values = np.empty(len(mesh.vertices), np.float32)
            attribute.data.foreach_get("value", values)
            attributes[attribute.name] = float(values.mean())
    camera = bpy.context.scene.camera
    return {
        "meshes": len(objects),
        "faces": len(mesh.polygons),
        "picture": picture.type if picture else None,
        "picture_size": list(picture.image.size) if picture else None,
        "color_space": picture.image.colorspace_settings.name if picture else None,
        "metallic": shader.inputs["Metallic"].default_value,
        "roughness": shader.inputs["Roughness"].default_value,
        "metres": bpy.context.scene.unit_settings.scale_length,
        "low": places.min(0).tolist(),
        "high": places.max(0).tolist(),
        "attributes": attributes,
        "cameras": [item.name for item in bpy.context.scene.objects if item.type == "CAMERA"],
        "camera": camera.name if camera else None,
    }


def unlit(material):
    nodes, links = material.node_tree.nodes, material.node_tree.links
    picture = base_color(material)[1]
    emission = nodes.new("ShaderNodeEmission")
    links.new(picture.outputs["Color"], emission.inputs["Color"])
    output = next(node for node in nodes if node.type == "OUTPUT_MATERIAL")
    links.new(emission.outputs["Emission"], output.inputs["Surface"])


def set_up(size):
    scene = bpy.context.scene
    scene.render.engine, scene.cycles.device, scene.cycles.samples = "CYCLES", "CPU", 8
    scene.cycles.use_denoising = scene.cycles.use_adaptive_sampling = False
    scene.cycles.max_bounces = 0
    scene.render.threads_mode, scene.render.threads = "FIXED", 2
    scene.render.resolution_y, scene.render.resolution_x = size
    scene.render.resolution_percentage = 100
    scene.view_settings.view_transform = "Standard"
    scene.world = bpy.data.worlds.new("grey")
    scene.world.use_nodes = True
    scene.world.node_tree.nodes["Background"].inputs["Color"].default_value = (0.214, 0.214, 0.214, 1)


def extra_camera(view):
    data = bpy.data.cameras.new(view["name"])
    data.angle, data.clip_start = view["fov"], 0.01
    camera = bpy.data.objects.new(view["name"], data)
    camera.matrix_world = Matrix(view["matrix"])
    bpy.context.scene.collection.objects.link(camera)
    return camera


def main(path, wanted, folder):
    done = open_file(path)
    objects = [item for item in bpy.context.scene.objects if item.type == "MESH"]
    sys.stdout.write(json.dumps({"import": sorted(done), **describe(objects)}) + "\n")
    sys.stdout.flush()
    request = json.loads(Path(wanted).read_text())
    if not request["views"]:
        return
    set_up(request["size"])
    for item in objects:
        for material in item.data.materials:
            unlit(material)
    own = bpy.context.scene.camera or next((o for o in bpy.context.scene.objects if o.type == "CAMERA"), None)
    for view in request["views"]:
        bpy.context.scene.camera = extra_camera(view) if view["matrix"] else own
        bpy.context.scene.render.filepath = str(Path(folder) / f"{view['name']}.png")
        bpy.ops.render.render(write_still=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
