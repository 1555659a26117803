"""Sampled views with twice as many pixels: what it begins as, what it changes, and that it alone learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_networks import shaken
from test_pool import box_groups
from tiny_pipeline import random_photo, tiny_pipeline
from torch.nn import functional

from scenediff.datasets.rooms.pool import DrawConfig, GroupPool
from scenediff.networks.super_resolution import PatchDiscriminator, SuperResolution, enlarged
from scenediff.pipeline import ScenePipeline, load, rebuilt
from scenediff.scene import Scene
from scenediff.tools.train_rooms import RoomsRun, train_rooms
from scenediff.tools.train_super_resolution import Enlarging, blurred, enlarging_draw
from scenediff.training import TrainConfig, train

WIDTH = 8


@pytest.fixture(scope="module")
def plain() -> ScenePipeline:
    return tiny_pipeline()


@pytest.fixture(scope="module")
def larger(plain: ScenePipeline) -> ScenePipeline:
    torch.manual_seed(1)
    pipeline = rebuilt(plain, replace(plain.denoiser.config, super_resolution=WIDTH))
    pipeline.denoiser.super_resolution.load_state_dict(shaken(SuperResolution(WIDTH)).state_dict())
    return pipeline


def small_images(batch: int = 2, size: tuple[int, int] = (12, 20)) -> torch.Tensor:
    torch.manual_seed(2)
    return torch.rand(batch, 3, *size) * 2 - 1


def test_at_first_it_only_enlarges() -> None:
    small = small_images()
    image = SuperResolution(WIDTH)(small)
    assert image.shape == (2, 3, 24, 40)
    torch.testing.assert_close(image, enlarged(small))
    # pixels of a ramp lie where a renderer that looks up the small image finds them: no shift
    ramp = torch.arange(20.0).expand(1, 3, 12, 20)
    torch.testing.assert_close(functional.avg_pool2d(enlarged(ramp), 2)[..., 1:-1], ramp[..., 1:-1])


def test_sampled_views_are_enlarged_and_all_else_stays(plain: ScenePipeline, larger: ScenePipeline) -> None:
    photo = random_photo()
    (before,), (after,) = plain(photo, 1, seed=3), larger(photo, 1, seed=3)
    assert torch.equal(before.signal.views[0].image, after.signal.views[0].image)
    for old, new in zip(before.signal.views[1:], after.signal.views[1:], strict=True):
        assert new.image.shape[-2:] == tuple(2 * side for side in old.image.shape[-2:])
        torch.testing.assert_close(new.image, larger.denoiser.super_resolution(old.image))
        assert torch.equal(new.features, old.features)
        assert torch.equal(new.log_depth, old.log_depth)


def test_scene_files_keep_enlarged_views(larger: ScenePipeline, tmp_path: Path) -> None:
    (scene,) = larger(random_photo(), 1)
    scene.save(tmp_path / "scene.safetensors")
    again = Scene.load(tmp_path / "scene.safetensors")
    one, other = (each.render(scene.target_cameras[0], (24, 32)).image for each in (scene, again))
    torch.testing.assert_close(one, other, atol=5e-3, rtol=0)  # images are kept in half precision


def test_checkpoints_keep_it(larger: ScenePipeline, tmp_path: Path) -> None:
    larger.save(tmp_path)
    network = load(tmp_path).denoiser.super_resolution
    small = small_images()
    torch.testing.assert_close(
        network(small), larger.denoiser.super_resolution(small), atol=5e-3, rtol=0
    )  # weights are kept in half precision
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_discriminator_judges_patches_beside_what_they_come_from() -> None:
    torch.manual_seed(3)
    judge, small = PatchDiscriminator(WIDTH).eval(), small_images(size=(48, 48))
    image = enlarged(small)
    logits = judge(image, small)
    assert logits.shape == (2, 1, 12, 12)
    elsewhere = judge(image, small.flip(0))
    assert not torch.allclose(logits, elsewhere)
    changed = image.clone()
    changed[..., :2, :2] += 1  # a corner, out of the opposite corner's sight
    assert torch.equal(judge(changed, small)[..., -1, -1], logits[..., -1, -1])
    assert not torch.allclose(judge(changed, small)[..., 0, 0], logits[..., 0, 0])


def test_each_network_learns_by_its_own_terms() -> None:
    torch.manual_seed(4)
    objective = Enlarging(shaken(SuperResolution(WIDTH)), width=4)
    images = small_images(size=(16, 16))
    randoms = objective.draw(images, 0.1, torch.Generator().manual_seed(0))
    for names, network, other in (
        (("pixels", "adversarial"), objective.network, objective.discriminator),
        (("discriminator",), objective.discriminator, objective.network),
    ):
        objective.zero_grad()
        terms = objective(images, *randoms)
        sum(terms[name] for name in names).backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
        assert all(parameter.grad is None for parameter in other.parameters())


def test_blurred_images_keep_their_mean_and_lose_detail() -> None:
    point = torch.zeros(1, 3, 15, 15)
    point[..., 7, 7] = 1
    soft = blurred(point)
    torch.testing.assert_close(soft.sum((2, 3)), torch.ones(1, 3))
    x = torch.arange(15.0) - 7
    variance = (soft[0, 0].sum(0) * x.square()).sum()
    torch.testing.assert_close(variance, torch.tensor(4 / 3))  # each mean over 3 pixels adds 2/3
    torch.testing.assert_close(blurred(torch.ones(1, 3, 4, 4)), torch.ones(1, 3, 4, 4))


def test_it_learns_to_sharpen(tmp_path: Path) -> None:
    """Edges of random boxes, by pixels alone: soft images come nearer to the truth than plainly enlarged."""
    torch.manual_seed(5)
    objective = Enlarging(SuperResolution(WIDTH), adversarial=0.0, width=4)

    def boxes(generator: torch.Generator) -> torch.Tensor:
        corners = torch.rand(8, 3, 2, 1, 1, generator=generator) * 16
        y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
        return ((y > corners[:, :, 0]) & (x > corners[:, :, 1])).float() * 2 - 1

    config = TrainConfig(minutes=5, max_steps=150, batch_size=8, learning_rate=3e-3, warmup_steps=10)
    train(objective, boxes, config, tmp_path)
    truth = boxes(torch.Generator().manual_seed(9))
    small = functional.avg_pool2d(truth, 2)
    small = torch.lerp(small, blurred(small), 0.5)
    before, after = ((image - truth).abs().mean() for image in (enlarged(small), objective.network(small)))
    assert after < 0.85 * before  # 0.80 after so few steps


def test_the_last_stage_of_a_run(
    plain: ScenePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps the rest of the model, starts from what was learned of it before, and says what it did."""
    torch.manual_seed(6)
    rooms = box_groups(4)

    class Rendered:
        def __init__(self, pool, run):
            pool.add(rooms)

        wait = check = stop = lambda self, *_: None

    monkeypatch.setattr("scenediff.tools.train_rooms.BackgroundRenderer", Rendered)
    monkeypatch.setattr("scenediff.tools.train_rooms.render_groups", lambda *_: box_groups(2))
    plain.save(tmp_path / "plain")
    run = RoomsRun(
        tmp_path / "run", init=tmp_path / "plain", enlarging_minutes=5, pool_groups=4, grid_rooms=1,
        validation_rooms=1, view_size=32, draw=DrawConfig(size=16),
        train=TrainConfig(minutes=0, max_steps=2, batch_size=2, log_every=1),
    )  # fmt: skip
    figures = train_rooms(run, "cpu")
    assert figures["enlarging_steps"] == 2
    assert "steps" not in figures
    assert (tmp_path / "run" / "grid_enlarged.png").is_file()
    assert (tmp_path / "run" / "super_resolution" / "log.jsonl").is_file()
    before, after = (load(tmp_path / name).denoiser.state_dict() for name in ("plain", "run/checkpoint"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert after["super_resolution.head.weight"].abs().max() > 0
    again = replace(
        run, output=tmp_path / "again", init=tmp_path / "run" / "checkpoint",
        train=replace(run.train, learning_rate=0.0),
    )  # fmt: skip
    train_rooms(again, "cpu")
    unchanged = load(tmp_path / "again" / "checkpoint").denoiser.state_dict()
    assert all(torch.allclose(after[name], unchanged[name], atol=1e-3) for name in after)


def test_its_batches_hold_targets_of_twice_the_size() -> None:
    torch.manual_seed(7)
    pool = GroupPool(4, "cpu", depth_size=16)
    pool.add(box_groups(4))
    draw = enlarging_draw(DrawConfig(size=16, photos=2, cropped_contexts=0.5))
    batch = pool.draw(2, draw, torch.Generator().manual_seed(0))
    assert batch.target.image.shape == (2, 3, 32, 32)
    assert batch.truth.photos is None
