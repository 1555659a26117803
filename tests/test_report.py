"""Depth files, colours, disagreement and contact sheets; and a scene's whole folder."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from analytic_scene import AnalyticScene
from PIL import Image

from scenediff.renderers.baked import bake
from scenediff.tools.outputs import ALL_OUTPUTS, OutputOptions, write_scene_outputs
from scenediff.tools.report import (
    Panel,
    color_depth,
    contact_sheet,
    load_depth_png,
    overlay,
    ramp_colors,
    sample_row,
    save_depth_png,
    uncertainty_map,
    uncertainty_panels,
)

SIZE = (48, 64)


def test_depth_png_round_trip(tmp_path: Path) -> None:
    depth = torch.tensor([[0.3, 1.2344, 65.535], [100.0, 0.0, float("nan")], [float("inf"), 0.0001, 12.0]])
    save_depth_png(depth, tmp_path / "depth.png")
    with Image.open(tmp_path / "depth.png") as image:
        assert image.mode == "I;16"
    expected = torch.tensor([[0.3, 1.234, 65.535], [65.535, 0.0, 0.0], [0.0, 0.001, 12.0]])
    assert torch.allclose(load_depth_png(tmp_path / "depth.png"), expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"height, width.*\(1, 3, 3\)"):
        save_depth_png(depth[None], tmp_path / "depth.png")


def test_ramp_gets_brighter_all_the_way() -> None:
    brightness = ramp_colors(torch.linspace(0, 1, 64)).mul(torch.tensor([[0.3], [0.6], [0.1]])).sum(0)
    assert (brightness.diff() > 0).all()
    assert torch.equal(ramp_colors(torch.tensor([2.0])), ramp_colors(torch.tensor([1.0])))


def test_near_is_brighter_than_far_in_depth_pictures() -> None:
    picture = color_depth(torch.tensor([[1.0, 2.0, 4.0]]), near=1.0, far=4.0)
    assert torch.allclose(picture[:, 0, 1], ramp_colors(torch.tensor(0.5)), atol=1e-4)  # steps of log-depth
    assert picture[:, 0, 0].mean() > picture[:, 0, 2].mean()


def test_uncertainty_is_the_standard_deviation_where_samples_differ() -> None:
    scenes = [AnalyticScene(photo_size=SIZE, tint=tint) for tint in (0.0, 0.2)]
    result = uncertainty_map(scenes, scenes[0].photo_cameras, SIZE)
    first, second = (scene.render(scene.photo_cameras, SIZE).image[0] for scene in scenes)
    expected = ((first - second).square().mean(0) / 2).sqrt()  # the variance of two values
    assert torch.allclose(result.color_std, expected, atol=1e-6)
    assert result.color_std[:, :20].max() == 0  # the left is not tinted
    assert math.isclose(result.color_std[:, -5:].max().item(), 0.2 / math.sqrt(2), rel_tol=1e-3)
    assert result.depth_std.max() == 0
    with pytest.raises(ValueError, match="at least two"):
        uncertainty_map(scenes[:1], scenes[0].photo_cameras, SIZE)


def test_overlay_is_grey_where_nothing_differs() -> None:
    image, heat = torch.rand(3, 4, 4) * 2 - 1, torch.zeros(4, 4)
    heat[0, 0] = 1
    drawn = overlay(image, heat)
    assert torch.allclose(drawn[:, 0, 0], ramp_colors(torch.tensor(1.0)), atol=1e-5)
    saturation = drawn.amax(0) - drawn.amin(0)
    assert saturation[1:].max() < 0.15 < saturation[0, 0]


def test_contact_sheet_shows_photo_rows_and_header(tmp_path: Path) -> None:
    scenes = [AnalyticScene(photo_size=SIZE, tint=tint) for tint in (0.0, 0.3)]
    baked = [bake(scene, short_side=48) for scene in scenes]
    pairs = zip(scenes, baked, strict=True)
    rows = [sample_row(scene, b, SIZE, f"sample {k}") for k, (scene, b) in enumerate(pairs)]
    header = uncertainty_panels(scenes[0], baked, SIZE)
    sheet = contact_sheet(scenes[0].photo, rows, header)
    assert [panel.label.split(":")[0] for panel in rows[1]][:3] == ["sample 1", "half-way", "target view 1"]
    assert sheet.size == (8 + 4 * 72, 8 + 3 * 74)
    photo = np.asarray(sheet)[8 + 18 : 8 + 18 + 48, 8 : 8 + 64]
    assert np.abs(photo - ((scenes[0].photo[0].permute(1, 2, 0) + 1) * 127.5).numpy()).max() <= 1
    assert len(header) == 3
    assert uncertainty_panels(scenes[0], baked[:1], SIZE) == []
    with pytest.raises(ValueError, match="'wrong' must be 48 x 64, got"):
        contact_sheet(scenes[0].photo, rows, [Panel("wrong", torch.zeros(3, 4, 4))])
    for b in baked:
        b.close()


def test_a_scenes_folder(tmp_path: Path) -> None:
    scene, stages = AnalyticScene(photo_size=(96, 128)), []
    options = OutputOptions(short_side=64, frames=4)
    result = write_scene_outputs(scene, tmp_path / "new" / "scene", options=options, progress=stages.append)
    assert set(result.files) == set(ALL_OUTPUTS)
    assert all(path.stat().st_size > 0 for path in result.files.values())
    assert set(result.seconds) == {"bake", "measure", *ALL_OUTPUTS}
    assert result.baked_psnr is not None
    assert result.baked_psnr > 25
    assert stages[0] == "bake: view 1/3"
    assert stages[-1] == "video 4/4"
    depth = load_depth_png(result.files["depth"])
    truth = scene.render(scene.photo_cameras, (64, 86)).depth[0, 0]
    assert torch.allclose(depth, truth, atol=0.0006)  # half a millimetre of rounding
    again = write_scene_outputs(scene, tmp_path / "again", options=options)
    for name in ALL_OUTPUTS:
        assert again.files[name].read_bytes() == result.files[name].read_bytes(), name
    result.baked.close()
    again.baked.close()


def test_only_the_wanted_files(tmp_path: Path) -> None:
    scene = AnalyticScene(photo_size=(48, 64))
    with bake(scene, short_side=48) as baked:
        options = OutputOptions(measure=False)
        result = write_scene_outputs(scene, tmp_path, outputs=["depth"], options=options, baked=baked)
        assert [path.name for path in tmp_path.iterdir()] == ["depth.png"]
        assert result.baked_psnr is None
        with pytest.raises(ValueError, match=r"outputs must be among .*, got splats"):
            write_scene_outputs(scene, tmp_path, outputs=["splats"], baked=baked)  # type: ignore[list-item]
