"""CUDA C++ compiled when it is first needed, by the compiler library that comes with PyTorch, and launched.

For the few kernels that Triton can't express. Sources include no headers, so that nothing but PyTorch and the
driver need be installed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

DYNAMIC_SHARED_MEMORY = 8  # cuFuncSetAttribute's name of the most that a launch may ask for
FOLDER = Path(__file__).parent


class CompileError(RuntimeError):
    """The compiler is missing or refuses the source."""


def compile_cuda(source: str, architecture: str, definitions: Sequence[str] = ()) -> bytes:
    """Machine code of CUDA C++ for an architecture such as "sm_90a"; needs no GPU."""
    compiler, program = _compiler(), ctypes.c_void_p()
    _succeed(compiler.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"source.cu", 0, None, None))
    options = [f"--gpu-architecture={architecture}", "-default-device", *(f"-D{one}" for one in definitions)]
    listed = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    try:
        if compiler.nvrtcCompileProgram(program, len(options), listed):
            raise CompileError(_read(compiler, program, "ProgramLog").decode())
        return _read(compiler, program, "CUBIN")
    finally:
        compiler.nvrtcDestroyProgram(ctypes.byref(program))


class Kernel:
    """A kernel on the current device that takes one structure.

    Args:
        file: of the source, beside this module. name: of the kernel in it.
        shared_memory: bytes of it that a launch asks for. definitions: macros, "NAME=value".
    """

    def __init__(self, file: str, name: str, shared_memory: int, definitions: Sequence[str] = ()):
        major, minor = torch.cuda.get_device_capability()
        suffix = "a" if major >= 9 else ""
        code = compile_cuda((FOLDER / file).read_text(), f"sm_{major}{minor}{suffix}", definitions)
        self.shared_memory, self._driver = shared_memory, ctypes.CDLL("libcuda.so.1")
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        torch.cuda.current_stream().synchronize()  # makes sure that there is a context
        self._check(self._driver.cuModuleLoadData(ctypes.byref(self._module), code))
        self._check(
            self._driver.cuModuleGetFunction(ctypes.byref(self._function), self._module, name.encode())
        )
        self._check(
            self._driver.cuFuncSetAttribute(
                self._function, DYNAMIC_SHARED_MEMORY, ctypes.c_int(shared_memory)
            )
        )

    def launch(self, blocks: int, threads: int, given: ctypes.Structure) -> None:
        """Starts the kernel on the current stream."""
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(given))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        self._check(
            self._driver.cuLaunchKernel(
                self._function, blocks, 1, 1, threads, 1, 1, self.shared_memory, stream, pointers, None
            )
        )

    def _check(self, code: int) -> None:
        if code:
            message = ctypes.c_char_p()
            self._driver.cuGetErrorString(code, ctypes.byref(message))
            raise RuntimeError(f"CUDA: {(message.value or b'unknown error').decode()}")


@cache
def _compiler() -> Any:
    """The library of CUDA's run-time compiler that PyTorch was built for."""
    if torch.version.cuda is None:
        raise CompileError("this PyTorch was built without CUDA")
    major = torch.version.cuda.split(".")[0]
    name, packages = f"libnvrtc.so.{major}", Path(torch.__file__).parents[1] / "nvidia"
    for place in (name, *map(str, packages.glob(f"*/lib/{name}")), "libnvrtc.so"):
        try:
            return ctypes.CDLL(place)
        except OSError:
            continue
    raise CompileError(f"{name} not found: neither on the library path nor in {packages}")


def _succeed(code: int) -> None:
    if code:
        raise CompileError(f"the CUDA compiler failed with code {code}")


def _read(compiler: Any, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _succeed(getattr(compiler, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _succeed(getattr(compiler, f"nvrtcGet{what}")(program, buffer))
    return buffer.raw.rstrip(b"\0") if what == "ProgramLog" else buffer.raw
