"""What a check works on: the model under test, the outcome it gives, the measure of distance, and the registry."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

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
    """The model under test (float64, CPU, eval) and what it was asked to be."""

    model: LanguageModel
    spec: ModelSpec
    interface: Interface
    size: SizeConfig
    generator: torch.Generator

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


def distance(actual: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    """Largest difference relative to the largest expected magnitude, or to `floor`; NaN where either is not finite."""
    if actual.shape != expected.shape:
        raise ValueError(f"shape {tuple(actual.shape)} where {tuple(expected.shape)} was expected")
    difference = (actual - expected).abs().max().item() if actual.numel() else 0.0
    scale = max(expected.abs().max().item() if expected.numel() else 0.0, floor)
    return difference / scale if scale else difference


def state_distance(actual: State, expected: State) -> float:
    """The largest `distance` between the tensors of two states."""
    pairs = zip(tensors(actual), tensors(expected), strict=True)
    return worst(distance(a.double(), b.double()) for a, b in pairs)


def worst(values: Iterable[float]) -> float:
    """The largest value, NaN if any is NaN, 0 if there is none."""
    return torch.tensor([0.0, *values], dtype=torch.float64).max().item()
