"""Findings on quality: the size of the model, another corpus, and compressors."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations

from analysis.findings.evidence import METRICS, Evidence, Variant, commands
from analysis.findings.finding import MEASURED, Finding, listed, missing, signed
from analysis.findings.pairs import paths, slug
from analysis.scaling import LEAST_SIZES, Fit
from analysis.tables import size_order

SCALE = "Quality: the size"
CORPORA = "Quality: other corpora and compressors"


def scaling(evidence: Evidence) -> list[Finding]:
    """The exponent of L(N) = E + A / N^alpha of every model that was run at enough sizes of one text."""
    command = "python run.py -m +sweeps=ladder"
    made, tasks = [], [task for task, _ in evidence.laws]
    for (task, digest), fits in evidence.laws.items():
        models = {one.model for one in fits if one.law is not None}
        text = task if tasks.count(task) == 1 else f"{task} ({digest[:8]})"
        sides = [v for v in evidence.variants if v.test and v.text == (task, digest) and v.model in models]
        if models:
            sentence = f"On {text}, in L(N) = E + A / N^alpha, {'; '.join(_laws(fits))}."
            made.append(Finding(f"scaling-{slug(text)}", SCALE, sentence, MEASURED, (command,), paths(sides)))
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
    """The exponents that the data tell, then the models of which they do not, then those of too few sizes."""
    known, unsure, few = [], [], []
    for one in fits:
        if one.law is None:
            few.append(one.label)
        elif one.identified and one.intervals is not None:
            low, high = one.intervals["exponent"]
            known.append(f"{one.law.exponent:.3g} with {one.label} (95 % interval {low:.3g} to {high:.3g})")
        else:
            unsure.append(one.label)
    if known:
        yield f"alpha is {listed(known)}"
    if unsure:
        yield f"alpha is not identified by the data with {listed(unsure)}"
    if few:
        yield f"alpha is not measured, for want of {LEAST_SIZES} sizes, with {listed(few)}"


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
    seeds = "one seed" if len(first.test) == 1 else f"{len(first.test)} seeds"
    epochs = first.result["training"].get("epochs")
    seen = "" if epochs is None else f" of {epochs:.2g} epochs"
    counted = f"; counts of the train split alone, {listed(counts)}" if counts else ""
    sentence = (
        f"On {first.where}, the best model on validation, {first.spoken}, has {mean:.3f} {METRICS[first.metric]} on "
        f"test ({seeds}{seen}; lower is better); compressors that read all of the train split first and go on learning "
        f"have (and the model less them): {listed(compressed)}{counted}."
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
