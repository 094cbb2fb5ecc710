"""What the tests of the Triton kernels share: the device, and compilation without a GPU.

Without a GPU the kernels run in Triton's interpreter (tests/conftest.py).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ROOT = Path(__file__).parent.parent


def compiled(calls: str, cache) -> list[str]:
    """The kernels that `calls`, lines of Python, would launch, each compiled for a GPU that is not there."""
    start = "import torch\nfrom compile_triton import compile_in_place_of_running, compiled, differentiate\n"
    program = f"{start}compile_in_place_of_running()\n{calls}\nprint(*compiled)"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()
