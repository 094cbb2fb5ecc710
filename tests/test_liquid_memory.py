"""The liquid scan's memory in training as the system counts it: the peak of a process of its own."""

import os
import subprocess
import sys

import pytest

import run

PROGRAM = """
import torch
from arch.field import Field
from arch.ltc.scan_numba import liquid_scan
from arch.solvers import RungeKutta, SemiImplicit
from harness.machine.memory import peak_bytes, reset_peak

BATCH, T, D = 8, 1024, 256
torch.set_num_threads(1)

def tensors(N, T):
    sizes = [(BATCH, T, D)] * 2 + [(BATCH, T, N)] * 2 + [(D, N)] * 2 + [(D,), (BATCH, D, N)]
    made = [torch.rand(size).requires_grad_() for size in sizes]
    return made if N > 1 else [*made[:2], None, None, *made[4:]]

def train(solver, inputs):
    y, last = liquid_scan(solver, Field(*inputs[:7], "sigmoid"), inputs[7])
    torch.autograd.backward([y, last], [torch.ones_like(y), torch.ones_like(last)])
    return y.nbytes + last.nbytes

for solver, N in ((SemiImplicit(1), 1), (SemiImplicit(6), 1), (RungeKutta("rk4"), 1), (SemiImplicit(1), 16)):
    train(solver, tensors(N, 16))  # compiled and its threads' memory taken
    inputs = tensors(N, T)
    if not reset_peak():
        print("refused")
        break
    before = peak_bytes()
    outputs = train(solver, inputs)
    print((peak_bytes() - before) / (sum(x.nbytes for x in inputs if x is not None) + outputs))
"""


@pytest.mark.slow
def test_training_takes_no_more_than_twice_its_inputs_and_outputs_beyond_them():
    """Of semi_implicit x 1 and x 6, rk4 and 16 states; outputs and gradients, both ways, are among what it takes."""
    given_back = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed, to the system: the peak holds what is alive
    environment = {**os.environ, **given_back, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(program, cwd=run.ROOT, env=environment, capture_output=True, text=True, check=True)
    if "refused" in done.stdout:
        pytest.skip("the system does not reset the peak of the resident set")
    ratios = [float(line) for line in done.stdout.split()]
    assert len(ratios) == 4
    assert min(ratios) > 1, ratios  # at least the outputs and all gradients: the peak was seen
    assert max(ratios) <= 2, ratios
