"""Oracles: third parties' implementations that carry a mixer's weights, looked up by the mixer's class.

They stand outside the mixers: the module `oracle` beside a mixer's own registers one for a class, and is imported when
somebody asks.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TypeVar

from torch import Tensor

from harness.model.mixer import Mixer


@dataclass(frozen=True)
class Oracle:
    """An implementation that its own community trusts: `forward` maps (B, T, d_model) to what the mixer gives."""

    name: str
    forward: Callable[[Tensor], Tensor]
    tolerance: float = 1e-5


M = TypeVar("M", bound=Mixer)
Maker = Callable[[M], Oracle | None]
MAKERS: dict[type[Mixer], Maker] = {}
"""What makes the oracle of a mixer, by its class; filled as the modules `oracle` are imported."""


def oracle_of(*kinds: type[M]) -> Callable[[Maker], Maker]:
    """Registers a function of a mixer that returns its oracle, or None where nobody has this configuration.

    It may raise ImportError where an oracle exists but is not installed.
    """

    def register(make: Maker) -> Maker:
        MAKERS.update(dict.fromkeys(kinds, make))
        return make

    return register


def find_oracle(mixer: Mixer) -> Oracle | None:
    """The oracle of a mixer with its weights; None where none is known. Raises ImportError where one is missing."""
    package = type(mixer).__module__.rpartition(".")[0]
    if package and find_spec(f"{package}.oracle") is not None:
        importlib.import_module(f"{package}.oracle")
    make = next((MAKERS[kind] for kind in type(mixer).__mro__ if kind in MAKERS), None)
    return None if make is None else make(mixer)
