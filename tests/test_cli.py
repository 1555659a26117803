"""The command line in-process: help, every wrong input, and that outputs are there whole or not at all."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from scenediff.cli import COMMANDS, main
from scenediff.cli.folders import output_file, output_folder
from scenediff.cli.sample import distinct_names, is_run_folder


@dataclass(frozen=True)
class FakeScene:
    """Stands for a sampled scene where only the command's own work is tested."""

    metadata: dict


class FakePipeline:
    """Stands for a model; `calls` tells what it was asked for."""

    device = "cpu"
    sample_views = None  # what models of scenes have

    def __init__(self) -> None:
        self.calls: list[dict] = []

    def __call__(self, photo, *, num_samples, seed, progress, **options) -> list[FakeScene]:
        self.calls.append({"photo": photo, "num_samples": num_samples, "seed": seed, **options})
        progress(num_samples, num_samples)
        return [FakeScene({"seed": seed + index}) for index in range(num_samples)]


def fake_outputs(scene, folder, *, options, progress) -> SimpleNamespace:
    progress("mesh")
    folder.mkdir(parents=True)
    (folder / "mesh.glb").write_text(str(scene.metadata["seed"]))
    return SimpleNamespace(
        files={"mesh": folder / "mesh.glb"}, seconds={"mesh": 0.5}, baked_psnr=34.567,
        baked=SimpleNamespace(close=lambda: None),
    )  # fmt: skip


def fake_report(scenes, baked, folder) -> None:
    (folder / "contact_sheet.png").touch()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "room.png"
    Image.new("RGB", (64, 48), "gray").save(path)
    return path


@pytest.fixture
def fake_model(monkeypatch):
    """Replaces the model and the writers of its outputs."""
    pipeline = FakePipeline()
    monkeypatch.setattr("scenediff.pipeline.load", lambda name, device: pipeline)
    monkeypatch.setattr("scenediff.tools.outputs.write_scene_outputs", fake_outputs)
    monkeypatch.setattr("scenediff.cli.sample.write_report", fake_report)
    return pipeline


def fails(capsys, arguments: list[object], *words: str) -> None:
    """The command ends with code 2 and exactly one line on stderr that has these words."""
    assert main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("scenediff: error: ")
    for word in words:
        assert str(word) in lines[0], lines[0]


def left_in(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


# --- help --------------------------------------------------------------------------------------------


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)
    assert main([]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_every_option(capsys, name):
    assert main([*name.split(), "--help"]) == 0
    assert f"usage: scenediff {name}" in capsys.readouterr().out
    command = COMMANDS[name]
    tree = ast.parse(Path(importlib.import_module(command.module).__file__).read_text())
    body = next(node.body for node in tree.body if getattr(node, "name", "") == command.config)
    for option, text in pairwise(body):
        if isinstance(option, ast.AnnAssign):  # tyro's help is the string below the field
            assert isinstance(text, ast.Expr), ast.unparse(option)


@pytest.mark.parametrize("group", ["train", "data", "eval"])
def test_groups_have_help_and_need_a_command(capsys, group):
    assert main([group, "--help"]) == 0
    assert f"{group} rooms" in capsys.readouterr().out
    fails(capsys, [group], f"{group} rooms")
    fails(capsys, [group, "cars"], "cars", f"{group} rooms")


def test_help_is_quick():
    """Neither torch nor any other heavy package is imported for help."""
    script = (
        "import sys; from scenediff.cli import main\n"
        "main(['--help']); main(['sample', '--help'])\n"
        "sys.exit(bool({'torch', 'pytorch3d', 'diffusers', 'numpy'} & set(sys.modules)))"
    )
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert time.perf_counter() - start < 5  # 0.5 s on an idle machine


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("scenediff 0.")


# --- wrong options -----------------------------------------------------------------------------------


def test_unknown_command(capsys):
    fails(capsys, ["smaple", "photo.jpg"], "smaple", "sample")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-n", "0"], ["--num-samples", "0"]),
        (["-n", "-3"], ["--num-samples", "-3"]),
        (["-n", "many"], ["--num-samples", "many"]),
        (["--steps", "0"], ["--steps", "0"]),
        (["--guidance-scale", "nan"], ["--guidance-scale", "nan"]),
        (["--guidance-scale", "-1"], ["--guidance-scale", "-1"]),
        (["--seed", "-1"], ["--seed", "-1"]),
        (["--size", "8"], ["--size", "32"]),
        (["--size", "65"], ["--size", "even"]),
        (["--frames", "1"], ["--frames", "2"]),
        (["--path", "zigzag"], ["--path", "zigzag"]),
        (["--fov", "0"], ["degrees", "0"]),
        (["--fov", "nan"], ["degrees", "nan"]),
        (["--fov", "wide"], ["--fov", "wide"]),
        (["--device", "tpu"], ["--device", "tpu"]),
        (["--colour"], ["--colour"]),
    ],
)
def test_wrong_options_of_sample(capsys, tmp_path, photo, options, words):
    fails(capsys, ["sample", photo, "-o", tmp_path / "deep" / "out", *options], *words)
    assert left_in(tmp_path) == {"room.png"}


def test_missing_options(capsys, photo):
    fails(capsys, ["sample", photo], "--output")
    fails(capsys, ["sample", "-o", "out"], "no photo")


def test_cuda_without_a_gpu(capsys, monkeypatch, tmp_path, photo, fake_model):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    fails(capsys, ["sample", photo, "-o", tmp_path / "out", "--device", "cuda"], "--device cuda", "cpu")
    assert left_in(tmp_path) == {"room.png"}


# --- wrong photos ------------------------------------------------------------------------------------


def test_every_photo_is_checked_before_the_model_is_loaded(capsys, tmp_path, photo, fake_model):
    (tmp_path / "text.jpg").write_text("no photo")
    (tmp_path / "empty.jpg").touch()
    for bad in ("text.jpg", "empty.jpg", "none.jpg", "."):
        fails(capsys, ["sample", photo, tmp_path / bad, "-o", tmp_path / "out"], tmp_path / bad)
    assert not fake_model.calls
    assert left_in(tmp_path) == {"room.png", "text.jpg", "empty.jpg"}


# --- wrong outputs -----------------------------------------------------------------------------------


def test_output_that_is_a_file_or_below_one(capsys, tmp_path, photo, fake_model):
    fails(capsys, ["sample", photo, "-o", photo], photo, "file")
    fails(capsys, ["sample", photo, "-o", photo / "out"], "can't be written")
    assert not fake_model.calls


def test_output_that_cannot_be_written(capsys, photo, fake_model):
    fails(capsys, ["sample", photo, "-o", "/proc/scenes"], "/proc", "can't be written")


def test_output_with_content_is_kept(capsys, tmp_path, photo, fake_model):
    out = tmp_path / "out"
    assert main(["sample", str(photo), "-o", str(out), "-n", "1"]) == 0
    before = (out / "run.json").read_text()
    capsys.readouterr()
    fails(capsys, ["sample", photo, "-o", out, "--seed", "7"], out, "--overwrite")
    assert (out / "run.json").read_text() == before
    assert main(["sample", str(photo), "-o", str(out), "-n", "2", "--seed", "7", "--overwrite"]) == 0
    assert json.loads((out / "run.json").read_text())["seed"] == 7
    assert left_in(tmp_path) == {"room.png", "out"}


def test_overwrite_spares_what_it_did_not_write(capsys, tmp_path, photo, fake_model):
    out = tmp_path / "holiday"
    out.mkdir()
    (out / "beach.jpg").touch()
    fails(capsys, ["sample", photo, "-o", out, "--overwrite"], out, "did not write")
    assert left_in(out) == {"beach.jpg"}


def test_an_empty_output_folder_is_used(tmp_path, photo, fake_model):
    out = tmp_path / "out"
    out.mkdir()
    assert main(["sample", str(photo), "-o", str(out), "-n", "1"]) == 0
    assert (out / "run.json").is_file()


# --- failures on the way -----------------------------------------------------------------------------


def test_nothing_is_left_of_an_interrupted_run(capsys, monkeypatch, tmp_path, photo, fake_model):
    def interrupted(scenes, baked, folder):
        assert (folder / "sample_00").is_dir()
        raise KeyboardInterrupt

    monkeypatch.setattr("scenediff.cli.sample.write_report", interrupted)
    assert main(["sample", str(photo), "-o", str(tmp_path / "a" / "out")]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert left_in(tmp_path) == {"room.png"}


def test_defects_keep_their_traceback_and_leave_nothing(monkeypatch, tmp_path, photo, fake_model):
    def broken(*args, **options):
        raise ValueError("a defect, not the user's fault")

    monkeypatch.setattr("scenediff.tools.outputs.write_scene_outputs", broken)
    with pytest.raises(ValueError, match="a defect"):
        main(["sample", str(photo), "-o", str(tmp_path / "out")])
    assert left_in(tmp_path) == {"room.png"}


def test_unusable_checkpoints(capsys, tmp_path, photo):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"format": "another program"}')
    later = tmp_path / "later"
    later.mkdir()
    (later / "config.json").write_text('{"format": "scenediff-rooms-999"}')
    (tmp_path / "empty").mkdir()
    before = left_in(tmp_path)
    for name in (tmp_path / "none", tmp_path / "empty", foreign, later, photo):
        fails(capsys, ["sample", photo, "-o", tmp_path / "out", "--checkpoint", name], name)
    fails(capsys, ["sample", photo, "-o", tmp_path / "out", "--checkpoint", "cars"], "cars")
    assert left_in(tmp_path) == before


def test_a_model_of_something_else(capsys, monkeypatch, tmp_path, photo):
    monkeypatch.setattr("scenediff.pipeline.load", lambda name, device: SimpleNamespace())
    for command in (["sample", photo, "-o", tmp_path / "out"], ["eval", "rooms"]):
        fails(capsys, [*command, "--checkpoint", "motion"], "motion samples no scenes")
    assert not (tmp_path / "out").exists()


# --- results -----------------------------------------------------------------------------------------


def test_run_json_tells_how_it_was_made(capsys, tmp_path, photo, fake_model):
    out = tmp_path / "out"
    options = ["-n", "2", "--steps", "3", "--seed", "5", "--fov", "70", "--device", "cpu"]
    assert main(["sample", str(photo), "-o", str(out), *options]) == 0
    record = json.loads((out / "run.json").read_text())
    assert record["photo"]["fov_source"] == "--fov"
    assert record["photo"]["original_size"] == [48, 64]
    assert (record["seed"], record["device"], record["checkpoint"]) == (5, "cpu", "rooms")
    assert [sample["seed"] for sample in record["samples"]] == [5, 6]
    assert record["samples"][1]["folder"] == "sample_01"
    assert record["samples"][1]["files"] == {"mesh": "mesh.glb"}
    assert record["samples"][1]["baked_psnr_db"] == 34.57
    assert set(record["versions"]) >= {"scenediff", "torch", "pytorch3d", "diffusers"}
    assert set(record["timings_seconds"]) == {
        "photos", "model", "sampling", "writing", "of it mesh", "report"}  # fmt: skip
    assert record["timings_seconds"]["of it mesh"] == 1.0  # of both samples
    assert (fake_model.calls[0]["num_samples"], fake_model.calls[0]["steps"]) == (2, 3)
    assert "from --fov" in capsys.readouterr().out


def test_only_the_timings_differ_between_equal_runs(tmp_path, photo, fake_model):
    records = []
    for name in ("a", "b"):
        assert main(["sample", str(photo), "-o", str(tmp_path / name)]) == 0
        record = json.loads((tmp_path / name / "run.json").read_text())
        record.pop("timings_seconds")
        records.append(record)
    assert records[0] == records[1]


def test_several_photos_get_a_folder_each(tmp_path, photo, fake_model):
    twin = tmp_path / "room.jpg"
    Image.new("RGB", (64, 48), "gray").save(twin)
    out = tmp_path / "out"
    command = ["sample", str(photo), str(twin), "-o", str(out), "-n", "1"]
    assert main(command) == 0
    assert left_in(out) == {"room", "room_2"}
    assert left_in(out / "room_2") == {"run.json", "contact_sheet.png", "sample_00"}
    assert is_run_folder(out)
    assert main([*command, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("options", "words"), [([], "the default"), (["--fov", "60"], "from --fov")]
)
def test_the_source_of_the_focal_length_is_told(capsys, tmp_path, photo, fake_model, options, words):
    assert main(["sample", str(photo), "-o", str(tmp_path / "out"), *options]) == 0
    assert words in capsys.readouterr().out


def test_names_of_folders():
    paths = [Path("a/x.jpg"), Path("b/x.png"), Path("y.jpg"), None]
    assert distinct_names(paths) == ["x", "x_2", "y", "photo"]


# --- other commands ----------------------------------------------------------------------------------


def test_scenes_that_cannot_be_read(capsys, tmp_path):
    (tmp_path / "text.safetensors").write_text("no scene")
    for scene in (tmp_path / "none.safetensors", tmp_path / "text.safetensors", tmp_path):
        fails(capsys, ["render", scene, "-o", tmp_path / "film.mp4"], scene)
        fails(capsys, ["export", scene, "-o", tmp_path / "out"], scene)
    assert left_in(tmp_path) == {"text.safetensors"}


def test_wrong_options_of_render_and_export(capsys, tmp_path):
    fails(capsys, ["render", "scene", "-o", tmp_path / "film.avi"], ".mp4")
    fails(capsys, ["render", "scene", "-o", tmp_path / "film.mp4", "--frames", "0"], "--frames")
    fails(capsys, ["export", "scene", "-o", tmp_path / "out", "--format", "stl"], "stl")
    (tmp_path / "film.mp4").touch()
    fails(capsys, ["render", "scene", "-o", tmp_path / "film.mp4"], "film.mp4", "--overwrite")


def test_assets_without_a_source(capsys, tmp_path):
    fails(capsys, ["data", "assets", tmp_path / "none.deb", "-o", tmp_path / "pack.zip"], "none.deb")
    fails(capsys, ["data", "assets", tmp_path, "-o", tmp_path / "pack.zip"], "no furniture library")
    assert left_in(tmp_path) == set()


def test_wrong_options_of_the_data_commands(capsys, tmp_path):
    out = tmp_path / "rooms"
    fails(capsys, ["data", "rooms", "-o", out, "--rooms", "0"], "--rooms")
    fails(capsys, ["data", "rooms", "-o", out, "--split", "test"], "--split", "test")
    fails(capsys, ["data", "rooms", "-o", out, "--pack", tmp_path / "none.zip"], "none.zip")
    assert left_in(tmp_path) == set()


def test_wrong_options_of_training(capsys, tmp_path, photo):
    run = tmp_path / "run"
    fails(capsys, ["train", "rooms", "-o", run, "--minutes", "0"], "--minutes")
    fails(capsys, ["train", "rooms", "-o", run, "--batch-size", "0"], "--batch-size")
    fails(capsys, ["train", "rooms", "-o", run, "--pool-warmup", "0"], "--pool-warmup")
    fails(capsys, ["train", "rooms", "-o", run, "--render-seconds", "-1"], "--render-seconds")
    fails(capsys, ["train", "rooms", "-o", run, "--photos", "-1"], "--photos")
    fails(capsys, ["train", "rooms", "-o", run, "--transformers", "-1"], "--transformers")
    fails(capsys, ["train", "rooms", "-o", run, "--coarse-photos", "1.5"], "--coarse-photos")
    fails(capsys, ["train", "rooms", "-o", run, "--cropped-photos", "-0.1"], "--cropped-photos", "-0.1")
    fails(capsys, ["train", "rooms", "-o", run, "--cropped-contexts", "2"], "--cropped-contexts", "2")
    without = ["--photos", "4", "--no-depth-supervision"]
    fails(capsys, ["train", "rooms", "-o", run, *without], "--photos", "--no-depth-supervision")
    fails(capsys, ["train", "rooms", "-o", run, "--size", "100"], "--size", "64")
    fails(capsys, ["train", "rooms", "-o", run, "--enlarging-minutes", "-1"], "--enlarging-minutes")
    small = ["--enlarging-minutes", "1", "--size", "64"]
    fails(capsys, ["train", "rooms", "-o", run, *small], "--size", "128")
    fails(capsys, ["train", "rooms", "-o", run, "--resume"], "--resume")
    fails(capsys, ["train", "rooms", "-o", tmp_path], tmp_path, "not empty")
    fails(capsys, ["train", "rooms", "-o", run, "--checkpoint", tmp_path / "none"], "none")
    assert left_in(tmp_path) == {"room.png"}


def test_training_gets_its_options_and_ends_with_one_line_of_json(capsys, monkeypatch, tmp_path):
    runs = []

    def train_rooms(run, device):
        runs.append(run)
        return {"steps": run.train.max_steps}

    monkeypatch.setattr("scenediff.tools.train_rooms.train_rooms", train_rooms)
    out = tmp_path / "run"
    options = ["--max-steps", "3", "--seed", "7", "--size", "192", "--render-seconds", "5"]
    options += ["--pool-warmup", "6", "--no-depth-supervision"]
    assert main(["train", "rooms", "-o", str(out), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"wrote {out / 'checkpoint'}"
    assert json.loads(lines[-1]) == {"steps": 3}
    (run,) = runs
    assert (run.output, run.train.max_steps, run.train.seed, run.data_seed) == (out, 3, 7, 7)
    assert (run.view_size, run.render_seconds, run.pool_warmup) == (192, 5, 6)
    assert not run.depth_supervision
    assert (run.denoiser.transformers, run.denoiser.tells_doubt) == (0, False)
    more = ["--photos", "4", "--coarse-photos", "0.2", "--cropped-photos", "0.3", "--transformers", "3"]
    more += ["--cropped-contexts", "0.1", "--perceptual", "0.004"]
    assert main(["train", "rooms", "-o", str(tmp_path / "other"), *more]) == 0
    assert (runs[1].depth_supervision, runs[1].draw.photos, run.draw.photos) == (True, 4, 0)
    assert (runs[1].draw.coarse_photos, runs[1].draw.cropped_photos) == (0.2, 0.3)
    assert (run.draw.cropped_photos, run.draw.cropped_contexts) == (0.25, 0)
    assert (runs[1].draw.cropped_contexts, runs[1].perceptual, run.perceptual) == (0.1, 0.004, 0)
    assert (runs[1].denoiser.transformers, runs[1].denoiser.tells_doubt) == (3, True)
    detail = ["--minutes", "0", "--enlarging-minutes", "2"]
    assert main(["train", "rooms", "-o", str(tmp_path / "detail"), *detail]) == 0
    assert (runs[2].train.minutes, runs[2].enlarging_minutes, run.enlarging_minutes) == (0, 2, 0)


def test_wrong_options_of_the_evaluations(capsys, tmp_path):
    fails(capsys, ["eval", "rooms", "--samples", "1"], "--samples", "2")
    fails(capsys, ["eval", "rooms", "--rooms", "1"], "--rooms", "2")
    fails(capsys, ["eval", "rooms", "--checkpoint", tmp_path / "none"], "none")
    fails(capsys, ["eval", "capture", tmp_path / "none"], "none")
    assert left_in(tmp_path) == set()


def test_an_evaluation_ends_with_one_line_of_json(capsys, monkeypatch, tmp_path, fake_model):
    def evaluate_rooms(pipeline, *, rooms, output, **options):
        (output / "metrics.json").write_text("{}")
        return {"rooms": rooms, "psnr": 20.5, "consistency": None}

    monkeypatch.setattr("scenediff.tools.evaluate.evaluate_rooms", evaluate_rooms)
    command = ["eval", "rooms", "--rooms", "3", "-o", str(tmp_path / "out")]
    assert main(command) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures == {"rooms": 3, "psnr": 20.5, "consistency": None}
    assert left_in(tmp_path / "out") == {"metrics.json"}
    assert main([*command, "--overwrite"]) == 0


def test_the_stereo_evaluation_has_defaults_of_its_own(capsys, monkeypatch, tmp_path, fake_model):
    given = {}

    def evaluate_stereo(pipeline, pair, **options):
        given.update(options)
        return {"depth_order": 0.8}

    monkeypatch.setattr("scenediff.datasets.stereo.motorcycle", lambda: None)
    monkeypatch.setattr("scenediff.tools.evaluate_stereo.evaluate_stereo", evaluate_stereo)
    assert main(["eval", "stereo", "--size", "256"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"depth_order": 0.8}
    assert (given["samples"], given["steps"], given["size"], given["output"]) == (4, 8, 256, None)

    def missing():
        raise ImportError("skimage")

    monkeypatch.setattr("scenediff.datasets.stereo.motorcycle", missing)
    fails(capsys, ["eval", "stereo"], "scikit-image")


# --- outputs that are there whole or not at all ------------------------------------------------------


def test_a_folder_takes_its_place_only_at_the_end(tmp_path):
    place = tmp_path / "a" / "b"
    with output_folder(place, overwrite=False, is_ours=lambda folder: False) as partial:
        (partial / "file").write_text("text")
        assert not place.exists()
        assert partial.parent == place.parent  # the same file system, so that renaming is all it takes
    assert (place / "file").read_text() == "text"
    assert left_in(place.parent) == {"b"}
    assert place.stat().st_mode & 0o777 == (tmp_path / "a").stat().st_mode & 0o777


def test_a_file_takes_its_place_only_at_the_end(tmp_path):
    place = tmp_path / "film.mp4"
    place.write_text("old")
    with pytest.raises(FileNotFoundError), output_file(place, overwrite=True) as partial:
        (partial / "missing").read_text()
    assert place.read_text() == "old"
    with output_file(place, overwrite=True) as partial:
        partial.write_text("new")
    assert place.read_text() == "new"
    assert left_in(tmp_path) == {"film.mp4"}
