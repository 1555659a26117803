"""Textured meshes as OBJ and USD; `mesh.export_glb` writes glTF. All: +X right, +Y up, -Z ahead, metres."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from PIL import Image

from scenediff.renderers.cameras import ndc_to_pixels_intrinsics
from scenediff.tools.mesh import NEAREST, NamedCamera, in_gltf_axes, pytorch3d_to_gltf

APERTURE = 20.955  # USD's default sensor width, tenths of a scene unit
USDZ_ALIGNMENT = 64  # bytes
EARLIEST = (1980, 1, 1, 0, 0, 0)  # a zip archive's dates, so that equal scenes give equal files


def export_obj(mesh: trimesh.Trimesh, path: str | Path) -> list[Path]:
    """Writes Wavefront OBJ with a material library and a picture beside it; returns the paths of all three.

    Faces of which the photo saw all corners are in group `seen`, the others in group `sampled`.
    """
    path = Path(path)
    library, picture = path.with_suffix(".mtl"), path.with_suffix(".png")
    mesh = in_gltf_axes(mesh)
    lines = ["# +X right, +Y up, -Z ahead of the photo's camera; metres", f"mtllib {library.name}", "o scene"]
    lines += _rows("v", mesh.vertices) + _rows("vt", mesh.visual.uv) + _rows("vn", mesh.vertex_normals)
    lines.append("usemtl scene")
    seen = _seen(mesh)[mesh.faces].all(1)
    for group, faces in (("seen", mesh.faces[seen]), ("sampled", mesh.faces[~seen])):
        lines.append(f"g {group}")
        lines += [f"f {a}/{a}/{a} {b}/{b}/{b} {c}/{c}/{c}" for a, b, c in (faces + 1).tolist()]
    path.write_text("\n".join(lines) + "\n")
    library.write_text(
        f"newmtl scene\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nNs 0\nd 1\nillum 1\nmap_Kd {picture.name}\n"
    )
    picture.write_bytes(png(mesh))
    return [path, library, picture]


def export_usdz(mesh: trimesh.Trimesh, path: str | Path, camera: NamedCamera | None = None) -> None:
    """Writes a USD package: mesh, material, picture and camera in one file.

    Vertex attributes become primvars named like them, without the underscore, in lower case.
    """
    text = usda(in_gltf_axes(mesh), "texture.png", camera)
    members = {"scene.usda": text.encode(), "texture.png": png(mesh)}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            entry = zipfile.ZipInfo(name, EARLIEST)
            header = 30 + len(name)  # bytes; an extra field of 4 and more fills up to the alignment
            entry.extra = _padding(-(buffer.tell() + header + 4) % USDZ_ALIGNMENT)
            archive.writestr(entry, data)
    Path(path).write_bytes(buffer.getvalue())


def export_usda(mesh: trimesh.Trimesh, path: str | Path, camera: NamedCamera | None = None) -> list[Path]:
    """Writes the same as text with its picture beside it; returns the paths of both."""
    path = Path(path)
    picture = path.with_suffix(".png")
    path.write_text(usda(in_gltf_axes(mesh), f"./{picture.name}", camera))
    picture.write_bytes(png(mesh))
    return [path, picture]


def usda(mesh: trimesh.Trimesh, picture: str, camera: NamedCamera | None = None) -> str:
    """A mesh in glTF's axes as USD text; `picture` is the path of its texture."""
    low, high = mesh.bounds
    primvars = "".join(
        f"\n        float[] primvars:{name.strip('_').lower()} = {_list(values)} ("
        f'\n            interpolation = "vertex"\n        )'
        for name, values in mesh.vertex_attributes.items()
    )
    return _USDA.format(
        counts=_list(np.full(len(mesh.faces), 3)), indices=_list(mesh.faces.ravel()),
        extent=_tuples(np.stack([low, high])), points=_tuples(mesh.vertices),
        normals=_tuples(mesh.vertex_normals), uv=_tuples(mesh.visual.uv), primvars=primvars, picture=picture,
        roughness=mesh.visual.material.roughnessFactor, camera="" if camera is None else _usd_camera(camera),
    )


def cameras_json(cameras: Sequence[NamedCamera], *, y_down: bool = False) -> str:
    """Cameras in the form that goes with 3D Gaussian splats.

    For each: `position` and `rotation` (camera-to-world, columns are the camera's axes +X right, +Y down, +Z
    ahead) in the world of the file beside it, `fx` and `fy` in pixels of `width` and `height`.

    Args:
        y_down: whether that world is turned upside down, with +Y down and +Z ahead, as splats have it.
    """
    world = np.diag([1.0, -1.0, -1.0]) if y_down else np.eye(3)
    entries = []
    for index, camera in enumerate(cameras):
        pose = pytorch3d_to_gltf(camera.cameras)
        focal = ndc_to_pixels_intrinsics(camera.cameras, camera.size)[0][0].tolist()
        entries.append({
            "id": index, "img_name": camera.name, "width": camera.size[1], "height": camera.size[0],
            "position": _plain(world @ pose[:3, 3]),
            "rotation": _plain(world @ pose[:3, :3] @ np.diag([1.0, -1.0, -1.0])),
            "fx": focal[0], "fy": focal[1],
        })
    return json.dumps(entries, indent=1) + "\n"


def png(mesh: trimesh.Trimesh) -> bytes:
    """The file of a mesh's base-colour texture."""
    picture: Image.Image = mesh.visual.material.baseColorTexture
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "png")
    return buffer.getvalue()


def _seen(mesh: trimesh.Trimesh) -> np.ndarray:
    return np.asarray(mesh.vertex_attributes.get("_SEEN", np.ones(len(mesh.vertices)))) > 0


def _plain(values: np.ndarray) -> Any:
    return (values + 0.0).tolist()  # no negative zeros


def _rows(name: str, values: np.ndarray) -> list[str]:
    return [f"{name} " + " ".join(f"{value:.6g}" for value in row) for row in np.asarray(values).tolist()]


def _list(values: np.ndarray) -> str:
    return "[" + ", ".join(f"{value:.9g}" for value in values.tolist()) + "]"


def _tuples(values: np.ndarray) -> str:
    rows = ("(" + ", ".join(f"{value:.6g}" for value in row) + ")" for row in np.asarray(values).tolist())
    return "[" + ", ".join(rows) + "]"


def _padding(size: int) -> bytes:
    """A zip entry's extra field of 4 + size bytes, of a kind that readers skip."""
    return (0x1986).to_bytes(2, "little") + size.to_bytes(2, "little") + bytes(size)


def _usd_camera(camera: NamedCamera) -> str:
    """Its image plane in tenths of a unit, as USD wants it."""
    height, width = camera.size
    focal = ndc_to_pixels_intrinsics(camera.cameras, camera.size)[0][0].tolist()
    rows = _tuples(pytorch3d_to_gltf(camera.cameras).T)[1:-1]
    return _USD_CAMERA.format(
        name=camera.name, rows=rows, focal=APERTURE * focal[0] / width, horizontal=APERTURE,
        vertical=APERTURE * focal[0] / width * height / focal[1], near=NEAREST,
    )


_USD_CAMERA = """
    def Camera "{name}"
    {{
        matrix4d xformOp:transform = ( {rows} )
        uniform token[] xformOpOrder = ["xformOp:transform"]
        token projection = "perspective"
        float focalLength = {focal:.9g}
        float horizontalAperture = {horizontal:.9g}
        float verticalAperture = {vertical:.9g}
        float2 clippingRange = ({near}, 1000)
    }}
"""

_USDA = """#usda 1.0
(
    defaultPrim = "root"
    metersPerUnit = 1
    upAxis = "Y"
)

def Xform "root" (
    kind = "component"
)
{{
    def Mesh "scene" (
        prepend apiSchemas = ["MaterialBindingAPI"]
    )
    {{
        uniform bool doubleSided = 1
        uniform token subdivisionScheme = "none"
        rel material:binding = </root/material>
        float3[] extent = {extent}
        int[] faceVertexCounts = {counts}
        int[] faceVertexIndices = {indices}
        point3f[] points = {points}
        normal3f[] normals = {normals} (
            interpolation = "vertex"
        )
        texCoord2f[] primvars:st = {uv} (
            interpolation = "vertex"
        ){primvars}
    }}
{camera}
    def Material "material"
    {{
        token outputs:surface.connect = </root/material/surface.outputs:surface>

        def Shader "surface"
        {{
            uniform token info:id = "UsdPreviewSurface"
            color3f inputs:diffuseColor.connect = </root/material/picture.outputs:rgb>
            float inputs:metallic = 0
            float inputs:roughness = {roughness}
            token outputs:surface
        }}

        def Shader "picture"
        {{
            uniform token info:id = "UsdUVTexture"
            asset inputs:file = @{picture}@
            token inputs:sourceColorSpace = "sRGB"
            token inputs:wrapS = "clamp"
            token inputs:wrapT = "clamp"
            float2 inputs:st.connect = </root/material/coordinates.outputs:result>
            float3 outputs:rgb
        }}

        def Shader "coordinates"
        {{
            uniform token info:id = "UsdPrimvarReader_float2"
            string inputs:varname = "st"
            float2 outputs:result
        }}
    }}
}}
"""
