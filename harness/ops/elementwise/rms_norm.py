"""The operations `rms_norm` and `rms_norm_step`: root-mean-square normalisation (Zhang & Sennrich 2019).

torch has no fused kernel for the CPU and composes it of some ten operations.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.ops.registry import Kernel, Operation


def reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang & Sennrich 2019, arXiv:1910.07467)."""
    return F.rms_norm(x, weight.shape, weight, eps)


def step_reference(weight: Tensor, eps: float) -> Callable[[Tensor], Tensor]:
    """`reference` for one weight, as a function of x (B, D)."""
    return partial(reference, weight=weight, eps=eps)


_NUMBA = "harness.ops.elementwise.rms_norm_numba"
RMS_NORM = Operation("rms_norm", reference, (Kernel("numba", "cpu", f"{_NUMBA}:rms_norm"),), optional=True)
RMS_NORM_STEP = Operation(
    "rms_norm_step",
    step_reference,
    (Kernel("numba", "cpu", f"{_NUMBA}:rms_norm_step", (torch.float32,)),),
    optional=True,
)
