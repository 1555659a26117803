"""Kernels of the dense field: weights read as the kernel reads them, the others interpreted; on a GPU, all.

The products of `point_network.cu` need the matrix units of a Hopper GPU; without one, what is packed for them
is unpacked here by the rules of the hardware, and the source is only compiled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from interpreted import check_interpreted
from tiny_dit import FIELD, random_view
from torch import Tensor
from torch.nn import functional

from scenediff.renderers import cuda_source, fused_volume, point_kernels
from scenediff.renderers.cuda_source import CompileError, compile_cuda
from scenediff.renderers.rays import along
from scenediff.renderers.volume_field import VolumeFieldRenderer, VolumeSignal
from scenediff.renderers.volume_network import (
    Modulation,
    PointNetwork,
    PreparedView,
    VolumeConfig,
    look,
)
from scenediff.renderers.volume_rays import integrate, pinhole_rays

CONFIG = VolumeConfig(width=512, map_channels=16, feature_channels=8, near=0.5, far=4.0, coarse=16, fine=16)
HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9


def random_network(config: VolumeConfig = CONFIG) -> PointNetwork:
    torch.manual_seed(0)
    network = PointNetwork(config)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return network


def unpacked(stream: Tensor) -> Tensor:
    """(slabs, 128, 64): undoes the swizzle, in which bits 4-6 of an address are XORed with bits 7-9."""
    address = 2 * torch.arange(128 * 64)
    address ^= ((address >> 7) & 7) << 4
    return stream.view(-1, 128 * 64)[:, address // 2].unflatten(1, (128, 64))


def linear_of_slabs(slabs: Tensor) -> Tensor:
    """(outputs, 512) of slabs that come outputs first."""
    return slabs.unflatten(0, (-1, 8)).transpose(1, 2).flatten(2).flatten(0, 1)


@pytest.mark.parametrize("wanted", [point_kernels.DENSITY, point_kernels.OUTPUTS])
@torch.no_grad()
def test_packed_weights_hold_the_network(wanted: int) -> None:
    network = random_network()
    modulation = network.modulations(torch.tensor([5, 700]))
    packed = fused_volume._cut(network).pack(modulation, wanted)
    assert (packed.view_blocks, packed.joint_blocks) == (3, 2)
    channels = point_kernels.product_channels()
    assert torch.equal(channels.sort().values, torch.arange(512))
    start = torch.randn(2, 9, 512)
    for element in range(2):
        state, biases = start[element][:, channels], packed.biases[element]
        slabs = unpacked(packed.weights[element]).float()
        for block in range(5):
            first, second = (linear_of_slabs(slabs[64 * block + 32 * i :][:32]) for i in (0, 1))
            hidden = functional.relu(functional.relu(state) @ first.mT + biases[2 * block])
            state = state + hidden @ second.mT + biases[2 * block + 1]
        expected = start[element : element + 1]
        for block, (scale, shift) in zip(network.blocks, modulation, strict=True):
            expected = block(expected, (scale[element : element + 1], shift[element : element + 1]))
        assert relative(state, expected[0][:, channels]) < 0.01  # weights rounded to bfloat16
        if wanted == point_kernels.DENSITY:
            found = functional.relu(state) @ biases[10] + biases[11, 0]
            wished = network.output(expected[0].relu())[:, 3]
        else:
            weight = linear_of_slabs(slabs[320:])
            found = (functional.relu(state) @ weight.mT + biases[10, :128])[:, :12]
            wished = network.output(expected[0].relu())
        assert relative(found, wished) < 0.01


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_blocks_that_fill_registers_mirror_the_fragments() -> None:
    """A thread's 16 bytes of a point are the columns that `wgmma` expects it to hold."""
    channels = point_kernels.product_channels()
    for group in range(16):
        for quad in range(4):
            columns = [
                32 * group + 16 * i + 8 * h + 2 * quad + e for i in (0, 1) for h in (0, 1) for e in (0, 1)
            ]
            start = 32 * group + 8 * quad
            assert channels[columns].tolist() == list(range(start, start + 8))


def test_the_source_compiles_without_spilling() -> None:
    try:
        cuda_source._compiler()
    except CompileError as error:
        pytest.skip(str(error))
    source = (cuda_source.FOLDER / "point_network.cu").read_text()
    assert len(compile_cuda(source, "sm_90a", [f"CLUSTER={point_kernels.CLUSTER}"])) > 10_000
    with pytest.raises(CompileError, match="undefined_name"):
        compile_cuda("int value = undefined_name;", "sm_90a")


@dataclass(frozen=True)
class SlowBlocks:
    """What `PackedBlocks` does, in plain PyTorch and full precision."""

    network: PointNetwork
    modulation: Modulation
    wanted: int

    def run(
        self, states: Tensor, told: Tensor | None, share: float, output: Tensor, *, samples: int = 1,
        first: int = 0,
    ) -> None:
        count = self.network.config.view_blocks
        state = self._through(states, slice(count))
        state = state if told is None else (state + told) * share
        if self.wanted == point_kernels.STATE:
            output.copy_(state)
            return
        result = self.network.output(self._through(state, slice(count, None)).relu())
        if self.wanted == point_kernels.DENSITY:
            output.view(len(states), -1).copy_(result[..., 3].relu())
            return
        output[:, :, first : first + samples] = result.unflatten(1, (-1, samples))[..., : output.shape[-1]]

    def _through(self, state: Tensor, which: slice) -> Tensor:
        for block, scale_shift in zip(self.network.blocks[which], self.modulation[which], strict=True):
            state = block(state, scale_shift)
        return state


@dataclass(frozen=True)
class SlowCut:
    """What `CutNetwork` does."""

    network: PointNetwork

    def pack(self, modulation: Modulation, wanted: int) -> SlowBlocks:
        return SlowBlocks(self.network, modulation, wanted)


@dataclass(frozen=True)
class SlowEye:
    """What `Eye` and `embed` do."""

    network: PointNetwork
    view: PreparedView
    own: bool

    def embed(self, origins: Tensor, directions: Tensor, distances: Tensor, first_ray: int) -> Tensor:
        network = PointNetwork(replace(self.network.config, view_blocks=0))
        network.position = self.network.position
        if self.own:
            pixel = self.view.map.flatten(2)[:, :, first_ray : first_ray + directions.shape[1]].mT
            points = along(origins, directions, distances).flatten(1, 2)
            local = points @ self.view.world_to_cam[:, :3, :3].mT + self.view.world_to_cam[:, None, :3, 3]
            seen = pixel.repeat_interleave(distances.shape[-1], 1)
            return network.describe(local, seen, self.view.modulation[:0])
        points = along(origins, directions, distances).flatten(1, 2)
        return look(network, replace(self.view, modulation=[]), points)


@pytest.mark.parametrize("fine", [0, 5])
@pytest.mark.parametrize("remembered", [False, True])
@torch.no_grad()
def test_the_march_puts_the_kernels_together(
    fine: int, remembered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels replaced by slow ones, on the CPU, against the plain renderer."""
    monkeypatch.setattr(fused_volume, "_cut", SlowCut)
    monkeypatch.setattr(point_kernels, "embed", lambda eye, *rays: eye.embed(*rays))
    monkeypatch.setattr(fused_volume, "_eye", SlowEye)
    renderer = VolumeFieldRenderer(replace(FIELD, fine=fine)).eval()
    monkeypatch.setattr(point_kernels, "integrate", lambda outputs, *rest: integrate(
        outputs[..., 3].relu(), torch.cat([outputs[..., :3].sigmoid(), outputs[..., 4:]], -1), *rest
    ))
    torch.manual_seed(3)
    size, view = (6, 8), replace(random_view(), size=(6, 8))
    views = tuple(
        renderer.view(torch.randn(2, 8, *size), each, torch.tensor([0, 9]), sampled=True)
        for each in (random_view(), random_view(), view)
    )
    plain = renderer.render_all(VolumeSignal(views, sampled=True), view)
    monkeypatch.setattr(fused_volume, "fits", lambda *_: True)
    renderer.chunk_rays = 30
    known = VolumeSignal(views[:2], sampled=True)
    known = renderer.remember(known, view) if remembered else known
    fused = renderer.render_all(replace(known, views=views), view)
    for name in ("image", "distance", "opacity", "features"):
        assert torch.allclose(getattr(fused, name), getattr(plain, name), atol=2e-4), name
    image = renderer.render(replace(known, views=views), view)
    assert torch.allclose(image, plain.image, atol=2e-4)


def check_embedding(device: str, dtype: torch.dtype, tolerance: float) -> None:
    config = replace(CONFIG, width=64)
    network, batch = random_network(config).to(device), 2
    views, rendered = random_view(batch), random_view(batch)
    for own in (False, True):
        size = rendered.size if own else (6, 8)
        maps = torch.randn(batch, 64, *size, device=device)
        seen = rendered if own else views
        matrix = torch.linalg.inv(seen.cam_to_world)
        prepared = PreparedView(
            matrix.to(device), seen.intrinsics.to(device), maps,
            network.modulations(torch.zeros(2, device=device)),
        )
        origins, directions = (part.to(device) for part in pinhole_rays(rendered))
        first = 5
        directions = directions[:, first : first + 40]
        distances = 4 * torch.rand(batch, directions.shape[1], 7, device=device) + 0.1
        points = along(origins, directions, distances).flatten(1, 2)
        blocks = network.blocks
        network.blocks = torch.nn.ModuleList()
        network.config = replace(config, view_blocks=0)
        expected = look(network, prepared, points)
        network.blocks, network.config = blocks, config
        eye = fused_volume._eye(network, prepared, own)
        if dtype == torch.float32:
            columns = network.position.weight.t()
            weight = torch.zeros(64, 64).index_copy_(0, torch.arange(39), columns.detach())
            eye = replace(eye, rows=maps.permute(0, 2, 3, 1).contiguous(), weight=weight)
        found = point_kernels.embed(eye, origins, directions, distances, first)
        assert found.dtype == dtype
        assert relative(found.float(), expected) < tolerance, (own, relative(found.float(), expected))


def check_integrals(device: str) -> None:
    torch.manual_seed(1)
    background = (0.2, 0.5, 0.9)
    for samples, columns in ((21, 12), (16, 4)):
        outputs = torch.randn(2, 5, samples, columns)
        distances = torch.rand(2, 5, samples) * 3 + 0.5
        distances[:, :, 4] = distances[:, :, 9]  # two samples in one place
        density = outputs[..., 3].relu()
        values = torch.cat([outputs[..., :3].sigmoid(), outputs[..., 4:]], dim=-1)
        expected = integrate(density, values, distances, background)
        found = point_kernels.integrate(outputs.to(device), distances.to(device), background)
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(one.cpu(), other, atol=2e-5), (one.cpu() - other).abs().max()


def test_interpreted_embedding() -> None:
    check_interpreted(
        "import torch, test_point_kernels as t\n"
        "with torch.no_grad(): t.check_embedding('cpu', torch.float32, 2e-4)\nprint('agreed')"
    )


def test_interpreted_integrals() -> None:
    check_interpreted("import test_point_kernels as t\nt.check_integrals('cpu')\nprint('agreed')")


@pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")
@torch.no_grad()
def test_kernels_on_a_gpu() -> None:
    check_embedding("cuda", torch.bfloat16, 0.01)
    check_integrals("cuda")
    check_network("cuda")


def check_network(device: str) -> None:
    """Ragged numbers of points and every kind of result, against plain PyTorch in float32."""
    network, count = random_network().to(device), CONFIG.view_blocks
    network.output.bias.data[3] = 1.0  # or no point has any density
    modulation = network.modulations(torch.tensor([5.0, 700.0], device=device))
    cut = fused_volume._cut(network)
    for rays, samples in ((3, 7), (16, 16), (700, 64)):
        states = torch.randn(2, rays * samples, 512, device=device)
        told = torch.randn_like(states)
        viewed = states
        for block, scale_shift in zip(network.blocks[:count], modulation, strict=False):
            viewed = block(viewed, scale_shift)
        concluded = network.conclude((viewed + told) / 2, modulation)
        low, low_told = states.bfloat16(), torch.cat([told.bfloat16()] * 2, dim=1)[:, : rays * samples]
        found = torch.full_like(low, float("nan"))
        cut.pack(modulation, point_kernels.STATE).run(low, low_told, 1.0, found)
        assert relative(found.float(), viewed + told) < 0.01, relative(found.float(), viewed + told)
        density = torch.full((2, rays * samples), float("nan"), device=device)
        cut.pack(modulation, point_kernels.DENSITY).run(low, low_told, 0.5, density)
        wished = network.density(concluded)
        assert relative(density, wished) < 0.02, relative(density, wished)
        result = torch.full((2, rays, samples + 3, 12), 7.0, device=device)
        packed = cut.pack(modulation, point_kernels.OUTPUTS)
        packed.run(low, low_told, 0.5, result, samples=samples, first=2)
        wished = network.output(concluded).unflatten(1, (rays, samples))
        assert relative(result[:, :, 2:-1], wished) < 0.02, relative(result[:, :, 2:-1], wished)
        assert (result[:, :, [0, 1, -1]] == 7).all()


@pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")
@pytest.mark.parametrize("remembered", [False, True])
@torch.no_grad()
def test_fused_rendering_on_a_gpu(remembered: bool) -> None:
    torch.manual_seed(2)
    renderer = VolumeFieldRenderer(CONFIG).eval().cuda()
    view = random_view()
    view = replace(view, cam_to_world=view.cam_to_world.cuda(), intrinsics=view.intrinsics.cuda(), pose=None)
    other = replace(view, cam_to_world=view.cam_to_world.roll(1, 0))
    with torch.autocast("cuda", torch.bfloat16):
        views = [
            renderer.view(
                torch.randn(2, 16, *view.size, device="cuda"), each, torch.tensor([0, 9]).cuda(), sampled=True
            )
            for each in (other, view)
        ]
        known = VolumeSignal(tuple(views[:1]), sampled=True)
        if remembered:
            known = renderer.remember(known, view)
        fused = renderer.render_all(replace(known, views=tuple(views)), view)
    plain = renderer.render_all(
        VolumeSignal(tuple(replace(one, maps=tuple(m.float() for m in one.maps)) for one in views), True),
        view,
    )
    for name in ("image", "distance", "opacity", "features"):
        assert relative(getattr(fused, name), getattr(plain, name)) < 0.03, name


def test_weights_are_cut_again_only_when_they_change() -> None:
    network = random_network().eval()
    first = fused_volume.kept_cut(network)
    assert fused_volume.kept_cut(network) is first
    with torch.no_grad():
        network.blocks[0].first.weight.mul_(2)
    second = fused_volume.kept_cut(network)
    assert second is not first
    assert torch.allclose(second.first[0], 2 * first.first[0])
    network.load_state_dict(random_network().state_dict())
    assert fused_volume.kept_cut(network) is not second


def test_nothing_is_kept_over_a_fused_optimizers_step() -> None:
    """Such optimizers do not count what they write."""
    network = random_network().eval()
    before = fused_volume.kept_cut(network)
    optimizer = torch.optim.AdamW(network.train().parameters(), lr=0.1, fused=True)
    for weight in network.parameters():
        weight.grad = torch.ones_like(weight)
    assert fused_volume.kept_cut(network) is not before
    optimizer.step()
    after = fused_volume.kept_cut(network.eval())
    assert float((after.first[0] - before.first[0]).detach().abs().max()) > 0.05
