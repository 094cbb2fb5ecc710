"""Plain threads for CPU kernels that hold no lock: spreads tasks over torch's number of threads.

In place of numba's prange, which compiles the whole kernel once more and keeps threads of its own.
"""

import os
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise

import torch

SMALL_WORK = 1 << 14  # element updates below which a second thread costs more than it saves


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="kernel")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def spread(kernel, tasks: int, work: int, *arguments) -> None:
    """Calls kernel(first, last, *arguments) over all of `tasks`, each thread taking a run of them.

    work: element updates in all; little work stays on one thread. Which thread takes a task must not change what it
    computes. The kernel must have nogil=True.
    """
    threads = min(torch.get_num_threads(), tasks) if work > SMALL_WORK else 1
    if threads == 1:
        kernel(0, tasks, *arguments)
        return
    bounds = [tasks * i // threads for i in range(threads + 1)]
    others: list[Future] = []
    try:
        for span in pairwise(bounds[1:]):
            others.append(_pool(threads - 1).submit(kernel, *span, *arguments))
        kernel(0, bounds[1], *arguments)
    finally:
        wait(others)  # whatever happens: kernels hold addresses of memory that is freed once this returns
    for other in others:
        other.result()
