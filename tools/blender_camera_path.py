"""Exports the active camera's animation from Blender, for `scenediff render --path FILE.json`.

Import an exported GLB (or open one's own file with it), animate the camera, then

    blender room.blend --background --python blender_camera_path.py -- path.json

or open this file in Blender's text editor and run it: path.json is then written beside the .blend file. All
frames of the scene's range are exported as they are, with constraints and drivers, in the format of
nerfstudio's camera paths, so `ns-render camera-path` takes it too. It needs nothing but Blender.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import bpy


def camera_path(scene: Any) -> dict[str, Any]:
    """The animation of a scene's active camera, one entry for each frame of its range.

    Raises:
        ValueError: there is no camera, or its lens is one that the format can't describe.
    """
    camera = scene.camera
    if camera is None:
        raise ValueError("the scene has no active camera")
    if camera.data.type != "PERSP" or camera.data.shift_x or camera.data.shift_y:
        raise ValueError("the camera must be a perspective one without lens shift")
    share = scene.render.resolution_percentage / 100
    width, height = (
        round(side * share) for side in (scene.render.resolution_x, scene.render.resolution_y)
    )
    before, entries = scene.frame_current, []
    for frame in range(scene.frame_start, scene.frame_end + 1, scene.frame_step):
        scene.frame_set(frame)
        graph = bpy.context.evaluated_depsgraph_get()
        matrix = camera.evaluated_get(graph).matrix_world.normalized()
        projection = camera.calc_matrix_camera(graph, x=width, y=height)
        entries.append({
            "camera_to_world": [value for row in matrix for value in row],
            "fov": math.degrees(2 * math.atan(1 / projection[1][1])),
            "aspect": width / height,
        })
    scene.frame_set(before)
    fps = scene.render.fps / scene.render.fps_base
    return {
        "camera_type": "perspective", "render_height": height, "render_width": width, "fps": fps,
        "seconds": len(entries) / fps, "camera_path": entries,
    }


def main(arguments: list[str]) -> None:
    """Writes the path to the file named after `--`, or beside the .blend file."""
    beside = Path(bpy.data.filepath or "camera").with_name("path.json")
    target = Path(arguments[0]) if arguments else beside
    target.write_text(json.dumps(camera_path(bpy.context.scene), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else [])
