"""OpenGL contexts without a window: on a GPU through EGL, or on the CPU with Mesa."""

from __future__ import annotations

from contextlib import suppress
from typing import Any


def create_context(**options: Any) -> Any:
    """A standalone ModernGL context; what fails without a driver raises the library's own exceptions.

    Args:
        options: further arguments of `moderngl.create_context`.
    """
    import moderngl  # not at the top: without a GL library other ways to draw must still work

    # where Mesa draws, it and Triton bring an LLVM each; Triton's, loaded after Mesa's, ends the process
    with suppress(ImportError):
        import triton  # noqa: F401
    return moderngl.create_context(standalone=True, backend="egl", **options)
