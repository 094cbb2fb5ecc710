"""What the tests of the Triton kernels share: the device, comparison with a reference, and compilation without a GPU.

Without a GPU the kernels run in Triton's interpreter (tests/conftest.py). Its version 3.6 cannot loop over a number
known at run time under NumPy 2.4, which no longer answers int() of an array of one element; later versions ask for the
element, as is done for it here.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from triton.runtime import interpreter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ROOT = Path(__file__).parent.parent
_patch = interpreter._patch_lang_tensor


def _patch_with_index(tensor, scope) -> None:
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


interpreter._patch_lang_tensor = _patch_with_index


def values_and_gradients(function, tensors):
    """Outputs of a function, and the gradients of a random weighting of them by every tensor."""
    outputs = function(*tensors)
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(out.shape, generator=generator).bfloat16().to(out) for out in outputs]  # exact in any type
    return [out.detach() for out in outputs] + list(torch.autograd.grad(outputs, tensors, upstream))


def check(fused, reference, tensors, rtol=1e-10, atol=1e-10):
    """Both functions agree in values and in the gradient of every tensor."""
    results = zip(values_and_gradients(fused, tensors), values_and_gradients(reference, tensors), strict=True)
    for number, (got, expected) in enumerate(results):
        torch.testing.assert_close(
            got, expected, rtol=rtol, atol=atol, msg=lambda text, n=number: f"result {n}: {text}"
        )


def exact(tensors):
    """The tensors in float64, to be differentiated."""
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def relative_errors(got, expected):
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(got, expected, strict=True)]


def poison(monkeypatch) -> None:
    """Fills fresh memory with NaN, so that what a kernel leaves out would show."""
    empty_like, new_empty = torch.empty_like, torch.Tensor.new_empty
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(torch.nan))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: new_empty(*a, **k).fill_(torch.nan))


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
