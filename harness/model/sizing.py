"""Solves the widths that meet a parameter budget, so that every architecture is compared at one size."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial

import torch

from harness.config.errors import ConfigError
from harness.config.ranges import BudgetTolerance, Layers, Parameters
from harness.machine.hardware import available_bytes
from harness.model.backbone import LanguageModel, ModelSpec, Width
from harness.model.interface import Interface
from harness.model.inventory import irreproducible

TOLERANCE = 0.02
FURTHER = 4
"""Multiples of the width beyond the nearest that are tried, on either side, where none of those fits."""
TRAINING_BYTES = 16
"""A parameter's while it is trained: itself, its gradient and AdamW's two moments, in float32."""


@dataclass(frozen=True)
class SizeConfig:
    """The budget: everything that can hold knowledge (see ParameterCounts), and backbone layers."""

    params: Parameters
    n_layers: Layers
    tolerance: BudgetTolerance = TOLERANCE

    @property
    def label(self) -> str:
        """The budget as the field writes it: 250k, 1m, 1.5m."""
        millions = self.params / 1_000_000
        return f"{millions:g}m" if millions >= 1 else f"{self.params / 1000:g}k"


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of a model that can hold knowledge: `total` = `trainable` + `frozen` + `buffers`.

    frozen: parameters that are not trained. buffers: of buffers and plain attributes, those that a fresh build under
    another seed does not reproduce. Also `total` = `embedding` (encoder and untied head) + `non_embedding`.
    """

    total: int
    embedding: int
    non_embedding: int
    trainable: int
    frozen: int
    buffers: int

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


def count(model: LanguageModel) -> ParameterCounts:
    """Counts what can hold knowledge, a tied parameter once; on the meta device, parameters alone."""
    trainable, frozen = (
        sum(p.numel() for p in model.parameters() if p.requires_grad is kind) for kind in (True, False)
    )
    buffers = 0 if model.head.weight.is_meta else sum(held.numbers for held in irreproducible(model).values())
    ends = (*model.embedding.parameters(), *model.head.parameters())
    table = sum({id(p): p.numel() for p in ends}.values())
    total = trainable + frozen + buffers
    return ParameterCounts(total, table, total - table, trainable, frozen, buffers)


Candidate = tuple[Width, int]
"""Widths and the parameters that they give."""


def solve(spec: ModelSpec, given: Interface | int, size: SizeConfig) -> Width:
    """Returns the widths whose parameters lie within `size.tolerance` of `size.params`.

    given: the model's inputs and targets, as `ModelSpec.build` takes it. d_model runs over multiples of
    `spec.width_multiple`; where there is a channel mixer, its d_ff (any even number) takes up the rest, and of the
    pairs that meet the budget the one nearest the architecture's own d_ff ratio wins; where none does, since the mixer
    rounds its d_ff to whole parts, FURTHER multiples are tried on either side. Where there is no channel mixer and no
    multiple meets the budget, a half, a quarter, ... of the multiple is tried, as far as the mixer accepts it; then, in
    a gated block or a mixer that takes a d_inner, d_inner runs over its multiples (whole heads), and d_model (any
    number) takes up the rest.
    Raises ConfigError, naming the nearest size, when no pair does, and where training would exceed the free memory.
    """
    _check_memory(size)

    @cache
    def params(width: Width) -> int:
        with torch.device("meta"):
            return count(spec.build(given, size.n_layers, width)).total

    around = _neighbours(spec, size, params)
    candidates = [_candidate(spec, size, params, d_model) for d_model in around]
    if spec.has_channel_mixer and not _fitting(candidates, size):
        steps = [spec.width_multiple * step for step in range(1, FURTHER + 1)]
        further = [*(around[0] - step for step in steps if step < around[0]), *(around[-1] + step for step in steps)]
        candidates += [_candidate(spec, size, params, d_model) for d_model in further]
    if not spec.has_channel_mixer and not _fitting(candidates, size):
        candidates += _finer(spec, size, params, around)
        if spec.expand is not None and not _fitting(candidates, size):
            candidates += _of_rounded_inner(spec.expand, spec.width_multiple, params, size.params, around)
    fitting = _fitting(candidates, size)
    if not fitting:
        nearest = min(candidates, key=lambda c: abs(c[1] - size.params))[1]
        raise ConfigError(
            f"size.params={size.params} cannot be met by model={spec.name} with size.n_layers={size.n_layers}.",
            f"a budget within {size.tolerance:.0%} of what some width gives; the nearest has {nearest} parameters.",
            f"set size.params={nearest}, or change size.n_layers.",
        )
    return min((width for width, _ in fitting), key=lambda width: _off_ratio(spec, width))


def _off_ratio(spec: ModelSpec, width: Width) -> float:
    """How far a width is from the architecture's own ratio."""
    if width.d_inner is not None and spec.expand is not None:
        return abs(width.d_inner / width.d_model - spec.expand)
    return abs(width.d_ff / width.d_model - (spec.d_ff_ratio or 1.0))


def _check_memory(size: SizeConfig) -> None:
    needed, free = TRAINING_BYTES * size.params, available_bytes("cpu")
    if needed > free:
        raise ConfigError(
            f"size.params={size.params} takes some {needed / 1e9:,.0f} GB to train, and {free / 1e9:,.0f} GB are free.",
            f"at most {free // TRAINING_BYTES:,} parameters on this machine ({TRAINING_BYTES} bytes each).",
            "lower size.params.",
        )


def _fitting(candidates: list[Candidate], size: SizeConfig) -> list[Candidate]:
    return [c for c in candidates if abs(c[1] - size.params) <= size.tolerance * size.params]


def _candidate(spec: ModelSpec, size: SizeConfig, params: Callable, d_model: int) -> Candidate:
    """The widths at this d_model that come nearest to the budget, and their parameters."""
    d_ff = _own_d_ff(spec, d_model)
    per_unit = (params(Width(d_model, d_ff + 64)) - params(Width(d_model, d_ff))) / 64 if spec.has_channel_mixer else 0
    if per_unit:  # none where a pattern ends before its first channel mixer
        d_ff = max(2, d_ff + 2 * round((size.params - params(Width(d_model, d_ff))) / per_unit / 2))
    width = Width(d_model, d_ff)
    return width, params(width)


def _finer(spec: ModelSpec, size: SizeConfig, params: Callable, around: list[int]) -> list[Candidate]:
    """Candidates whose d_model are multiples of a half, a quarter, ... of `width_multiple`, until one fits."""
    make = partial(_candidate, spec, size, params)
    least, unit = (1 - size.tolerance) * size.params, spec.width_multiple
    found: list[Candidate] = []
    while unit > 1 and not _fitting(found, size):
        unit = max(1, unit // 2)
        widths = range(max(unit, around[0] - spec.width_multiple), around[-1] + 1, unit)
        found += _crossing(widths, make, least)
    return found


def _crossing(widths: Sequence[int], make: Callable[[int], Candidate], least: float) -> list[Candidate]:
    """The first accepted candidate with at least that many parameters, and what was tried on the way to it.

    By bisection: parameters grow with the width, and a refused width stands for the next one that is accepted.
    """
    low, high = 0, len(widths)
    tried: list[Candidate] = []
    while low < high:
        middle = (low + high) // 2
        ahead = ((index, c) for index in range(middle, high) if (c := _accepted(make, widths[index])) is not None)
        index, candidate = next(ahead, (high, None))
        if candidate is None or candidate[1] >= least:
            high = middle
        else:
            low = index + 1
        tried += [] if candidate is None else [candidate]
    return sorted(tried)


def _of_rounded_inner(expand: int, unit: int, params: Callable, target: int, around: list[int]) -> list[Candidate]:
    """For the multiples of `unit` that d_inner may be, the d_model that brings the model nearest to `target`."""

    def candidate(d_inner: int) -> Candidate:
        d_model = max(1, round(d_inner / expand))
        held = params(Width(d_model, 0, d_inner))
        per_unit = params(Width(d_model + 1, 0, d_inner)) - held
        width = Width(max(1, d_model + round((target - held) / per_unit)), 0, d_inner)
        return width, params(width)

    below, above = around[-3:-1]
    inner = range(unit if below == unit else expand * below, expand * above + 1, unit)
    return [c for d_inner in inner if (c := _accepted(candidate, d_inner)) is not None]


def _accepted(make: Callable[[int], Candidate], width: int) -> Candidate | None:
    """The candidate of this width, or None where the mixer refuses it."""
    try:
        return make(width)
    except ConfigError:
        return None


def _own_d_ff(spec: ModelSpec, d_model: int) -> int:
    return max(2, 2 * round(spec.d_ff_ratio * d_model / 2)) if spec.has_channel_mixer else 0


def _neighbours(spec: ModelSpec, size: SizeConfig, params: Callable) -> list[int]:
    """The multiples of `width_multiple` around the width that meets the budget at the architecture's own d_ff."""

    def own(d_model: int) -> Width:
        return Width(d_model, _own_d_ff(spec, d_model))

    low, high = 1, 2
    unit = spec.width_multiple
    while params(own(high * unit)) < size.params:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if params(own(middle * unit)) < size.params:
            low = middle
        else:
            high = middle
    return [unit * step for step in range(max(1, low - 1), high + 2)]
