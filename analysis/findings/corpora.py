"""Findings on quality: the size of the model, another corpus, and compressors."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations

from analysis.findings.evidence import METRICS, Evidence, Variant, commands
from analysis.findings.finding import EXTRAPOLATED, MEASURED, Finding, listed, missing, of_seeds, signed
from analysis.findings.pairs import BASELINES, OURS, contestants, paths, slug
from analysis.models import ASKED
from analysis.render import count
from analysis.scaling import FARTHEST, LEAST_SIZES, Fit, Gap, crossing, gap
from analysis.tables import size_order

SCALE = "Quality: the size"
CORPORA = "Quality: other corpora and compressors"


def scaling(evidence: Evidence) -> list[Finding]:
    """The laws L(N) = E + A / N^alpha of the models that have enough sizes of one text, and what they foretell."""
    command = "python run.py -m +sweeps=ladder"
    made, tasks = [], [task for task, _ in evidence.laws]
    for (task, digest), fits in evidence.laws.items():
        models = {one.model for one in fits if one.law is not None}
        text = task if tasks.count(task) == 1 else f"{task} ({digest[:8]})"
        sides = [v for v in evidence.variants if v.test and v.text == (task, digest) and v.model in models]
        if models:
            sentence = f"On {text}, in L(N) = E + A / N^alpha, {'; '.join(_laws(fits))}."
            made.append(Finding(f"scaling-{slug(text)}", SCALE, sentence, MEASURED, (command,), paths(sides)))
            if larger := _larger(text, fits):
                made.append(Finding(f"larger-{slug(text)}", SCALE, larger, EXTRAPOLATED, (command,), paths(sides)))
    if made:
        return made
    sizes: dict[str, set[str]] = defaultdict(set)
    for variant in evidence.variants:
        if variant.test and variant.metric == "bits_per_byte":
            sizes[variant.result["task"]].add(variant.result["size"])
    have = "; ".join(f"{task}: {', '.join(sorted(known, key=size_order))}" for task, known in sorted(sizes.items()))
    needs = f"a fit needs {LEAST_SIZES} sizes of one task and model; recorded are {have or 'none'}"
    return [missing("scaling", SCALE, "How the loss falls with the size", needs, command)]


def _laws(fits: Sequence[Fit]) -> Iterator[str]:
    """The constants that the data tell, what liquid models' exponents are less their rivals', then what is not told."""
    known = [one for one in fits if one.law is not None and one.identified]
    unsure = [one.label for one in fits if one.law is not None and not one.identified]
    if known:
        yield listed(map(_constants, known))
    if exact := [one.label for one in known if one.exact]:
        yield f"{LEAST_SIZES} sizes fit the {LEAST_SIZES} constants of {listed(exact)} without a residual"
    for one, other in _rivals(fits, contestants()):
        if (found := gap(one, other, lambda law: law.exponent)) is not None:
            yield f"alpha of {one.label} less that of {other.label} is {_told(found)}"
    if unsure:
        yield f"alpha is not identified by the data with {listed(unsure)}"
    few = {one.model for one in fits} - {one.model for one in fits if one.law is not None}
    named = [model for model in ASKED if model in few]
    others = len(few) - len(named)
    if few:
        counted = [f"{others} other{'s' * (others > 1)}"] if others else []
        yield f"alpha is not measured, for want of {LEAST_SIZES} sizes, with {listed([*named, *counted])}"


def _constants(one: Fit) -> str:
    """`alpha is 0.393 (95 % interval 0.368 to 0.44) and E 1.12 (1.05 to 1.2) with ltc (sizes of 3, 5 and 1 seeds)`."""
    assert one.law is not None  # only fits whose exponent is identified are asked
    assert one.intervals is not None
    ends = {key: f"{low:.3g} to {high:.3g}" for key, (low, high) in one.intervals.items()}
    seeds = listed(str(len(values)) for values in one.losses.values())
    return (
        f"alpha is {one.law.exponent:.3g} (95 % interval {ends['exponent']}) and E {one.law.floor:.3g} "
        f"({ends['floor']}) with {one.label} ({len(one.losses)} sizes, of {seeds} seeds)"
    )


def _rivals(fits: Sequence[Fit], liquid: Sequence[str]) -> list[tuple[Fit, Fit]]:
    """Each of these liquid models with each baseline, where both have a law."""
    known = [one for one in fits if one.law is not None]
    return [(one, other) for one in known if one.model in liquid for other in known if other.model in BASELINES]


def _told(found: Gap) -> str:
    ends = f"95 % interval {signed(found.low)} to {signed(found.high)}"
    return f"{signed(found.value)} ({ends}{': not told apart' * (not found.told_apart)})"


def _larger(text: str, fits: Sequence[Fit]) -> str | None:
    """What the laws say of a larger budget: the first liquid model less each rival beyond the sizes measured."""
    pairs = [(one, other) for one, other in _rivals(fits, [OURS]) if _one_budget(one, other)]
    largest = max((size for pair in pairs for one in pair for size in one.losses), default=0)
    told = [said for one, other in pairs if (said := _ahead(one, other, largest))]
    if not told:
        return None
    return (
        f"Extrapolated, not measured: on {text}, at {count(2 * largest)} parameters, twice the largest measured, and "
        f"{pairs[0][0].tokens_per_parameter:.2g} tokens a parameter, as at the sizes measured, bits per byte on test "
        f"of {'; of '.join(told)}."
    )


def _ahead(one: Fit, other: Fit, largest: int) -> str | None:
    """How far apart the laws are at twice the largest size, and where they cross beyond it; None for no interval."""
    found = gap(one, other, lambda law: law.at(2 * largest))
    if found is None or one.law is None or other.law is None:
        return None
    at = crossing(one.law, other.law, largest)
    drawn = [crossing(*laws, largest) is not None for laws in zip(one.draws, other.draws, strict=True)]
    where = f"do not cross below {count(FARTHEST)}" if at is None else f"cross near {count(float(f'{at:.1g}'))}"
    return (
        f"{one.label} less {other.label} is {_told(found)}, and the two laws as fitted {where} parameters "
        f"(of the draws of their bootstrap {100 * sum(drawn) / len(drawn):.0f} % cross between {count(largest)} and "
        f"{count(FARTHEST)})"
    )


def _one_budget(one: Fit, other: Fit) -> bool:
    """Whether both laws are of the same tokens a parameter, to a tenth."""
    ours, theirs = one.tokens_per_parameter, other.tokens_per_parameter
    return ours is not None and theirs is not None and abs(ours / theirs - 1) < 0.1


def transfer(evidence: Evidence) -> list[Finding]:
    """How many pairs of models keep their order on another corpus at the size of the main table."""
    main = _means(evidence, evidence.headline)
    size = next((v.result["size"] for v in evidence.of(evidence.headline)), None)
    made = []
    for table in evidence.tables():
        others = evidence.of(table)
        if table == evidence.headline or others[0].result["size"] != size or others[0].metric != "bits_per_byte":
            continue
        means = _means(evidence, table)
        both = [(one, other) for one, other in combinations(sorted(main.keys() & means.keys()), 2)]
        if not both:
            continue
        kept = sum((main[a][0] < main[b][0]) == (means[a][0] < means[b][0]) for a, b in both)
        turned = [f"{a} and {b}" for a, b in both if (main[a][0] < main[b][0]) != (means[a][0] < means[b][0])]
        where = main[both[0][0]][1].where
        sentence = (
            f"Of the {len(both)} pairs of models that both have, {kept} stand in the same order on "
            f"{others[0].result['task']} as on {where}"
            + (f"; turned round are {listed(turned[:6])}{' and others' if len(turned) > 6 else ''}" if turned else "")
            + "."
        )
        sides = [v for known in (main, means) for name, (_, v) in known.items() if name in main.keys() & means.keys()]
        made.append(Finding(f"transfer-{slug(table)}", CORPORA, sentence, MEASURED, commands(sides), paths(sides)))
    if made:
        return made
    command = "python run.py -m +sweeps=transfer"
    needs = "no second corpus at the size of the main table"
    return [missing("transfer", CORPORA, "Whether the ranking holds on another corpus", needs, command)]


def compressors(evidence: Evidence) -> list[Finding]:
    """The best model of the main table beside the compressors that were recorded for its very task and data."""
    known = [variant for variant in evidence.of(evidence.headline) if variant.test]
    results = [variant.result for variant in known]
    lines = next((evidence.lines.get((one["task"], one["data"].get("digest")), []) for one in results), [])
    task = results[0]["task"] if results else "sotu"
    command = f"python -m bench references task={task}"
    if not lines:
        return [
            missing("compressors", CORPORA, "The models beside PPMd", "no recorded compressor of this corpus", command)
        ]
    first = min(known, key=lambda variant: variant.on_validation)
    mean = first.mean()
    assert mean is not None  # only variants with test figures were asked
    told = {one: f"{one.name} {one.bits_per_byte:.3f} ({signed(mean - one.bits_per_byte)})" for one in lines}
    compressed, counts = ([told[one] for one in lines if one.counts is kind] for kind in (False, True))
    epochs = first.result["training"].get("epochs")
    seen = "" if epochs is None else f" of {epochs:.2g} epochs"
    counted = f"; counts of the train split alone, {listed(counts)}" if counts else ""
    sentence = (
        f"On {first.where}, the best model on validation, {first.spoken}, has {mean:.3f} {METRICS[first.metric]} on "
        f"test ({of_seeds(len(first.test))}{seen}; lower is better); compressors that read all of the train split "
        f"first and go on learning have (and the model less them): {listed(compressed)}{counted}."
    )
    both = (*commands([first]), command)
    return [Finding("compressors", CORPORA, sentence, MEASURED, both, first.paths, headline=True)]


def _means(evidence: Evidence, table: str) -> dict[str, tuple[float, Variant]]:
    """{label: (mean on test, variant)} of a table's own settings that finished."""
    made = {}
    for variant in evidence.of(table):
        mean = variant.mean()
        if mean is not None:
            made[variant.label] = (mean, variant)
    return made
