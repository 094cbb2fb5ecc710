"""Solves the widths that meet a parameter budget, so that every architecture is compared at one size."""

from dataclasses import asdict, dataclass

import torch
from pydantic import PositiveFloat, PositiveInt

from harness.errors import ConfigError
from harness.model.backbone import LanguageModel, ModelSpec, Width

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
    """Parameters of a model: `total` = `embedding` (token embedding and untied head) + `non_embedding`."""

    total: int
    embedding: int
    non_embedding: int

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


def count(model: LanguageModel) -> ParameterCounts:
    """Counts trainable parameters, a tied one once."""
    trainable = {id(p): p.numel() for p in model.parameters() if p.requires_grad}
    embedding = {id(p): p.numel() for p in (model.embedding.weight, model.head.weight)}
    total, table = sum(trainable.values()), sum(embedding.values())
    return ParameterCounts(total, table, total - table)


def solve(spec: ModelSpec, vocab_size: int, size: SizeConfig) -> Width:
    """Returns the widths whose trainable parameters lie within `size.tolerance` of `size.params`.

    d_model runs over multiples of `spec.width_multiple`; where there is a channel mixer, its d_ff (any even number)
    takes up the rest, and of the pairs that meet the budget the one nearest the architecture's own d_ff ratio wins.
    Raises ConfigError, naming the nearest size, when no pair does.
    """

    def params(d_model: int, d_ff: int) -> int:
        with torch.device("meta"):
            return count(spec.build(vocab_size, size.n_layers, Width(d_model, d_ff))).total

    candidates = []
    for d_model in _neighbours(spec, size, params):
        d_ff = _own_d_ff(spec, d_model)
        if spec.channel_mixer is not None:
            per_unit = (params(d_model, d_ff + 64) - params(d_model, d_ff)) / 64
            d_ff = max(2, d_ff + 2 * round((size.params - params(d_model, d_ff)) / per_unit / 2))
        candidates.append((Width(d_model, d_ff), params(d_model, d_ff)))
    fitting = [c for c in candidates if abs(c[1] - size.params) <= size.tolerance * size.params]
    if not fitting:
        nearest = min(candidates, key=lambda c: abs(c[1] - size.params))[1]
        raise ConfigError(
            f"size.params={size.params} cannot be met by model={spec.name} with size.n_layers={size.n_layers}.",
            f"a budget within {size.tolerance:.0%} of what some width gives; the nearest has {nearest} parameters.",
            f"set size.params={nearest}, or change size.n_layers.",
        )
    ratio = spec.d_ff_ratio or 1.0
    return min(fitting, key=lambda c: abs(c[0].d_ff / c[0].d_model - ratio))[0]


def _own_d_ff(spec: ModelSpec, d_model: int) -> int:
    return max(2, 2 * round(spec.d_ff_ratio * d_model / 2)) if spec.channel_mixer is not None else 0


def _neighbours(spec: ModelSpec, size: SizeConfig, params) -> list[int]:
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
