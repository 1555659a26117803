"""Key views drawn from another camera and blended: OpenGL where there is one, a point splat elsewhere.

A key view is a picture with a depth for each pixel: a grid of triangles, cut where the depth jumps. It is
drawn as a layer, which holds for every pixel of the new camera a colour, a depth, and how far the key view
can be trusted. The weight falls with the angle between the two cameras' rays to the surface, as in
unstructured lumigraph rendering (Buehler et al. 2001).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from pytorch3d.renderer import PerspectiveCameras
from torch import Tensor

from scenediff.renderers import depth_maps
from scenediff.renderers.cameras import ndc_to_pixels_intrinsics
from scenediff.renderers.opengl import create_context, finish_drawing

logger = logging.getLogger(__name__)

NEAR, FAR = 0.02, 200.0  # metres
ANGLE_EPSILON = 0.01  # radians; views that differ by less count as equal
ANGLE_POWER = 3  # of 1 / angle^2: how soon the closest key view wins over the others
SHEET_ANGLE = 0.012  # radians; further round, the skin between a near and a far surface is left open
BLOCKS = (4, 2)  # pixels
FLATNESS = 0.015  # relative error of depth in a flat block: one pixel after a 0.5 m move
DEPTH_TOLERANCE = 0.04  # relative; layers closer than this are the same surface
BEHIND_PENALTY = 12.0  # log weight of what lies behind; finite, so that floaters lose to the best view


@dataclass(frozen=True)
class KeyView:
    """What a scene looks like from one camera.

    Attributes:
        cameras: the camera (batch 1).
        depth: (1, 1, H, W) metres, edges sharpened.
        opacity: (1, 1, H, W) in [0, 1].
        image: (1, 3, h, w) in [-1, 1]; may be larger than the depth, of the same field of view.
        from_photo: whether the image is the photo itself.
        handicap: radians, added (in squares) to the angle at which other cameras see its surfaces; for coarse
            views that should only fill in what the others miss.
    """

    cameras: PerspectiveCameras
    depth: Tensor
    opacity: Tensor
    image: Tensor
    from_photo: bool = False
    handicap: float = 0.0

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the depth."""
        return self.depth.shape[-2], self.depth.shape[-1]

    @cached_property
    def points(self) -> Tensor:
        """(H, W, 3) world points of the pixels; the outermost lie on the image's border."""
        return depth_maps.unproject(self.depth, self.cameras, to_border=True)[0]

    @cached_property
    def confidence(self) -> Tensor:
        """(H, W) trust before any other camera is known: opaque, facing, close, not at the image's border."""
        center = depth_maps.camera_centers(self.cameras)
        normal = depth_maps.normals(self.points[None], center)[0]
        facing = (normal * F.normalize(center - self.points, dim=-1)).sum(-1).clamp(min=0.05)
        focal = ndc_to_pixels_intrinsics(self.cameras, self.size)[0][0, 0]
        pixels_per_metre = focal / self.depth[0, 0]
        known = self.opacity[0, 0] * facing * _border_ramp(self.size)
        return (known * pixels_per_metre / 100).clamp(min=1e-6)

    @cached_property
    def triangles(self) -> tuple[Tensor, Tensor]:
        """Vertex indices (T, 3): of the surfaces, and of the skin that closes the cuts between them.

        Surfaces are drawn in the largest blocks of pixels that are flat, since triangles are what costs time.
        """
        height, width = self.size
        right, down = (cut[0] for cut in depth_maps.cuts(self.depth))
        upper_cut, lower_cut = right[:-1] | down[:, :-1], right[1:] | down[:, 1:]
        cut, in_block = upper_cut | lower_cut, torch.zeros(height - 1, width - 1, dtype=torch.bool)
        inverse, index = 1 / self.depth[0, 0], torch.arange(height * width).reshape(height, width)
        surfaces: list[Tensor] = []
        for block in BLOCKS:
            flat = _flat_blocks(inverse, cut | in_block, block)
            rows, columns = (block * count for count in flat.shape)
            in_block[:rows, :columns] |= flat.repeat_interleave(block, 0).repeat_interleave(block, 1)
            surfaces += [half[flat] for half in _halves(index[: rows + 1 : block, : columns + 1 : block])]
        upper, lower = _halves(index)
        surfaces += [upper[~upper_cut & ~in_block], lower[~lower_cut & ~in_block]]
        return torch.cat(surfaces), torch.cat([upper[upper_cut], lower[lower_cut]])

    def color_at(self, points: Tensor) -> Tensor:
        """(..., 3) bilinear colour of the image at world points (..., 3)."""
        height, width = self.image.shape[-2:]
        pixels = depth_maps.project(points, self.cameras, (height, width))[0].reshape(1, 1, -1, 2)
        place = pixels / torch.tensor([width, height]) * 2 - 1
        color = F.grid_sample(self.image, place, padding_mode="border", align_corners=False)
        return color[0, :, 0].T.reshape(points.shape)


@dataclass(frozen=True)
class Layers:
    """K key views drawn for one camera.

    Attributes:
        color: (K, 3, H, W) in [-1, 1].
        depth: (K, H, W) metres.
        weight: (K, H, W), 0 where the key view has nothing.
    """

    color: Tensor
    depth: Tensor
    weight: Tensor


Blend = tuple[Tensor, Tensor, Tensor]


def composite(layers: Layers) -> Blend:
    """Colour (3, H, W), depth (H, W) and cover (H, W), 1 or 0: near surfaces hide far ones, softly."""
    valid = layers.weight > 0
    nearest = layers.depth.masked_fill(~valid, math.inf).amin(0)
    behind = ((layers.depth / nearest - 1) / DEPTH_TOLERANCE).square().clamp(max=BEHIND_PENALTY)
    weight = torch.where(valid, layers.weight * torch.exp(-behind), 0)
    total = weight.sum(0)
    weight = weight / total.clamp(min=1e-30)
    color = (weight[:, None] * layers.color).sum(0)
    return color, (weight * layers.depth).sum(0), (total > 0).float()


class Drawer(Protocol):
    """What draws key views."""

    def draw(self, cameras: PerspectiveCameras, size: tuple[int, int]) -> Blend:
        """What `composite` makes of the layers for one camera (batch 1) and a (height, width)."""
        ...

    def close(self) -> None:
        """Frees what the drawer holds; it cannot draw afterwards."""
        ...


def make_drawer(keys: Sequence[KeyView]) -> Drawer:
    """The OpenGL drawer if a context can be made on this machine, else the point splat."""
    try:
        return OpenGLDrawer(keys)
    except Exception as error:  # what fails depends on drivers: a missing library, no device, no version
        logger.warning("no OpenGL context (%s): frames are drawn by the slower point splat", error)
        return SplatDrawer(keys)


class SplatDrawer:
    """Draws every pixel of the key views as a point with a z-buffer; needs nothing but PyTorch."""

    def __init__(self, keys: Sequence[KeyView], oversampling: int = 3) -> None:
        self._centers = torch.cat([depth_maps.camera_centers(key.cameras) for key in keys])
        self._points = [_oversampled_points(key, oversampling) for key in keys]
        self._handicaps = [key.handicap for key in keys]

    def draw(self, cameras: PerspectiveCameras, size: tuple[int, int]) -> Blend:
        layers = [self._draw_one(k, cameras, size) for k in range(len(self._points))]
        color, depth, weight = (torch.stack(parts) for parts in zip(*layers, strict=True))
        return composite(Layers(color, depth, weight))

    def _draw_one(
        self, k: int, cameras: PerspectiveCameras, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        points, color, confidence = self._points[k]
        pixels, z = depth_maps.project(points, cameras, size)
        x, y = pixels.floor().long().unbind(-1)
        inside = ((z > NEAR) & (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0])).nonzero()[:, 0]
        # far points first: of several points in a pixel the last one written, the nearest, remains
        order = inside[z[inside].argsort(descending=True, stable=True)].numpy()
        pixel = (y * size[1] + x).numpy()[order]
        front = np.full(size[0] * size[1], -1)
        front[pixel] = order
        index = torch.from_numpy(front).reshape(size)
        seen = points[index]
        towards_key = F.normalize(self._centers[k] - seen, dim=-1)
        towards_camera = F.normalize(depth_maps.camera_centers(cameras)[0] - seen, dim=-1)
        angle_squared = (towards_key - towards_camera).square().sum(-1)
        angle_squared += self._handicaps[k] ** 2
        weight = confidence[index] * (ANGLE_EPSILON**2 / (angle_squared + ANGLE_EPSILON**2)) ** ANGLE_POWER
        return color[index].permute(2, 0, 1), z[index], torch.where(index >= 0, weight, 0)

    def close(self) -> None:
        self._points = []


class OpenGLDrawer:
    """Draws the triangles of the key views with ModernGL and EGL: a GPU, or Mesa's software renderer.

    The layers lie beside each other in one target, out of which a second pass blends the frame: only that is
    read back. May be used from several threads, by one at a time.
    """

    def __init__(self, keys: Sequence[KeyView]) -> None:
        self._context = create_context()
        with self._context:
            self._program = self._context.program(_VERTEX_SHADER, fragment_shader=_FRAGMENT_SHADER)
            self._meshes = [self._upload(key) for key in keys]
            self._columns = math.ceil(len(keys) ** 0.5)
            blend = _blend_shader(len(keys), self._columns)
            self._blend = self._context.program(_SCREEN_SHADER, fragment_shader=blend)
            self._screen = self._context.vertex_array(self._blend, [])
            self._blend["colors"], self._blend["depths_and_weights"] = 0, 1
        self._targets: tuple[Any, Any] | None = None

    def draw(self, cameras: PerspectiveCameras, size: tuple[int, int]) -> Blend:
        height, width = size
        with self._context as context:
            layers, frame = self._framebuffers(size)
            self._set_camera(cameras, size)
            layers.use()
            layers.clear()
            context.enable_only(context.DEPTH_TEST)
            for k, mesh in enumerate(self._meshes):
                row, column = divmod(k, self._columns)
                layers.viewport = (column * width, row * height, width, height)
                self._draw_one(mesh)
            frame.use()
            context.enable_only(context.NOTHING)
            for unit, texture in enumerate(layers.color_attachments):
                texture.use(unit)
            self._screen.render(vertices=3)
            finish_drawing()
            values = np.empty((height, width, 4), np.float32)
            frame.read_into(values, components=4, dtype="f4", alignment=1)
        *color, depth = torch.from_numpy(values).unbind(-1)
        return torch.stack(color), depth.contiguous(), (depth > 0).float()

    def close(self) -> None:
        self._context.release()

    def _upload(self, key: KeyView) -> dict[str, Any]:
        """Buffers and the texture of one key view."""
        context, (height, width) = self._context, key.image.shape[-2:]
        uv = depth_maps.project(key.points, key.cameras, (height, width))[0] / torch.tensor([width, height])
        vertices = torch.cat([key.points, uv, key.confidence[..., None]], dim=-1)
        buffer = context.buffer(vertices.float().contiguous().numpy())
        pixels = ((key.image[0].permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte()
        texture = context.texture((width, height), 3, pixels.contiguous().numpy(), alignment=1)
        texture.build_mipmaps()
        texture.repeat_x = texture.repeat_y = False
        arrays = [
            context.vertex_array(
                self._program, [(buffer, "3f 2f 1f", "position", "uv", "confidence")],
                context.buffer(faces.to(torch.int32).contiguous().numpy()),
            ) if len(faces) else None
            for faces in key.triangles
        ]
        center = depth_maps.camera_centers(key.cameras)[0].tolist()
        return {"arrays": arrays, "texture": texture, "center": center, "handicap": key.handicap}

    def _framebuffers(self, size: tuple[int, int]) -> tuple[Any, Any]:
        """That of all layers, in rows of `_columns`, and that of the frame."""
        context, shape = self._context, (size[1], size[0])
        if self._targets is None or self._targets[1].size != shape:
            for target in self._targets or ():
                for attachment in (*target.color_attachments, target.depth_attachment):
                    if attachment is not None:
                        attachment.release()
                target.release()
            rows = math.ceil(len(self._meshes) / self._columns)
            whole = (shape[0] * self._columns, shape[1] * rows)
            layers = [context.texture(whole, 4), context.texture(whole, 2, dtype="f4")]
            self._targets = (
                context.framebuffer(layers, context.depth_renderbuffer(whole)),
                context.framebuffer([context.renderbuffer(shape, 4, dtype="f4")]),
            )
        return self._targets

    def _set_camera(self, cameras: PerspectiveCameras, size: tuple[int, int]) -> None:
        self._program["rotation"].write(cameras.R[0].float().contiguous().numpy())
        self._program["translation"] = tuple(cameras.T[0].tolist())
        focal, principal = cameras.focal_length[0].tolist(), cameras.principal_point[0].tolist()
        self._program["intrinsics"] = (*focal, *principal)
        # NDC counts half the shorter side as 1, clip space half of each side
        self._program["aspect"] = (min(size) / size[1], min(size) / size[0])
        self._program["eye"] = tuple(depth_maps.camera_centers(cameras)[0].tolist())

    def _draw_one(self, mesh: dict[str, Any]) -> None:
        mesh["texture"].use(0)
        self._program["key_center"] = tuple(mesh["center"])
        self._program["handicap"] = mesh["handicap"]
        for array, sheet in zip(mesh["arrays"], (False, True), strict=True):
            if array is not None:
                self._program["sheet"] = sheet
                array.render()


def _halves(index: Tensor) -> tuple[Tensor, Tensor]:
    """The two triangles (rows - 1, columns - 1, 3) of every cell of a grid of vertex indices."""
    corner, across, below, opposite = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    return torch.stack([corner, below, across], -1), torch.stack([opposite, across, below], -1)


def _flat_blocks(inverse: Tensor, cut: Tensor, side: int) -> Tensor:
    """bool (rows, columns) of whole blocks without a cut whose inverse depth (H, W) is that of one plane."""
    rows, columns = cut.shape[0] // side, cut.shape[1] // side
    if not rows * columns:
        return torch.zeros(rows, columns, dtype=torch.bool)
    whole = inverse[: rows * side + 1, : columns * side + 1]
    blocks = whole.unfold(0, side + 1, side).unfold(1, side + 1, side)
    corners = blocks[..., ::side, ::side]
    plane = F.interpolate(corners, (side + 1, side + 1), mode="bilinear", align_corners=True)
    bend = ((blocks - plane).abs() / blocks).amax((-2, -1))
    cut_blocks = F.max_pool2d(cut[None, None].float(), side)[0, 0] > 0
    return (bend < FLATNESS) & ~cut_blocks


def _border_ramp(size: tuple[int, int], width: float = 0.06) -> Tensor:
    """(H, W) from almost 0 at the border to 1 at `width` of the shorter side, so that no seam shows."""
    height, width_px = size
    rows = torch.minimum(torch.arange(height), torch.arange(height).flip(0)) + 0.5
    columns = torch.minimum(torch.arange(width_px), torch.arange(width_px).flip(0)) + 0.5
    ramp = torch.minimum(rows[:, None], columns[None]) / (width * min(size))
    return ramp.clamp(0.01, 1)


def _oversampled_points(key: KeyView, factor: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points (P, 3), colours (P, 3) and confidence (P,) on a grid `factor` times finer, none across a cut."""
    depth = depth_maps.refine(key.depth, factor)
    size = (depth.shape[-2], depth.shape[-1])
    points = depth_maps.unproject(depth, key.cameras)[0].reshape(-1, 3)
    confidence = F.interpolate(key.confidence[None, None], size, mode="nearest").reshape(-1)
    return points, key.color_at(points), confidence


_VERTEX_SHADER = """
#version 330
uniform mat3 rotation;  // row vectors times a row-major matrix == its column-major upload times columns
uniform vec3 translation;
uniform vec4 intrinsics;
uniform vec2 aspect;
in vec3 position;
in vec2 uv;
in float confidence;
out vec3 world;
out vec2 texture_uv;
out float trust;
out float depth;
void main() {
    vec3 seen = rotation * position + translation;
    world = position;
    texture_uv = uv;
    trust = confidence;
    depth = seen.z;
    // +X is left in the image; +Y is turned down so that the first row read back is the top one
    vec2 plane = -(intrinsics.xy * seen.xy + intrinsics.zw * seen.z) * aspect;
    gl_Position = vec4(plane, (seen.z * (FAR + NEAR) - 2.0 * FAR * NEAR) / (FAR - NEAR), seen.z);
}
""".replace("FAR", str(FAR)).replace("NEAR", str(NEAR))

_FRAGMENT_SHADER = f"""
#version 330
uniform sampler2D picture;
uniform vec3 key_center;
uniform vec3 eye;
uniform float handicap;
uniform bool sheet;
in vec3 world;
in vec2 texture_uv;
in float trust;
in float depth;
layout(location = 0) out vec4 color;
layout(location = 1) out vec2 depth_and_weight;
void main() {{
    vec3 difference = normalize(key_center - world) - normalize(eye - world);
    float angle_squared = dot(difference, difference);
    float epsilon = {ANGLE_EPSILON} * {ANGLE_EPSILON};
    if (sheet && angle_squared > {SHEET_ANGLE} * {SHEET_ANGLE}) discard;
    angle_squared += handicap * handicap;
    color = vec4(texture(picture, texture_uv).rgb, 1.0);
    depth_and_weight = vec2(depth, trust * pow(epsilon / (angle_squared + epsilon), {ANGLE_POWER}.0));
}}
"""

_SCREEN_SHADER = """
#version 330
void main() {  // one triangle, of which the screen is the middle
    gl_Position = vec4(4.0 * (gl_VertexID & 1) - 1.0, 2.0 * (gl_VertexID & 2) - 1.0, 0.0, 1.0);
}
"""

# `composite`, of layers beside each other; the depth is 0 where there is nothing. With constants for their
# number and places the loops are unrolled, which makes Mesa's code three times as fast.
_BLEND_SHADER = """
#version 330
const int count = COUNT, columns = COLUMNS, rows = (COUNT + COLUMNS - 1) / COLUMNS;
uniform sampler2D colors;
uniform sampler2D depths_and_weights;
out vec4 color_and_depth;
void main() {
    ivec2 size = textureSize(colors, 0) / ivec2(columns, rows);
    ivec2 places[count];
    vec2 found[count];
    float nearest = 2.0 * FAR;
    for (int k = 0; k < count; k++) {
        places[k] = ivec2(gl_FragCoord.xy) + size * ivec2(k % columns, k / columns);
        found[k] = texelFetch(depths_and_weights, places[k], 0).xy;
        if (found[k].y > 0.0) nearest = min(nearest, found[k].x);
    }
    vec4 sum = vec4(0.0);
    float total = 0.0;
    for (int k = 0; k < count; k++) {
        float behind = (found[k].x / nearest - 1.0) / DEPTH_TOLERANCE;
        float weight = found[k].y * exp(-min(behind * behind, BEHIND_PENALTY));
        sum += weight * vec4(texelFetch(colors, places[k], 0).rgb * 2.0 - 1.0, found[k].x);
        total += weight;
    }
    color_and_depth = sum / max(total, 1e-30);
}
"""


def _blend_shader(count: int, columns: int) -> str:
    constants = {
        "COUNT": count, "COLUMNS": columns, "FAR": FAR, "DEPTH_TOLERANCE": DEPTH_TOLERANCE,
        "BEHIND_PENALTY": BEHIND_PENALTY,
    }
    defined = "".join(f"#define {name} {value}\n" for name, value in constants.items())
    return _BLEND_SHADER.replace("#version 330\n", f"#version 330\n{defined}")
