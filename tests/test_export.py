"""`scenediff export`: every format from a small sampled scene, and every wrong input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open3d as o3d
import pytest
import torch
import trimesh
from plyfile import PlyData
from tiny_pipeline import random_photo, tiny_pipeline

from scenediff.cli import main
from scenediff.cli.export import Export, Format, scene_files, with_suffix
from scenediff.scene import Scene
from scenediff.tools.doctor import examine
from scenediff.tools.exports import FORMATS, export_format

SMALL = ["--faces", "2000", "--texture", "128"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two samples of a model that knows nothing."""
    folder = tmp_path_factory.mktemp("run")
    entries = []
    for index, scene in enumerate(tiny_pipeline()(random_photo(), num_samples=2, seed=0)):
        place = folder / f"sample_{index:02d}"
        place.mkdir()
        scene.save(place / "scene.safetensors")
        entries.append({"folder": place.name, "files": {"scene": "scene.safetensors"}})
    (folder / "run.json").write_text(json.dumps({"samples": entries}))
    return folder


@pytest.fixture
def scene_file(run_folder: Path) -> Path:
    return run_folder / "sample_00" / "scene.safetensors"


def export(*arguments: object) -> int:
    return main(["export", *(str(argument) for argument in arguments)])


def fails(capsys: pytest.CaptureFixture[str], arguments: list[object], *words: object) -> None:
    """Code 2 and exactly one line on stderr that has these words."""
    capsys.readouterr()
    assert export(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    for word in words:
        assert str(word) in lines[0], lines[0]


def test_options_and_formats_agree() -> None:
    assert set(Format.__args__) == set(FORMATS)


def test_every_format_is_written_with_nothing_else(
    scene_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, target in FORMATS.items():
        if not target.suffix:
            continue
        folder = tmp_path / name
        assert export(scene_file, "--format", name, "-o", folder / "scene", *SMALL) == 0
        assert capsys.readouterr().out.splitlines() == [f"wrote {folder / 'scene'}{target.suffix}"]
        assert {file.name for file in folder.iterdir()} == {
            f"scene{suffix}" for suffix in (target.suffix, *target.beside)
        }


def test_a_run_s_disagreement_goes_into_every_kind_of_file(run_folder: Path, tmp_path: Path) -> None:
    options = ["--sample", 1, *SMALL]
    for name in ("glb", "ply", "npz"):
        assert export(run_folder, "--format", name, "-o", tmp_path / "scene", *options) == 0
    cloud = PlyData.read(tmp_path / "scene.ply")["vertex"]
    assert set(np.unique(cloud["seen"])) <= {0, 1}
    assert cloud["depth_std"].mean() > 0
    assert cloud["color_std"].mean() > 0
    mesh = trimesh.load_mesh(tmp_path / "scene.glb", process=False)
    assert {"_SEEN", "_DEPTH_STD", "_COLOR_STD"} <= set(mesh.vertex_attributes)
    arrays = np.load(tmp_path / "scene.npz")
    assert arrays["depth_std"].shape == arrays["seen"].shape == (len(arrays["points"]),)


def test_npz_points_project_into_its_views(scene_file: Path, tmp_path: Path) -> None:
    assert export(scene_file, "--format", "npz", "-o", tmp_path / "scene.npz") == 0
    arrays = np.load(tmp_path / "scene.npz")
    depth, intrinsics = arrays["view_00_depth"], arrays["view_00_intrinsics"]
    world_to_cam = np.linalg.inv(arrays["view_00_cam_to_world"])
    local = arrays["points"][arrays["seen"] == 1] @ world_to_cam[:3, :3].T + world_to_cam[:3, 3]
    pixels = local[:, :2] / local[:, 2:] * intrinsics[[0, 1], [0, 1]] + intrinsics[:2, 2]
    x, y = np.floor(pixels).astype(int).T
    inside = (x >= 0) & (x < depth.shape[1]) & (y >= 0) & (y < depth.shape[0])
    assert inside.mean() > 0.95
    error = np.abs(depth[y[inside], x[inside]] / local[inside, 2] - 1)
    assert np.median(error) < 0.01
    assert arrays["photo"].dtype == np.uint8
    assert {name[8:] for name in arrays if name.startswith("view_00_")} == {
        "image", "depth", "opacity", "intrinsics", "cam_to_world"}  # fmt: skip


def test_the_doctor_is_content_with_a_mesh(scene_file: Path, tmp_path: Path) -> None:
    assert export(scene_file, "-o", tmp_path / "scene", "--closed", *SMALL) == 0
    found = {finding.topic: finding for finding in examine(tmp_path / "scene.glb")}
    assert {found[topic].verdict for topic in ("contents", "colour", "up", "size", "holes")} == {"fine"}


def test_the_photo_s_own_colours(scene_file: Path, tmp_path: Path) -> None:
    colors = []
    for name, options in (("own", []), ("photo", ["--photo-colors"])):
        assert export(scene_file, "--format", "pcd", "-o", tmp_path / name, *options) == 0
        cloud = o3d.io.read_point_cloud(str(tmp_path / f"{name}.pcd"))
        colors.append(np.asarray(cloud.colors))
    photo = (Scene.load(scene_file).photo[0].mean((1, 2)).numpy() + 1) / 2
    assert len(colors[0]) == len(colors[1])
    assert not np.array_equal(*colors)
    assert np.abs(colors[1].mean(0) - photo).sum() < np.abs(colors[0].mean(0) - photo).sum()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--faces", 0], ["--faces", "100"]),
        (["--faces", 10**9], ["--faces", "2000000"]),
        (["--faces", "many"], ["--faces"]),
        (["--texture", 1], ["--texture", "64"]),
        (["--texture", 10**6], ["--texture", "8192"]),
        (["--format", "stl"], ["stl", "glb"]),
        (["--sample", -1], ["--sample"]),
    ],
)
def test_wrong_options(
    capsys, scene_file: Path, tmp_path: Path, options: list[object], words: list[str]
) -> None:
    fails(capsys, [scene_file, "-o", tmp_path / "deep" / "scene", *options], *words)
    assert not list(tmp_path.iterdir())


def test_wrong_scenes(capsys, run_folder: Path, tmp_path: Path) -> None:
    whole = (run_folder / "sample_00" / "scene.safetensors").read_bytes()
    contents = {"text": b"no scene", "empty": b"", "half": whole[: len(whole) // 2]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        fails(capsys, [tmp_path / name, "-o", tmp_path / "out" / "scene"], tmp_path / name)
    fails(capsys, [tmp_path / "none", "-o", tmp_path / "out" / "scene"], "none")
    fails(capsys, [tmp_path, "-o", tmp_path / "out" / "scene"], tmp_path, "run.json")
    fails(capsys, [run_folder, "--sample", 2, "-o", tmp_path / "out" / "scene"], "--sample 2", "0 to 1")
    assert {entry.name for entry in tmp_path.iterdir()} == set(contents)


def test_an_empty_scene(capsys, scene_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    render = Scene.render

    def nothing(self: Scene, *arguments: Any) -> Any:
        rendering = render(self, *arguments)
        return replace(rendering, opacity=torch.zeros_like(rendering.opacity))

    monkeypatch.setattr(Scene, "render", nothing)
    for name in ("glb", "ply", "3dgs"):
        fails(capsys, [scene_file, "--format", name, "-o", tmp_path / "scene"], scene_file, "empty")
    assert not list(tmp_path.iterdir())


def test_wrong_outputs(capsys, scene_file: Path, tmp_path: Path) -> None:
    fails(capsys, [scene_file, "--format", "glb", "-o", tmp_path / "scene.obj"], "scene.obj", ".glb")
    fails(capsys, [scene_file, "-o", tmp_path / "scene.fbx"], "scene.fbx", ".glb")
    fails(capsys, [scene_file, "-o", "/proc/scene"], "/proc", "can't be written")
    (tmp_path / "scene.mtl").write_text("mine")
    fails(capsys, [scene_file, "--format", "obj", "-o", tmp_path / "scene"], "scene.mtl", "--overwrite")
    (tmp_path / "folder.glb").mkdir()
    fails(capsys, [scene_file, "-o", tmp_path / "folder.glb"], "is a folder")
    fails(capsys, [scene_file, "-o", tmp_path / "scene.mtl" / "scene"], "can't be written")
    assert {entry.name for entry in tmp_path.iterdir()} == {"scene.mtl", "folder.glb"}
    assert (tmp_path / "scene.mtl").read_text() == "mine"


def test_overwriting(capsys, scene_file: Path, tmp_path: Path) -> None:
    place = tmp_path / "scene.npz"
    place.write_text("old")
    fails(capsys, [scene_file, "--format", "npz", "-o", place], place, "--overwrite")
    assert place.read_text() == "old"
    assert export(scene_file, "--format", "npz", "-o", place, "--overwrite") == 0
    assert "points" in np.load(place)


def test_nothing_is_left_of_a_failed_export(scene_file: Path, tmp_path: Path, monkeypatch) -> None:
    def broken(job: object, path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("a defect")

    monkeypatch.setitem(FORMATS, "ply", replace(FORMATS["ply"], write=broken))
    with pytest.raises(RuntimeError, match="a defect"):
        Export(scene_file, tmp_path / "deep" / "scene", format="ply").run()
    assert not list(tmp_path.iterdir())


def test_names(run_folder: Path) -> None:
    assert with_suffix(Path("a/b"), ".glb") == Path("a/b.glb")
    assert with_suffix(Path("a/b.GLB"), ".glb") == Path("a/b.GLB")
    assert with_suffix(Path("a/b.v2"), "") == Path("a/b.v2")
    first, second = (run_folder / f"sample_0{index}" / "scene.safetensors" for index in (0, 1))
    assert scene_files(run_folder, 1) == (second, [first])
    assert scene_files(first.parent, 0) == (first, [])
    assert scene_files(first, 0) == (first, [])


def test_a_path_tells_its_format() -> None:
    for name in ("glb", "obj", "ply", "pcd", "npz"):
        assert export_format(None, Path(f"a/b.{name.upper()}")) is FORMATS[name]
        assert export_format(name, Path("a/b.other")) is FORMATS[name]
    assert export_format(None, Path("a/b.usdz")) is export_format("usd", Path("a/b")) is FORMATS["usd"]
    assert export_format(None, Path("a/b")) is FORMATS["glb"]
    assert export_format("3dgs", Path("a/b.ply")) is FORMATS["3dgs"]
    for suffix in (".usd", ".usda"):
        target = export_format("usd", Path(f"a/b{suffix}"))
        assert target.paths(Path(f"b{suffix}")) == [Path(f"b{suffix}"), Path("b.png")]


def test_usd_as_text(scene_file: Path, tmp_path: Path) -> None:
    assert export(scene_file, "-o", tmp_path / "scene.usda", *SMALL) == 0
    assert {file.name for file in tmp_path.iterdir()} == {"scene.usda", "scene.png"}
    text = (tmp_path / "scene.usda").read_text()
    assert text.startswith("#usda 1.0")
    assert "@./scene.png@" in text
