"""Findings on quality: each liquid model against each baseline."""

from collections.abc import Iterable
from dataclasses import replace

from analysis.findings.evidence import METRICS, Evidence, Variant, commands, same_code
from analysis.findings.finding import Difference, Finding, corrected, listed, missing, paired, status, told

LIQUID = ("ltc", "ltc_published", "cfc", "mtlnn", "m1")
"""The models whose state obeys an ODE, by their names in conf/model; the first is the one that the README tells of."""
BASELINES = ("transformer", "mamba")
TOPIC = "Quality: each pair"


def pairs(evidence: Evidence) -> list[Finding]:
    """Each liquid model of the main table against each baseline in the same setting, trained alike."""
    sides = [
        (ours, theirs)
        for baseline in BASELINES
        for ours in evidence.of(evidence.headline, *LIQUID)
        if (theirs := _opponent(evidence, ours, baseline)) is not None
    ]
    differences = corrected([difference(ours, theirs) for ours, theirs in sides])
    made = []
    for baseline in BASELINES:
        both = zip(sides, differences, strict=True)
        known = [(ours, theirs, found) for (ours, theirs), found in both if theirs.model == baseline]
        first = best(ours for ours, _, _ in known if ours.model == LIQUID[0])
        made += [_pair(ours, theirs, found, ours is first) for ours, theirs, found in known]
        if first is None:
            what = f"Quality of {LIQUID[0]} against {baseline}"
            command = f"python run.py -m model={LIQUID[0]},{baseline} seed=0,1,2"
            needs = "no two finished runs of one task, size, number of tokens and seed"
            made.append(missing(f"quality-{LIQUID[0]}-{baseline}", TOPIC, what, needs, command))
    return made


def difference(ours: Variant, theirs: Variant) -> Difference:
    """Ours less theirs; not tested where a run of either diverged, for what is left is no fair sample."""
    found = paired(ours.test, theirs.test)
    return replace(found, p=None) if ours.diverged or theirs.diverged else found


def best(variants: Iterable[Variant]) -> Variant | None:
    """Of several variants of one model the one with the most seeds speaks for it, then the best on validation."""
    return min(variants, key=_rank, default=None)


def _rank(variant: Variant) -> tuple:
    return -len(variant.test), variant.on_validation, variant.label


def _opponent(evidence: Evidence, ours: Variant, baseline: str) -> Variant | None:
    """The baseline's variant that was trained by the recipe of ours, in the same setting, and shares a seed with it."""
    known = [theirs for theirs in evidence.of(ours.table, baseline) if theirs.test.keys() & ours.test.keys()]
    return best(theirs for theirs in known if theirs.recipe == ours.recipe and _alike(ours, theirs))


def _alike(ours: Variant, theirs: Variant) -> bool:
    """Whether both stand in their own blocks, or else in one and the same."""
    if ours.setting is None:
        return theirs.setting is None
    return ours.surroundings == theirs.surroundings


def _pair(ours: Variant, theirs: Variant, found: Difference, headline: bool) -> Finding:
    seeds = ours.test.keys() & theirs.test.keys()
    one, other = (f"{side.mean(seeds):.3f}" for side in (ours, theirs))
    sentence = (
        f"On {ours.where}, {ours.spoken} has {one} {METRICS[ours.metric]} on test and {theirs.spoken} {other}: "
        f"a difference of {told(found)}{diverged(ours, theirs)}{other_code(ours, theirs)}."
    )
    name = f"quality-{slug(ours.label)}-{slug(theirs.label)}"
    sides = (ours, theirs)
    return Finding(name, TOPIC, sentence, status(found), commands(sides), paths(sides), headline)


def slug(label: str) -> str:
    """A label as part of a link."""
    return "".join(letter if letter.isalnum() else "-" for letter in label.lower()).strip("-")


def paths(variants: Iterable[Variant]) -> tuple[str, ...]:
    """The folders of all their runs."""
    return tuple(path for variant in variants for path in variant.paths)


def diverged(*variants: Variant) -> str:
    """What is said beside a mean that some runs are missing from."""
    said = [f"{v.diverged} of {len(v.records)} runs of {v.spoken} diverged" for v in variants if v.diverged]
    return f"; {listed(said)}" if said else ""


def other_code(ours: Variant, *others: Variant) -> str:
    """What is said beside a comparison across versions of the code."""
    return "" if all(same_code(ours, other) for other in others) else "; recorded by different code"
