"""The registry of kernels: one rule that says which code computes an operation.

An operation is a function with a readable torch reference, its oracle, and kernels of the same signature, best first.
Everything that runs an operation asks `choose`; nothing else decides by device, type or shape.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import Literal, NamedTuple

import torch

from harness.config.errors import ConfigError
from harness.ops.samples import Samples

Choice = Literal["auto", "reference", "fused"]
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def always(**options) -> None:
    """Refuses nothing."""


def silent(line: str) -> None:
    """Says nothing."""


@dataclass(frozen=True)
class Kernel:
    """One implementation of an operation.

    backend: what it is written in. device: the device type it runs on. path: "module:function", imported at first use.
    dtypes: of the inputs it takes. refuses: called with the operation's options (sizes, variants), returns why the
    kernel cannot serve them, or None. needs: modules that must be importable. chunked: whether it multiplies chunks of
    tokens by masked matrices, where a NaN reaches earlier tokens of its chunk too (0 x NaN).
    """

    backend: str
    device: Literal["cpu", "cuda"]
    path: str
    dtypes: tuple[torch.dtype, ...] = FLOATS
    refuses: Callable[..., str | None] = always
    needs: tuple[str, ...] = ()
    chunked: bool = False

    def refusal(self, device: str, dtype: torch.dtype, **options) -> str | None:
        """Why this kernel cannot serve a call, or None where it can."""
        if device != self.device:
            return f"{self.backend} runs on {self.device}"
        if dtype not in self.dtypes:
            return f"{self.backend} takes {', '.join(str(d).removeprefix('torch.') for d in self.dtypes)}"
        missing = [name for name in self.needs if not _importable(name)]
        if missing:
            return f"{self.backend} needs {', '.join(missing)} installed"
        reason = self.refuses(**options)
        return f"{self.backend}: {reason}" if reason else None

    def load(self) -> Callable:
        """The function itself."""
        module, _, name = self.path.partition(":")
        return getattr(importlib.import_module(module), name)


class Chosen(NamedTuple):
    """The code that serves a call; slow_because: why no kernel does, where the reference stands in for one unasked."""

    backend: str
    function: Callable
    slow_because: str = ""


@dataclass(frozen=True)
class Operation:
    """A named operation, its reference and its kernels.

    optional: whether kernel=fused may fall back to the reference. An operation without a loop over time is optional,
    since its reference in torch is not slow. samples: the calls that its kernels are tested with.
    """

    name: str
    reference: Callable
    kernels: tuple[Kernel, ...] = field(default=())
    optional: bool = False
    samples: Samples | None = None
    _chosen: dict[tuple, Chosen] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self):
        OPERATIONS[self.name] = self

    def choose(self, choice: Choice, device: torch.device, dtype: torch.dtype, **options) -> Callable:
        """The one rule: the reference where asked for, else the first kernel that serves, else (auto) the reference.

        options: hashable facts of the call that kernels may refuse. Raises ConfigError where choice is fused, no kernel
        serves and the operation is not optional.
        """
        key = (choice, device.type, dtype, tuple(options.items()))
        if key not in self._chosen:
            self._chosen[key] = self._choose(*key)
        chosen = self._chosen[key]
        for recording in _recordings:
            recording.add(device.type, self.name, chosen)
        return chosen.function

    def _choose(self, choice: Choice, device: str, dtype: torch.dtype, options: tuple) -> Chosen:
        refusals = []
        for kernel in self.kernels if choice != "reference" else ():
            refusal = kernel.refusal(device, dtype, **dict(options))
            if refusal is None:
                return Chosen(kernel.backend, kernel.load())
            refusals.append(refusal)
        if choice == "reference" or self.optional:
            return Chosen("reference", self.reference)
        if choice == "auto":
            own = [why for why, kernel in zip(refusals, self.kernels, strict=True) if kernel.device == device]
            return Chosen("reference", self.reference, "; ".join(own) or f"no kernel runs on {device}")
        asked = ", ".join([device, str(dtype).removeprefix("torch."), *(f"{key}={value}" for key, value in options)])
        raise ConfigError(
            f"kernel=fused cannot serve {self.name} ({asked}).",
            "; ".join(refusals) + "." if refusals else f"kernel=reference or auto: {self.name} has no kernel.",
            "set kernel=auto, which takes the reference there, or change what the kernel refuses.",
        )

    def serves(self, device: torch.device | str, dtype: torch.dtype, **options) -> bool:
        """Whether some kernel serves such a call."""
        device = torch.device(device).type
        return any(kernel.refusal(device, dtype, **options) is None for kernel in self.kernels)


OPERATIONS: dict[str, Operation] = {}
"""Every operation by name, filled as the modules that define them are imported."""
_recordings: list["Recording"] = []


@dataclass
class Recording:
    """What `choose` answered while it was being recorded: device types, operations and backends.

    say: receives a line for each operation that falls to its slow reference unasked, at the first call that does.
    """

    say: Callable[[str], None] = silent
    calls: set[tuple[str, str, str]] = field(default_factory=set)
    _said: set[tuple[str, str]] = field(default_factory=set)

    def add(self, device: str, operation: str, chosen: Chosen) -> None:
        """Notes one answer."""
        self.calls.add((device, operation, chosen.backend))
        if chosen.slow_because and (operation, chosen.slow_because) not in self._said:
            self._said.add((operation, chosen.slow_because))
            self.say(
                f"Slow: {operation} runs as a loop in torch, since no kernel serves it ({chosen.slow_because}). "
                "Change what the kernel refuses; kernel=fused makes such a run an error."
            )

    def on(self, device: torch.device) -> dict[str, list[str]]:
        """The backends that calls on this type of device were given, by operation."""
        found: dict[str, list[str]] = {}
        for kind, operation, backend in sorted(self.calls):
            if kind == device.type:
                found.setdefault(operation, []).append(backend)
        return found


@contextmanager
def recording(say: Callable[[str], None] = silent) -> Iterator[Recording]:
    """Records which backends serve the calls of every thread until it ends, as autograd may call from its own."""
    made = Recording(say)
    _recordings.append(made)
    try:
        yield made
    finally:
        _recordings[:] = [other for other in _recordings if other is not made]


@cache
def _importable(module: str) -> bool:
    return find_spec(module) is not None
