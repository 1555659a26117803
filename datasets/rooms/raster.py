"""Photographs and depths of furnished rooms with OpenGL: on a GPU through EGL, or on the CPU with Mesa.

All views of a room are tiles of one large image at twice the wanted size, where every second sample lies on
a pixel's centre: depth is read there, colour through a tent filter of 3 x 3 samples.

Shading is deferred: fragments only note colour, normal and depth, and compute shaders do all the lighting.
Data-centre GPUs draw with a small part of their processors but compute with all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import moderngl
import numpy as np

from scenediff.renderers.opengl import create_context

from .assets import AssetPack
from .geometry import Geometry
from .projections import FAR, NEAR, camera_rays, clip_matrices, extent, light_colour, light_map, overhead_map
from .room import Room, Views
from .shapes import unit_shapes

SHADOW_SIZE = 768
_MAX_LIGHTS, _MAX_PANELS, _SHADOWED = 8, 6, 3
_VIEW_TOLERANCE, _SHADOW_TOLERANCE, _PROBE_TOLERANCE = 2.0, 1.8, 4.0  # samples, see Geometry.draw
_GROUP = 8  # a side of the compute shaders' work groups
_REMEDY = (
    "no OpenGL context through EGL ({error}); on Debian: apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri"
)

Stage = Callable[[str], AbstractContextManager[None]]
"""Surrounds a named stage of the work, to time it."""


def untimed(stage: str) -> AbstractContextManager[None]:
    """A `Stage` that does nothing."""
    return nullcontext()


@dataclass(frozen=True, eq=False)
class Grading:
    """How a camera develops each group of views: exposure, contrast, colour. All arrays are float32."""

    tone: np.ndarray
    """(G, 4): stops of exposure, contrast 0..1.5, saturation, strength of the white balance 0..1."""
    cast: np.ndarray
    """(G, 4): gains of red, green and blue left by the balance, darkness of crevices."""

    @classmethod
    def sample(cls, rng: np.random.Generator, groups: int) -> Grading:
        """Random cameras for `groups` groups of views."""
        tone = np.stack(
            [
                rng.normal(-0.6, 0.5, groups).clip(-1.7, 0.7),
                rng.uniform(0.35, 1.5, groups),
                rng.uniform(0.8, 1.35, groups),
                rng.uniform(0.4, 1.0, groups),
            ],
            1,
        )
        gains = np.exp(rng.normal(0, 0.045, (groups, 3)))
        crevices = rng.uniform(0.5, 1.0, (groups, 1))
        return cls(tone.astype(np.float32), np.concatenate([gains, crevices], 1).astype(np.float32))


@dataclass(frozen=True, eq=False)
class Photos:
    """What `Rasterizer.render` returns."""

    images: np.ndarray
    """(G, K, S, S, 3) uint8 sRGB."""
    depths: np.ndarray
    """(G, K, S, S) float16 metres along the optical axis."""


class Rasterizer:
    """Draws rooms made from one pack. Holds an OpenGL context: use one for each process, and `close` it."""

    def __init__(self, pack: AssetPack, stage: Stage = untimed, device_index: int = 0) -> None:
        """`stage` surrounds "probes", "shadows", "surfaces", "lighting", "develop" and "read back".

        `device_index` chooses among several GPUs.
        """
        self.context = _create_context(device_index)
        self.stage = stage
        self._geometry = Geometry(self.context, (*pack.assets, *unit_shapes()))
        self._textures = self._upload_textures(pack.textures)
        self._draw_surface = self._geometry.vertex_array(
            self.context.program(_shader("surface.vert"), _shader("surface.frag")),
            "3f 3f 2f 4f1 1f",
            ("position", "normal", "uv", "colour", "layer"),
        )
        self._draw_probe, self._draw_shadow = (
            self._geometry.vertex_array(
                self.context.program(_shader("depth.vert"), _shader(fragment)), "3f 28x", ("position",)
            )
            for fragment in ("probe.frag", "shadow.frag")
        )
        self._light = self.context.compute_shader(_shader("light.comp"))
        self._meter = self.context.compute_shader(_shader("meter.comp"))
        self._develop = self.context.compute_shader(_shader("develop.comp"))
        self._shadow_atlas = _depth_texture(self.context, (4 * SHADOW_SIZE, SHADOW_SIZE))
        self._shadow_target = self.context.framebuffer(depth_attachment=self._shadow_atlas)
        self._targets: dict[tuple[int, ...], Any] = {}

    def __enter__(self) -> Rasterizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the OpenGL context and everything in it."""
        self.context.release()

    def upload(self, room: Room) -> None:
        """Make `room` the one that `render` and `probe` draw."""
        self._geometry.upload(room)

    def render(self, room: Room, views: Views, grading: Grading, size: int, *, unlit: bool = False) -> Photos:
        """Photograph the uploaded room.

        Args:
            room: the room given to `upload` (its lights are used here).
            views: (G, K) cameras of square images; the K views of a group share one exposure.
            grading: how each of the G groups is developed.
            size: pixels of an image's side.
            unlit: colours of the surfaces alone, linear light encoded as sRGB (for tests and masks).
        """
        groups, tiles = views.focal_length.shape
        target = self._render_target(groups, tiles, size)
        if not unlit:
            with self.stage("shadows"):
                self._set_lights(room)
                self._draw_shadows(room)
        with self.stage("surfaces"):
            self._draw_surfaces(target, views)
        with self.stage("lighting"):
            self._light_samples(target, views, unlit=unlit)
        with self.stage("develop"):
            self._develop_tiles(target, grading, light_colour(room), raw=unlit)
        with self.stage("read back"):
            return target.read()

    def probe(self, views: Views, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Small images of the uploaded room for (N,) cameras: (N, size, size) depths and object numbers."""
        count = len(views.focal_length)
        tiles = math.ceil(math.sqrt(count))
        rows = math.ceil(count / tiles)
        with self.stage("probes"):
            target = self._probe_target(rows * size, tiles * size)
            target.use()
            self.context.enable_only(moderngl.DEPTH_TEST)
            target.clear(FAR, -1.0)
            self._geometry.draw(
                self._draw_probe,
                clip_matrices(views, 0),
                tiles,
                rows,
                size,
                tolerance=_PROBE_TOLERANCE,
                smallest=0.12,
            )
        data = np.frombuffer(target.read(components=2, dtype="f4"), np.float32)
        data = data.reshape(rows, size, tiles, size, 2).transpose(4, 0, 2, 1, 3)
        data = data.reshape(2, rows * tiles, size, size)
        return data[0, :count], data[1, :count].astype(np.int32)

    # ---------------------------------------------------------------------------------------- set-up

    def _upload_textures(self, textures: np.ndarray) -> moderngl.TextureArray:
        layers, side = textures.shape[:2]
        data = np.ascontiguousarray(textures[:, ::-1])  # OpenGL's first row is the lowest
        array = self.context.texture_array((side, side, layers), 3, data.tobytes(), alignment=1)
        array.build_mipmaps()
        array.filter = (moderngl.LINEAR_MIPMAP_LINEAR, moderngl.LINEAR)
        # Mesa's software rasterizer would spend most of its time on finer filtering
        array.anisotropy = 1.0 if "llvmpipe" in self.context.info["GL_RENDERER"] else 4.0
        array.repeat_x = array.repeat_y = True
        return array

    def _render_target(self, groups: int, tiles: int, size: int) -> _RenderTarget:
        key = (groups, tiles, size)
        if key not in self._targets:
            self._targets[key] = _RenderTarget(self.context, groups, tiles, size)
        return self._targets[key]

    def _probe_target(self, height: int, width: int) -> moderngl.Framebuffer:
        key = (height, width)
        if key not in self._targets:
            colour = self.context.texture((width, height), 2, dtype="f4")
            depth = self.context.depth_renderbuffer((width, height))
            self._targets[key] = self.context.framebuffer([colour], depth)
        return self._targets[key]

    # --------------------------------------------------------------------------------------- drawing

    def _draw_surfaces(self, target: _RenderTarget, views: Views) -> None:
        matrices = clip_matrices(views, 2 * target.size).reshape(-1, 4, 4)
        target.surfaces.use()
        self.context.enable_only(moderngl.DEPTH_TEST)
        target.surfaces.clear()
        self._textures.use(0)
        self._geometry.draw(
            self._draw_surface,
            matrices,
            target.tiles,
            target.groups,
            2 * target.size,
            tolerance=_VIEW_TOLERANCE,
            nearest_first=True,
        )

    def _draw_shadows(self, room: Room) -> None:
        """Depths seen from the first lights, and from the ceiling straight down (the last tile)."""
        maps = [light_map(light, room) for light in room.lights[:_SHADOWED]]
        maps.extend([maps[0] if maps else overhead_map(room)] * (_SHADOWED - len(maps)))
        maps.append(overhead_map(room))
        matrices = np.stack([matrix for matrix, _ in maps])
        self._shadow_target.use()
        self._shadow_target.clear(depth=1.0)
        self.context.enable_only(moderngl.DEPTH_TEST)
        self._geometry.draw(
            self._draw_shadow, matrices, _SHADOWED + 1, 1, SHADOW_SIZE, tolerance=_SHADOW_TOLERANCE
        )
        self._light["shadow_matrix"].write(matrices.swapaxes(1, 2).astype(np.float32).tobytes())
        self._light["shadow_range"].write(np.array([limits for _, limits in maps], np.float32).tobytes())

    def _set_lights(self, room: Room) -> None:
        lights = room.lights[:_MAX_LIGHTS]
        position, direction, intensity = (np.zeros((_MAX_LIGHTS, 4), np.float32) for _ in range(3))
        for i, light in enumerate(lights):
            position[i] = (*light.position, light.radius)
            direction[i] = (*light.direction, -1.0 if light.far else light.exponent)
            intensity[i] = (*light.intensity, i if i < _SHADOWED else -1)
        panel = np.zeros((4, _MAX_PANELS, 4), np.float32)
        for i, one in enumerate(room.panels[:_MAX_PANELS]):
            panel[:, i, :3] = (one.centre, one.half_width, one.half_height, one.radiance)
        for name, value in (
            ("light_position", position),
            ("light_direction", direction),
            ("light_intensity", intensity),
            ("panel_centre", panel[0]),
            ("panel_half_width", panel[1]),
            ("panel_half_height", panel[2]),
            ("panel_radiance", panel[3]),
            ("ambient", room.ambient.astype(np.float32)),
        ):
            self._light[name].write(value.tobytes())
        self._light["light_count"].value = len(lights)
        self._light["panel_count"].value = min(len(room.panels), _MAX_PANELS)
        self._light["ceiling"].value = float(extent(room)[1][1])

    def _light_samples(self, target: _RenderTarget, views: Views, *, unlit: bool) -> None:
        target.cameras.write(camera_rays(views, 2 * target.size).tobytes())
        target.cameras.bind_to_storage_buffer(2)
        for unit, texture in enumerate((target.albedo, target.normal, target.depth, self._shadow_atlas)):
            texture.use(unit)
        target.scene.bind_to_image(0, read=False, write=True)
        self._light["unlit"].value = unlit
        self._light["grid"].value = (target.tiles, 2 * target.size)
        self._light["clip_range"].value = (NEAR, FAR)
        self._run(self._light, *target.scene.size)

    def _develop_tiles(
        self, target: _RenderTarget, grading: Grading, light: np.ndarray, *, raw: bool
    ) -> None:
        gradings = np.zeros((target.groups, 2, 4), np.float32)
        gradings[:, 0], gradings[:, 1] = grading.tone, grading.cast
        gradings[:, 1, :3] *= light ** -grading.tone[:, 3:]
        target.gradings.write(gradings.tobytes())
        target.gradings.bind_to_storage_buffer(3)
        target.readings.bind_to_storage_buffer(4)
        target.scene.use(0)
        self._meter["grid"].value = (target.tiles, 2 * target.size)
        self._meter.run(group_x=target.groups)
        self.context.memory_barrier()
        target.photo.bind_to_image(0, read=False, write=True)
        target.metres.bind_to_image(1, read=False, write=True)
        self._develop["grid"].value = (target.tiles, target.size)
        self._develop["raw"].value = raw
        self._run(self._develop, *target.photo.size)

    def _run(self, shader: moderngl.ComputeShader, width: int, height: int) -> None:
        """One invocation for each pixel; what it writes can be read afterwards."""
        shader.run(math.ceil(width / _GROUP), math.ceil(height / _GROUP))
        self.context.memory_barrier()


class _RenderTarget:
    """Tiles for (groups, tiles) views: surfaces and radiance at twice the size, finished photographs."""

    def __init__(self, context: moderngl.Context, groups: int, tiles: int, size: int) -> None:
        self.groups, self.tiles, self.size = groups, tiles, size
        pixels = (tiles * size, groups * size)
        samples = (2 * tiles * size, 2 * groups * size)
        self.albedo, self.normal, self.scene = (_texture(context, samples, 4, "f2") for _ in range(3))
        self.depth = _depth_texture(context, samples)
        self.surfaces = context.framebuffer([self.albedo, self.normal], self.depth)
        self.photo, self.metres = _texture(context, pixels, 4, "f1"), _texture(context, pixels, 1, "f2")
        self.finished = context.framebuffer([self.photo, self.metres])
        self.cameras = context.buffer(reserve=groups * tiles * 64)
        self.gradings = context.buffer(reserve=groups * 32)
        self.readings = context.buffer(reserve=groups * 16)

    def read(self) -> Photos:
        """The finished photographs, once the GPU is done."""
        colour = np.frombuffer(self.finished.read(components=4), np.uint8)
        depth = np.frombuffer(self.finished.read(components=1, attachment=1, dtype="f2"), np.float16)
        shape = (self.groups, self.size, self.tiles, self.size)
        images = colour.reshape(*shape, 4).transpose(0, 2, 1, 3, 4)[..., :3]
        depths = depth.reshape(shape).transpose(0, 2, 1, 3)
        return Photos(np.ascontiguousarray(images), np.ascontiguousarray(depths))


def _texture(
    context: moderngl.Context, size: tuple[int, int], components: int, dtype: str
) -> moderngl.Texture:
    """A texture that shaders read and write sample by sample."""
    texture = context.texture(size, components, dtype=dtype)
    texture.filter = (moderngl.NEAREST, moderngl.NEAREST)
    return texture


def _depth_texture(context: moderngl.Context, size: tuple[int, int]) -> moderngl.Texture:
    """A depth buffer that shaders read as plain numbers."""
    texture = context.depth_texture(size)
    texture.compare_func = ""
    texture.filter = (moderngl.NEAREST, moderngl.NEAREST)
    return texture


def _shader(name: str) -> str:
    return (Path(__file__).parent / f"{name}.glsl").read_text()


def _create_context(device_index: int) -> moderngl.Context:
    try:
        return create_context(require=430, device_index=device_index)
    except Exception as error:  # moderngl raises bare exceptions here
        raise RuntimeError(_REMEDY.format(error=error)) from error
