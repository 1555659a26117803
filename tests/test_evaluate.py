"""Evaluation with pipelines whose figures are known: one returns the truth, one copies the photo."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch3d.renderer import PerspectiveCameras

from scenediff.datasets.captures import CaptureError
from scenediff.renderers.cameras import perspective_cameras, pytorch3d_to_opengl
from scenediff.renderers.depth_maps import camera_centers, unproject
from scenediff.tools import evaluate
from scenediff.tools.comparison import depth_picture
from scenediff.tools.evaluate import evaluate_capture, evaluate_rooms
from scenediff.tools.metrics import EfficientNetLite0, psnr, warp_by_depth
from scenediff.tools.trials import Sampling, room_trials

REAL = Path(
    os.environ.get("SCENEDIFF_CAPTURE_DIR", Path(__file__).parents[1] / ".." / "shared" / "real_capture")
)
SIZE = 32
CAPTURE_KEYS = {
    "pairs", "psnr_sample", "psnr_best_of_8", "psnr_mean_of_8", "psnr_copy", "psnr_mean_colour",
    "psnr_plane_warp", "psnr_true_depth_warp", "psnr_deterministic", "perceptual_sample",
    "perceptual_plane_warp", "perceptual_deterministic", "perceptual_true_depth_warp", "depth_median_rel",
    "depth_median_rel_scaled", "depth_constant_scaled",
}  # fmt: skip


def wall(cameras: PerspectiveCameras, size: tuple[int, int]) -> SimpleNamespace:
    """What cameras see of a slanted wall, z = 3 + x / 2 in the photo's world, painted with waves."""
    origin = camera_centers(cameras)[:, None, None]
    ray = unproject(torch.ones(len(cameras.R), 1, *size), cameras) - origin
    depth = (3 + origin[..., 0] / 2 - origin[..., 2]) / (ray[..., 2] - ray[..., 0] / 2)
    x, y, _ = (origin + depth[..., None] * ray).unbind(-1)
    image = torch.stack([(3 * x).sin(), (3 * y).cos(), (2 * x + y).sin()], dim=1) * 0.8
    return SimpleNamespace(image=image, depth=depth[:, None])


@dataclass
class Scenes:
    """Fields of a batch; `change` alters what the wall looks like."""

    change: object

    def render(self, cameras: PerspectiveCameras, size: tuple[int, int]) -> SimpleNamespace:
        return self.change(wall(cameras, size))


class TruePipeline:
    """Knows the wall; `noise` is the deviation of what it adds, `depth_scale` its depth's error."""

    device = "cpu"

    def __init__(self, noise: float = 0.0, depth_scale: float = 1.0) -> None:
        self.noise, self.depth_scale, self.calls = noise, depth_scale, []

    def change(self, seed: int):
        def changed(shown: SimpleNamespace) -> SimpleNamespace:
            noise = torch.randn(shown.image.shape, generator=torch.Generator().manual_seed(seed))
            image = shown.image + self.noise * noise
            return SimpleNamespace(image=image, depth=shown.depth * self.depth_scale)

        return changed

    def sample_views(self, image, cameras, targets, num_samples, *, steps, guidance_scale, seed):
        assert torch.allclose(cameras.R, torch.eye(3), atol=1e-5)
        self.calls.append((len(image), steps, seed))
        time.sleep(0.002)  # or it would round to no time at all
        return [Scenes(self.change(seed + index)) for index in range(num_samples)]

    def deterministic(self, image, cameras):
        return Scenes(lambda shown: SimpleNamespace(image=shown.image * 0, depth=shown.depth))


class CopyingPipeline(TruePipeline):
    """Shows the photo from everywhere, at a constant depth."""

    def sample_views(self, image, cameras, targets, num_samples, *, steps, guidance_scale, seed):
        copies = SimpleNamespace(image=image, depth=torch.full_like(image[:, :1], 3.0))
        return [Scenes(lambda shown: copies)] * num_samples


def groups(seed: int, count: int, size: int, *, split: str, views: int) -> SimpleNamespace:
    """Rooms with the wall, in worlds that are not the photo's camera, as the stream of rooms gives them."""
    assert (split, views) == ("heldout", 3)
    rng = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(count, 3, 3, generator=rng)).Q
    turn = turn * torch.det(turn)[:, None, None]
    move = torch.randn(count, 3, generator=rng)
    names = ("images", "depths", "rotation", "translation", "focal_length", "principal")
    parts: dict[str, list] = {name: [] for name in names}
    for shift, angle in ((0.0, 0.0), (0.6, 0.1), (-0.5, -0.2)):
        cos, sin = math.cos(angle), math.sin(angle)
        rotation = torch.tensor([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]).expand(count, 3, 3)
        translation = torch.tensor([shift, 0.1 * shift, 0.0]).expand(count, 3)
        focal, principal = torch.full((count,), 1.3), torch.tensor([0.05, -0.1]).expand(count, 2)
        shown = wall(perspective_cameras(rotation, translation, focal, principal), (size, size))
        # x_photo = x_world turn + move
        values = (
            ((shown.image.permute(0, 2, 3, 1) + 1) * 127.5).round().byte(), shown.depth[:, 0],
            turn @ rotation, (move[:, None] @ rotation)[:, 0] + translation, focal, principal,
        )  # fmt: skip
        for name, value in zip(names, values, strict=True):
            parts[name].append(value)
    return SimpleNamespace(**{name: torch.stack(values, dim=1).numpy() for name, values in parts.items()})


@pytest.fixture(autouse=True)
def _small_network(monkeypatch):
    """The feature network on 32 pixels a side: a sixteenth of the work."""
    monkeypatch.setattr(evaluate, "EfficientNetLite0", partial(EfficientNetLite0, side=32))


@pytest.fixture
def _fake_rooms(monkeypatch):
    monkeypatch.setitem(
        sys.modules, "scenediff.datasets.rooms.stream", SimpleNamespace(render_groups=groups)
    )


@pytest.mark.usefixtures("_fake_rooms")
def test_room_trials_live_in_the_photos_world():
    trials = room_trials(0, 3, SIZE)
    torch.testing.assert_close(trials.photo.cameras.R, torch.eye(3).expand(3, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(trials.photo.cameras.T, torch.zeros(3, 3), atol=1e-5, rtol=0)
    for views in (trials.photo, trials.target, trials.novel):
        shown = wall(views.cameras, (SIZE, SIZE))
        torch.testing.assert_close(views.depth, shown.depth, atol=1e-3, rtol=0)
        torch.testing.assert_close(views.image, shown.image, atol=6e-3, rtol=0)  # 8 bits
    assert 0.05 < 1 - trials.visible().float().mean() < 0.6


@pytest.mark.usefixtures("_fake_rooms")
def test_the_truth_gets_the_best_figures(tmp_path):
    pipeline = TruePipeline()
    figures = evaluate_rooms(
        pipeline, rooms=5, size=SIZE, steps=3, samples=2, output=tmp_path, chunk=2, sharp_rooms=1
    )
    # rounding to 8 bits: a uniform error of 1 / 255 has a deviation of 1 / 255 / sqrt(12), 58.9 dB
    for name in ("psnr_sample", "psnr_best_of_2", "psnr_mean_of_2", "psnr_sample_unseen", "psnr_photo_view"):
        assert figures[name] == pytest.approx(58.9, abs=0.5)
    assert figures["photo_view_384"] == pytest.approx(58.9, abs=0.5)
    assert figures["depth_median_rel"] < 1e-4
    assert figures["std_seen"] < 1e-3
    assert figures["sharpness_ratio_unseen"] == pytest.approx(1, abs=0.02)
    assert figures["sharpness_ratio_unseen_deterministic"] == 0  # a grey image
    assert figures["psnr_deterministic"] < 15
    assert figures["consistency_own"] > 30  # interpolation of the moved pixels
    assert figures["depth_reprojected"] < 1e-3
    assert figures["frechet_sample"] < 0.05 * figures["frechet_deterministic"]
    assert figures["kernel_sample"] < figures["kernel_deterministic"]
    assert (figures["rooms"], figures["images"]) == (5, 5)
    assert figures["seconds_per_sample"] > 0
    assert json.loads((tmp_path / "metrics.json").read_text()) == figures
    assert Image.open(tmp_path / "pictures_00.png").height == 5 * 2 * SIZE + 14
    # 5 rooms in chunks of 2, 2 samples each, then the one sharp room; no seed is used twice
    assert [count for count, _, _ in pipeline.calls[:6]] == [2, 2, 2, 2, 1, 1]
    assert len({seed for _, _, seed in pipeline.calls[:6]}) == 6
    assert {steps for _, steps, _ in pipeline.calls} == {3}


@pytest.mark.usefixtures("_fake_rooms")
def test_noise_shows_in_the_figures_it_should(monkeypatch):
    noisy = TruePipeline(noise=0.1, depth_scale=1.25)
    figures = evaluate_rooms(noisy, rooms=4, size=SIZE, steps=1, samples=4, sharp_rooms=0)
    expected = -20 * math.log10(0.05)  # 0.1 in [-1, 1] is 0.05 on the [0, 1] scale
    assert figures["psnr_sample"] == pytest.approx(expected, abs=0.1)
    assert figures["psnr_mean_of_4"] == pytest.approx(expected + 10 * math.log10(4), abs=0.2)
    assert figures["psnr_sample"] < figures["psnr_best_of_4"] < figures["psnr_mean_of_4"]
    # the deviation estimated from 4 normal numbers is 0.921 of the true one on average
    assert figures["std_seen"] == pytest.approx(0.921 * 0.1 * 127.5, rel=0.03)
    assert figures["std_unseen_over_seen"] == pytest.approx(1, abs=0.05)
    assert figures["depth_median_rel"] == pytest.approx(0.25, abs=1e-3)
    assert figures["depth_reprojected"] > 0.01  # a wall 1.25 times as far away in every view is no one wall
    assert "photo_view_384" not in figures


@pytest.mark.usefixtures("_fake_rooms")
def test_a_copy_scores_as_copying():
    figures = evaluate_rooms(CopyingPipeline(), rooms=3, size=SIZE, steps=1, samples=2, sharp_rooms=0)
    for suffix in ("", "_visible", "_unseen"):
        assert figures[f"psnr_sample{suffix}"] == figures[f"psnr_copy{suffix}"]
    assert figures["psnr_photo_view"] == 100
    assert figures["psnr_copy"] < 20
    assert figures["depth_median_rel"] > 0.05
    assert figures["std_unseen_over_seen"] is None  # nothing varies: 0 / 0 is no figure


def write_capture(folder: Path) -> Path:
    """The wall as a capture: 48x32 images, depth of half their size with a hole, two pairs."""
    frames = []
    for number, shift in ((3, 0.0), (5, 0.4), (9, -0.3)):
        rotation, translation = torch.eye(3)[None], torch.tensor([[shift, 0.0, 0.0]])
        camera = perspective_cameras(rotation, translation, torch.tensor([1.5]))
        shown, coarse = wall(camera, (SIZE, 48)), wall(camera, (SIZE // 2, 24))
        pixels = ((shown.image[0].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
        Image.fromarray(pixels).save(folder / f"{number:04d}.png")
        depth = (coarse.depth[0, 0] * 1000).round().numpy().astype(np.uint16)
        depth[:4, :10] = 0
        Image.fromarray(depth).save(folder / f"depth{number}.png")
        frames.append({
            "file_path": f"{number:04d}.png",
            "depth_file_path": f"depth{number}.png",
            "transform_matrix": pytorch3d_to_opengl(camera)[0].tolist(),
        })
    focal = 1.5 * SIZE / 2
    document = {"w": 48, "h": SIZE, "fl_x": focal, "fl_y": focal, "cx": 24, "cy": SIZE / 2, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(document))
    pairs = [{"context": 3, "target": 5}, {"context": 3, "target": 9}]  # the first frame's is the world
    (folder / "pairs.json").write_text(json.dumps(pairs))
    return folder


def test_capture_figures_of_the_truth_and_of_its_keys(tmp_path):
    folder = write_capture(tmp_path)
    figures = evaluate_capture(
        TruePipeline(depth_scale=0.5), folder, size=SIZE, steps=1, samples=8, output=tmp_path / "out"
    )
    assert set(figures) == CAPTURE_KEYS
    assert figures["pairs"] == 2
    assert figures["psnr_sample"] == pytest.approx(58.9, abs=0.5)
    assert figures["perceptual_sample"] < 0.1 * figures["perceptual_plane_warp"]
    assert figures["depth_median_rel"] == pytest.approx(0.5, abs=0.02)  # depth has half the resolution
    assert figures["depth_median_rel_scaled"] < 0.02 < figures["depth_constant_scaled"]
    assert figures["psnr_copy"] < figures["psnr_true_depth_warp"]
    assert figures["psnr_plane_warp"] < figures["psnr_true_depth_warp"]
    assert (tmp_path / "out" / "metrics.json").exists()


def test_captures_without_pairs_or_depth_are_refused(tmp_path):
    folder = write_capture(tmp_path)
    document = json.loads((folder / "transforms.json").read_text())
    del document["frames"][1]["depth_file_path"]
    (folder / "transforms.json").write_text(json.dumps(document))
    with pytest.raises(CaptureError, match="depth"):
        evaluate_capture(TruePipeline(), folder)
    (folder / "pairs.json").write_text("[]")
    with pytest.raises(CaptureError, match="pair"):
        evaluate_capture(TruePipeline(), folder)


def test_one_sample_has_no_spread_and_one_room_no_distribution():
    with pytest.raises(ValueError, match="samples"):
        Sampling(samples=1)
    with pytest.raises(ValueError, match="rooms"):
        evaluate_rooms(TruePipeline(), rooms=1)


def test_depth_pictures_are_bright_where_near():
    depth = torch.tensor([1.0, 2.0, 4.0, 0.0]).view(1, 1, 1, 4)
    picture = depth_picture(depth, torch.tensor([1.0]), torch.tensor([4.0]))[0, 0, 0]
    torch.testing.assert_close(picture, torch.tensor([1.0, 0.1, -0.8, -1.0]))


@pytest.mark.slow
def test_rendered_rooms_agree_with_their_depth_and_cameras():
    """Moved by true depth, the photo must show the target where both see the same surface, and only there."""
    trials = room_trials(0, 3, 64)
    photo, target, visible = trials.photo, trials.target, trials.visible()
    moved = warp_by_depth(photo.image, photo.cameras, target.depth, target.cameras)
    seen, unseen = psnr(moved, target.image, visible), psnr(moved, target.image, ~visible)
    assert seen.mean() > 26  # reflections and resampling of textures limit it
    assert (seen > unseen + 8).all()


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "pairs.json").exists(), reason="the real capture is not here")
def test_baselines_of_the_real_capture():
    """Copying and the baselines as measured independently at 64 pixels, to 0.1 dB."""
    figures = evaluate_capture(CopyingPipeline(), REAL, steps=1)
    assert figures["pairs"] == 40
    assert figures["psnr_sample"] == figures["psnr_copy"] == pytest.approx(10.0, abs=0.1)
    assert figures["psnr_mean_colour"] == pytest.approx(11.7, abs=0.1)
    assert figures["psnr_plane_warp"] == pytest.approx(13.4, abs=0.1)
    assert figures["psnr_true_depth_warp"] == pytest.approx(14.0, abs=0.1)
    assert figures["depth_median_rel_scaled"] == figures["depth_constant_scaled"]  # its depth is constant
