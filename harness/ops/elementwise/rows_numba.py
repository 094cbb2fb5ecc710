"""Rows of a tensor as the tasks of elementwise kernels."""

import torch
from torch import Tensor

ROWS = 128
"""Of one task: sums over rows are taken task by task, so that they do not depend on the threads."""


def tasks(rows: int) -> int:
    """How many tasks so many rows make."""
    return -(-rows // ROWS)


def as_rows(x: Tensor) -> Tensor:
    """(..., D) -> contiguous (R, D), float32 at least; of the tensor's own memory where it may."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.detach().reshape(-1, x.shape[-1]).to(wide).contiguous()
