"""What a check works on: the model under test, the outcome it gives, the measure of distance, and the registry."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from harness.checks.tolerances import ROUNDING, Allowance, allowance, distance, worst
from harness.checks.trial import Trial
from harness.model.backbone import LanguageModel, ModelSpec
from harness.model.interface import Interface
from harness.model.sizing import SizeConfig
from harness.model.state import State, tensors

BATCH = 3
LENGTH = 67  # odd, and past the block sizes (16, 32, 64) of chunked scans


@dataclass(frozen=True)
class Outcome:
    """A check's figure and what it may be at most; where there is no figure, `passed` speaks for itself."""

    value: float | None
    tolerance: float | None
    detail: str
    passed: bool | None = None


@dataclass
class Case:
    """The model under test (float64, CPU, eval), what it was asked to be, and the same model as the run will use it."""

    model: LanguageModel
    spec: ModelSpec
    interface: Interface
    size: SizeConfig
    generator: torch.Generator
    run: Trial

    @property
    def allowed(self) -> Allowance:
        """What the reasons for which its mixers are inexact allow."""
        return allowance(self.model.mixers)

    @property
    def paths(self) -> float:
        """How closely two ways to read one sequence must agree."""
        return max(ROUNDING[torch.float64], self.allowed.paths)

    @property
    def rows(self) -> float:
        """How closely a row alone must agree with the row in company."""
        return max(self.paths, self.allowed.rows)

    @cached_property
    def tokens(self) -> Tensor:
        """Random inputs (BATCH, LENGTH, ...)."""
        return self.interface.inputs.random(BATCH, LENGTH, self.generator)

    @cached_property
    def whole(self) -> tuple[Tensor, State]:
        """Outputs (BATCH, LENGTH, out_width) and the last state, by one call of `forward`."""
        with torch.no_grad():
            return self.model(self.tokens)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)


CheckFunction = Callable[[Case], Outcome]
CHECKS: dict[str, CheckFunction] = {}


def check(function: CheckFunction) -> CheckFunction:
    """Registers a check under its function's name."""
    CHECKS[function.__name__] = function
    return function


def state_distance(actual: State, expected: State) -> float:
    """The largest `distance` between the tensors of two states."""
    pairs = zip(tensors(actual), tensors(expected), strict=True)
    return worst(distance(a.double(), b.double()) for a, b in pairs)
