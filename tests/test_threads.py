"""Work spread over threads: every task is done once, and what a thread raises reaches the caller."""

import time

import numpy as np
import pytest
import torch

from harness.ops.toolbox.threads import SMALL_WORK, spread


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("tasks", [1, 2, 7])
def test_every_task_is_done_once(threads, tasks):
    done, spans = np.zeros(tasks), []

    def kernel(first, last, step):
        spans.append((first, last))
        done[first:last] += step

    spread(kernel, tasks, SMALL_WORK + 1, 2)
    assert (done == 2).all()
    assert len(spans) == min(threads, tasks)


def test_little_work_stays_on_one_thread(threads):
    spans = []
    spread(lambda *span: spans.append(span), 7, SMALL_WORK)
    assert spans == [(0, 7)]


def fails_in_a_worker(first, last):
    if first > 0:
        raise ValueError(f"task {first}")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("threads", [3], indirect=True)
def test_an_error_waits_for_the_other_threads(threads, error):
    """They hold addresses of what the caller frees."""
    ended = []

    def kernel(first, last):
        if first == 0:
            raise error
        time.sleep(0.1)
        ended.append(first)

    with pytest.raises(error):
        spread(kernel, 3, SMALL_WORK + 1)
    assert sorted(ended) == [1, 2]


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_what_a_worker_raises_reaches_the_caller(threads):
    with pytest.raises(ValueError, match="task 2"):
        spread(fails_in_a_worker, 4, SMALL_WORK + 1)
    spread(lambda first, last: None, 4, SMALL_WORK + 1)  # the threads go on
