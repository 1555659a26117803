"""OpenGL contexts without a window: on a GPU through EGL, or on the CPU with Mesa."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from functools import cache
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


def finish_drawing() -> None:
    """Waits until the current context has drawn everything, while other Python threads run.

    ModernGL holds Python's lock when a read waits for Mesa: two threads that draw, or one that draws and one
    that computes, would take turns.
    """
    _finish()()


@cache
def _finish() -> Callable[[], Any]:
    """OpenGL's glFinish as a foreign function, which lets go of the lock; nothing where there is none."""
    with suppress(OSError, AttributeError):
        egl = ctypes.CDLL("libEGL.so.1")
        egl.eglGetProcAddress.restype = ctypes.c_void_p
        address = egl.eglGetProcAddress(b"glFinish")
        if address:
            return ctypes.CFUNCTYPE(None)(address)
    return lambda: None
