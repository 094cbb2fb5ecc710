"""RMSNorm through the registry of kernels."""

from collections.abc import Callable

from torch import Tensor, nn

from harness.ops.elementwise.rms_norm import RMS_NORM, RMS_NORM_STEP
from harness.ops.registry import Choice


class RMSNorm(nn.RMSNorm):
    """nn.RMSNorm by the kernel of that choice."""

    def __init__(self, width: int, eps: float, kernel: Choice = "auto"):
        super().__init__(width, eps)
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        return RMS_NORM.choose(self.kernel, x.device, x.dtype)(x, self.weight, self.eps)

    def frozen(self) -> Callable[[Tensor], Tensor]:
        """This norm for its weight as it stands, as a function of x (B, D)."""
        return RMS_NORM_STEP.choose(self.kernel, self.weight.device, self.weight.dtype)(self.weight, self.eps)
