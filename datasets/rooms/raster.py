"""Photographs and depths of furnished rooms with OpenGL: on a GPU through EGL, or on the CPU with Mesa.

The pack's geometry and textures are uploaded once. A room is a buffer of instances and, for each view, a
list of indirect draws, so Python's share does not grow with the number of objects. All views of a room are
drawn as tiles of one large image at twice the wanted size, where every second sample lies on a pixel's
centre: depth is read there, colour through a tent filter of 3 x 3 samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import moderngl
import numpy as np

from .assets import Asset, AssetPack
from .projections import FAR, NEAR, clip_matrices, extent, light_colour, light_map, overhead_map
from .room import FLOATS_PER_INSTANCE, Room, Views
from .shapes import unit_shapes

SHADOW_SIZE = 768
_MAX_INSTANCES, _MAX_COMMANDS, _MAX_LIGHTS, _MAX_PANELS, _SHADOWED = 4096, 400_000, 8, 6, 3
_VERTEX = np.dtype(
    [
        ("position", "f4", 3),
        ("normal", "f4", 3),
        ("uv", "f4", 2),
        ("colour", "u1", 3),
        ("gloss", "u1"),
        ("layer", "f4"),
    ]
)
_INSTANCE_FORMAT = "4f 4f 4f 4f 4f 4f 4f/i"
_REMEDY = (
    "no OpenGL context through EGL ({error}); on Debian: apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri"
)


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

    def __init__(self, pack: AssetPack) -> None:
        self.context = _create_context()
        meshes = (*pack.assets, *unit_shapes())
        self._upload_meshes(meshes)
        self._upload_textures(pack.textures)
        self._surface = self._program("surface.vert.glsl", "surface.frag.glsl")
        self._depth = self._program("depth.vert.glsl", "depth.frag.glsl")
        self._meter = self._program("screen.vert.glsl", "meter.frag.glsl")
        self._develop = self._program("screen.vert.glsl", "develop.frag.glsl")
        self._draw_surface = self.context.vertex_array(
            self._surface,
            [
                (self._vertices, "3f 3f 2f 4f1 1f", "position", "normal", "uv", "colour", "layer"),
                (
                    self._instances,
                    _INSTANCE_FORMAT,
                    "row0",
                    "row1",
                    "row2",
                    "tint",
                    "material",
                    "finish",
                    "offset",
                ),
            ],
            self._faces,
        )
        self._draw_depth = self.context.vertex_array(
            self._depth,
            [
                (self._vertices, "3f 28x", "position"),
                (self._instances, "4f 4f 4f 32x 4f 16x/i", "row0", "row1", "row2", "finish"),
            ],
            self._faces,
        )
        self._draw_meter = self.context.vertex_array(self._meter, [])
        self._draw_develop = self.context.vertex_array(self._develop, [])
        self._shadow_atlas = self.context.depth_texture((4 * SHADOW_SIZE, SHADOW_SIZE))
        self._shadow_atlas.compare_func = ""
        self._shadow_atlas.filter = (moderngl.NEAREST, moderngl.NEAREST)
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
        if len(room.mesh) > _MAX_INSTANCES:
            raise ValueError(f"room: got {len(room.mesh)} instances, wanted at most {_MAX_INSTANCES}")
        self._instances.write(np.ascontiguousarray(room.instances, np.float32))
        rows = room.instances[:, :12].reshape(-1, 3, 4)
        self._mesh = room.mesh
        self._spheres = np.einsum("nij,nj->ni", rows[:, :, :3], self._mesh_centre[room.mesh]) + rows[:, :, 3]
        half = np.abs(rows[:, :, :3]) @ self._mesh_half[room.mesh][..., None]
        self._radii = np.linalg.norm(half[..., 0], axis=1)

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
        matrices = clip_matrices(views, 2 * size)
        if not unlit:
            self._set_lights(room)
            self._draw_shadows(room)
        offsets, counts = self._write_commands(views, ordered=True)
        self._surface["unlit"].value = unlit
        target.scene_buffer.use()
        self.context.enable_only(moderngl.DEPTH_TEST)
        target.scene_buffer.clear(0.0, 0.0, 0.0, FAR)
        self._textures.use(0)
        self._shadow_atlas.use(1)
        for index, centre in enumerate(views.centres.reshape(-1, 3)):
            row, column = divmod(index, tiles)
            target.scene_buffer.viewport = (column * 2 * size, row * 2 * size, 2 * size, 2 * size)
            self._surface["view_projection"].write(matrices.reshape(-1, 4, 4)[index].T.tobytes())
            self._surface["eye"].write(centre.astype(np.float32).tobytes())
            self._draw_surface.render_indirect(self._commands, count=counts[index], first=offsets[index])
        self._develop_tiles(target, views, grading, size, light_colour(room), raw=unlit)
        return _read_photos(target, groups, tiles, size)

    def probe(self, views: Views, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Small images of the uploaded room for (N,) cameras: (N, size, size) depths and object numbers."""
        count = len(views.focal_length)
        tiles = math.ceil(math.sqrt(count))
        rows = math.ceil(count / tiles)
        buffer = self._probe_target(rows * size, tiles * size)
        matrices = clip_matrices(views, 0)
        offsets, counts = self._write_commands(views, smallest=0.12)
        buffer.use()
        self.context.enable_only(moderngl.DEPTH_TEST)
        buffer.clear(FAR, -1.0)
        for index in range(count):
            row, column = divmod(index, tiles)
            buffer.viewport = (column * size, row * size, size, size)
            self._depth["view_projection"].write(matrices[index].T.tobytes())
            self._draw_depth.render_indirect(self._commands, count=counts[index], first=offsets[index])
        buffer.viewport = (0, 0, tiles * size, rows * size)
        data = np.frombuffer(buffer.read(components=2, dtype="f4"), np.float32)
        data = (
            data.reshape(rows, size, tiles, size, 2)
            .transpose(4, 0, 2, 1, 3)
            .reshape(2, rows * tiles, size, size)
        )
        return data[0, :count], data[1, :count].astype(np.int32)

    # ---------------------------------------------------------------------------------------- set-up

    def _program(self, vertex: str, fragment: str) -> moderngl.Program:
        folder = Path(__file__).parent
        program = self.context.program(
            vertex_shader=(folder / vertex).read_text(), fragment_shader=(folder / fragment).read_text()
        )
        for unit, name in enumerate(("textures", "shadow_atlas")):
            if name in program:
                program[name].value = unit
        for unit, name in enumerate(("scene", "meter")):
            if name in program:
                program[name].value = unit
        return program

    def _upload_meshes(self, meshes: tuple[Asset, ...]) -> None:
        vertices = np.zeros(sum(len(mesh.positions) for mesh in meshes), _VERTEX)
        fields = ("position", "normal", "uv", "colour", "gloss", "layer")
        for field, attribute in zip(
            fields, ("positions", "normals", "uvs", "colours", "gloss", "texture_layer"), strict=True
        ):
            vertices[field] = np.concatenate([getattr(mesh, attribute) for mesh in meshes])
        faces = np.concatenate([mesh.faces for mesh in meshes]).astype(np.uint32)
        vertex_count = np.array([len(mesh.positions) for mesh in meshes])
        index_count = np.array([mesh.faces.size for mesh in meshes])
        commands = np.zeros(
            (len(meshes), 5), np.uint32
        )  # indices, instances, first index, base vertex, instance
        commands[:, 0], commands[:, 1] = index_count, 1
        commands[:, 2] = np.cumsum(index_count) - index_count
        commands[:, 3] = np.cumsum(vertex_count) - vertex_count
        self._mesh_commands = commands
        low = np.array([mesh.positions.min(0) for mesh in meshes])
        high = np.array([mesh.positions.max(0) for mesh in meshes])
        self._mesh_centre, self._mesh_half = (low + high) / 2, (high - low) / 2
        self._vertices = self.context.buffer(vertices.tobytes())
        self._faces = self.context.buffer(faces.tobytes())
        self._instances = self.context.buffer(reserve=_MAX_INSTANCES * FLOATS_PER_INSTANCE * 4)
        self._commands = self.context.buffer(reserve=_MAX_COMMANDS * 20)

    def _upload_textures(self, textures: np.ndarray) -> None:
        layers, side = textures.shape[:2]
        data = np.ascontiguousarray(textures[:, ::-1])  # OpenGL's first row is the lowest
        self._textures = self.context.texture_array((side, side, layers), 3, data.tobytes(), alignment=1)
        self._textures.build_mipmaps()
        self._textures.filter = (moderngl.LINEAR_MIPMAP_LINEAR, moderngl.LINEAR)
        # Mesa's software rasterizer would spend most of its time on finer filtering
        self._textures.anisotropy = 1.0 if "llvmpipe" in self.context.info["GL_RENDERER"] else 4.0
        self._textures.repeat_x = self._textures.repeat_y = True

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

    def _write_commands(
        self, views: Views, *, ordered: bool = False, smallest: float = 0.0
    ) -> tuple[list[int], list[int]]:
        """Indirect draws of what each camera may see: offsets and counts, one for each camera."""
        rotation, focal = views.rotation.reshape(-1, 3, 3), views.focal_length.reshape(-1, 1)
        centre = self._spheres @ rotation + views.translation.reshape(-1, 1, 3)
        reach = self._radii * np.sqrt(focal**2 + 1) + np.abs(views.principal).max() * FAR
        z = centre[..., 2]
        seen = (z + self._radii > NEAR) & (focal * np.abs(centre[..., 0]) - z < reach)
        seen &= focal * np.abs(centre[..., 1]) - z < reach
        if smallest > 0:
            seen &= self._radii > smallest
        instance = np.broadcast_to(np.arange(len(z[0])), seen.shape)
        if ordered:  # near things first: what they hide need not be shaded
            instance = np.argsort(z - self._radii, axis=1)
            seen = np.take_along_axis(seen, instance, 1)
        counts = seen.sum(1)
        return self._store_commands(instance[seen], counts)

    def _store_commands(self, instance: np.ndarray, counts: np.ndarray) -> tuple[list[int], list[int]]:
        commands = self._mesh_commands[self._mesh[instance]]
        commands[:, 4] = instance
        self._commands.write(commands.tobytes())
        return (np.cumsum(counts) - counts).tolist(), counts.tolist()

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
        self._surface["light_count"].value = len(lights)
        self._surface["panel_count"].value = min(len(room.panels), _MAX_PANELS)
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
            self._surface[name].write(value.tobytes())
        low, high = extent(room)
        if "room_low" in self._surface:
            self._surface["room_low"].value = tuple(low)
        self._surface["room_high"].value = tuple(high)

    def _draw_shadows(self, room: Room) -> None:
        """Depths seen from the first lights, and from the ceiling straight down (the last tile)."""
        maps = [light_map(light, room) for light in room.lights[:_SHADOWED]]
        maps += [maps[0] if maps else overhead_map(room)] * (_SHADOWED - len(maps))
        maps.append(overhead_map(room))
        count = len(self._mesh)
        self._store_commands(np.arange(count), np.array([count]))
        self._shadow_target.use()
        self._shadow_target.clear(depth=1.0)
        self.context.enable_only(moderngl.DEPTH_TEST)
        for slot, (matrix, _) in enumerate(maps):
            self._shadow_target.viewport = (slot * SHADOW_SIZE, 0, SHADOW_SIZE, SHADOW_SIZE)
            self._depth["view_projection"].write(matrix.T.astype(np.float32).tobytes())
            self._draw_depth.render_indirect(self._commands, count=count)
        self._surface["shadow_matrix"].write(
            np.stack([matrix.T for matrix, _ in maps]).astype(np.float32).tobytes()
        )
        self._surface["shadow_range"].write(np.array([limits for _, limits in maps], np.float32).tobytes())

    def _develop_tiles(
        self,
        target: _RenderTarget,
        views: Views,
        grading: Grading,
        size: int,
        light: np.ndarray,
        *,
        raw: bool,
    ) -> None:
        groups, tiles = views.focal_length.shape
        self.context.disable(moderngl.DEPTH_TEST)
        target.scene.use(0)
        target.meter.use(1)
        self._meter["tile"].value, self._meter["tiles"].value = 2 * size, tiles
        target.meter_buffer.use()
        self._draw_meter.render(vertices=3)
        target.photo_buffer.use()
        self._develop["size"].value, self._develop["raw"].value = size, raw
        focal = np.zeros((groups, 64), np.float32)
        focal[:, :tiles] = views.focal_length
        gains = grading.cast.copy()
        gains[:, :3] *= light ** -grading.tone[:, 3:]
        for row in range(groups):
            target.photo_buffer.viewport = (0, row * size, tiles * size, size)
            self._develop["row"].value = row
            self._develop["focal"].write(focal[row].tobytes())
            self._develop["grading"].write(grading.tone[row, :3].tobytes())
            self._develop["gains"].write(gains[row].tobytes())
            self._draw_develop.render(vertices=3)


class _RenderTarget:
    """Tiles for (groups, tiles) views: radiance at twice the size, light meter, finished photographs."""

    def __init__(self, context: moderngl.Context, groups: int, tiles: int, size: int) -> None:
        wide, high = tiles * size, groups * size
        self.scene = context.texture((2 * wide, 2 * high), 4, dtype="f2")
        self.scene.filter = (moderngl.NEAREST, moderngl.NEAREST)
        self.scene_buffer = context.framebuffer(
            [self.scene], context.depth_renderbuffer((2 * wide, 2 * high))
        )
        self.meter = context.texture((groups, 1), 4, dtype="f4")
        self.meter.filter = (moderngl.NEAREST, moderngl.NEAREST)
        self.meter_buffer = context.framebuffer([self.meter])
        self.photo_buffer = context.framebuffer(
            [
                context.texture((wide, high), 4),
                context.texture((wide, high), 1, dtype="f2"),
            ]
        )


def _read_photos(target: _RenderTarget, groups: int, tiles: int, size: int) -> Photos:
    target.photo_buffer.viewport = (0, 0, tiles * size, groups * size)
    colour = np.frombuffer(target.photo_buffer.read(components=4), np.uint8)
    depth = np.frombuffer(target.photo_buffer.read(components=1, attachment=1, dtype="f2"), np.float16)
    images = colour.reshape(groups, size, tiles, size, 4).transpose(0, 2, 1, 3, 4)[..., :3]
    depths = depth.reshape(groups, size, tiles, size).transpose(0, 2, 1, 3)
    return Photos(np.ascontiguousarray(images), np.ascontiguousarray(depths))


def _create_context() -> moderngl.Context:
    try:
        return moderngl.create_context(require=430, standalone=True, backend="egl")
    except Exception as error:  # moderngl raises bare exceptions here
        raise RuntimeError(_REMEDY.format(error=error)) from error
