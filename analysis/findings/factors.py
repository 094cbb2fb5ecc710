"""Findings on quality: what each choice changes with all else equal, and how much the learning rate does."""

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from analysis.differences import Comparison, corrected, differ
from analysis.findings.evidence import METRICS, RESIDUAL, Evidence, Variant, commands
from analysis.findings.finding import MEASURED, Finding, listed, missing, overall, told
from analysis.findings.pairs import diverged, measure, other_code, paths, slug
from analysis.frame import differing_keys, short
from analysis.selection import is_tuned

TOPIC = "Quality: what makes the difference"
TUNING = "Quality: the learning rate"


@dataclass(frozen=True)
class Factor:
    """What an ablation varies. parts: of its keys, wherever a configuration has them: the factor, then what may change
    with it. reference: the factor's value that others are compared with. command: what measures it. held: what must be
    the same of a variant besides all other keys; None for a variant of which the factor says nothing. named: what a
    variant's value is called, where that is not told by the keys that differ. apart: keys of which each value has a
    finding of its own.
    """

    name: str
    title: str
    parts: tuple[str, ...]
    reference: str
    command: str
    held: Callable[[Variant], str | None] = lambda variant: ""
    named: Callable[[Variant], str] | None = None
    apart: tuple[str, ...] = ()


def _block_of_convolution(variant: Variant) -> str | None:
    """The block in which a convolution is tried; a residual one is tried in the Transformer's."""
    return "transformer" if variant.block in RESIDUAL else variant.block or ""


def _convolution(variant: Variant) -> str:
    if variant.block in RESIDUAL:
        return f"block={variant.block} (a residual convolution)"
    return f"d_conv={variant.convolution}"


def _convolution_of_block(variant: Variant) -> str | None:
    """The convolution that blocks are compared at; a block that is told as a convolution is none of them."""
    return None if variant.block in RESIDUAL else str(variant.convolution)


def _block(variant: Variant) -> str:
    return f"block={variant.block}, d_conv={variant.convolution}"


FACTORS = (
    Factor("convolution", "the short convolution before the mixer", ("d_conv", "block"), "0",
           "python run.py -m +sweeps=convolutions", _block_of_convolution, _convolution),
    Factor("block", "the block around the recurrence", ("block", "d_conv"), "transformer",
           "python run.py -m +sweeps=blocks", _convolution_of_block, _block),
    Factor("solver", "the solver and its substeps", ("solver",), "semi_implicit", "python run.py -m +sweeps=solvers"),
    Factor("coupling", "what the gate sees of the state", ("coupling",), "none", "python run.py -m +sweeps=couplings",
           apart=("solver.name",)),
    Factor("horizon", "the time that a token takes", ("horizon",), "1.0", "python run.py -m +sweeps=horizons",
           apart=("solver.name",)),
    Factor("states", "the states a channel", ("d_state",), "1", "python run.py -m +sweeps=states"),
    Factor("gradient", "the gradient's method", ("gradient",), "backprop", "python run.py -m +sweeps=gradients"),
    Factor("parallel", "Newton's method in place of the sequential scan, in training", ("parallel",), "sequential",
           "python run.py -m +sweeps=newton"),
)  # fmt: skip
FREE = ("trainer.learning_rate",)
"""Chosen on validation for each value of a factor, so no other experiment."""


def factor(name: str) -> Factor:
    """The factor of this name."""
    return next(one for one in FACTORS if one.name == name)


def factors(evidence: Evidence) -> list[Finding]:
    """What each factor changes with all else equal: a finding for every table and model that has such runs.

    The p-values of one factor are corrected together.
    """
    made = []
    for one in FACTORS:
        effects = [_Effect(one, family) for family in families(evidence, one)]
        compared = corrected([one for effect in effects for one in effect.comparisons])
        for effect in effects:
            made.append(_effect(effect, compared[: len(effect.others)]))
            compared = compared[len(effect.others) :]
        if not effects:
            title, needs = f"The effect of {one.title}", "no runs that differ in it alone"
            made.append(missing(f"effect-{one.name}", TOPIC, title, needs, one.command))
    return made


def families(evidence: Evidence, factor: Factor) -> list[list[Variant]]:
    """Variants that differ in the factor alone; of a table, a model and what is told apart the one with the most values
    and seeds.
    """
    made = []
    for table in evidence.tables():
        by_model: dict[tuple, dict[str, list[Variant]]] = defaultdict(lambda: defaultdict(list))
        for variant in evidence.of(table):
            held = factor.held(variant)
            if held is not None:
                fixed = {k: v for k, v in variant.config.items() if not is_tuned(k, (*factor.parts, *FREE))}
                alike = by_model[variant.model, *_apart_by(variant, factor)]
                alike[json.dumps([fixed, held], sort_keys=True)].append(variant)
        for families in by_model.values():
            known = [family for family in map(_with_figures, families.values()) if _varies(family, factor)]
            if known:
                made.append(max(known, key=lambda family: (len(family), sum(len(v.test) for v in family))))
    return made


def _with_figures(family: list[Variant]) -> list[Variant]:
    return [variant for variant in family if variant.test]


def _varies(family: list[Variant], factor: Factor) -> bool:
    """Whether the factor itself differs in a family, and not only what may change with it."""
    if factor.named is not None:
        return len(values(family, factor)) > 1
    first, others = factor.parts[:1], factor.parts[1:]
    return any(is_tuned(key, first) and not is_tuned(key, others) for key in keys(family, factor))


def keys(family: list[Variant], factor: Factor) -> list[str]:
    """The keys that tell the members of a family apart, each way of doing so once."""
    own = [{k: v for k, v in variant.config.items() if is_tuned(k, factor.parts)} for variant in family]
    return differing_keys(own)


def values(family: list[Variant], factor: Factor) -> dict[str, Variant]:
    """{what the factor is set to: the variant}; of two codes with one value the one with more seeds."""
    names, made = keys(family, factor), {}
    for variant in sorted(family, key=lambda variant: len(variant.test)):
        told_by_keys = ", ".join(f"{short(key)}={variant.config.get(key, 'unset')}" for key in names)
        made[factor.named(variant) if factor.named else told_by_keys] = variant
    return made if names else {}


def _apart_by(variant: Variant, factor: Factor) -> tuple[str, ...]:
    """`solver=euler` for each key that has findings of its own."""
    return tuple(f"{short(key)}={variant.config[key]}" for key in factor.apart if key in variant.config)


class _Effect:
    """What is compared: a family by the values of its factor, the reference first.

    others: {value: variant} without the reference. comparisons: of the others, in their order, with the reference, not
    yet corrected.
    """

    def __init__(self, factor: Factor, family: list[Variant]):
        known = values(family, factor)
        self.order = sorted(
            known, key=lambda text: (text.partition(",")[0].rpartition("=")[2] != factor.reference, text)
        )
        self.factor, self.reference = factor, known[self.order[0]]
        self.others = {text: known[text] for text in self.order[1:]}
        self.comparisons = differ((one.entry, self.reference.entry) for one in self.others.values())


def _effect(effect: _Effect, comparisons: list[Comparison]) -> Finding:
    reference, others = effect.reference, effect.others
    changes = listed(f"{text} changes it by {told(one)}" for text, one in zip(others, comparisons, strict=True))
    sides, apart = [reference, *others.values()], _apart_by(reference, effect.factor)
    sentence = (
        f"On {reference.where}, {reference.model} with {', '.join([*apart, effect.order[0]])} has "
        f"{reference.mean():.3f} {measure(reference)}; {changes}{diverged(*sides)}"
        f"{other_code(reference, *others.values())}."
    )
    repeat = commands(sides, keys(sides, effect.factor))
    name = "-".join(["effect", effect.factor.name, *map(slug, (reference.table, reference.model, *apart))])
    return Finding(name, TOPIC, sentence, overall(comparisons), repeat, paths(sides))


def learning_rates(evidence: Evidence) -> list[Finding]:
    """By how much validation moves over the learning rates that each model tried, all else equal, seeds included."""
    made = []
    for table in evidence.tables():
        grouped: dict[tuple[str, str], list[Variant]] = defaultdict(list)
        for variant in (v for v in evidence.tried if v.table == table):
            fixed = {k: v for k, v in variant.config.items() if not is_tuned(k, FREE)}
            grouped[variant.model, json.dumps(fixed, sort_keys=True)].append(variant)
        alike = (_of_one_seeds(sorted(family, key=_rate)) for _, family in sorted(grouped.items()))
        known = [family for family in alike if sum(bool(v.validation) for v in family) > 1]
        if known:
            sides = [variant for family in known for variant in family]
            what = f"On {sides[0].where}, {METRICS[sides[0].metric]} on validation moves with the learning rate"
            sentence = f"{what}: {'; '.join(map(_sensitivity, known, _names(known)))}."
            repeat = tuple(command for family in known for command in commands(family, _apart(known, family)))
            made.append(Finding(f"learning-rate-{slug(table)}", TUNING, sentence, MEASURED, repeat, paths(sides)))
    command = "python run.py -m +sweeps=learning_rate"
    what = "The sensitivity to the learning rate"
    return made or [missing("learning-rate", TUNING, what, "no runs that differ in it alone", command)]


def _of_one_seeds(family: list[Variant]) -> list[Variant]:
    """The same variants by the seeds that all of them have: what was chosen has more, which the others never saw."""
    shared = set.intersection(*({record.result["seed"] for record in variant.records} for variant in family))
    return [variant.by(shared) for variant in family] if shared else []


def _names(families: list[list[Variant]]) -> list[str]:
    """What each family is called: its model, its solver and what tells it from others that are called so."""
    made = []
    for family in families:
        base = _base(family)
        parts = [f"{short(key)}={family[0].config.get(key, 'unset')}" for key in _apart(families, family)]
        made.append(f"{base} ({', '.join(parts)})" if parts else base)
    return made


def _apart(families: list[list[Variant]], family: list[Variant]) -> list[str]:
    """The keys that tell a family from others of the same name."""
    alike = [other[0].config for other in families if _base(other) == _base(family)]
    return differing_keys([{k: v for k, v in config.items() if not is_tuned(k, FREE)} for config in alike])


def _base(family: list[Variant]) -> str:
    return family[0].label.partition(" (")[0]


def _sensitivity(family: list[Variant], name: str) -> str:
    """`ltc by 0.120 between 0.001 and 0.008, best at 0.004`, and how many rates diverged. family: by its rates."""
    known = sorted((variant for variant in family if variant.validation), key=lambda variant: variant.on_validation)
    lost = abs(known[-1].on_validation - known[0].on_validation)
    failed = sum(variant.diverged > 0 for variant in family)
    said = f", {failed} of {len(family)} rates diverging" if failed else ""
    between = f"between {_rate(family[0]):g} and {_rate(family[-1]):g}"
    return f"{name} by {lost:.3f} {between}{said}, best at {_rate(known[0]):g}"


def _rate(variant: Variant) -> float:
    return float(variant.config.get("trainer.learning_rate", 0.0))
