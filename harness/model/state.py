"""Generation state as a pytree: dicts, lists and tuples of tensors, and caches that list their own tensors."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from harness.config.errors import UserError

State = Any

COUNTERS = 8
"""Python integers that the state of one mixer may hold, as positions and lengths do."""
MOST = 2**63
INTEGER_BYTES = 8
KEY_LENGTH = 32
"""Characters of a key of a state, or of an attribute of a cache, at most."""


class StateError(UserError):
    """A state that holds what a state may not hold."""

    def __init__(self, found: str):
        super().__init__(
            f"The state holds {found}.",
            "tensors, None, a few 64-bit integers, dicts (of short names), lists and tuples of these, or a cache whose "
            "tensors() lists every tensor it holds and whose map_tensors() maps them.",
            "keep what generation must remember in tensors that the state shows.",
        )


def tensors(state: State) -> Iterator[Tensor]:
    """Yields every tensor that `state` holds, in a fixed order; integers and None hold none.

    Raises StateError for anything that is no part of a state.
    """
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from tensors(value)
    elif _is_cache(state):
        yield from state.tensors()
    elif not _is_counter(state):
        raise StateError(_article(state))


def map_tensors(function: Callable[[Tensor], Tensor], state: State) -> State:
    """Returns a state of the same shape with `function` applied to every tensor; raises as `tensors`."""
    if isinstance(state, Tensor):
        return function(state)
    if isinstance(state, dict):
        return {key: map_tensors(function, value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        mapped = [map_tensors(function, value) for value in state]
        return type(state)(*mapped) if hasattr(state, "_fields") else type(state)(mapped)
    if _is_cache(state):
        return state.map_tensors(function)
    if not _is_counter(state):
        raise StateError(_article(state))
    return state


def detach(state: State) -> State:
    """Returns `state` cut from the graph that made it."""
    return map_tensors(lambda tensor: tensor.detach(), state)


def saved(state: State) -> State:
    """`state` as it is saved: a cache takes along no more than the tensors that it lists, every one a copy."""
    if isinstance(state, dict):
        return {key: saved(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        parts = [saved(value) for value in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    return state.map_tensors(lambda tensor: tensor.detach().clone()) if _is_cache(state) else state


def state_bytes(state: State) -> int:
    """Bytes that `state` takes where it is saved, never a formula.

    A tensor counts with the whole of its storage, which a view keeps too, and a storage counts once. An integer counts
    as one of 64 bits. Of a cache the tensors that it lists count: room that it allocated and did not write is not
    saved, and its own integers tell how many tokens it holds, which is checked (harness/checks/purity.py).
    """
    storages: dict[int, int] = {}
    listed = 0
    for part in _parts(state):
        if isinstance(part, Tensor):
            storage = part.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
        elif isinstance(part, int):
            listed += INTEGER_BYTES
        else:
            listed += sum(tensor.numel() * tensor.element_size() for tensor in part.tensors())
    return sum(storages.values()) + listed


def _parts(state: State) -> Iterator[Any]:
    """The tensors and integers that stand in `state` by themselves, and its caches."""
    if isinstance(state, dict | list | tuple):
        for value in state.values() if isinstance(state, dict) else state:
            yield from _parts(value)
    elif isinstance(state, Tensor | int) or _is_cache(state):
        yield state
    elif state is not None:
        raise StateError(_article(state))


def skeleton(state: State) -> Any:
    """What `state` is but for its numbers: its containers and their keys, and what kind fills each place.

    It is one that `examine` takes. No tensor's shape is told, and no integer's value.
    """
    if isinstance(state, dict):
        return [(key, skeleton(value)) for key, value in state.items()]
    if isinstance(state, list | tuple):
        return [skeleton(value) for value in state]
    if _is_cache(state):
        return type(state).__name__, _held(state, {id(state)})
    return _kind(state)


def _held(holder: Any, seen: set[int]) -> list:
    """The attributes of a cache, or of an object that it is made of, with what kind each is."""
    found = []
    for attribute, value in _attributes(holder):
        parts = hasattr(value, "__dict__") and not isinstance(value, Tensor) and id(value) not in seen
        seen.add(id(value))
        found.append((attribute, _held(value, seen) if parts else _kind(value)))
    return found


def _kind(value: Any) -> str:
    return "tensor" if isinstance(value, Tensor) else "integer" if isinstance(value, int) else type(value).__name__


def examine(state: State) -> list[int]:
    """Returns the integers of `state`, one mixer's.

    Raises StateError where it holds anything that `state_bytes` does not see: a value of another type, a tensor that a
    cache keeps and does not list, a container within a cache, an attribute of a tensor, a key that is no short name,
    or more integers than COUNTERS.
    """
    counters = list(_counters(state))
    if len(counters) > COUNTERS:
        raise StateError(f"{len(counters)} integers, more than {COUNTERS}")
    if any(abs(counter) >= MOST for counter in counters):
        raise StateError("an integer of more than 64 bits")
    return counters


def _counters(state: State) -> Iterator[int]:
    """The integers of a state, whatever else it holds being examined on the way."""
    if isinstance(state, Tensor):
        _examine_tensor(state)
    elif type(state) is dict:
        if not all(isinstance(key, str) for key in state):
            raise StateError("a dict whose keys are no strings")
        for key in state:
            _examine_name(key)
        for value in state.values():
            yield from _counters(value)
    elif type(state) is list or (isinstance(state, tuple) and not hasattr(state, "__dict__")):
        for value in state:
            yield from _counters(value)
    elif _is_cache(state):
        listed = {tensor.untyped_storage()._cdata for tensor in state.tensors()}
        yield from _hidden_counters(state, listed, type(state).__name__, {id(state)})
    elif isinstance(state, int):
        yield state
    elif state is not None:
        raise StateError(_article(state))


def _hidden_counters(holder: Any, listed: set[int], name: str, seen: set[int]) -> Iterator[int]:
    """The integers among the attributes of a cache and of the objects it is made of."""
    for attribute, value in _attributes(holder):
        _examine_name(attribute)
        path = f"{name}.{attribute}"
        if isinstance(value, Tensor):
            _examine_tensor(value)
            if value.untyped_storage()._cdata not in listed:
                raise StateError(f"the tensor {path}, which the cache does not list")
        elif isinstance(value, int):
            yield value
        elif value is None or id(value) in seen:
            continue
        elif hasattr(value, "__dict__") and not callable(value) and not hasattr(value, "__len__"):
            seen.add(id(value))
            yield from _hidden_counters(value, listed, path, seen)
        else:
            raise StateError(f"{_article(value)} in {path}, which the cache does not list")


def _attributes(holder: Any) -> Iterator[tuple[str, Any]]:
    yield from getattr(holder, "__dict__", {}).items()
    for kind in type(holder).__mro__:
        slots = getattr(kind, "__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if slot != "__dict__" and hasattr(holder, slot):
                yield slot, getattr(holder, slot)


def _examine_name(name: str) -> None:
    if not name.isidentifier() or len(name) > KEY_LENGTH:
        raise StateError(f"{name[:KEY_LENGTH]!r} for a key, which is no name of at most {KEY_LENGTH} characters")


def _examine_tensor(tensor: Tensor) -> None:
    if type(tensor) is not Tensor:
        raise StateError(f"{_article(tensor)} where a plain tensor was expected")
    if tensor.__dict__:
        raise StateError(f"a tensor with attributes of its own ({', '.join(tensor.__dict__)})")


def _is_cache(state: State) -> bool:
    return hasattr(state, "tensors") and hasattr(state, "map_tensors")


def _is_counter(state: State) -> bool:
    return state is None or isinstance(state, int)


def _article(value: Any) -> str:
    name = type(value).__name__
    return f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"
