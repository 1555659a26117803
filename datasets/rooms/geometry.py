"""The geometry of rooms in a GPU's memory, and lists of what each of many cameras sees of it.

Everything that the cameras of one pass see is one list of draws, grouped by mesh: a camera has a tile of the
image, and the vertex shaders clip to it. So a room takes some hundred draws however many views it has.

Each is drawn at the coarsest level of detail whose error does not show at its distance: data-centre GPUs have
few processors for triangles.
"""

from __future__ import annotations

import moderngl
import numpy as np

from .assets import Asset
from .room import FLOATS_PER_INSTANCE, Room

MAX_INSTANCES = 4096
_LEVELS = 5  # of detail at most, the mesh itself among them
_DISTANCES = np.geomspace(0.6, 7.0, 10)  # metres; finer steps hide little more and take more draws
_NEAREST = 0.15  # metres; what is nearer fills the image whatever its level of detail
_COSINE = 0.75  # of the angle between the optical axis and a corner of a usual image
_CLIP_DISTANCE0 = 0x3000
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


class Geometry:
    """All meshes of a pack, one room's instances of them, and the draws of one pass at a time."""

    def __init__(self, context: moderngl.Context, meshes: tuple[Asset, ...]) -> None:
        self._context = context
        self._upload_meshes(meshes)
        self._instances = context.buffer(reserve=MAX_INSTANCES * FLOATS_PER_INSTANCE * 4)
        self._entries, self._tiles, self._commands = (context.buffer(reserve=1 << 16) for _ in range(3))
        for edge in range(4):
            context.enable_direct(_CLIP_DISTANCE0 + edge)

    def upload(self, room: Room) -> None:
        """Make `room` the one that is drawn. Raises ValueError for too many instances."""
        if len(room.mesh) > MAX_INSTANCES:
            raise ValueError(f"room: got {len(room.mesh)} instances, wanted at most {MAX_INSTANCES}")
        self._instances.write(np.ascontiguousarray(room.instances, np.float32))
        rows = room.instances[:, :12].reshape(-1, 3, 4)
        self._mesh = room.mesh
        half = np.abs(rows[:, :, :3]) @ self._mesh_half[room.mesh][..., None]
        scale = np.sqrt((rows[:, :, :3].astype(np.float64) ** 2).sum(1).max(1))
        self._errors = self._mesh_errors[room.mesh] * scale[:, None]
        self._half = half[..., 0]
        self._radii = np.linalg.norm(self._half, axis=1)
        self._spheres = np.ones((len(rows), 4))
        self._spheres[:, :3] = (
            np.einsum("nij,nj->ni", rows[:, :, :3], self._mesh_centre[room.mesh]) + rows[:, :, 3]
        )

    def vertex_array(
        self, program: moderngl.Program, layout: str, names: tuple[str, ...]
    ) -> moderngl.VertexArray:
        """What draws the listed instances with a program that takes these attributes of `_VERTEX`.

        A program of positions alone gets faces that share all vertices of one place: fewer to transform.
        """
        faces = self._joined_faces if names == ("position",) else self._faces
        return self._context.vertex_array(
            program, [(self._vertices, layout, *names), (self._entries, "2i/i", "entry")], faces
        )

    def draw(
        self,
        vertex_array: moderngl.VertexArray,
        matrices: np.ndarray,
        columns: int,
        rows: int,
        samples: int,
        *,
        tolerance: float,
        smallest: float = 0.0,
        nearest_first: bool = False,
    ) -> None:
        """Draw what (T, 4, 4) world-to-clip matrices see, each in its tile of the bound framebuffer.

        Args:
            vertex_array: from `vertex_array`.
            matrices: for column vectors; tile t lies in column t % columns, row t // columns.
            columns, rows: of equal tiles in the framebuffer.
            samples: to a side of a tile.
            tolerance: samples by which a coarser level's surface may be off, and that the extent of what is
                drawn must exceed.
            smallest: radius in metres of the smallest things that are drawn.
            nearest_first: roughly sort by the farthest points, so that hidden things need no shading: what
                reaches far is a wall or stands at one.
        """
        tile, instance, distance, level = self._select(matrices, samples, tolerance, smallest)
        if len(tile) == 0:
            return
        key = mesh = self._mesh[instance] * _LEVELS + level
        if nearest_first:
            key = key + np.searchsorted(_DISTANCES, distance) * len(self._mesh_commands)
        order = np.argsort(key, kind="stable")
        first = np.flatnonzero(np.diff(key[order], prepend=-1))
        commands = self._mesh_commands[mesh[order[first]]]
        commands[:, 1] = np.diff(first, append=len(order))
        commands[:, 4] = first
        _store(self._commands, commands)
        _store(self._entries, np.stack([tile, instance], 1)[order].astype(np.int32))
        _store(self._tiles, _placed(matrices, columns, rows))
        self._instances.bind_to_storage_buffer(0)
        self._tiles.bind_to_storage_buffer(1)
        vertex_array.render_indirect(self._commands, count=len(commands))

    def _select(
        self, matrices: np.ndarray, samples: int, tolerance: float, smallest: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Pairs of tile and instance where its bounding sphere touches the frustum; farthest point, level."""
        matrices = matrices.astype(np.float64)
        last = matrices[:, 3:]
        planes = np.concatenate([last + matrices[:, :3], last - matrices[:, :3]], 1)
        planes /= np.linalg.norm(planes[..., :3], axis=-1, keepdims=True)
        inside = planes @ self._spheres.T > -self._radii
        tile, instance = np.nonzero(inside.all(1) & (self._radii > smallest))
        radius = self._radii[instance]
        centre = (matrices[:, 3] @ self._spheres.T)[tile, instance]
        density = self._density(matrices, samples, tile, instance, centre)
        level = (self._errors[instance] * density[:, None] <= tolerance).sum(1)
        drawn = 2 * radius * density > tolerance
        return tile[drawn], instance[drawn], (centre + radius)[drawn], level[drawn]

    def _density(
        self, matrices: np.ndarray, samples: int, tile: np.ndarray, instance: np.ndarray, depth: np.ndarray
    ) -> np.ndarray:
        """(P,) samples a metre at the nearest visible points of pairs whose spheres' centres have a depth."""
        scale = samples / 2 * np.linalg.norm(matrices[:, :2, :3], axis=2).max(1)
        perspective = np.flatnonzero(np.linalg.norm(matrices[:, 3, :3], axis=1) > 0)
        nearest = np.array(depth)
        if len(perspective):
            rows = matrices[perspective][:, [0, 1, 3]]
            eyes = np.zeros((len(matrices), 3))
            eyes[perspective] = np.linalg.solve(rows[..., :3], -rows[..., 3:])[..., 0]
            gap = np.abs(self._spheres[instance, :3] - eyes[tile]) - self._half[instance]
            distance = _COSINE * np.linalg.norm(np.maximum(gap, 0), axis=1)
            turned = np.isin(tile, perspective)
            nearest[turned] = np.maximum(depth - self._radii[instance], distance)[turned]
        return scale[tile] / np.maximum(nearest, _NEAREST)

    def _upload_meshes(self, meshes: tuple[Asset, ...]) -> None:
        vertices = np.zeros(sum(len(mesh.positions) for mesh in meshes), _VERTEX)
        fields = ("positions", "normals", "uvs", "colours", "gloss", "texture_layer")
        for field, attribute in zip(_VERTEX.names or (), fields, strict=True):
            vertices[field] = np.concatenate([getattr(mesh, attribute) for mesh in meshes])
        vertex_count = np.array([len(mesh.positions) for mesh in meshes])
        base = np.cumsum(vertex_count) - vertex_count
        levels = [(mesh.faces, *(level.faces for level in mesh.levels)) for mesh in meshes]
        self._mesh_errors = np.full((len(meshes), _LEVELS - 1), np.inf)
        # of each mesh's levels: indices, instances, first index, base vertex, first entry
        commands = np.zeros((len(meshes), _LEVELS, 5), np.uint32)
        for i, mesh in enumerate(meshes):
            self._mesh_errors[i, : len(mesh.levels)] = [level.error for level in mesh.levels]
            commands[i, : len(levels[i]), 0] = [faces.size for faces in levels[i]]
        self._mesh_commands = commands.reshape(-1, 5)
        self._mesh_commands[:, 2] = np.cumsum(self._mesh_commands[:, 0]) - self._mesh_commands[:, 0]
        faces = np.concatenate([faces + base[i] for i, level in enumerate(levels) for faces in level])
        low = np.array([mesh.positions.min(0) for mesh in meshes])
        high = np.array([mesh.positions.max(0) for mesh in meshes])
        self._mesh_centre, self._mesh_half = (low + high) / 2, (high - low) / 2
        self._vertices = self._context.buffer(vertices.tobytes())
        self._faces = self._context.buffer(faces.astype(np.uint32).tobytes())
        joined = _first_at_place(vertices["position"], np.repeat(np.arange(len(meshes)), vertex_count))
        self._joined_faces = self._context.buffer(joined[faces].astype(np.uint32).tobytes())


def _first_at_place(positions: np.ndarray, mesh: np.ndarray) -> np.ndarray:
    """(V,) for each vertex, the first one of its mesh in the same position."""
    keys = np.column_stack([mesh.astype(np.uint32), np.ascontiguousarray(positions).view(np.uint32)])
    order = np.lexsort(keys.T[::-1])
    new = np.ones(len(keys), bool)
    new[1:] = (keys[order[1:]] != keys[order[:-1]]).any(1)
    first = np.empty(len(keys), np.int64)
    first[order] = order[np.maximum.accumulate(np.where(new, np.arange(len(keys)), 0))]
    return first


def _placed(matrices: np.ndarray, columns: int, rows: int) -> np.ndarray:
    """(T, 5, 4) float32: matrices into tiles of the whole image, and the tiles' low and high x, y there."""
    row, column = np.divmod(np.arange(len(matrices)), columns)
    size = np.array([2 / columns, 2 / rows])
    low = np.stack([column, row], 1) * size - 1
    tiles = np.zeros((len(matrices), 5, 4))
    tiles[:, :4] = matrices
    tiles[:, :2] = tiles[:, :2] * (size / 2)[:, None] + (low + size / 2)[:, :, None] * tiles[:, 3:4]
    tiles[:, 4, :2], tiles[:, 4, 2:] = low, low + size
    return tiles.astype(np.float32)


def _store(buffer: moderngl.Buffer, data: np.ndarray) -> None:
    """Write into a buffer that grows as needed."""
    if data.nbytes > buffer.size:
        buffer.orphan(2 * data.nbytes)
    buffer.write(data.tobytes())
