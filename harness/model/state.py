"""Generation state as a pytree: dicts, lists and tuples of tensors, and caches that list their own tensors."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

State = Any


def tensors(state: State) -> Iterator[Tensor]:
    """Yields every tensor that `state` holds, in a fixed order; Python numbers and None hold no tensor."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from tensors(value)
    elif hasattr(state, "tensors"):
        yield from state.tensors()


def map_tensors(function: Callable[[Tensor], Tensor], state: State) -> State:
    """Returns a state of the same shape with `function` applied to every tensor."""
    if isinstance(state, Tensor):
        return function(state)
    if isinstance(state, dict):
        return {key: map_tensors(function, value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map_tensors(function, value) for value in state)
    if hasattr(state, "map_tensors"):
        return state.map_tensors(function)
    return state


def detach(state: State) -> State:
    """Returns `state` cut from the graph that made it."""
    return map_tensors(lambda tensor: tensor.detach(), state)


def state_bytes(state: State) -> int:
    """Bytes of the tensors held: the sum of numel x element size, never a formula."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(state))
