"""The process's settings are those asked for."""

import os
import subprocess
import sys

import pytest

import run

PROGRAM = """
import torch, numba
from harness.machine.runtime import use_threads
use_threads({threads})
import baselines.mamba.scan, arch.ltc.scan
print(torch.get_num_threads(), min({threads}, numba.config.NUMBA_NUM_THREADS) == numba.get_num_threads())
@numba.njit(parallel=True)
def halved(values):
    out = values.copy()
    for i in numba.prange(len(values)):
        out[i] = values[i] * 0.5
    return out
smallest = torch.full((1 << 20,), torch.finfo(torch.float32).tiny)
print((smallest * 0.5).count_nonzero().item(), halved(smallest.numpy()).any())
"""


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3])
def test_torch_and_numba_take_the_threads_asked_for_none_of_which_makes_denormals(threads):
    program = [sys.executable, "-c", PROGRAM.format(threads=threads)]
    done = subprocess.run(program, cwd=run.ROOT, capture_output=True, text=True, timeout=200, check=True)
    assert done.stdout.split() == [str(threads), "True", "0", "False"]


@pytest.mark.parametrize("package", ["harness", "bench", "sweeps.queue"])
@pytest.mark.parametrize(("given", "expected"), [({}, "10000"), ({"OMP_WAIT_POLICY": "active"}, "None")])
def test_openmps_threads_do_not_spin_on_the_kernels_cores_unless_told(package, given, expected):
    """The libraries read the variable as they are loaded: a command's package sets it before torch comes."""
    program = f"import os, sys, {package}; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_WAIT", "GOMP_"))}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=run.ROOT, capture_output=True, text=True, env=environment | given, check=True)
    assert done.stdout.split() == [expected, "False"]
