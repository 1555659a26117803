"""Triton's kernels without a GPU: interpreted, in a process of its own, as Triton decides on import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def check_interpreted(code: str) -> None:
    """Runs code among the tests' modules with kernels interpreted on the CPU; it must print "agreed"."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip() == "agreed", done.stderr
