"""Every test starts from the same random state and stays within its share of the processor."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores: one thread each
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (libraries under test use the global generator)
    torch.manual_seed(0)
