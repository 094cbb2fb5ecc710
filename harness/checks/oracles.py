"""Oracles: third parties' implementations that carry a mixer's weights, looked up by the mixer's class.

Where a block puts a mixer into another (harness/model/block.py), that is the class of the mixer inside.

They stand outside the mixers: the module `oracle` beside a mixer's own registers one for a class, and is imported when
somebody asks.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import TypeVar

from torch import Tensor

from harness.model.block import Gated, Surrounded
from harness.model.mixer import Mixer


@dataclass(frozen=True)
class Oracle:
    """An implementation that its own community trusts: `forward` maps (B, T, d_model) to what the mixer gives."""

    name: str
    forward: Callable[[Tensor], Tensor]
    tolerance: float = 1e-5


@contextmanager
def replaced(module: ModuleType, **functions: Callable | None) -> Iterator[None]:
    """Puts other functions in the place of a module's own for a while."""
    originals = {name: getattr(module, name) for name in functions}
    vars(module).update(functions)
    try:
        yield
    finally:
        vars(module).update(originals)


M = TypeVar("M", bound=Mixer)
Maker = Callable[[M], Oracle | None]
MAKERS: dict[type[Mixer], Maker] = {}
"""What makes the oracle of a mixer, by its class; filled as the modules `oracle` are imported."""
GATED_MAKERS: dict[type[Mixer], Maker] = {}
"""What makes the oracle of a whole gated block, by the class of the mixer in it."""


def oracle_of(*kinds: type[M], gated: bool = False) -> Callable[[Maker], Maker]:
    """Registers a function of a mixer that returns its oracle, or None where nobody has this configuration.

    gated: whether it is a function of the gated block around such a mixer. It may raise ImportError where an oracle
    exists but is not installed.
    """

    def register(make: Maker) -> Maker:
        (GATED_MAKERS if gated else MAKERS).update(dict.fromkeys(kinds, make))
        return make

    return register


def comparable(mixer: Mixer) -> Mixer:
    """What of a mixer an oracle is sought for: the mixer inside, but for a gated block with an oracle of its own."""
    if not isinstance(mixer, Surrounded):
        return mixer
    _import_oracles(mixer.core)
    return mixer if isinstance(mixer, Gated) and _maker(GATED_MAKERS, mixer.core) else comparable(mixer.core)


def find_oracle(mixer: Mixer) -> Oracle | None:
    """The oracle of a mixer with its weights; None where none is known. Raises ImportError where one is missing."""
    makers, kind = (GATED_MAKERS, mixer.core) if isinstance(mixer, Gated) else (MAKERS, mixer)
    _import_oracles(kind)
    make = _maker(makers, kind)
    return None if make is None else make(mixer)


def _import_oracles(mixer: Mixer) -> None:
    package = type(mixer).__module__.rpartition(".")[0]
    if package and find_spec(f"{package}.oracle") is not None:
        importlib.import_module(f"{package}.oracle")


def _maker(makers: dict[type[Mixer], Maker], mixer: Mixer) -> Maker | None:
    return next((makers[kind] for kind in type(mixer).__mro__ if kind in makers), None)
