"""What an operation brings to be tested: calls of it, of any size and type, made from random numbers.

tests/test_operations.py holds every kernel of every operation to its reference by these calls.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


class Draw:
    """Draws the tensors of a call; the same seed draws the same numbers in any type and on any device.

    scale: multiplies what is drawn from the normal distribution, to see what large numbers do.
    """

    def __init__(self, dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 1.0, device: str = "cpu"):
        self.dtype, self.scale, self.device = dtype, scale, device
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Of the standard normal distribution, times `scale`; gradients by it are compared."""
        return self._made(self.scale * torch.randn(shape, generator=self._generator, dtype=torch.float64))

    def weight(self, *shape: int) -> Tensor:
        """A matrix (outputs, inputs) whose products are as large as what it multiplies, whatever `scale`.

        So are those of a vector and of a single number. With larger weights a recurrence is chaotic, and any two orders
        of summation disagree.
        """
        size = math.prod(shape[-1:]) ** -0.5
        return self._made(torch.randn(shape, generator=self._generator, dtype=torch.float64) * size)

    def unit(self, *shape: int) -> Tensor:
        """Evenly between 0 and 1, whatever `scale`; gradients by it are compared."""
        return self._made(torch.rand(shape, generator=self._generator, dtype=torch.float64))

    def _made(self, numbers: Tensor) -> Tensor:
        return numbers.to(self.device, self.dtype).requires_grad_()


@dataclass(frozen=True)
class Sample:
    """One call of an operation.

    arguments: positional. Tensors may stand in tuples, lists, dicts, dataclasses and modules; those that require a
    gradient are differentiated. options: the facts of the call that kernels may refuse, as `choose` takes them.
    token: of a one-token operation, which returns a function, the arguments of that function; never differentiated.
    """

    arguments: tuple
    options: dict[str, Any] = field(default_factory=dict)
    token: tuple | None = None


@dataclass(frozen=True)
class Samples:
    """The calls of an operation that its kernels are tested with.

    make: called with a Draw and keywords, makes a Sample; its defaults are a small call of ordinary sizes. sizes: the
    values that its keywords for sizes may take, odd ones, 1 and both sides of a kernel's blocks among them; the length
    of a sequence is named `length`. variants: keywords of each way to call it. large: keywords of sizes of real use,
    left out in Triton's interpreter, which is slow.
    """

    make: Callable[..., Sample]
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    variants: tuple[dict[str, Any], ...] = ({},)
    large: tuple[dict[str, Any], ...] = ()


@torch.no_grad()
def randomised(module: nn.Module, draw: Draw) -> nn.Module:
    """The module with drawn parameters in place of its own, whose zeros and ones would hide a mistake."""
    for parameter in module.parameters():
        parameter.copy_(draw.weight(*parameter.shape))
    return module.to(draw.device, draw.dtype).requires_grad_(False)
