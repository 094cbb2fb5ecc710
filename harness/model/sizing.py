"""Solves the widths that meet a parameter budget, so that every architecture is compared at one size."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from pydantic import PositiveFloat, PositiveInt

from harness.errors import ConfigError
from harness.model.backbone import LanguageModel, ModelSpec, Width
from harness.model.interface import Interface

TOLERANCE = 0.02


@dataclass(frozen=True)
class SizeConfig:
    """The budget: trainable parameters in all (embeddings included) and backbone layers."""

    params: PositiveInt
    n_layers: PositiveInt
    tolerance: PositiveFloat = TOLERANCE

    @property
    def label(self) -> str:
        """The budget as the field writes it: 250k, 1m, 1.5m."""
        millions = self.params / 1_000_000
        return f"{millions:g}m" if millions >= 1 else f"{self.params / 1000:g}k"


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of a model: `total` = `embedding` (encoder and untied head) + `non_embedding`."""

    total: int
    embedding: int
    non_embedding: int

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


def count(model: LanguageModel) -> ParameterCounts:
    """Counts trainable parameters, a tied one once."""
    trainable = {id(p): p.numel() for p in model.parameters() if p.requires_grad}
    ends = (*model.embedding.parameters(), *model.head.parameters())
    embedding = {id(p): p.numel() for p in ends}
    total, table = sum(trainable.values()), sum(embedding.values())
    return ParameterCounts(total, table, total - table)


def solve(spec: ModelSpec, given: Interface | int, size: SizeConfig) -> Width:
    """Returns the widths whose trainable parameters lie within `size.tolerance` of `size.params`.

    given: the model's inputs and targets, as `ModelSpec.build` takes it. d_model runs over multiples of
    `spec.width_multiple`; where there is a channel mixer, its d_ff (any even number) takes up the rest, and of the
    pairs that meet the budget the one nearest the architecture's own d_ff ratio wins. Where there is none and no
    multiple meets the budget, a half, a quarter, ... of the multiple is tried, as far as the mixer accepts it. Raises
    ConfigError, naming the nearest size, when no pair does.
    """

    def params(d_model: int, d_ff: int) -> int:
        with torch.device("meta"):
            return count(spec.build(given, size.n_layers, Width(d_model, d_ff))).total

    unit = spec.width_multiple
    around = _neighbours(spec, size, params)
    candidates = [_candidate(spec, size, params, d_model) for d_model in around]
    fitting = [c for c in candidates if _fits(c, size)]
    while not fitting and not spec.has_channel_mixer and unit > 1:
        unit = max(1, unit // 2)
        finer = range(max(unit, around[0] - spec.width_multiple), around[-1] + 1, unit)
        candidates += [c for d_model in finer if (c := _accepted(spec, size, params, d_model)) is not None]
        fitting = [c for c in candidates if _fits(c, size)]
    if not fitting:
        nearest = min(candidates, key=lambda c: abs(c[1] - size.params))[1]
        raise ConfigError(
            f"size.params={size.params} cannot be met by model={spec.name} with size.n_layers={size.n_layers}.",
            f"a budget within {size.tolerance:.0%} of what some width gives; the nearest has {nearest} parameters.",
            f"set size.params={nearest}, or change size.n_layers.",
        )
    ratio = spec.d_ff_ratio or 1.0
    return min(fitting, key=lambda c: abs(c[0].d_ff / c[0].d_model - ratio))[0]


def _fits(candidate: tuple[Width, int], size: SizeConfig) -> bool:
    return abs(candidate[1] - size.params) <= size.tolerance * size.params


def _candidate(spec: ModelSpec, size: SizeConfig, params: Callable, d_model: int) -> tuple[Width, int]:
    """The widths at this d_model that come nearest to the budget, and their parameters."""
    d_ff = _own_d_ff(spec, d_model)
    if spec.has_channel_mixer:
        per_unit = (params(d_model, d_ff + 64) - params(d_model, d_ff)) / 64
        d_ff = max(2, d_ff + 2 * round((size.params - params(d_model, d_ff)) / per_unit / 2))
    return Width(d_model, d_ff), params(d_model, d_ff)


def _accepted(spec: ModelSpec, size: SizeConfig, params: Callable, d_model: int) -> tuple[Width, int] | None:
    """The candidate, or None where the mixer refuses this width."""
    try:
        return _candidate(spec, size, params, d_model)
    except ConfigError:
        return None


def _own_d_ff(spec: ModelSpec, d_model: int) -> int:
    return max(2, 2 * round(spec.d_ff_ratio * d_model / 2)) if spec.has_channel_mixer else 0


def _neighbours(spec: ModelSpec, size: SizeConfig, params: Callable) -> list[int]:
    """The multiples of `width_multiple` around the width that meets the budget at the architecture's own d_ff."""
    low, high = 1, 2
    unit = spec.width_multiple
    while params(high * unit, _own_d_ff(spec, high * unit)) < size.params:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if params(middle * unit, _own_d_ff(spec, middle * unit)) < size.params:
            low = middle
        else:
            high = middle
    return [unit * step for step in range(max(1, low - 1), high + 2)]
