"""`scenediff render`, `report` and `view` from the command line: what they write, and every wrong input."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image
from test_cli import fails, left_in
from tiny_run import write_tiny_run

from scenediff.cli import main
from scenediff.cli.sample import is_run_folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_run(tmp_path_factory.mktemp("run") / "out")


@pytest.fixture(scope="module")
def scene(run_folder: Path) -> Path:
    return run_folder / "sample_00/scene.safetensors"


# --- render ------------------------------------------------------------------------------------------


def test_a_film_and_what_is_invented_in_it(capsys, scene, tmp_path):
    out = tmp_path / "films/walk.mp4"
    options = ["--path", "spiral", "--frames", "5", "--size", "48", "--layout", "depth", "--fps", "10"]
    assert main(["render", str(scene), "-o", str(out), "--invented", *options]) == 0
    assert left_in(tmp_path / "films") == {"walk.mp4", "walk_invented.mp4"}
    plain, marked = (iio.imread(film, plugin="FFMPEG") for film in (out, out.with_stem("walk_invented")))
    assert plain.shape == marked.shape == (5, 48, 128, 3)
    assert iio.immeta(out, plugin="FFMPEG")["fps"] == 10
    change = np.abs(plain[2].astype(int) - marked[2])
    assert change[:, :64].mean() > 1
    assert change[:, 64:].mean() < 1  # compression only
    assert "walk_invented.mp4" in capsys.readouterr().out


def test_gif_and_pictures(scene, tmp_path):
    options = ["--frames", "3", "--size", "32", "--path", "wiggle"]
    assert main(["render", str(scene), "-o", str(tmp_path / "a.gif"), "--layout", "stereo", *options]) == 0
    with Image.open(tmp_path / "a.gif") as film:
        assert (film.n_frames, film.size) == (3, (84, 32))
    frames = tmp_path / "frames"
    for extra in ([], ["--overwrite"]):
        assert main(["render", str(scene), "-o", str(frames), *options, *extra]) == 0
    assert left_in(frames) == {f"frame_{n:05d}.png" for n in range(3)}
    assert left_in(tmp_path) == {"a.gif", "frames"}


def test_a_path_from_a_file_has_its_own_size_and_pace(scene, tmp_path):
    entry = {"camera_to_world": [1, 0, 0, 0, 0, 0, -1, 0, 0, 1, 0, 0, 0, 0, 0, 1], "fov": 50, "aspect": 1.5}
    document = {"render_height": 41, "render_width": 61, "fps": 6, "camera_path": [entry] * 4}
    (tmp_path / "path.json").write_text(json.dumps(document))
    command = ["render", str(scene), "-o", str(tmp_path / "film.mp4"), "--path", str(tmp_path / "path.json")]
    assert main(command) == 0
    metadata = iio.immeta(tmp_path / "film.mp4", plugin="FFMPEG")
    assert (metadata["fps"], metadata["size"]) == (6, (60, 40))
    assert len(iio.imread(tmp_path / "film.mp4", plugin="FFMPEG")) == 4


@pytest.mark.parametrize(("options", "words"), [
    (["--path", "zigzag"], ["--path", "zigzag", "spiral"]),
    (["--path", "none.json"], ["none.json"]),
    (["--path", "none.json", "--frames", "9"], ["--frames"]),
    (["--dataparser-transforms", "t.json"], ["--dataparser-transforms"]),
    (["--frames", "1"], ["--frames", "2"]),
    (["--fps", "0"], ["--fps"]),
    (["--fps", "inf"], ["--fps"]),
    (["--size", "33"], ["--size", "even"]),
    (["--size", "9000"], ["--size", "too large"]),
    (["--layout", "anaglyph"], ["--layout"]),
    (["--eye-distance", "-1"], ["--eye-distance"]),
])  # fmt: skip
def test_wrong_options_of_render(capsys, scene, tmp_path, options, words):
    fails(capsys, ["render", scene, "-o", tmp_path / "deep/film.mp4", *options], *words)
    assert left_in(tmp_path) == set()


def test_render_replaces_nothing_unasked(capsys, scene, tmp_path):
    (tmp_path / "film_invented.mp4").write_text("mine")
    command = ["render", scene, "-o", tmp_path / "film.mp4", "--invented"]
    fails(capsys, command, "film_invented.mp4", "--overwrite")
    assert left_in(tmp_path) == {"film_invented.mp4"}
    (tmp_path / "beach").mkdir()
    (tmp_path / "beach/sea.png").touch()
    for extra in ([], ["--overwrite"]):
        fails(capsys, ["render", scene, "-o", tmp_path / "beach", *extra], "beach")
    fails(capsys, ["render", scene, "-o", "/proc/film.mp4"], "/proc", "can't be written")
    assert left_in(tmp_path / "beach") == {"sea.png"}


# --- report ------------------------------------------------------------------------------------------


def test_the_report_is_part_of_the_run(capsys, run_folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").stat().st_size > 1_000_000  # the viewer is in it
    assert is_run_folder(run)  # so that `sample --overwrite` may replace it
    capsys.readouterr()
    fails(capsys, ["report", run], "report.html", "--overwrite")
    assert main(["report", str(run), "--overwrite"]) == 0
    assert main(["report", str(run), "-o", str(tmp_path / "pages/one.html")]) == 0


def test_wrong_inputs_of_report(capsys, run_folder, tmp_path):
    fails(capsys, ["report", tmp_path / "none"], "none", "does not exist")
    fails(capsys, ["report", run_folder, "-o", tmp_path / "page.pdf"], "page.pdf", ".html")
    fails(capsys, ["report", run_folder, "--max-megabytes", "-1"], "--max-megabytes")
    fails(capsys, ["report", run_folder, "-o", "/proc/page.html"], "/proc", "can't be written")
    assert left_in(tmp_path) == set()


@pytest.mark.parametrize("name", [
    "run.json", "sample_01/depth.png", "sample_00/scene.safetensors", "sample_01/mesh.glb",
])
@pytest.mark.parametrize("damage", ["gone", "empty", "text"])
def test_damaged_runs(capsys, run_folder, tmp_path, name, damage):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    path = run / name
    path.unlink()
    if damage != "gone":
        path.write_text("" if damage == "empty" else "something else entirely")
    fails(capsys, ["report", run], path.parent)
    assert not (run / "report.html").exists()
    if name != "sample_01/depth.png":
        fails(capsys, ["view", run], path.parent)


# --- view --------------------------------------------------------------------------------------------


def test_wrong_inputs_of_view(capsys, run_folder, tmp_path):
    fails(capsys, ["view", tmp_path / "none"], "none", "does not exist")
    fails(capsys, ["view", run_folder, "--port", "0"], "--port", "65535")
    fails(capsys, ["view", run_folder, "--host", "203.0.113.7"], "--host", "203.0.113.7")
    fails(capsys, ["view", run_folder, "--host", "no such host"], "--host")


def test_view_serves_until_it_is_interrupted(run_folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from scenediff.cli import main; raise SystemExit(main())"]
    command += ["view", str(run_folder), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert f"http://127.0.0.1:{port}" in process.stdout.readline()
            with urlopen(f"http://127.0.0.1:{port}/", timeout=20) as answer:
                page = answer.read().decode()
            assert "<script" in page
            assert "googletagmanager" not in page
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()
