"""Every Triton kernel compiles for a GPU (sm_90) though none is at hand: what the interpreter cannot tell."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import conformance

ROOT = Path(__file__).parent.parent


@pytest.mark.long
def test_every_kernel_compiles(tmp_path):
    pytest.importorskip("triton")

    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests" / "compile_triton.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    in_triton = {
        name
        for name, op in conformance.operations().items()
        if any(kernel.backend == "triton" for kernel in op.kernels)
    }
    assert {name for name, *_ in lines} == in_triton
    for name, _dtype, *kernels in lines:  # a forward and a backward, or both directions
        assert len(kernels) >= (1 if name.startswith("liquid_tokens") else 2)  # whose derivative is another operation
