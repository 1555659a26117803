"""`scenediff motion`, `data video`, `train motion` and its evaluations: what they write, what they refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from test_cli import fails, left_in
from tiny_motion import NETWORK, moving_square, tiny_motion, write_clip
from tiny_pipeline import random_photo, tiny_pipeline
from torch.nn import functional

from scenediff.cli import main
from scenediff.datasets.images import load_photo
from scenediff.datasets.video import load_clips
from scenediff.motion_pipeline import Motion, load_motion
from scenediff.renderers.motion import MotionField
from scenediff.tools.flow_files import flow_colors, read_flo, read_kitti_png
from scenediff.tools.motion_outputs import write_swing
from scenediff.tools.video import to_pixels

SAMPLE_FILES = {"flow.flo", "flow_kitti.png", "flow.png", "motion.mp4"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_motion().save(folder)
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    random_photo(51, 41).save(path)
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """A folder with one clip, whose last fifth has motion too."""
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "square.avi", moving_square(30, (128, 140), side=24, step=5))
    return folder


def runs(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def last_json(capsys) -> dict:
    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(capsys.readouterr().out.splitlines()[-1], parse_constant=refuse)


# --- motion --------------------------------------------------------------------------------------


def test_what_it_writes(model, photo, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    runs("motion", photo, "-o", out, "-n", "2", "--checkpoint", model, "--frames", "6", "--seed", "3")
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"wrote {out}"]
    assert left_in(out) == {"run.json", "contact_sheet.png", "disagreement.png", "sample_00", "sample_01"}
    drawn = load_motion(model)(load_photo(photo), 2, seed=3)
    longest = max(float(motion.field.flow.norm(dim=1).max()) for motion in drawn)
    for index, motion in enumerate(drawn):
        folder = out / f"sample_{index:02d}"
        assert left_in(folder) == SAMPLE_FILES
        flow = read_flo(folder / "flow.flo")
        assert flow.shape == (2, 41, 51)
        assert torch.allclose(flow, motion.field.flow[0], atol=1e-5)
        coded, valid = read_kitti_png(folder / "flow_kitti.png")
        assert torch.equal(valid, motion.field.visible[0, 0] > 0.5)
        assert valid.float().mean() > 0.3
        assert (coded - flow)[:, valid].abs().max() <= 1 / 128 + 1e-4  # half of a 64th, float32
        colors = np.asarray(Image.open(folder / "flow.png")).astype(int)
        assert np.abs(colors - to_pixels(flow_colors(flow, longest))).max() <= 1
        check_film(folder / "motion.mp4", motion)
    with Image.open(out / "disagreement.png") as heat, Image.open(out / "contact_sheet.png") as sheet:
        assert heat.size == (51, 41)
        assert min(sheet.size) > 2 * 128


def check_film(path: Path, motion) -> None:
    """Six frames, 40 x 50: forward and back, from the photo and to the target."""
    frames = iio.imread(path, plugin="FFMPEG").astype(float)
    assert frames.shape == (6, 40, 50, 3)
    luma = np.array([0.299, 0.587, 0.114])  # colours have half the resolution
    shown = [to_pixels(motion.render(moment)[0, :, :40, :50]) @ luma for moment in (0.0, 0.25, 0.75, 1.0)]
    gray = frames @ luma
    for index, truth in enumerate((0, 1, 2, 3, 2, 1)):
        assert np.abs(gray[index] - shown[truth]).mean() < 4  # grey levels


def test_a_film_swings_to_the_target_and_back(tmp_path) -> None:
    """All of a noise picture goes eight pixels to the right."""
    coarse = torch.rand(1, 1, 6, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    picture = functional.interpolate(coarse, (48, 64), mode="bicubic").clamp(-1, 1).expand(1, 3, -1, -1)
    right = torch.zeros(1, 2, 48, 64)
    right[:, 0] = 8.0
    ones = torch.ones(1, 1, 48, 64)
    write_swing(Motion(picture, MotionField(-right, right, ones, 0 * ones), {}), tmp_path / "a.mp4", 4, 12)
    frames = iio.imread(tmp_path / "a.mp4", plugin="FFMPEG").astype(float).mean(-1)
    gray = to_pixels(picture[0]).mean(-1)
    for frame, shift in zip(frames, (0, 4, 8, 4), strict=True):
        assert np.abs(frame[:, 8:] - gray[:, 8 - shift : 64 - shift]).mean() < 4  # grey levels


def test_run_json(model, photo, tmp_path) -> None:
    out = tmp_path / "out"
    runs("motion", photo, "-o", out, "-n", "2", "--checkpoint", model, "--frames", "2", "--seed", "3",
         "--steps", "1", "--device", "cpu")  # fmt: skip
    record = json.loads((out / "run.json").read_text())
    assert record["photo"] == {"file": "photo.png", "size": [41, 51], "notices": []}
    assert record["checkpoint"] == str(model)
    assert (record["seed"], record["device"]) == (3, "cpu")
    assert record["samples"] == [
        {"folder": f"sample_{index:02d}", "flow": "flow.flo", "kitti": "flow_kitti.png", "colors": "flow.png",
         "video": "motion.mp4", "seed": 3 + index, "steps": 1, "scheduler": "ddim"}
        for index in range(2)
    ]  # fmt: skip
    assert set(record["timings_seconds"]) == {"model", "sampling", "writing"}
    assert "torch" in record["versions"]


def test_a_seed_has_its_bytes(model, photo, tmp_path) -> None:
    """Again and again; another seed has others."""
    for name, seed in (("one", 0), ("two", 0), ("other", 7)):
        runs("motion", photo, "-o", tmp_path / name, "-n", "2", "--checkpoint", model, "--frames", "4",
             "--seed", seed)  # fmt: skip
    one, two, other = (contents(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert len(one) == 2 * len(SAMPLE_FILES) + 2
    assert all(one[name] != other[name] for name in one)


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files but run.json, which has times."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "run.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_one_sample_can_not_disagree(model, photo, tmp_path) -> None:
    out = tmp_path / "out"
    runs("motion", photo, "-o", out, "-n", "1", "--checkpoint", model, "--frames", "2")
    assert left_in(out) == {"run.json", "contact_sheet.png", "sample_00"}


def test_small_grey_and_16_bit_photos(model, tmp_path, capsys) -> None:
    """They work, and what was done to them is told."""
    tiny_motion(size=64).save(tmp_path / "model")
    deep = np.asarray(random_photo(40, 33).convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    runs("motion", tmp_path / "deep.png", "-o", tmp_path / "out", "-n", "1", "--frames", "2", "--checkpoint",
         tmp_path / "model")  # fmt: skip
    text = capsys.readouterr().out
    assert "smaller than the model's 64 pixels: enlarged for it" in text
    assert "16 to 8 bits" in text
    assert read_flo(tmp_path / "out" / "sample_00" / "flow.flo").shape == (2, 33, 40)


def test_only_its_own_folders_are_replaced(model, photo, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    command = ["motion", photo, "-o", out, "-n", "1", "--checkpoint", model, "--frames", "2"]
    runs(*command)
    before = contents(out)
    fails(capsys, command, "not empty", "--overwrite")
    assert contents(out) == before
    runs(*command, "--overwrite", "--seed", "5")
    assert contents(out).keys() == before.keys()
    assert contents(out) != before
    (out / "notes.txt").write_text("mine")
    fails(capsys, [*command, "--overwrite"], "files that scenediff did not write")
    assert "notes.txt" in left_in(out)


def test_what_it_refuses(model, photo, tmp_path, capsys) -> None:
    """One clear line each, and nothing written."""
    random_photo(16, 16).save(tmp_path / "small.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "file").write_text("in the way")
    tiny_pipeline().save(tmp_path / "rooms")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text((model / "config.json").read_text())
    (tmp_path / "broken" / "weights.safetensors").write_bytes(b"cut")
    before = left_in(tmp_path)

    def refuses(words: list[object], *more: object, source: Path = photo) -> None:
        command = ["motion", source, "-o", tmp_path / "a" / "out", "-n", "1", "--checkpoint", model, *more]
        fails(capsys, command, *words)
        assert left_in(tmp_path) == before

    refuses(["absent.png", "does not exist"], source=tmp_path / "absent.png")
    refuses(["small.png", "16x16", "at least 32"], source=tmp_path / "small.png")
    refuses(["text.png", "no readable image"], source=tmp_path / "text.png")
    refuses(["is a folder"], source=tmp_path)
    refuses(["--num-samples", "at least 1", "got 0"], "-n", "0")
    refuses(["--steps", "at least 1", "got 0"], "--steps", "0")
    refuses(["--seed", "at least 0", "-1"], "--seed", "-1")
    refuses(["--frames", "at least 2", "got 1"], "--frames", "1")
    refuses(["rooms", "no motion model"], "--checkpoint", tmp_path / "rooms")
    refuses(["weights.safetensors", "not a readable"], "--checkpoint", tmp_path / "broken")
    refuses(["nowhere", "no such checkpoint"], "--checkpoint", tmp_path / "nowhere")
    refuses(["file", "is a file"], "-o", tmp_path / "file")


# --- data video ----------------------------------------------------------------------------------


def test_clips_in_one_file(clips, tmp_path, capsys) -> None:
    out = tmp_path / "clips.npz"
    runs("data", "video", clips, "-o", out, "--size", "64")
    assert capsys.readouterr().out.splitlines() == [f"wrote {out}: 30 frames of 1 clips"]
    (kept,), (read,) = load_clips(out, 64), load_clips(clips, 64)
    assert kept.name == "square.avi"
    assert np.array_equal(kept.frames, read.frames)
    fails(capsys, ["data", "video", clips, "-o", out], "exists", "--overwrite")
    runs("data", "video", clips / "square.avi", "-o", out, "--size", "32", "--overwrite")
    assert load_clips(out, 32)[0].frames.shape[1:3] == (32, 35)


def test_bad_clips(clips, tmp_path, capsys) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    write_clip(tmp_path / "one.avi", moving_square(1))
    (tmp_path / "none").mkdir()
    before = left_in(tmp_path)
    for source, words in (
        (tmp_path / "text.mp4", ["text.mp4", "no video that ffmpeg can read"]),
        (tmp_path / "one.avi", ["one.avi", "1 frame"]),
        (tmp_path / "none", ["none", "has no videos"]),
        (tmp_path / "absent", ["absent", "does not exist"]),
    ):
        fails(capsys, ["data", "video", source, "-o", tmp_path / "clips.npz"], *words)
        assert left_in(tmp_path) == before
    fails(capsys, ["data", "video", clips, "-o", tmp_path / "clips.zip"], "must end in .npz")
    fails(capsys, ["data", "video", clips, "-o", tmp_path / "a.npz", "--size", "16"], "--size", "at least 32")
    assert left_in(tmp_path) == before


# --- train motion --------------------------------------------------------------------------------


@pytest.fixture
def _fresh_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("_fresh_accelerator")
def test_training_on_sprites_and_going_on(model, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    command = ["train", "motion", "-o", out, "--batch-size", "2", "--minutes", "30"]
    runs(*command, "--checkpoint", model, "--max-steps", "2")
    figures = last_json(capsys)
    assert (figures["steps"], figures["elements"]) == (2, 4)
    assert {"checkpoint", "state", "grid_0000002.png", "train_config.json"} <= left_in(out)
    assert json.loads((out / "train_config.json").read_text())["context_dropout"] == 0
    trained, start = load_motion(out / "checkpoint"), load_motion(model)
    assert trained.defaults == start.defaults
    assert not torch.equal(trained.denoiser.head.weight, start.denoiser.head.weight)
    with Image.open(out / "grid_0000002.png") as grid:
        assert grid.size == (10 * 64, 8 * 64)  # context, target, and warp and flow of the mean and 3 samples

    fails(capsys, [*command, "--max-steps", "3"], "not empty")
    runs(*command, "--max-steps", "3", "--resume")  # the folder knows the model's sizes
    assert last_json(capsys)["steps"] == 3
    again = load_motion(out / "checkpoint")
    assert again.denoiser.config == NETWORK
    assert not torch.equal(again.denoiser.head.weight, trained.denoiser.head.weight)
    assert "grid_0000003.png" in left_in(out)


@pytest.mark.usefixtures("_fresh_accelerator")
def test_training_on_videos(model, clips, tmp_path, capsys) -> None:
    command = ["train", "motion", "-o", tmp_path / "run", "--videos", clips, "--batch-size", "4"]
    runs(*command, "--sprite-share", "0.25", "--max-steps", "1", "--checkpoint", model, "--minutes", "30")
    assert last_json(capsys)["steps"] == 1
    assert load_motion(tmp_path / "run" / "checkpoint").denoiser.config == NETWORK


def test_what_training_refuses(model, clips, tmp_path, capsys) -> None:
    still = tmp_path / "still.avi"
    write_clip(still, moving_square(1, (128, 128)).repeat(20, 0))
    before = left_in(tmp_path)

    def refuses(words: list[str], *more: object) -> None:
        fails(capsys, ["train", "motion", "-o", tmp_path / "run", *more], *words)
        assert left_in(tmp_path) == before

    refuses(["nothing moves"], "--videos", still)
    refuses(["absent", "does not exist"], "--videos", tmp_path / "absent")
    refuses(["no such checkpoint"], "--checkpoint", tmp_path / "absent")
    refuses(["--resume", "no interrupted run"], "--resume")
    refuses(["--batch-size", "at least 1"], "--batch-size", "0")
    refuses(["--minutes"], "--minutes", "0")
    refuses(["--sprite-share", "at most 1", "1.5"], "--sprite-share", "1.5")
    refuses(["--gaps", "(0, 2)"], "--gaps", "0", "2")
    refuses(["not empty"], "-o", clips)


# --- evaluations ---------------------------------------------------------------------------------


def test_the_posterior_command(model, tmp_path, capsys) -> None:
    out = tmp_path / "figures"
    command = ["eval", "motion-posterior", "--checkpoint", model, "--frames", "2", "-o", out]
    runs(*command, "--samples", "5")
    figures = last_json(capsys)
    assert set(figures) == {"samples", "size", "steps", "k4", "k8", "baseline"}
    assert (figures["samples"], figures["size"], figures["steps"]) == (5, 64, 2)
    keys = {
        "total_variation", "total_variation_worst_kind", "total_variation_of_perfect_sampler",
        "epe_nearest_mode_px", "modes_found", "modes",
    }  # fmt: skip
    for count in (4, 8):
        ours, baseline = figures[f"k{count}"], figures["baseline"][f"k{count}"]
        assert set(ours) == keys | {"background_resting_share"}
        assert set(baseline) == keys
        for found in (ours, baseline):
            assert found["modes"] == count
            assert 0 <= found["modes_found"] <= count
            assert 0 <= found["total_variation"] <= 1
            assert 2 < found["epe_nearest_mode_px"] < 8  # the model reaches 2 px of the step's 5
    assert json.loads((out / "metrics.json").read_text()) == figures
    rounds = range(3)  # 5 samples of 2 frames
    assert left_in(out) == {"metrics.json"} | {
        f"pictures_k{count}_{turn}.png" for count in (4, 8) for turn in rounds
    }
    fails(capsys, command, "not empty")
    runs(*command, "--overwrite", "--samples", "2", "--seed", "3")
    assert last_json(capsys)["k4"] != figures["k4"]


def test_the_video_command(model, clips, tmp_path, capsys) -> None:
    out = tmp_path / "figures"
    command = ["eval", "motion-video", clips, "--checkpoint", model, "--samples", "2", "--pairs", "3"]
    runs(*command, "--size", "64", "-o", out)
    figures = last_json(capsys)
    assert set(figures) == {
        "pairs", "samples", "size", "steps", "moving_pixels", "rms_moving",
        "still_pixels_moving_less_than_0.25_px", "still_pixels_deterministic",
    }  # fmt: skip
    assert (figures["pairs"], figures["samples"], figures["size"], figures["steps"]) == (3, 2, 64, 2)
    errors = figures["rms_moving"]
    baselines = {"identity", "deterministic", "deterministic_blend"}
    assert set(errors) == baselines | {"one_sample", "best_of_samples"}
    assert errors["best_of_samples"] <= errors["one_sample"]
    assert errors["identity"] > 24  # grey levels: what moves differs by at least so much
    assert 0.01 < figures["moving_pixels"] < 0.5
    assert left_in(out) == {"metrics.json", "pictures_video.png"}
    assert json.loads((out / "metrics.json").read_text()) == figures
    runs("data", "video", clips, "-o", tmp_path / "clips.npz")
    runs("eval", "motion-video", tmp_path / "clips.npz", *command[3:], "--size", "64")
    assert last_json(capsys) == figures


def test_what_evaluations_refuse(model, clips, tmp_path, capsys) -> None:
    write_clip(tmp_path / "short.avi", moving_square(5, (128, 128)))
    before = left_in(tmp_path)

    def refuses(words: list[str], *command: object) -> None:
        fails(capsys, ["eval", *command, "--checkpoint", model, "-o", tmp_path / "out"], *words)
        assert left_in(tmp_path) == before

    refuses(["--size", "multiple of 32", "40"], "motion-posterior", "--size", "40")
    refuses(["--samples", "at least 1"], "motion-posterior", "--samples", "0")
    refuses(["--frames", "at least 1"], "motion-posterior", "--frames", "0")
    refuses(["--steps", "at least 1"], "motion-posterior", "--steps", "0")
    refuses(["--size", "multiple of 8", "129"], "motion-video", clips, "--size", "129")
    refuses(["--pairs", "at least 1"], "motion-video", clips, "--pairs", "0")
    refuses(["absent", "does not exist"], "motion-video", tmp_path / "absent")
    refuses(["no clip is long enough", "test"], "motion-video", tmp_path / "short.avi")
    tiny_pipeline().save(tmp_path / "rooms")
    for command in (["motion-posterior"], ["motion-video", clips]):
        fails(capsys, ["eval", *command, "--checkpoint", tmp_path / "rooms"], "no motion model")


def test_help_names_what_the_folder_holds(capsys) -> None:
    runs("motion", "--help")
    text = re.sub(r"[^\w.]+", " ", capsys.readouterr().out)
    for name in (*SAMPLE_FILES, "disagreement.png", "run.json", "contact sheet"):
        assert name in text
