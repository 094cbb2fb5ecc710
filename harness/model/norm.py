"""RMSNorm with a fused kernel: torch has none for the CPU and composes it of some ten operations."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.ops.registry import Choice, Kernel, Operation


def reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang & Sennrich 2019, arXiv:1910.07467)."""
    return F.rms_norm(x, weight.shape, weight, eps)


RMS_NORM = Operation(
    "rms_norm",
    reference,
    (Kernel("numba", "cpu", "harness.ops.elementwise.kernel_numba:rms_norm"),),
    optional=True,
)


def frozen_rms_norm(weight: Tensor, eps: float) -> Callable[[Tensor], Tensor]:
    """`reference` for one weight, as a function of x (B, D)."""
    return partial(reference, weight=weight, eps=eps)


FROZEN_RMS_NORM = Operation(
    "frozen_rms_norm",
    frozen_rms_norm,
    (Kernel("numba", "cpu", "harness.ops.elementwise.kernel_numba:frozen_rms_norm", (torch.float32,)),),
    optional=True,
)


class RMSNorm(nn.RMSNorm):
    """nn.RMSNorm through the registry of kernels."""

    def __init__(self, width: int, eps: float, kernel: Choice = "auto"):
        super().__init__(width, eps)
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        return RMS_NORM.choose(self.kernel, x.device, x.dtype)(x, self.weight, self.eps)

    def frozen(self) -> Callable[[Tensor], Tensor]:
        """This norm for its weight as it stands, as a function of x (B, D)."""
        return FROZEN_RMS_NORM.choose(self.kernel, self.weight.device, self.weight.dtype)(self.weight, self.eps)
