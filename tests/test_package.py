"""The package as a whole: what is in it, what it may import, how large it is."""

from __future__ import annotations

import ast
import importlib
import re
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MEMBERS = ("scenediff", "renderers", "datasets", "tools")
SOURCES = [path for member in MEMBERS for path in sorted((ROOT / member).rglob("*.py"))]
MIB = 2**20


def table(name: str) -> str:
    """One table of pyproject.toml as text; tomllib is younger than Python 3.10."""
    return (ROOT / "pyproject.toml").read_text().split(f"\n[{name}]\n", 1)[1].split("\n[", 1)[0]


def imported(module: ast.Module) -> set[str]:
    """Top-level names of the absolute imports anywhere in a module."""
    modules = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module.split(".")[0])
    return modules


def test_the_installed_version_is_that_of_the_source():
    assert re.search(r'^version = "(.+)"$', table("project"), re.MULTILINE)[1] == version("scenediff")


def test_every_package_folder_is_installed():
    listed = set(re.findall(r'"(scenediff[\w.]*)"', table("tool.setuptools")))
    found = set()
    for member in MEMBERS:
        for path in (ROOT / member).rglob("__init__.py"):
            name = ".".join(path.parent.relative_to(ROOT).parts)
            found.add(name if member == "scenediff" else f"scenediff.{name}")
    assert listed == found


@pytest.mark.parametrize("member", ["renderers", "datasets", "datasets.rooms", "tools", "cli", "networks"])
def test_every_part_is_importable_as_a_part_of_scenediff(member):
    assert importlib.import_module(f"scenediff.{member}").__name__ == f"scenediff.{member}"


def test_the_core_knows_nothing_of_rendering():
    """The interface, the loss and the sampler serve any forward model, not only 3D ones."""
    for name in ("forward.py", "losses.py", "sampling.py"):
        source = (ROOT / "scenediff" / name).read_text()
        assert "pytorch3d" not in imported(ast.parse(source))
        assert not re.search(r"scenediff\.(renderers|datasets|tools|cli)", source), name


def test_optional_packages_are_imported_where_they_are_used():
    """nerfstudio, TensorBoard, Blender and others are extras: no module may need them to be imported.

    But for what runs inside Blender and nerfstudio, and the viewer, which its command imports.
    """
    extras = {"nerfstudio", "tensorboard", "bpy", "skimage", "viser"}
    inside = {"blender_camera_path.py", "nerfstudio_method.py", "viewer.py", "viewer_server.py"}
    for path in SOURCES:
        if path.name in inside:
            continue
        body = ast.parse(path.read_text()).body
        statements = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not imported(ast.Module(statements, [])) & extras, path


def test_no_prints():
    for path in SOURCES:
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls), path


def test_bundled_files_stay_small():
    def size(pattern: str) -> int:
        return sum(path.stat().st_size for path in ROOT.glob(pattern) if path.is_file())

    assert size("scenediff/checkpoints/rooms/*") <= 40 * MIB
    assert size("scenediff/checkpoints/furniture/*.safetensors") <= 12_000_000
    assert size("scenediff/checkpoints/**/*") <= 60 * MIB
    assert size("datasets/rooms/*.zip") <= 30 * MIB


def test_constraints_pin_versions_and_nothing_else():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    pattern = r"[a-z0-9-]+==[\w.]+(; python_version >= \"3\.\d+\")?"
    assert [line for line in pins if not re.fullmatch(pattern, line)] == []
    assert {"torch", "easypytorch3d", "nerfstudio", "numpy"} <= {line.split("==")[0] for line in pins}
