"""scenediff: samples 3D scenes from one photo by diffusion with differentiable forward models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scenediff.pipeline import CheckpointError, ScenePipeline, load
    from scenediff.scene import Scene

__version__ = "0.1.0"
__all__ = ["CheckpointError", "Scene", "ScenePipeline", "load"]


def __getattr__(name: str) -> Any:
    """Imports the public names when they are first used, so that `import scenediff` stays fast."""
    if name == "Scene":
        from scenediff.scene import Scene

        return Scene
    if name in __all__:
        from scenediff import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
