"""The level at twice the resolution: what it begins as, the noise that it sees, and that it alone learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_networks import photos, shaken, target
from test_pool import box_groups
from tiny_pipeline import random_photo, tiny_pipeline
from torch.nn import functional

from scenediff.datasets.rooms.pool import DrawConfig, GroupPool
from scenediff.forward import Denoiser
from scenediff.networks.fine_denoiser import FineDenoiser, enlarged, finer_schedule, halved, keeping_means
from scenediff.networks.pixel_denoiser import without_rim
from scenediff.pipeline import ScenePipeline, load
from scenediff.renderers.pixel_field import FieldSignal
from scenediff.tools.train_fine_level import fine_draw, fine_step, with_fine_level
from scenediff.tools.train_rooms import RoomsRun, train_rooms
from scenediff.training import TrainConfig

WIDTH = 16


@pytest.fixture(scope="module")
def coarse() -> ScenePipeline:
    return tiny_pipeline()


def with_shaken_level(pipeline: ScenePipeline) -> ScenePipeline:
    torch.manual_seed(1)
    fine = with_fine_level(pipeline, WIDTH)
    shaken(fine.denoiser.get_submodule("fine"))
    return fine


@pytest.fixture(scope="module")
def fine(coarse: ScenePipeline) -> ScenePipeline:
    return with_shaken_level(coarse)


def inputs(batch: int = 2, size: tuple[int, int] = (32, 48)):
    torch.manual_seed(2)
    timesteps = torch.tensor([100, 900])[:batch]
    return photos(batch, size), target(batch, size), torch.randn(batch, 3, *size), timesteps


@torch.no_grad()
def new_and_coarse(pipeline: ScenePipeline) -> tuple[FieldSignal, FieldSignal]:
    """What an untrained level makes of some noise, and the coarse network of its means."""
    new, old = with_fine_level(pipeline, WIDTH).denoiser, pipeline.denoiser
    assert isinstance(new, FineDenoiser)
    assert isinstance(new, Denoiser)
    photo, view, noisy, timesteps = inputs()
    small = halved(view)
    means = functional.avg_pool2d(noisy, 2) * new.rescale[timesteps][:, None, None, None]
    return (
        new.denoise(noisy, timesteps, new.encode([photo], view), view),
        old.denoise(means, timesteps, old.encode([photo], small), small),
    )


def test_at_first_it_only_enlarges(coarse: ScenePipeline) -> None:
    signal, old = new_and_coarse(coarse)
    assert torch.equal(signal.views[0].log_depth, old.views[0].log_depth)  # the photo is read as before
    known, found = old.views[-1].features, signal.views[-1].features
    assert found.shape[-2:] == (32, 48)
    assert torch.allclose(found, without_rim(keeping_means(known)), atol=1e-5)


def test_where_nothing_is_kept_depth_and_image_are_enlarged_too() -> None:
    plain = tiny_pipeline()
    plain.denoiser.config = replace(plain.denoiser.config, keep=0.0)
    signal, old = new_and_coarse(plain)
    assert torch.allclose(signal.views[-1].log_depth, enlarged(old.views[-1].log_depth), atol=1e-5)
    assert torch.allclose(signal.views[-1].image, keeping_means(old.views[-1].image), atol=1e-5)


def test_means_are_as_noisy_as_the_coarse_network_knows(fine: ScenePipeline, coarse: ScenePipeline) -> None:
    """At every timestep means over blocks hold clean means and unit noise in the coarse schedule's shares."""
    torch.manual_seed(3)
    clean, noise = torch.randn(2, 1000, 3, 8, 8)
    timesteps = torch.arange(1000)
    noisy = fine.scheduler.add_noise(clean, noise, timesteps)
    means = functional.avg_pool2d(noisy, 2) * fine.denoiser.rescale[:, None, None, None]
    unit = 2 * functional.avg_pool2d(noise, 2)
    wanted = coarse.scheduler.add_noise(functional.avg_pool2d(clean, 2), unit, timesteps)
    assert torch.allclose(means, wanted, atol=1e-4)
    assert abs(unit.std().item() - 1) < 0.01


def test_the_finer_schedule_has_a_quarter_of_the_signal(coarse: ScenePipeline) -> None:
    old, new = (s.alphas_cumprod.double() for s in (coarse.scheduler, finer_schedule(coarse.scheduler)))
    # float32 holds the shares of noise of the first levels, 1 - alpha, to some 1e-3
    assert torch.allclose(4 * new / (1 - new), old / (1 - old), rtol=5e-3)


@torch.no_grad()
def test_noise_that_means_hide_has_an_effect(fine: ScenePipeline) -> None:
    photo, view, noisy, timesteps = inputs()
    context = fine.denoiser.encode([photo], view)
    hidden = torch.randn_like(noisy)
    hidden = hidden - functional.avg_pool2d(hidden, 2).repeat_interleave(2, -1).repeat_interleave(2, -2)
    one, other = (fine.denoiser.denoise(n, timesteps, context, view) for n in (noisy, noisy + hidden))
    assert not torch.allclose(one.views[-1].image, other.views[-1].image, atol=1e-3)


@pytest.mark.parametrize("size", [(96, 72), (72, 96), (200, 40)])
def test_photos_of_any_shape(fine: ScenePipeline, size: tuple[int, int]) -> None:
    (scene,) = fine(random_photo(*size), 1, steps=2)
    photo, target = scene.signal.views[0], scene.signal.views[-1]
    assert min(photo.features.shape[-2:]) == 16  # read as by the coarse model
    assert min(target.features.shape[-2:]) == 32
    assert all(side % 16 == 0 for side in target.features.shape[-2:])
    assert all(torch.isfinite(part).all() for part in (target.features, target.log_depth, target.image))


def test_a_checkpoint_keeps_it(fine: ScenePipeline, coarse: ScenePipeline, tmp_path: Path) -> None:
    fine.save(tmp_path)
    again = load(tmp_path)
    assert again.denoiser.config == fine.denoiser.config
    assert again.defaults.size == 2 * coarse.defaults.size
    assert torch.equal(again.scheduler.alphas_cumprod, fine.scheduler.alphas_cumprod)
    one, other = (pipeline(random_photo(), 1)[0].signal.views[-1] for pipeline in (fine, again))
    assert torch.allclose(one.log_depth, other.log_depth, atol=0.05)  # weights are kept in half precision
    back = again.without_fine_level()
    assert back.defaults == coarse.defaults
    assert torch.equal(back.scheduler.alphas_cumprod, coarse.scheduler.alphas_cumprod)
    assert back.denoiser.state_dict().keys() == coarse.denoiser.state_dict().keys()
    assert coarse.without_fine_level() is coarse
    twice = with_fine_level(back, learned=fine)
    for name, value in fine.denoiser.get_submodule("fine").state_dict().items():
        assert torch.equal(twice.denoiser.get_submodule("fine").state_dict()[name], value)


def test_it_rests_for_small_images(fine: ScenePipeline, coarse: ScenePipeline) -> None:
    photo, view = photos(2, (24, 24)), target(2, (16, 16))
    given = photo.image, photo.view.cameras, view.cameras
    assert coarse.for_images(500) is coarse
    assert [fine.for_images(side).defaults.size for side in (8, 16, 17, 32, 500)] == [16, 16, 32, 32, 32]
    one, other, whole = (
        pipeline.sample_views(*given, 1)[0].render(view.cameras, (16, 16)).image
        for pipeline in (fine.for_images(16), coarse, fine)
    )
    assert torch.equal(one, other)
    assert not torch.equal(one, whole)


def test_the_coarse_level_shares_its_weights(fine: ScenePipeline) -> None:
    own = fine.without_fine_level().denoiser.state_dict()
    whole = fine.denoiser.state_dict()
    assert all(value.data_ptr() == whole[name].data_ptr() for name, value in own.items())


def test_enlarged_maps_keep_their_means() -> None:
    torch.manual_seed(6)
    maps = torch.randn(2, 3, 7, 9)
    assert torch.allclose(functional.avg_pool2d(keeping_means(maps), 2), maps, atol=1e-6)
    slope = torch.arange(9.0).expand(1, 1, 7, 9)
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    assert torch.equal(keeping_means(slope)[inner], enlarged(slope)[inner])  # smooth maps stay smooth


def test_odd_views_are_refused() -> None:
    with pytest.raises(ValueError, match="sides must be even, got 31 x 48"):
        halved(target(1, (31, 48)))


def test_it_alone_learns(coarse: ScenePipeline, tmp_path: Path) -> None:
    torch.manual_seed(4)
    pool = GroupPool(4, "cpu", depth_size=16)  # depths of the coarse resolution
    pool.add(box_groups(4))
    run = RoomsRun(tmp_path, draw=DrawConfig(size=16, target_rays=64, novel_rays=64, photos=2))
    pipeline = with_shaken_level(coarse)
    step = fine_step(pipeline, run)
    generator = torch.Generator().manual_seed(0)
    batch = pool.draw(2, fine_draw(run.draw), generator)
    assert batch.target.image.shape[-1] == 32
    assert batch.truth.photos is None
    terms = step(batch, *step.draw(batch, 0.1, generator))
    sum(terms.values()).backward()
    assert {"target", "novel", "direct", "depth_sampled"} <= terms.keys()
    for name, parameter in pipeline.denoiser.named_parameters():
        assert (parameter.grad is not None) == name.startswith("fine."), name


def test_the_last_stage_of_a_run(
    coarse: ScenePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps the rest of the model, starts from what was learned of it before, and says what it did."""
    torch.manual_seed(5)
    rooms = box_groups(4)

    class Rendered:
        def __init__(self, pool, run):
            pool.add(rooms)

        wait = check = stop = lambda self, *_: None

    monkeypatch.setattr("scenediff.tools.train_rooms.BackgroundRenderer", Rendered)
    monkeypatch.setattr("scenediff.tools.train_rooms.render_groups", lambda *_: box_groups(2))
    coarse.save(tmp_path / "coarse")
    run = RoomsRun(
        tmp_path / "run", init=tmp_path / "coarse", fine_minutes=5, pool_groups=4, grid_rooms=1,
        validation_rooms=1, view_size=32, draw=DrawConfig(size=16, target_rays=32, novel_rays=32),
        denoiser=replace(coarse.denoiser.config, fine=WIDTH),
        train=TrainConfig(minutes=0, max_steps=2, batch_size=2, log_every=1),
    )
    figures = train_rooms(run, "cpu")
    assert figures["fine_steps"] == 2
    assert "steps" not in figures
    assert (tmp_path / "run" / "grid_fine_0000002.png").is_file()
    before, after = (load(tmp_path / name).denoiser.state_dict() for name in ("coarse", "run/checkpoint"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = replace(run, output=tmp_path / "again", init=tmp_path / "run" / "checkpoint")
    with pytest.raises(ValueError, match="fine_minutes must be positive"):
        train_rooms(replace(again, fine_minutes=0.0), "cpu")
    train_rooms(replace(again, fine_rate=0.0), "cpu")
    unchanged = load(tmp_path / "again" / "checkpoint").denoiser.state_dict()
    assert all(torch.allclose(after[name], unchanged[name], atol=1e-3) for name in after)
