"""The checks an architecture must pass before its run counts, tried on copies of the model to be trained."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from harness.checks import checks, purity, running  # noqa: F401  (they fill CHECKS)
from harness.checks.case import CHECKS, Case, Outcome
from harness.checks.conditions import Conditions
from harness.checks.contract import breaches
from harness.checks.trial import Trial, shake
from harness.model.backbone import LanguageModel, ModelSpec
from harness.model.interface import Interface, interface
from harness.model.sizing import SizeConfig

DEFAULT = Conditions()


@dataclass(frozen=True)
class CheckResult:
    """One check's verdict: `passed` is None where it could not be tried; `value` must not exceed `tolerance`.

    seconds: what it took. The first check that asks for outputs that several share takes the time of making them.
    """

    name: str
    passed: bool | None
    value: float | None
    tolerance: float | None
    detail: str
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class CheckResults:
    """Every check's verdict, in order."""

    results: list[CheckResult] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """No check failed (a check that could not be tried says so and does not fail)."""
        return all(check.passed is not False for check in self.results)

    def to_dict(self) -> dict[str, Any]:
        return {"passed": self.passed, "results": [asdict(check) for check in self.results]}


def run_checks(
    model: LanguageModel,
    spec: ModelSpec,
    given: Interface | int,
    size: SizeConfig,
    seed: int = 0,
    conditions: Conditions = DEFAULT,
) -> CheckResults:
    """Tries every check; takes seconds, and leaves `model` and torch's generators as they were.

    given: the model's inputs and targets. conditions: of the run that follows. Two copies are examined: one on the CPU
    in float64, on random inputs, where rounding hides nothing (checks.py), and one as the run will use it, on the run's
    own batches (running.py, purity.py). Parameters that start at zero are moved off it in both, for they would hide
    whatever they multiply. Where a mixer lacks what the contract asks for, that is all that is said.
    """
    found = breaches(model)
    if found:
        return CheckResults([CheckResult("contract", False, None, None, "; ".join(found))])
    devices = [conditions.device] if torch.device(conditions.device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.autocast("cpu", enabled=False), torch.enable_grad():
        torch.manual_seed(seed)  # for third parties that draw their weights before they are given ours
        generator = torch.Generator().manual_seed(seed)
        trial = Trial(model, conditions, torch.Generator().manual_seed(seed), seed)
        try:
            case = Case(_float64_copy(model, generator), spec, interface(given), size, generator, trial)
            contract = CheckResult("contract", True, None, None, "every mixer has its methods and states no leniency")
            return CheckResults([contract, *(tried(name, partial(check, case)) for name, check in CHECKS.items())])
        finally:
            trial.close()


def _float64_copy(model: LanguageModel, generator: torch.Generator) -> LanguageModel:
    clone = copy.deepcopy(model).cpu().double().eval()
    shake(clone, generator)
    return clone


def tried(name: str, check: Callable[[], Outcome]) -> CheckResult:
    """Runs one check; an exception in it is a failure reported by its text."""
    start = time.perf_counter()
    try:
        outcome = check()
    except Exception as error:  # whatever an architecture under test may raise
        outcome = Outcome(None, None, f"{type(error).__name__}: {error}"[:500], passed=False)
    passed = outcome.passed
    if outcome.value is not None:
        passed = outcome.tolerance is not None and outcome.value <= outcome.tolerance  # False for NaN
    value = outcome.value if outcome.value is None or math.isfinite(outcome.value) else None
    detail = outcome.detail if value is not None or outcome.value is None else f"not finite; {outcome.detail}"
    return CheckResult(name, passed, value, outcome.tolerance, detail, round(time.perf_counter() - start, 4))
