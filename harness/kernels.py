"""The registry of kernels: one rule that says which code computes an operation.

An operation is a function with a readable torch reference, its oracle, and kernels of the same signature, best first.
Everything that runs an operation asks `choose`; nothing else decides by device, type or shape.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch

from harness.errors import ConfigError

Choice = Literal["auto", "reference", "fused"]
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def always(**options) -> None:
    """Refuses nothing."""


@dataclass(frozen=True)
class Kernel:
    """One implementation of an operation.

    backend: what it is written in. device: the device type it runs on. path: "module:function", imported at first use.
    dtypes: of the inputs it takes. refuses: called with the operation's options (sizes, variants), returns why the
    kernel cannot serve them, or None. needs: modules that must be importable.
    """

    backend: str
    device: Literal["cpu", "cuda"]
    path: str
    dtypes: tuple[torch.dtype, ...] = FLOATS
    refuses: Callable[..., str | None] = always
    needs: tuple[str, ...] = ()

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


@dataclass(frozen=True)
class Operation:
    """A named operation, its reference and its kernels."""

    name: str
    reference: Callable
    kernels: tuple[Kernel, ...] = field(default=())

    def __post_init__(self):
        OPERATIONS[self.name] = self

    def choose(self, choice: Choice, device: torch.device, dtype: torch.dtype, **options) -> Callable:
        """The one rule: the reference where asked for, else the first kernel that serves, else (auto) the reference.

        options: hashable facts of the call that kernels may refuse. Raises ConfigError where choice is fused and no
        kernel serves.
        """
        return _chosen(self.name, choice, device.type, dtype, tuple(options.items()))

    def serves(self, device: torch.device | str, dtype: torch.dtype, **options) -> bool:
        """Whether some kernel serves such a call."""
        device = torch.device(device).type
        return any(kernel.refusal(device, dtype, **options) is None for kernel in self.kernels)


OPERATIONS: dict[str, Operation] = {}
"""Every operation by name, filled as the modules that define them are imported."""


@cache
def _importable(module: str) -> bool:
    return find_spec(module) is not None


@cache
def _chosen(name: str, choice: Choice, device: str, dtype: torch.dtype, options: tuple) -> Callable:
    operation, refusals = OPERATIONS[name], []
    if choice == "reference":
        return operation.reference
    for kernel in operation.kernels:
        refusal = kernel.refusal(device, dtype, **dict(options))
        if refusal is None:
            return kernel.load()
        refusals.append(refusal)
    if choice == "auto":
        return operation.reference
    asked = ", ".join([device, str(dtype).removeprefix("torch."), *(f"{key}={value}" for key, value in options)])
    raise ConfigError(
        f"kernel=fused cannot serve {name} ({asked}).",
        "; ".join(refusals) + "." if refusals else f"kernel=reference or auto: {name} has no kernel.",
        "set kernel=auto, which takes the reference there, or change what the kernel refuses.",
    )
