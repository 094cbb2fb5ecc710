"""Shapes at the door of a kernel, which reads and writes by address and would not notice a wrong one."""

from torch import Tensor


def expect(operation: str, *tensors: tuple[str, Tensor | None, tuple[int, ...]]) -> None:
    """Raises ValueError at the first (name, tensor, shape) whose tensor is there and has another shape."""
    for name, tensor, shape in tensors:
        if tensor is not None and tensor.shape != shape:
            got, wanted = tuple(tensor.shape), tuple(shape)
            raise ValueError(f"{operation}: {name} has the shape {got}, where the other inputs ask for {wanted}.")
