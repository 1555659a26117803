"""The geometry of rooms in a GPU's memory, and lists of what each of many cameras sees of it.

Everything that the cameras of one pass see is one list of draws, grouped by mesh: a camera has a tile of the
image, and the vertex shaders clip to it. So a room takes some hundred draws however many views it has.
"""

from __future__ import annotations

import moderngl
import numpy as np

from .assets import Asset
from .room import FLOATS_PER_INSTANCE, Room

MAX_INSTANCES = 4096
_DISTANCES = np.geomspace(0.6, 7.0, 10)  # metres; finer steps hide little more and take more draws
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
        self._radii = np.linalg.norm(half[..., 0], axis=1)
        self._spheres = np.ones((len(rows), 4))
        self._spheres[:, :3] = (
            np.einsum("nij,nj->ni", rows[:, :, :3], self._mesh_centre[room.mesh]) + rows[:, :, 3]
        )

    def vertex_array(
        self, program: moderngl.Program, layout: str, names: tuple[str, ...]
    ) -> moderngl.VertexArray:
        """What draws the listed instances with a program that takes these attributes of `_VERTEX`."""
        return self._context.vertex_array(
            program, [(self._vertices, layout, *names), (self._entries, "2i/i", "entry")], self._faces
        )

    def draw(
        self,
        vertex_array: moderngl.VertexArray,
        matrices: np.ndarray,
        columns: int,
        rows: int,
        *,
        smallest: float = 0.0,
        nearest_first: bool = False,
    ) -> None:
        """Draw what (T, 4, 4) world-to-clip matrices see, each in its tile of the bound framebuffer.

        Args:
            vertex_array: from `vertex_array`.
            matrices: for column vectors; tile t lies in column t % columns, row t // columns.
            columns, rows: of equal tiles in the framebuffer.
            smallest: radius in metres of the smallest things that are drawn.
            nearest_first: roughly sort by the farthest points, so that hidden things need no shading: what
                reaches far is a wall or stands at one.
        """
        tile, instance, distance = self._select(matrices, smallest)
        if len(tile) == 0:
            return
        key = self._mesh[instance]
        if nearest_first:
            key = key + np.searchsorted(_DISTANCES, distance) * len(self._mesh_commands)
        order = np.argsort(key, kind="stable")
        first = np.flatnonzero(np.diff(key[order], prepend=-1))
        commands = self._mesh_commands[self._mesh[instance[order[first]]]]
        commands[:, 1] = np.diff(first, append=len(order))
        commands[:, 4] = first
        _store(self._commands, commands)
        _store(self._entries, np.stack([tile, instance], 1)[order].astype(np.int32))
        _store(self._tiles, _placed(matrices, columns, rows))
        self._instances.bind_to_storage_buffer(0)
        self._tiles.bind_to_storage_buffer(1)
        vertex_array.render_indirect(self._commands, count=len(commands))

    def _select(self, matrices: np.ndarray, smallest: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs of tile and instance, where its bounding sphere touches the frustum; its farthest point."""
        matrices = matrices.astype(np.float64)
        last = matrices[:, 3:]
        planes = np.concatenate([last + matrices[:, :3], last - matrices[:, :3]], 1)
        planes /= np.linalg.norm(planes[..., :3], axis=-1, keepdims=True)
        inside = planes @ self._spheres.T > -self._radii
        tile, instance = np.nonzero(inside.all(1) & (self._radii > smallest))
        centre = np.einsum("pj,pj->p", matrices[tile, 3], self._spheres[instance])
        return tile, instance, centre + self._radii[instance]

    def _upload_meshes(self, meshes: tuple[Asset, ...]) -> None:
        vertices = np.zeros(sum(len(mesh.positions) for mesh in meshes), _VERTEX)
        fields = ("positions", "normals", "uvs", "colours", "gloss", "texture_layer")
        for field, attribute in zip(_VERTEX.names or (), fields, strict=True):
            vertices[field] = np.concatenate([getattr(mesh, attribute) for mesh in meshes])
        faces = np.concatenate([mesh.faces for mesh in meshes]).astype(np.uint32)
        vertex_count = np.array([len(mesh.positions) for mesh in meshes])
        index_count = np.array([mesh.faces.size for mesh in meshes])
        # of each mesh: indices, instances, first index, base vertex, first entry
        self._mesh_commands = np.zeros((len(meshes), 5), np.uint32)
        self._mesh_commands[:, 0] = index_count
        self._mesh_commands[:, 2] = np.cumsum(index_count) - index_count
        self._mesh_commands[:, 3] = np.cumsum(vertex_count) - vertex_count
        low = np.array([mesh.positions.min(0) for mesh in meshes])
        high = np.array([mesh.positions.max(0) for mesh in meshes])
        self._mesh_centre, self._mesh_half = (low + high) / 2, (high - low) / 2
        self._vertices = self._context.buffer(vertices.tobytes())
        self._faces = self._context.buffer(faces.tobytes())


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
