"""What the matrix products of a training update take by themselves: the limit that a model's speed is held against."""

from collections import Counter
from time import perf_counter

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from harness.measurement.latency import synchronize
from harness.model.backbone import LanguageModel
from harness.model.flops import BACKWARD_FACTOR

aten = torch.ops.aten
OPERANDS = {aten.mm.default: 0, aten.addmm.default: 1, aten.bmm.default: 0, aten.baddbmm.default: 1}
"""Where the two matrices stand among the arguments of torch's products."""
Layout = tuple[torch.Size, tuple[int, ...], torch.dtype]
"""Shape, strides and type of a matrix, or of a batch of them."""


class Products(TorchDispatchMode):
    """Counts the products inside by the layouts of their operands."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[tuple[Layout, Layout]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in OPERANDS:
            first = OPERANDS[func]
            left, right = (_layout(matrix) for matrix in args[first : first + 2])
            self.counts[left, right] += 1
        return func(*args, **(kwargs or {}))

    @property
    def flops(self) -> float:
        """Floating-point operations of all of them; a multiply-add counts as two."""
        return sum(2.0 * count * left[0].numel() * right[0][-1] for (left, right), count in self.counts.items())

    def seconds(self, device: torch.device) -> float:
        """What all of them take, each layout timed once, on random numbers."""
        total = 0.0
        for layouts, count in self.counts.items():
            left, right = (_drawn(layout, device) for layout in layouts)
            synchronize(device)
            start = perf_counter()
            torch.matmul(left, right)
            synchronize(device)
            total += count * (perf_counter() - start)
        return total


def update_flops(model: LanguageModel, length: int) -> float:
    """Operations in matrix products that training on a token needs, the mean over a sequence's positions.

    As the mixers state them, those inside fused kernels too (attention, a dense recurrence), which torch does not see.
    """
    forward = sum(model.flops_per_token(context).matmul for context in range(1, length + 1)) / length
    return BACKWARD_FACTOR * forward


def _layout(matrix: Tensor) -> Layout:
    return matrix.shape, matrix.stride(), matrix.dtype


def _drawn(layout: Layout, device: torch.device) -> Tensor:
    shape, stride, dtype = layout
    extent = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    return torch.randn(extent, dtype=dtype, device=device).as_strided(shape, stride)
