"""What the doctor says of files with known properties."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from scenediff.cli import main
from scenediff.tools.doctor import Finding, as_record, examine
from scenediff.tools.mesh import material


def textured_box(extents: tuple[float, float, float] = (2.0, 1.0, 3.0)) -> trimesh.Trimesh:
    box = trimesh.creation.box(extents)
    picture = material(np.full((4, 4, 3), 200, np.uint8))
    box.visual = trimesh.visual.TextureVisuals(uv=np.zeros((len(box.vertices), 2)), material=picture)
    return box


def tray(up: int) -> trimesh.Trimesh:
    """A floor of 4 m x 4 m with low walls around it, that stands on the plane across an axis."""
    floor = trimesh.creation.box((4, 4, 0.01))
    walls = [trimesh.creation.box((0.01, 4, 0.5)) for _ in range(2)]
    for wall, x in zip(walls, (-2, 2), strict=True):
        wall.apply_translation((x, 0, 0.25))
    mesh = trimesh.util.concatenate([floor, *walls])
    mesh.vertices = np.roll(np.asarray(mesh.vertices), up - 2, axis=1)
    return mesh


def findings(path: Path) -> dict[str, Finding]:
    return {finding.topic: finding for finding in examine(path)}


def test_a_textured_closed_box_is_fine(tmp_path: Path) -> None:
    textured_box().export(tmp_path / "box.glb")
    found = findings(tmp_path / "box.glb")
    assert list(found) == ["contents", "colour", "up", "size", "holes"]
    assert found["colour"].verdict == "fine"
    assert "2 x 1 x 3 m" in found["size"].text
    assert found["holes"].verdict == "fine"
    assert "closed; 1 piece" in found["holes"].text


@pytest.mark.parametrize("suffix", [".glb", ".ply"])
def test_vertex_colours_alone_do_not_show(tmp_path: Path, suffix: str) -> None:
    box = trimesh.creation.box((1, 1, 1))
    box.visual.vertex_colors = np.random.default_rng(0).integers(0, 255, (8, 4))
    box.export(tmp_path / f"box{suffix}")
    found = findings(tmp_path / f"box{suffix}")["colour"]
    assert found.verdict == "problem"
    assert "Color Attribute" in found.advice


def test_no_colour_at_all(tmp_path: Path) -> None:
    trimesh.creation.box((1, 1, 1)).export(tmp_path / "box.glb")
    (tmp_path / "box.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    for name in ("box.glb", "box.obj"):
        found = findings(tmp_path / name)["colour"]
        assert (found.verdict, found.text) == ("problem", "none")


def test_holes_are_counted(tmp_path: Path) -> None:
    box = textured_box((1, 1, 1))
    box.update_faces(box.face_normals[:, 2] < 0.5)  # all but one of six sides
    box.export(tmp_path / "box.glb")
    found = findings(tmp_path / "box.glb")["holes"]
    assert found.verdict == "note"
    assert found.text.startswith("1 open borders, 4 m in all; 1 piece")
    assert "--closed" in found.advice


def test_seams_of_a_texture_are_no_holes(tmp_path: Path) -> None:
    box = textured_box()
    box.unmerge_vertices()
    box.export(tmp_path / "box.glb")
    assert findings(tmp_path / "box.glb")["holes"].verdict == "fine"


def test_units_and_scale(tmp_path: Path) -> None:
    for extent, verdict, words in ((4.0, "fine", "4 x"), (400.0, "problem", "centimetres"),
                                   (4000.0, "problem", "millimetres"), (0.004, "problem", "tiny")):
        textured_box((extent, extent / 2, extent)).export(tmp_path / "box.glb")
        found = findings(tmp_path / "box.glb")["size"]
        assert (found.verdict, words in found.text) == (verdict, True)


def test_which_way_is_up(tmp_path: Path) -> None:
    tray(up=1).export(tmp_path / "right.glb")
    assert findings(tmp_path / "right.glb")["up"].verdict == "fine"
    tray(up=2).export(tmp_path / "lying.glb")
    found = findings(tmp_path / "lying.glb")["up"]
    assert found.verdict == "note"
    assert found.text.startswith("perhaps +Z")
    tray(up=1).export(tmp_path / "points.ply")
    found = findings(tmp_path / "points.ply")["up"]
    assert found.text.startswith("perhaps +Y")
    assert "set Up to Y" in found.advice


@pytest.mark.parametrize(
    ("place", "verdict", "text"),
    [
        ({}, "fine", "+Y (its camera"),
        # 90 degrees about X: +Y to +Z
        ({"rotation": [0.7071067811865476, 0, 0, 0.7071067811865476]}, "problem", "+Z (its camera"),
    ],
)
def test_a_camera_tells_which_way_is_up(tmp_path: Path, place: dict, verdict: str, text: str) -> None:
    def add(tree: dict) -> None:
        tree["cameras"] = [{"type": "perspective", "perspective": {"yfov": 1.0, "znear": 0.1}}]
        tree["scenes"][0]["nodes"].append(len(tree["nodes"]))
        tree["nodes"].append({"camera": 0, **place})

    data = trimesh.exchange.gltf.export_glb(trimesh.Scene(textured_box()), tree_postprocessor=add)
    (tmp_path / "box.glb").write_bytes(data)
    found = findings(tmp_path / "box.glb")["up"]
    assert found.verdict == verdict
    assert text in found.text


def test_missing_pictures_of_an_obj(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text(
        "mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\nusemtl m\nf 1/1 2/2 3/3\n"
    )
    assert findings(tmp_path / "a.obj")["colour"].text == "picture missing: a.mtl"
    (tmp_path / "a.mtl").write_text("newmtl m\nKd 1 1 1\nmap_Kd wood.png\n")
    assert findings(tmp_path / "a.obj")["colour"].text == "picture missing: wood.png"
    Image.new("RGB", (4, 4), "brown").save(tmp_path / "wood.png")
    assert findings(tmp_path / "a.obj")["colour"].verdict == "fine"


def test_bad_files_are_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = tmp_path / "box.glb"
    textured_box().export(whole)
    data = whole.read_bytes()
    files = {
        "none.glb": None, "text.glb": b"no scene", "empty.glb": b"", "half.glb": data[: len(data) // 2],
        "no.stl": b"solid", "text.ply": b"hello", "empty.obj": b"", "junk.obj": bytes(range(256)) * 20,
        "cut.ply": b"ply\nformat binary_little_endian 1.0\nelement vertex 9\nproperty float x\nend_header\n",
        "nan.obj": b"v nan 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n",
    }  # fmt: skip
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        assert main(["doctor", str(tmp_path / name)]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        lines = output.err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("scenediff: error: ")
        assert name in lines[0]
    assert main(["doctor", str(tmp_path)]) == 2


def test_lines_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "box.glb"
    textured_box().export(path)
    assert main(["doctor", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if "->" not in line] == [f.topic for f in examine(path)]
    assert main(["doctor", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == as_record(examine(path))
