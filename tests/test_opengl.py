"""Waiting for OpenGL outside of Python's lock."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from scenediff.renderers import opengl


@pytest.fixture(autouse=True)
def fresh_function():
    opengl._finish.cache_clear()
    yield
    opengl._finish.cache_clear()


def test_what_was_drawn_is_there_after_waiting() -> None:
    with opengl.create_context() as context:
        buffer = context.framebuffer([context.renderbuffer((4, 3), 4)])
        buffer.clear(1.0, 0.0, 0.2, 1.0)
        opengl.finish_drawing()
        pixels = np.frombuffer(buffer.read(components=4), np.uint8).reshape(-1, 4)
        assert isinstance(opengl._finish(), ctypes._CFuncPtr)  # a foreign function, which frees the lock
    context.release()
    assert (pixels == [255, 0, 51, 255]).all()


def test_without_the_library_it_does_nothing(monkeypatch) -> None:
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(opengl.ctypes, "CDLL", missing)
    assert opengl.finish_drawing() is None
