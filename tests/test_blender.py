"""A GLB opened by Blender itself: upright, in metres, in colour."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic_scene import AnalyticScene

from scenediff.renderers.baked import bake
from scenediff.tools.mesh import export_glb, scene_mesh

# in a process of its own, as Blender brings libraries of its own
SCRIPT = """
import json, sys
import bpy
import numpy as np
bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.ops.import_scene.gltf(filepath=sys.argv[1])
objects = [item for item in bpy.context.scene.objects if item.type == "MESH"]
mesh = objects[0].data
world = np.array(objects[0].matrix_world)
places = np.empty(len(mesh.vertices) * 3, np.float32)
mesh.vertices.foreach_get("co", places)
places = places.reshape(-1, 3) @ world[:3, :3].T + world[:3, 3]
loops = np.empty(len(mesh.loops), np.int32)
mesh.loops.foreach_get("vertex_index", loops)
uv = np.empty(len(mesh.loops) * 2, np.float32)
mesh.uv_layers[0].data.foreach_get("uv", uv)
uv = uv.reshape(-1, 2)
shader = next(node for node in mesh.materials[0].node_tree.nodes if node.type == "BSDF_PRINCIPLED")
source = shader.inputs["Base Color"].links[0].from_node
width, height = source.image.size
pixels = np.empty(width * height * source.image.channels, np.float32)
source.image.pixels.foreach_get(pixels)
pixels = pixels.reshape(height, width, -1)
x = np.clip((uv[:, 0] * width).astype(int), 0, width - 1)
y = np.clip((uv[:, 1] * height).astype(int), 0, height - 1)
np.savez(sys.argv[2], places=places[loops], colors=pixels[y, x, :3])
print(json.dumps({
    "objects": len(objects), "source": source.type, "color_space": source.image.colorspace_settings.name,
    "metallic": shader.inputs["Metallic"].default_value,
    "roughness": shader.inputs["Roughness"].default_value,
    "metres": bpy.context.scene.unit_settings.scale_length,
}))
"""


@pytest.mark.skipif(importlib.util.find_spec("bpy") is None, reason="bpy is not installed")
def test_blender_opens_it_upright_in_metres_and_in_colour(tmp_path: Path) -> None:
    with bake(AnalyticScene(photo_size=(144, 192)), short_side=128) as baked:
        export_glb(scene_mesh(baked, voxel_size=0.04, max_faces=10_000), tmp_path / "mesh.glb")
    (tmp_path / "look.py").write_text(SCRIPT)
    command = [sys.executable, "look.py", "mesh.glb", "found.npz"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert found == {"objects": 1, "source": "TEX_IMAGE", "color_space": "sRGB", "metallic": 0.0,
                     "roughness": 1.0, "metres": 1.0}
    data = np.load(tmp_path / "found.npz")
    places, colors = torch.from_numpy(data["places"]).float(), torch.from_numpy(data["colors"])
    low, high = places.amin(0), places.amax(0)
    # Blender: X right, Y ahead, Z up; the room is 4 m wide, 2.6 m high, its far wall 4.2 m ahead
    assert torch.allclose(low[[0, 2]], torch.tensor([-2.0, -1.3]), atol=0.05)
    assert torch.allclose(high, torch.tensor([2.0, 4.2, 1.3]), atol=0.05)
    right, left = places[:, 0] > 1.97, places[:, 0] < -1.97
    ceiling, floor = places[:, 2] > 1.27, places[:, 2] < -1.27
    means = {name: colors[mask].median(0).values for name, mask in
             {"right": right, "left": left, "ceiling": ceiling, "floor": floor}.items()}
    assert means["right"].argmax() == 0  # red
    assert means["left"].argmax() == 1  # green
    assert means["ceiling"].min() > means["floor"].max()  # white above brown
