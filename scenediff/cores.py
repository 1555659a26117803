"""Several things at once on the cores of a CPU, each on a thread of its own.

Networks of this size keep two threads that share each operation waiting for each other a third of the time;
two samples side by side do not wait. NumPy's products stay on one thread meanwhile: OpenBLAS, which shares
its own threads among all that call it, may then wait for ever (numpy/numpy#17752).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

Item = TypeVar("Item")
Result = TypeVar("Result")


def on_cores(
    function: Callable[[Item], Result], items: Sequence[Item], device: torch.device | str = "cpu"
) -> list[Result]:
    """The function's results for all items, in their order: side by side on a CPU, else one by one.

    The first error ends it once what has begun is done. Gradients are off in the function only where it says
    so itself.
    """
    cores = torch.get_num_threads()
    workers = min(len(items), cores) if torch.device(device).type == "cpu" else 1
    if workers <= 1:
        return [function(item) for item in items]
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(cores // workers,))
    with threadpool_limits(1, user_api="blas"):  # until the last thread is done, after an error too
        try:
            return list(pool.map(function, items))
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(cores)  # one of the libraries behind it has a single number for all threads
