"""Findings on quality: each liquid model against each baseline."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache

from analysis import usual
from analysis.differences import REFERENCES, Comparison, compare, corrected, differ, standing
from analysis.entries import plain
from analysis.findings.evidence import METRICS, Evidence, Variant, commands, same_code
from analysis.findings.finding import Finding, listed, missing, overall, status, told
from analysis.selection import HIGHER_IS_BETTER
from analysis.statistics import LEAST_SEEDS

OURS = "ltc"
"""The contestant that the README tells of."""
BASELINES = REFERENCES
TOPIC, SIZES, ALIKE = "Quality: each pair", "Quality: each pair at other sizes", "Quality: each pair in one block"
Pair = tuple[Variant, Variant, Comparison]
"""Ours, theirs, and ours less theirs."""


@cache
def contestants() -> tuple[str, ...]:
    """The liquid models: those of conf/model whose mixer is one of arch/. The one that the README tells of is first."""
    return OURS, *sorted(usual.liquid() - {OURS})


def pairs(evidence: Evidence) -> list[Finding]:
    """Each liquid model of the main table against each baseline, trained alike, each in its own block."""
    against = own_blocks(evidence, evidence.headline)
    made = []
    for baseline in BASELINES:
        known = [pair for pair in against if pair[1].model == baseline]
        made += [_pair(*pair, headline=pair[0].model == OURS) for pair in known]
        if not any(ours.model == OURS for ours, _, _ in known):
            what = f"Quality of {OURS} against {baseline}"
            command = f"python run.py -m model={OURS},{baseline} seed=0,1,2"
            needs = "no two finished runs of one task, size, number of tokens and seed"
            made.append(missing(f"quality-{OURS}-{baseline}", TOPIC, what, needs, command))
    return made


def other_sizes(evidence: Evidence) -> list[Finding]:
    """Each liquid model against all baselines in the other tables of text, a finding a model, where seeds suffice."""
    made = []
    for table in texts(evidence)[1:]:
        grouped: dict[str, list[Pair]] = defaultdict(list)
        for pair in own_blocks(evidence, table):
            if pair[2].difference.count >= LEAST_SEEDS:
                grouped[pair[0].label].append(pair)
        made += [_against_all(known) for known in grouped.values()]
    command = "python run.py -m +sweeps=ladder"
    needs = f"no other size with {LEAST_SEEDS} seeds of both sides"
    return made or [missing("quality-sizes", SIZES, "Each pair at other sizes", needs, command)]


def one_block(evidence: Evidence) -> list[Finding]:
    """Each liquid model against each baseline in the same block with the same convolution, all of a table corrected
    together; what `pairs` and `other_sizes` tell is left out. The README has the first that is told of the Transformer.
    """
    made: list[Finding] = []
    for table in texts(evidence):
        grouped: dict[tuple[str, str], list[Pair]] = defaultdict(list)
        for pair in _alike(evidence, table):
            grouped[pair[0].model, pair[1].model].append(pair)
        for (model, baseline), known in sorted(grouped.items(), key=_order):
            first = (model, baseline) == (OURS, BASELINES[0]) and not any(one.headline for one in made)
            made.append(_in_one_block(known, first))
    command = "python run.py -m +sweeps=convolutions"
    what, needs = "Each pair in one block with one convolution", "no two such runs of one recipe and seed"
    return made or [missing("quality-one-block", ALIKE, what, needs, command)]


def _order(grouped: tuple[tuple[str, str], list[Pair]]) -> tuple[int, int]:
    (model, baseline), _ = grouped
    return contestants().index(model), BASELINES.index(baseline)


def texts(evidence: Evidence) -> list[str]:
    """The names of the main table, and of all others of its metric."""
    metric = next((variant.metric for variant in evidence.of(evidence.headline)), None)
    return [name for name in evidence.tables() if evidence.of(name)[0].metric == metric]


def own_blocks(evidence: Evidence, table: str) -> list[Pair]:
    """Each liquid model of a table against each baseline, both in their own blocks, corrected as the table of quality
    does. Of a model's variants the one that stands for it there is told.
    """
    known = {variant.label: variant for variant in evidence.of(table)}
    made: list[Pair] = []
    for members in _by_recipe(known.values()).values():
        entries = [variant.entry for variant in members]
        stand = standing(entries)
        for one in compare(entries):
            stands = one.entry is stand[one.entry.model] and one.entry.own and one.other.own
            if stands and one.entry.model in contestants() and one.difference.count:
                made.append((known[one.entry.label], known[one.other.label], one))
    return made


def _alike(evidence: Evidence, table: str) -> list[Pair]:
    """The pairs of a table in one block with one convolution that are not told as they come."""
    told_of = {(ours.label, theirs.label) for ours, theirs, _ in own_blocks(evidence, table)}
    made: list[tuple[Variant, Variant, Comparison]] = []
    for members in _by_recipe(evidence.of(table)).values():
        grouped: dict[tuple, list[Variant]] = defaultdict(list)
        for variant in members:
            grouped[str(variant.block), variant.convolution].append(variant)
        sides = [
            (ours, theirs)
            for _, known in sorted(grouped.items())
            for ours, theirs in _opponents(known)
            if (ours.label, theirs.label) not in told_of and ours.test.keys() & theirs.test.keys()
        ]
        found = differ((ours.entry, theirs.entry) for ours, theirs in sides)
        made += [(ours, theirs, one) for (ours, theirs), one in zip(sides, found, strict=True)]
    adjusted = corrected([one for _, _, one in made])
    return [(ours, theirs, one) for (ours, theirs, _), one in zip(made, adjusted, strict=True)]


def _opponents(known: Sequence[Variant]) -> list[tuple[Variant, Variant]]:
    """Each liquid model with each baseline of these variants, one that stands for each."""
    labels = {variant.label: variant for variant in known}
    entries = [variant.entry for variant in known]
    baselines = [labels[entry.label] for model in BASELINES if (entry := plain(entries, model)) is not None]
    liquid = [one for model in contestants() if (one := best(v for v in known if v.model == model)) is not None]
    return [(ours, theirs) for theirs in baselines for ours in liquid]


def _by_recipe(variants: Iterable[Variant]) -> dict[str, list[Variant]]:
    recipes: dict[str, list[Variant]] = defaultdict(list)
    for variant in variants:
        recipes[variant.entry.recipe].append(variant)
    return recipes


def best(variants: Iterable[Variant]) -> Variant | None:
    """Of several variants the model as it comes speaks for it, then the one with the most seeds, then the best on
    validation: a baseline has no variants to choose among.
    """
    return min(variants, key=_rank, default=None)


def _rank(variant: Variant) -> tuple:
    return variant.entry.changed, -len(variant.test), variant.on_validation, variant.label


def _pair(ours: Variant, theirs: Variant, found: Comparison, headline: bool) -> Finding:
    said = _figures(ours, theirs, found, _said_of(ours, (theirs,)), _said_of(theirs, (ours,)))
    sentence = f"On {ours.where}, {said}{diverged(ours, theirs)}{other_code(ours, theirs)}."
    name = f"quality-{slug(ours.label)}-{slug(theirs.label)}"
    sides = (ours, theirs)
    return Finding(name, TOPIC, sentence, status(found), commands(sides), paths(sides), headline)


def _figures(ours: Variant, theirs: Variant, found: Comparison, mine: str, its: str) -> str:
    """`ltc has 1.602 bits per byte on test (lower is better) and mamba 1.584: worse, a difference of +0.018 (...)`."""
    one, other = _means(ours, theirs)
    return f"{mine} has {one} {measure(ours)} and {its} {other}: {_verdict(ours, found)}"


def _means(ours: Variant, theirs: Variant) -> tuple[str, str]:
    """Over the seeds that both have."""
    seeds = ours.test.keys() & theirs.test.keys()
    return f"{ours.mean(seeds):.3f}", f"{theirs.mean(seeds):.3f}"


def _verdict(ours: Variant, found: Comparison) -> str:
    """`worse, a difference of +0.018 (...)`."""
    word = f"{found.verdict(higher(ours))}, " if found.significant else ""
    return f"{word}a difference of {told(found)}"


def measure(variant: Variant) -> str:
    """`bits per byte on test (lower is better)`."""
    return f"{METRICS[variant.metric]} on test ({'higher' if higher(variant) else 'lower'} is better)"


def higher(variant: Variant) -> bool:
    """Whether a higher figure is the better one."""
    return HIGHER_IS_BETTER[f"validation_{variant.metric}"]


def _said_of(variant: Variant, others: Iterable[Variant]) -> str:
    """The variant, and what stands around it where that differs from the others'."""
    others = list(others)
    parts = [
        getattr(variant, key)
        for key in ("around", "head")
        if any(getattr(variant, key) != getattr(other, key) for other in others)
    ]
    return variant.spoken + (f" ({', '.join(parts)})" if parts else "")


def _against_all(known: Sequence[Pair]) -> Finding:
    """A liquid model against the baselines of one table, in a sentence."""
    ours, rivals = known[0][0], [theirs for _, theirs, _ in known]
    parts = []
    for _, theirs, found in known:
        word = f"{found.verdict(higher(ours))} than" if found.significant else "not told apart from"
        parts.append(f"{word} {_said_of(theirs, (ours,))} by {told(found)}")
    sentence = (
        f"On {ours.where}, {_said_of(ours, rivals)} has {ours.mean():.3f} {measure(ours)}: "
        f"{listed(parts)}{diverged(ours, *rivals)}{other_code(ours, *rivals)}."
    )
    sides = (ours, *rivals)
    name = f"quality-{slug(ours.table)}-{slug(ours.label)}"
    return Finding(name, SIZES, sentence, overall(one for *_, one in known), commands(sides), paths(sides))


def _in_one_block(known: Sequence[Pair], headline: bool) -> Finding:
    """A liquid model and a baseline in every block and convolution that both were run in."""
    (ours, theirs, one), *rest = known
    parts = [f"{ours.around} {_figures(ours, theirs, one, ours.model, theirs.model)}"]
    for mine, its, other in rest:
        parts.append(f"{mine.around} {' and '.join(_means(mine, its))}: {_verdict(mine, other)}")
    sides = list({side.label: side for ours, theirs, _ in known for side in (ours, theirs)}.values())
    sentence = f"On {ours.where}, {'; '.join(parts)}{diverged(*sides)}{other_code(*sides)}."
    name = f"quality-{slug(ours.model)}-{slug(theirs.model)}-one-block-{slug(ours.table)}"
    return Finding(name, ALIKE, sentence, overall(one for *_, one in known), commands(sides), paths(sides), headline)


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
