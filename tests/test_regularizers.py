"""Terms on the rays of the densely integrated field: closed forms, and their place in the objective."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler
from tiny_dit import FIELD, SIZE, random_context, random_view, tiny_dit
from torch import Tensor

from scenediff.forward import EncodedContext, Observation
from scenediff.losses import TrainingBatch, forward_model_loss
from scenediff.networks.regularizers import (
    DepthSmoothness,
    Distortion,
    KeptRenderings,
    edge_aware_smoothness,
)
from scenediff.pipeline import DEFAULT_SCHEDULE
from scenediff.renderers.volume_rays import fixed_uniform

SIDE = 4
RAYS = {"features": False, "distortion": True}


def patch(image: Tensor | None = None) -> Observation:
    """A square patch of a random view."""
    rows, columns = torch.meshgrid(torch.arange(SIDE) + 3, torch.arange(SIDE) + 5, indexing="ij")
    pixels = torch.stack([rows, columns], dim=-1).view(1, -1, 2).expand(2, -1, -1)
    seen = torch.rand(2, 3, SIDE * SIDE, 1) * 2 - 1 if image is None else image
    return Observation(seen, replace(random_view(), pixels=pixels))


def batch_of(novel: bool = True) -> TrainingBatch:
    context = random_context()
    target = Observation(torch.rand(2, 3, *SIZE) * 2 - 1, random_view())
    return TrainingBatch(context, target, scored_target=patch(), novel=patch() if novel else None)


def terms_of(batch: TrainingBatch, rendered: KeptRenderings, regularizers: list) -> dict[str, Tensor]:
    denoiser = tiny_dit()
    rendered.renderer = denoiser.renderer
    denoiser.renderer.uniform = fixed_uniform
    noise = torch.randn(batch.target.image.shape, generator=torch.Generator().manual_seed(1))
    terms = forward_model_loss(
        denoiser, rendered, DDPMScheduler(**DEFAULT_SCHEDULE), batch, torch.tensor([100, 700]), noise,
        regularizers=regularizers,
    )
    torch.stack(list(terms.values())).sum().backward()
    gradient = denoiser.renderer.fine.output.weight.grad
    assert gradient is not None
    return {**terms, "gradient": gradient}


def test_the_objective_takes_both_terms_and_is_otherwise_the_same() -> None:
    torch.manual_seed(0)
    batch, rendered = batch_of(), KeptRenderings(tiny_dit().renderer, **RAYS)
    alone = terms_of(batch, rendered, [])
    both = terms_of(batch, rendered, [Distortion(rendered, 0.1), DepthSmoothness(rendered, 0.1)])
    for name in ("target", "novel", "deterministic"):
        assert torch.equal(alone[name], both[name]), name
    assert both["distortion"] > 0
    assert both["depth_smoothness"] > 0
    assert (both["gradient"] - alone["gradient"]).abs().max() > 1e-6
    heavier = terms_of(batch, rendered, [Distortion(rendered, 0.2), DepthSmoothness(rendered, 0.2)])
    for name in ("distortion", "depth_smoothness"):
        assert torch.allclose(heavier[name], 2 * both[name])


def test_terms_are_means_over_the_scored_views() -> None:
    torch.manual_seed(0)
    rendered = KeptRenderings(tiny_dit().renderer, **RAYS)
    terms = [Distortion(rendered, 1.0), DepthSmoothness(rendered, 1.0)]
    pair = batch_of()
    found = terms_of(pair, rendered, terms)
    assert pair.novel is not None
    halves = [terms_of(replace(pair, novel=None), rendered, terms)]
    halves.append(terms_of(replace(pair, scored_target=pair.novel, novel=None), rendered, terms))
    for name in ("distortion", "depth_smoothness"):
        expected = (halves[0][name] + halves[1][name]) / 2
        assert torch.allclose(found[name], expected, rtol=1e-4), name


def test_an_opaque_wall_is_not_distorted() -> None:
    torch.manual_seed(0)
    denoiser, view = tiny_dit(), random_view()
    denoiser.renderer.config = replace(FIELD, fine=0)
    denoiser.renderer.coarse.output.bias.data[3] = 1e6
    rendered = KeptRenderings(denoiser.renderer, **RAYS)
    signal = denoiser.signal([torch.randn(2, 8, *SIZE)], [Observation(torch.zeros(1), view)], sampled=True)
    observed = Observation(rendered.render(signal, view).detach(), view)
    batch = TrainingBatch([observed], observed)
    nothing = EncodedContext(signal, observed.image)
    (value,) = Distortion(rendered, 1.0)(signal, nothing, batch, torch.ones(2)).values()
    assert float(value.detach()) == pytest.approx(1 / (FIELD.coarse - 1) / 3, abs=1e-5)
    (value,) = DepthSmoothness(rendered, 1.0)(signal, nothing, batch, torch.ones(2)).values()
    assert float(value.detach()) == pytest.approx(0, abs=1e-5)


def test_only_renderings_of_this_signal_are_read() -> None:
    torch.manual_seed(0)
    denoiser, view = tiny_dit(), random_view()
    rendered = KeptRenderings(denoiser.renderer, **RAYS)
    first, second = (
        denoiser.signal([torch.randn(2, 8, *SIZE)], [Observation(torch.zeros(1), view)], sampled=True)
        for _ in range(2)
    )
    image = rendered.render(first, view)
    assert torch.equal(image, denoiser.renderer.render(first, view))
    assert torch.equal(rendered.of(first, view).image, image)
    with pytest.raises(ValueError, match="the view was not rendered"):
        rendered.of(first, random_view())
    rendered.render(second, view)
    with pytest.raises(ValueError, match="the view was not rendered"):
        rendered.of(first, view)


def test_a_slope_is_as_rough_as_it_is_steep() -> None:
    """Depths 1, 2, 3, 4 from left to right: steps of 0.4 of the mean, damped where the image has an edge."""
    depth = torch.arange(1.0, 5.0).expand(1, 1, 3, 4)
    flat = torch.zeros(1, 3, 3, 4)
    assert float(edge_aware_smoothness(depth, flat)) == pytest.approx(0.4)
    assert float(edge_aware_smoothness(10 * depth, flat)) == pytest.approx(0.4)
    assert float(edge_aware_smoothness(depth.mT, flat.mT)) == pytest.approx(0.4)
    edges = torch.tensor([-1.0, 1.0, -1.0, 1.0]).expand(1, 3, 3, 4)  # from black to white is a step of 1
    assert float(edge_aware_smoothness(depth, edges)) == pytest.approx(0.4 * math.exp(-1))
    assert float(edge_aware_smoothness(torch.ones(1, 1, 3, 4), edges)) == 0


def test_patches_must_be_square() -> None:
    torch.manual_seed(0)
    denoiser = tiny_dit()
    rendered = KeptRenderings(denoiser.renderer, **RAYS)
    view = replace(random_view(), pixels=torch.zeros(2, 6, 2, dtype=torch.long))
    signal = denoiser.signal([torch.randn(2, 8, *SIZE)], [Observation(torch.zeros(1), view)], sampled=True)
    seen = Observation(rendered.render(signal, view), view)
    nothing = EncodedContext(signal, seen.image)
    with pytest.raises(ValueError, match="patches must be square, got 6 pixels"):
        DepthSmoothness(rendered)(signal, nothing, TrainingBatch([seen], seen), torch.ones(2))
