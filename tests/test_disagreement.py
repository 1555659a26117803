"""Where samples disagree, at points of one of them."""

from __future__ import annotations

import pytest
import torch
from analytic_scene import ROOM_HIGH, AnalyticScene

from scenediff.renderers.baked import bake
from scenediff.tools.disagreement import disagreement, heat_colors
from scenediff.tools.report import COLOR_STD_SHOWN

SIZE = (72, 96)


def test_heat_of_points_in_closed_form() -> None:
    """Two samples differ by a tint where x < -0.5; a point behind the camera is seen by no view."""
    scenes = [AnalyticScene(photo_size=SIZE, tint=tint) for tint in (0.0, 0.3)]
    for scene in scenes:
        scene.target_cameras = []
    baked = [bake(scene, short_side=72) for scene in scenes]
    where = disagreement(scenes[0], baked, SIZE)
    assert len(where.cameras) == 1
    far = ROOM_HIGH[2].item()
    points = torch.tensor([[1.0, 0.3, far], [-1.2, 0.3, far], [0.0, 0.0, -0.5], [1.0, 0.3, 2.0]])
    heat = where.at(points, baked[0])
    tinted = baked[1].keys[0].color_at(points[1:2]) - baked[0].keys[0].color_at(points[1:2])
    expected = (tinted.square().mean() / 2).sqrt() / COLOR_STD_SHOWN
    assert heat[0] < 0.02
    assert heat[1].item() == pytest.approx(expected.item(), abs=0.05)
    assert heat[1] > 0.2
    assert heat[2:].tolist() == [1, 1]  # behind the camera; in the air before the wall
    for one in baked:
        one.close()


def test_colours_get_brighter() -> None:
    colors = heat_colors(torch.tensor([0.0, 0.5, 1.0]))
    assert colors.dtype == torch.uint8
    assert colors.float().mean(1).diff().min() > 20
