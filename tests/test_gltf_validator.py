"""Meshes before the Khronos glTF validator, which `make test-all` installs from npm."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from analytic_scene import AnalyticScene

from scenediff.renderers.baked import bake
from scenediff.tools.exports import FORMATS, ExportOptions, prepare_export
from scenediff.tools.mesh import NamedCamera, export_glb, scene_mesh

VALIDATOR = Path(sys.prefix) / "node_modules" / "gltf-validator"
SCRIPT = Path(__file__).with_name("validate_gltf.js")

pytestmark = [
    pytest.mark.slow,  # as the validator is for `make test-all` alone
    pytest.mark.skipif(
        not (VALIDATOR.is_dir() and shutil.which("node")), reason="npm's gltf-validator is not installed"
    ),
]


def issues(path: Path) -> dict[str, Any]:
    done = subprocess.run(
        ["node", SCRIPT, VALIDATOR, path], capture_output=True, text=True, timeout=60, check=True
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_an_export_has_no_errors_and_no_warnings(tmp_path: Path) -> None:
    scene: Any = AnalyticScene(photo_size=(96, 128))
    for closed in (False, True):
        job = prepare_export(scene, ExportOptions(max_faces=5_000, texture_size=256, closed=closed))
        FORMATS["glb"].write(job, tmp_path / "scene.glb")
        job.baked.close()
        found = issues(tmp_path / "scene.glb")
        assert (found["numErrors"], found["numWarnings"]) == (0, 0), found["messages"]


def test_the_mesh_of_a_run_has_none_either(tmp_path: Path) -> None:
    scene: Any = AnalyticScene(photo_size=(96, 128))
    with bake(scene, short_side=64) as baked:
        camera = NamedCamera(scene.photo_cameras, scene.photo_size)
        export_glb(scene_mesh(baked), tmp_path / "mesh.glb", camera)
    found = issues(tmp_path / "mesh.glb")
    assert (found["numErrors"], found["numWarnings"]) == (0, 0), found["messages"]


def test_the_validator_finds_what_is_wrong(tmp_path: Path) -> None:
    scene: Any = AnalyticScene(photo_size=(96, 128))
    with bake(scene, short_side=64) as baked:
        export_glb(scene_mesh(baked), tmp_path / "mesh.glb")
    data = (tmp_path / "mesh.glb").read_bytes()
    (tmp_path / "mesh.glb").write_bytes(data.replace(b'"mode":4', b'"mode":9'))
    assert issues(tmp_path / "mesh.glb")["numErrors"] > 0
