"""The operations `rms_norm` and `rms_norm_step`: root-mean-square normalisation (Zhang & Sennrich 2019).

torch has no fused kernel for the CPU and composes it of some ten operations.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.ops.registry import Kernel, Operation
from harness.ops.samples import Draw, Sample, Samples


def reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang & Sennrich 2019, arXiv:1910.07467)."""
    return F.rms_norm(x, weight.shape, weight, eps)


def step_reference(weight: Tensor, eps: float) -> Callable[[Tensor], Tensor]:
    """`reference` for one weight, as a function of x (B, D)."""
    return partial(reference, weight=weight, eps=eps)


def sample(draw: Draw, batch=2, rows=3, width=6) -> Sample:
    """One call, on rows that are grouped."""
    return Sample((draw.normal(batch, rows, width), draw.normal(width), 1e-5))


def step_sample(draw: Draw, batch=2, width=6) -> Sample:
    """One weight, and one token."""
    return Sample((draw.normal(width), 1e-5), token=(draw.normal(batch, width),))


_SIZES = {"batch": (1, 3), "width": (1, 7, 33, 80)}
_NUMBA = "harness.ops.elementwise.rms_norm_numba"
RMS_NORM = Operation(
    "rms_norm",
    reference,
    (Kernel("numba", "cpu", f"{_NUMBA}:rms_norm"),),
    optional=True,
    samples=Samples(sample, {"rows": (1, 2, 129, 150), **_SIZES}, large=({"rows": 200, "width": 96},)),
)
RMS_NORM_STEP = Operation(
    "rms_norm_step",
    step_reference,
    (Kernel("numba", "cpu", f"{_NUMBA}:rms_norm_step", (torch.float32,)),),
    optional=True,
    samples=Samples(step_sample, _SIZES),
)
