"""The full-size architecture against outputs of the published implementation at a reduced width.

Every folder of the directory SCENEDIFF_PARITY_DIR (by default `shared/parity` beside the repository) whose
config.json describes this architecture holds weights, inputs and outputs. The weights go through `convert`,
all sizes come from the folders. Tolerances are those within which an implementation of the same sums in
float32, in another order, stays: positions are encoded at up to 48 radians a unit, so a rounding error of
a position 40 units away turns its encoding by 1e-4 radians, and depths are sums of such distances.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import scenediff
from scenediff.dit_pipeline import DitPipeline, build_denoiser
from scenediff.forward import EncodedContext, Observation
from scenediff.renderers.cameras import PinholeView
from scenediff.renderers.volume_field import VolumeSignal, pinhole_rays
from scenediff.sampling import DynamicThreshold, sample
from scenediff.tools.convert import CO3D, RE10K, constants, convert, layout

PARITY = Path(os.environ.get("SCENEDIFF_PARITY_DIR") or Path(__file__).parents[1] / "../shared/parity")
TOLERANCE, DEPTH_TOLERANCE = 1e-4, 1e-3
FINE_TOLERANCE, FINE_SHARE = 3e-4, 0.99  # a random number beside a bin's edge may fall into its neighbour
KEYS_FILE = PARITY / "dfm_full_size_keys.json"


def parity_folders() -> list[Path]:
    configs = sorted(PARITY.glob("*/config.json"))
    return [path.parent for path in configs if {"dit", "field"} <= json.loads(path.read_text()).keys()]


FOLDERS = parity_folders()
REASON = f"no goldens of this architecture in {PARITY} (SCENEDIFF_PARITY_DIR names another directory)"


@dataclass(frozen=True)
class Golden:
    """One folder, with its model after conversion."""

    folder: Path
    config: dict[str, Any]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    pipeline: DitPipeline

    def view(self, kind: str, index: int) -> PinholeView:
        return PinholeView(
            self.inputs[f"{kind}_c2w"][:, index], self.inputs["intrinsics"], (self.config["size"],) * 2,
            self.inputs[f"{kind}_abs_camera_poses"][:, index],
        )

    @property
    def target_view(self) -> PinholeView:
        return self.view("trgt", 0)

    @property
    def context(self) -> list[Observation]:
        images = self.inputs["ctxt_rgb"]
        return [Observation(images[:, n], self.view("ctxt", n)) for n in range(images.shape[1])]

    def with_fine(self, samples: int) -> None:
        renderer = self.pipeline.renderer
        renderer.config = replace(renderer.config, fine=samples)

    def step(self, view: PinholeView) -> tuple[EncodedContext, VolumeSignal]:
        """The context as encoded for the target's view, and the signal of the noisy target."""
        denoiser = self.pipeline.denoiser
        encoded = denoiser.encode(self.context, view)
        signal = denoiser.denoise(self.inputs["noisy_trgt_rgb"], self.inputs["t"], encoded, view)
        return encoded, signal


@pytest.fixture(
    scope="module",
    params=FOLDERS or [pytest.param(None, marks=pytest.mark.skip(reason=REASON))],
    ids=lambda folder: getattr(folder, "name", "absent"),
)
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    folder: Path = request.param
    checkpoint = tmp_path_factory.mktemp("checkpoint")
    convert(folder / "weights.safetensors", checkpoint, folder / "config.json")
    pipeline = scenediff.load(checkpoint)
    assert isinstance(pipeline, DitPipeline)
    return Golden(
        folder, json.loads((folder / "config.json").read_text()), load_file(folder / "inputs.safetensors"),
        load_file(folder / "outputs.safetensors"), pipeline,
    )


@pytest.fixture
def golden(converted: Golden) -> Iterator[Golden]:
    """A golden with the folder's own number of fine samples, as in sampling without gradients."""
    converted.with_fine(converted.config["settings"]["n_fine"])
    converted.pipeline.renderer.uniform = None
    with torch.no_grad():
        yield converted


def agree(found: Tensor, wanted: Tensor, tolerance: float = TOLERANCE) -> None:
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= tolerance


def test_the_sizes_are_the_folders_own(golden: Golden) -> None:
    assert len(golden.context) == golden.config["contexts"]
    assert golden.pipeline.defaults.size == golden.config["size"]
    assert golden.pipeline.renderer.config.far == golden.config["far"]


def test_rays_pass_through_the_pixel_grid(golden: Golden) -> None:
    origins, directions = pinhole_rays(golden.target_view)
    local = (directions @ golden.target_view.cam_to_world[:, :3, :3]) @ golden.inputs["intrinsics"].mT
    agree(local[..., :2] / local[..., 2:], golden.inputs["x_pix"], 1e-6)
    agree(directions.norm(dim=-1), torch.ones(directions.shape[:2]), 1e-6)
    agree(origins[:, 0], golden.inputs["trgt_c2w"][:, 0, :3, 3], 0)


def test_the_encoder_reads_clean_contexts(golden: Golden) -> None:
    encoder = golden.pipeline.denoiser.encoder
    images, poses = (golden.inputs[f"ctxt_{name}"].flatten(0, 1) for name in ("rgb", "abs_camera_poses"))
    agree(encoder.context(images, poses), golden.outputs["encoder_context"])


def test_the_deterministic_branch_renders_the_contexts(golden: Golden) -> None:
    encoded = golden.pipeline.denoiser.encode(golden.context, golden.target_view)
    maps, wanted = encoded.extras[0], golden.outputs["deterministic_rgb_depth_feats"]
    agree(maps[:, 3:4], wanted[:, 3:4], DEPTH_TOLERANCE)
    agree(maps[:, :3], wanted[:, :3])
    agree(maps[:, 4:], wanted[:, 4:])
    assert torch.equal(encoded.image, maps[:, :3])


def test_the_encoder_reads_the_noisy_target(golden: Golden) -> None:
    view = golden.target_view
    given = golden.outputs["deterministic_rgb_depth_feats"]
    inputs = torch.cat([golden.inputs["noisy_trgt_rgb"], given], dim=1)
    found = golden.pipeline.denoiser.encoder.target(inputs, golden.inputs["t"], view.pose)
    agree(found, golden.outputs["encoder_target"])


@pytest.mark.parametrize(("network", "name"), [(0, "coarse"), (1, "fine")])
def test_the_field_at_points(golden: Golden, network: int, name: str) -> None:
    golden.with_fine(golden.config["fine"]["samples"])
    _, signal = golden.step(golden.target_view)
    density, values = golden.pipeline.renderer.at_points(signal, golden.inputs["xyz"], network)
    agree(density[..., None], golden.outputs[f"field_{name}_density"])
    agree(values, golden.outputs[f"field_{name}_rgb_feats"])


@pytest.mark.parametrize("memory", [0, 2**30], ids=["computed", "remembered"])
def test_one_denoising_step(golden: Golden, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden.pipeline.denoiser, "memory", memory)
    view = golden.target_view
    _, signal = golden.step(view)
    assert (signal.remembered is None) == (memory == 0)
    rendering = golden.pipeline.renderer.render_all(signal, view)
    agree(rendering.image, golden.outputs["step_rgb"])
    agree(rendering.distance[:, 0], golden.outputs["step_depth"], DEPTH_TOLERANCE)


@pytest.mark.parametrize("memory", [0, 2**30], ids=["computed", "remembered"])
def test_a_step_with_fine_samples(golden: Golden, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden.pipeline.denoiser, "memory", memory)
    golden.with_fine(golden.config["fine"]["samples"])
    golden.pipeline.renderer.uniform = lambda shape, _: golden.inputs["fine_uniform"].view(shape)
    view = golden.target_view
    _, signal = golden.step(view)
    rendering = golden.pipeline.renderer.render_all(signal, view)
    pairs = (
        (rendering.image, golden.outputs["step_fine16_rgb"], FINE_TOLERANCE),
        (rendering.distance[:, 0], golden.outputs["step_fine16_depth"], DEPTH_TOLERANCE),
    )
    for found, wanted, tolerance in pairs:
        assert found.shape == wanted.shape
        assert ((found - wanted).abs() <= tolerance).float().mean() >= FINE_SHARE


def test_the_schedule(golden: Golden) -> None:
    agree(golden.pipeline.make_scheduler().alphas_cumprod, golden.outputs["alphas_cumprod"], 1e-6)
    agree(golden.pipeline.scheduler.alphas_cumprod, golden.outputs["alphas_cumprod"])


@pytest.mark.parametrize(
    ("scale", "name"),
    [("guidance", "ddim5_guided_images"), ("second_guidance", "ddim5_guidance8_images")],
)
def test_guided_sampling(golden: Golden, scale: str, name: str) -> None:
    settings, denoiser = golden.config["sampler"], golden.pipeline.denoiser
    _, image = sample(
        denoiser, denoiser.renderer, golden.pipeline.make_scheduler(), golden.context, golden.target_view,
        golden.inputs["ddim_initial_noise_before_temperature"], steps=settings["steps"],
        guidance_scale=settings[scale], temperature=settings["temperature"],
        threshold=DynamicThreshold(settings["dynamic_threshold"]),
    )
    agree((image + 1) / 2, golden.outputs[name])


@pytest.mark.skipif(not KEYS_FILE.exists(), reason=f"no {KEYS_FILE}")
@pytest.mark.parametrize(("name", "model"), [("re10k_128", RE10K), ("co3d_128", CO3D)])
def test_the_released_layout_at_full_size(name: str, model: Any) -> None:
    released = {key: tuple(shape) for key, shape in json.loads(KEYS_FILE.read_text())[name].items()}
    with torch.device("meta"):
        denoiser = build_denoiser(model.encoder, model.field)
    fixed = {key: tuple(value.shape) for key, value in constants(model.field).items()}
    positions = released.pop("model.enc.pos_embed")
    assert released == layout(denoiser) | fixed
    side = model.sampling.size // (2 * model.encoder.patch)
    assert positions == (1, side * side, model.encoder.width)


def test_positions_are_those_that_the_release_stores(golden: Golden) -> None:
    from scenediff.networks.dit import position_table

    stored = load_file(golden.folder / "weights.safetensors")["model.enc.pos_embed"][0]
    encoder = golden.pipeline.denoiser.config
    side = golden.config["size"] // (2 * encoder.patch)
    agree(position_table(side, side, encoder.width, torch.device("cpu")), stored, 1e-6)
