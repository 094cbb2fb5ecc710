"""What a model holds beside its trainable parameters and could remember with: every number that is found in it.

Found are frozen parameters, buffers (persistent or not), tensors and arrays in plain attributes of modules, in
containers, objects and closures that hang on them, modules that are not registered, long texts, many Python numbers in
one place, and what the classes of the modules and the files that define them hold.
"""

import array
import hashlib
import sys
import types
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.model.backbone import LanguageModel

FEW = 64
"""As many Python numbers in an attribute, or four times as many characters, are settings and counters, no knowledge."""
ANOTHER_SEED = 0x5EED
REGISTERED = ("_parameters", "_buffers", "_modules")
FOREIGN = {"torch", "numba", "llvmlite", "triton", "numpy", "threading", "weakref", "logging", "re"}
"""Packages whose objects are not looked into: their tensors and arrays are, their compiled code changes as it runs."""
CONTAINERS = (dict, list, tuple, set, frozenset, deque)
BYTES = (str, bytes, bytearray, memoryview, array.array)


@dataclass(frozen=True)
class Held:
    """Some numbers: how many, a digest of their values, and whether they are a frozen parameter of the model."""

    numbers: int
    digest: str
    frozen: bool = False


def inventory(model: LanguageModel) -> dict[str, Held]:
    """What the model holds beside its trainable parameters, by where it lies."""
    walk = _Walk(model)
    walk.module(model, "model")
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    own = [kind for kind in kinds if kind.__module__.partition(".")[0] not in FOREIGN | {"builtins"}]
    for kind in sorted(own, key=lambda kind: (kind.__module__, kind.__qualname__)):
        walk.shared(vars(kind), f"{kind.__module__}.{kind.__qualname__}")
    for name in sorted({kind.__module__ for kind in own} & set(sys.modules)):
        walk.shared(vars(sys.modules[name]), name)
    return walk.found


def irreproducible(model: LanguageModel) -> dict[str, Held]:
    """Of what it holds, but for frozen parameters, what a fresh build of it under another seed does not hold alike."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(ANOTHER_SEED)
        fresh = inventory(LanguageModel(model.spec, model.interface, model.n_layers, model.width))
    return {path: held for path, held in inventory(model).items() if not held.frozen and fresh.get(path) != held}


class _Walk:
    """A walk over a model that finds each thing once."""

    def __init__(self, model: LanguageModel):
        self.found: dict[str, Held] = {}
        self.frozen = {id(p) for p in model.parameters() if not p.requires_grad}
        self.seen: dict[int, Any] = {id(p): p for p in model.parameters() if p.requires_grad}  # held: ids are reused
        self.whole = {p.untyped_storage().data_ptr(): p.nbytes for p in self.seen.values()}

    def module(self, module: nn.Module, path: str) -> None:
        """Everything in a module, registered or not."""
        self.seen[id(module)] = module
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                self.value(tensor, f"{path}.{name}", [])
        for name, child in module._modules.items():
            if child is not None and id(child) not in self.seen:
                self.module(child, f"{path}.{name}")
        few: list[str] = []
        for name, value in vars(module).items():
            if name not in REGISTERED:
                self.attribute(value, f"{path}.{name}", few)
        self.numbers(few, f"{path} (small attributes)", 16 * FEW)

    def attribute(self, value: Any, path: str, few: list[str]) -> None:
        """One attribute; the numbers of a small one are added to `few`."""
        numbers: list[str] = []
        self.value(value, path, numbers)
        if not self.numbers(numbers, path, FEW):
            few.extend(numbers)

    def shared(self, attributes: Any, path: str) -> None:
        """The numbers that a class or a file holds in its own attributes; what it imports lies elsewhere."""
        for name, value in list(attributes.items()):
            if not name.startswith("__") and isinstance(value, (Tensor, np.ndarray, *CONTAINERS, *BYTES)):
                self.attribute(value, f"{path}.{name}", [])

    def value(self, value: Any, path: str, numbers: list[str]) -> None:
        """Anything: tensors and texts are entered as found, Python numbers appended to `numbers`."""
        if isinstance(value, int) and value.bit_length() > 64:
            self.content(value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True), path)
        elif isinstance(value, bool | int | float | complex | np.number | np.bool_):
            numbers.append(repr(value))
        elif isinstance(value, str):
            self.content(value.encode(errors="surrogatepass"), path)
        elif value is None or id(value) in self.seen or isinstance(value, type | types.ModuleType):
            return
        else:
            self.seen[id(value)] = value
            self.object(value, path, numbers)

    def object(self, value: Any, path: str, numbers: list[str]) -> None:
        if isinstance(value, Tensor):
            self.tensor(value, path)
        elif isinstance(value, np.ndarray) and value.dtype != object:
            self.enter(path, value.size, np.ascontiguousarray(value).tobytes())
        elif isinstance(value, bytes | bytearray | memoryview | array.array):
            self.content(bytes(value), path)
        elif isinstance(value, nn.Module):
            self.module(value, path)
        else:
            for name, part in _parts(value):
                self.value(part, f"{path}{name}", numbers)

    def tensor(self, tensor: Tensor, path: str) -> None:
        storage = tensor.to_dense().untyped_storage()
        if self.whole.get(storage.data_ptr()) == storage.nbytes() > 0:
            return  # another view of a trainable parameter
        plain = tensor.detach().to_dense().to("cpu", torch.float64 if tensor.is_floating_point() else tensor.dtype)
        self.enter(path, tensor.numel(), plain.contiguous().numpy().tobytes(), id(tensor) in self.frozen)

    def numbers(self, numbers: list[str], path: str, few: int) -> bool:
        """Enters Python numbers that are more than a few; returns whether they are."""
        if len(numbers) > few:
            self.enter(path, len(numbers), "\n".join(numbers).encode())
        return len(numbers) > few

    def content(self, content: bytes, path: str) -> None:
        if len(content) > 4 * FEW:
            self.enter(path, len(content) // 4, content)

    def enter(self, path: str, numbers: int, content: bytes, frozen: bool = False) -> None:
        while path in self.found:
            path += "'"
        self.found[path] = Held(numbers, hashlib.sha256(content).hexdigest(), frozen)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What hangs on a container, a function or an object, each with its part of the path."""
    if isinstance(value, dict):
        for number, (key, item) in enumerate(list(value.items())):
            yield f".key{number}", key
            yield f"[{key!r:.40}]", item
    elif isinstance(value, np.ndarray | list | tuple | set | frozenset | deque):
        yield from ((f"[{number}]", item) for number, item in enumerate(list(value)))
    elif isinstance(value, partial):
        yield from ((".function", value.func), (".arguments", value.args), (".keywords", value.keywords))
    elif isinstance(value, types.MethodType):
        yield from ((".object", value.__self__), (".function", value.__func__))
    elif isinstance(value, types.FunctionType):
        yield from (
            (".defaults", value.__defaults__),
            (".keywords", value.__kwdefaults__),
            (".attributes", vars(value)),
        )
        cells = (cell.cell_contents for cell in value.__closure__ or () if _filled(cell))
        yield from ((f".closure{number}", content) for number, content in enumerate(cells))
    elif type(value).__module__.partition(".")[0] not in FOREIGN:
        yield from ((f".{name}", part) for name, part in list(getattr(value, "__dict__", {}).items()))
        slots = [name for kind in type(value).__mro__ for name in _slots(kind)]
        yield from ((f".{name}", getattr(value, name)) for name in slots if hasattr(value, name))


def _slots(kind: type) -> list[str]:
    slots = vars(kind).get("__slots__", ())
    return [slots] if isinstance(slots, str) else list(slots)


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a name that its function has not bound yet
        return False
