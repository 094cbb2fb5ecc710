"""Findings on quality: each liquid model against each baseline."""

from collections import defaultdict
from collections.abc import Iterable

from analysis.differences import REFERENCES, Comparison, compare, corrected, differ, noise
from analysis.entries import Entry, plain
from analysis.findings.evidence import METRICS, Evidence, Variant, commands, same_code
from analysis.findings.finding import Finding, listed, missing, status, told

LIQUID = ("ltc", "ltc_published", "cfc", "mtlnn", "m1")
"""The contestants, by their names in conf/model; the first is the one that the README tells of."""
BASELINES = REFERENCES
TOPIC = "Quality: each pair"


def pairs(evidence: Evidence) -> list[Finding]:
    """Each liquid model of the main table against each baseline in the same setting, trained alike."""
    known = {variant.label: variant for variant in evidence.of(evidence.headline)}
    compared = [
        (known[one.entry.label], known[one.other.label], one)
        for one in [*_in_own_blocks(known.values()), *_in_one_block(known.values())]
        if one.entry.model in LIQUID and one.difference.count
    ]
    made = []
    for baseline in BASELINES:
        against = [(ours, theirs, one) for ours, theirs, one in compared if theirs.model == baseline]
        first = best(ours for ours, _, _ in against if ours.model == LIQUID[0])
        made += [_pair(ours, theirs, one, ours is first) for ours, theirs, one in against]
        if first is None:
            what = f"Quality of {LIQUID[0]} against {baseline}"
            command = f"python run.py -m model={LIQUID[0]},{baseline} seed=0,1,2"
            needs = "no two finished runs of one task, size, number of tokens and seed"
            made.append(missing(f"quality-{LIQUID[0]}-{baseline}", TOPIC, what, needs, command))
    return made


def _in_own_blocks(variants: Iterable[Variant]) -> list[Comparison]:
    """The comparisons of each recipe, corrected as the table of quality does, whose sides are in their own blocks."""
    recipes: dict[str, list[Entry]] = defaultdict(list)
    for variant in variants:
        recipes[variant.entry.recipe].append(variant.entry)
    return [one for known in recipes.values() for one in compare(known) if one.entry.own and one.other.own]


def _in_one_block(variants: Iterable[Variant]) -> list[Comparison]:
    """Each liquid model outside its own block against the baselines in that block, all of them corrected together."""
    alike: dict[tuple, list[Entry]] = defaultdict(list)
    recipes: dict[str, list[Entry]] = defaultdict(list)
    for variant in variants:
        alike[variant.entry.recipe, *variant.surroundings].append(variant.entry)
        recipes[variant.entry.recipe].append(variant.entry)
    made = []
    for (recipe, *_), known in alike.items():
        baselines = [theirs for model in BASELINES if (theirs := plain(known, model)) is not None]
        sides = [(one, other) for other in baselines for one in known if one.model in LIQUID and not one.own]
        made += differ(sides, noise(recipes[recipe]))
    return corrected(made)


def best(variants: Iterable[Variant]) -> Variant | None:
    """Of several variants of one model the one with the most seeds speaks for it, then the best on validation."""
    return min(variants, key=_rank, default=None)


def _rank(variant: Variant) -> tuple:
    return -len(variant.test), variant.on_validation, variant.label


def _pair(ours: Variant, theirs: Variant, found: Comparison, headline: bool) -> Finding:
    seeds = ours.test.keys() & theirs.test.keys()
    one, other = (f"{side.mean(seeds):.3f}" for side in (ours, theirs))
    differ = ours.around != theirs.around
    mine, its = (f"{side.spoken} ({side.around})" if differ else side.spoken for side in (ours, theirs))
    sentence = (
        f"On {ours.where}, {mine} has {one} {METRICS[ours.metric]} on test and {its} {other}: "
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
