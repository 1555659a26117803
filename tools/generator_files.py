"""StyleGAN2 checkpoints in the widely used PyTorch layout, read without running any code in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scenediff.renderers.stylegan2 import Generator, GeneratorError, from_public
from scenediff.tools.convert import read_archive


def load_generator(path: str | Path) -> Generator:
    """The averaged generator of a torch archive {"g_ema": ...}, or the one of a safetensors file.

    Raises:
        ValueError: the file is missing, broken, holds code, is no generator, or its weights are not finite.
    """
    archive = load_archive(path)
    try:
        return from_public(archive)
    except GeneratorError as error:
        raise GeneratorError(f"{path}: {error}") from error


def load_archive(path: str | Path) -> dict[str, Any]:
    """Everything in a generator's checkpoint; errors as for `load_generator`."""
    archive = read_archive(Path(path))
    if not isinstance(archive, Mapping):
        raise GeneratorError(f"{path}: holds a {type(archive).__name__}, expected named weights")
    return dict(archive)
