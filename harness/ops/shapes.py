"""Shapes and types at the door of a kernel, which reads and writes by address and would not notice a wrong one."""

import torch
from torch import Tensor


def expect(operation: str, *tensors: tuple[str, Tensor | None, tuple[int, ...]]) -> None:
    """Raises ValueError at the first (name, tensor, shape) whose tensor is there and has another shape."""
    for name, tensor, shape in tensors:
        if tensor is not None and tensor.shape != shape:
            got, wanted = tuple(tensor.shape), tuple(shape)
            raise ValueError(f"{operation}: {name} has the shape {got}, where the other inputs ask for {wanted}.")


def expect_type(operation: str, dtype: torch.dtype, **tensors: Tensor | None) -> None:
    """Raises TypeError at the first tensor that is there and of another type."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype != dtype:
            raise TypeError(f"{operation}: {name} is of {tensor.dtype}, where the other inputs ask for {dtype}.")


def expect_tokens(operation: str, tokens: int) -> None:
    """Raises ValueError for a sequence of none: it has no last state."""
    if tokens == 0:
        raise ValueError(f"{operation} needs at least one token.")
