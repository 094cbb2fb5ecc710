"""How closely a model's paths must agree: by precision, and by the reason for which a mixer is inexact.

A mixer may name its reason (`Mixer.inexact`); what a reason allows stands here. A reason widens no more than what it
explains: an adaptive solver lets the rows of a batch share their steps, so a row may move with its company, but
reading a sequence in pieces must give the same; Newton's method leaves an error in the sequence, whatever the rows.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from harness.model.mixer import Inexactness, Mixer

ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""What rounding may come to over the layers and the tokens of a case, relative to the largest output."""
TURNED = 1e-2
"""What one rounding to bf16, turned by the least difference, may come to in the outputs of an inexact mixer."""
UNREPEATABLE = {("cuda", "fp32"): 1e-5, ("cuda", "bf16"): 1e-2}
"""By device and precision, how far two equal calls may lie apart, as sums of a GPU in changing order; else 0."""
BUDGET = 0.02
"""Part of the budget that the parameters may be off by, unless the size states more."""
MORE_STEPS = 8
"""How many times the stated operations a token may take whose steps the data choose."""


@dataclass(frozen=True)
class Allowance:
    """What a reason allows, relative to the largest output, whatever the precision.

    paths: between `forward`, chunks, `step` and their gradients. rows: between a row alone and in company. past: of
    the outputs before a change of later inputs. oracle: from a third party's implementation.
    """

    paths: float = 0.0
    rows: float = 0.0
    past: float = 0.0
    oracle: float = 1e-5


ALLOWANCES: dict[Inexactness | None, Allowance] = {
    None: Allowance(),
    "adaptive_steps": Allowance(rows=5e-3, oracle=1e-2),
    "newton_iterations": Allowance(paths=1e-7, past=1e-6),
}


def allowance(mixers: Iterable[Mixer]) -> Allowance:
    """The loosest that any of the mixers is allowed, in each respect; raises KeyError for an unknown reason."""
    allowed = [astuple(ALLOWANCES[mixer.inexact]) for mixer in mixers]
    return Allowance(*map(max, zip(*allowed, strict=True)))


def distance(actual: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    """Largest difference relative to the largest expected magnitude, or to `floor`; NaN where either is not finite."""
    if actual.shape != expected.shape:
        raise ValueError(f"shape {tuple(actual.shape)} where {tuple(expected.shape)} was expected")
    difference = (actual - expected).abs().max().item() if actual.numel() else 0.0
    scale = max(expected.abs().max().item() if expected.numel() else 0.0, floor)
    return difference / scale if scale else difference


def worst(values: Iterable[float]) -> float:
    """The largest value, NaN if any is NaN, 0 if there is none."""
    return torch.tensor([0.0, *values], dtype=torch.float64).max().item()
