"""Findings on the whole: the answer so far, in a sentence; the target; and which runs are still missing."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping

from analysis.findings import cost
from analysis.findings.evidence import METRICS, Evidence, Variant, commands
from analysis.findings.finding import MEASURED, Finding, Ratio, listed, missing, of_seeds, signed
from analysis.findings.pairs import BASELINES, OURS, best, higher, own_blocks, paths
from analysis.references import Line
from harness.records import sweep

ANSWER, TARGET, MISSING = "The answer so far", "Quality: the target", "What is missing"
SIZE, PARAMETERS = "1m", 1_000_000
"""The size at which a model is to be ahead of every compressor."""
BUDGET = ("trainer.tokens", "trainer.epochs", "trainer.tokens_per_parameter")
"""What a recipe leaves to the size."""


def answer(evidence: Evidence) -> list[Finding]:
    """What the findings on quality, state and speed say together, each by its own rule."""
    against = [pair for pair in own_blocks(evidence, evidence.headline) if pair[0].model == OURS]
    if not against:
        command = f"python run.py -m model={','.join((OURS, *BASELINES))} seed=0,1,2"
        return [missing("answer", ANSWER, f"{OURS} against its rivals", "no runs of both in one table", command)]
    ours = against[0][0]
    words = {
        theirs.model: f"{found.verdict(higher(ours))} than" if found.significant else "not told apart from"
        for _, theirs, found in against
    }
    where = f"{ours.result['size']} parameters on {ours.result['task']}"
    parts = [f"At {where}, each in its own block, {OURS} is in quality {_grouped(words)}"]
    parts += [*_behind(evidence, ours), *_state(evidence), *_speeds(evidence)]
    return [Finding("answer", ANSWER, f"{'; '.join(parts)}.", MEASURED, headline=True)]


def _grouped(words: Mapping[str, str]) -> str:
    """`better than transformer and rwkv, worse than mamba`. words: by model."""
    models: dict[str, list[str]] = defaultdict(list)
    for model, word in words.items():
        models[word].append(model)
    return ", ".join(f"{word} {listed(known)}" for word, known in models.items())


def _behind(evidence: Evidence, ours: Variant) -> list[str]:
    """Which lines without a model no model of the main table is ahead of."""
    means = [mean for variant in evidence.of(evidence.headline) if (mean := variant.mean()) is not None]
    ahead = [one.name for one in evidence.lines.get(ours.text, []) if one.bits_per_byte < min(means)]
    return [f"every model recorded there is behind {listed(ahead)}"] if ahead else []


def _state(evidence: Evidence) -> list[str]:
    """Whether it generates from the smallest state of those that were measured."""
    known = {model: best(evidence.of(evidence.headline, model)) for model in cost.SHOWN}
    held = {model: cost.kept(one) for model, one in known.items() if one is not None and cost.kept(one)}
    others = [size for model, size in held.items() if model != OURS]
    if OURS not in held or not others:
        return []
    smallest = held[OURS] < min(others)
    return [f"it generates from {'the smallest' if smallest else 'no smaller a'} state"]


def _speeds(evidence: Evidence) -> list[str]:
    """How it trains, at all lengths that were timed, and generates, by the bench."""
    made = []
    for verb, timed, timing in (
        ("trains", cost.trained(evidence), cost.TRAINING),
        ("generates", cost.decoded(evidence), cost.DECODING),
    ):
        ratios: dict[str, list[Ratio]] = defaultdict(list)
        for known in timed.values():
            for model, ratio in cost.against(known, timing).items():
                ratios[model].append(ratio)
        if ratios:
            said = _grouped({model: _speed(known) for model, known in ratios.items()})
            made.append(f"{verb} {said}")
    return [f"by the bench it {' and '.join(made)}"] if made else []


def _speed(ratios: Iterable[Ratio]) -> str:
    """By the times a token of a rival over ours, at every length."""
    known = list(ratios)
    if not all(one.apart for one in known) or len({one.value > 1 for one in known}) > 1:
        return "at a speed not told apart from"
    return "faster than" if known[0].value > 1 else "slower than"


def target(evidence: Evidence) -> list[Finding]:
    """Whether the best model of SIZE is ahead of every compressor of its text, and the best model of any size."""
    main = next((variant for variant in evidence.of(evidence.headline) if variant.test), None)
    lines = [] if main is None else evidence.lines.get(main.text, [])
    command = "python run.py -m +sweeps=ladder"
    if main is None or not lines:
        what = f"A model of {SIZE} parameters ahead of every compressor"
        return [missing("target", TARGET, what, "no recorded compressor of the main corpus", command)]
    line = min(lines, key=lambda one: one.bits_per_byte)
    known = [variant for variant in evidence.variants if variant.test and variant.text == main.text]
    at_size = [v for v in known if v.result["size"] == SIZE and _recipe(v) == _recipe(main)]
    sides = {"of that size": _first(at_size)} if at_size else {}
    if not any(side is _first(known) for side in sides.values()):
        sides["of any size"] = _first(known)
    parts = [] if at_size else [f"not measured at {SIZE} under the recipe"]
    parts += [_beside(side, line, among) for among, side in sides.items()]
    sentence = (
        f"The target is a model of {SIZE} parameters below {line.name}, {line.bits_per_byte:.3f} "
        f"{METRICS[main.metric]} on test: {'; '.join([*parts, *_carried(evidence, main)])}."
    )
    best_ones = list(sides.values())
    return [Finding("target", TARGET, sentence, MEASURED, (*commands(best_ones), command), paths(best_ones))]


def _first(variants: Iterable[Variant]) -> Variant:
    return min(variants, key=lambda variant: (variant.on_validation, variant.label))


def _recipe(variant: Variant) -> dict:
    """How it was trained, but for the budget."""
    return {key: value for key, value in json.loads(variant.entry.recipe).items() if key not in BUDGET}


def _beside(variant: Variant, line: Line, among: str) -> str:
    """`the best model of any size on validation, ltc at 500k parameters, has 1.504 (one seed), +0.129 from it`."""
    mean = variant.mean()
    assert mean is not None  # only variants with test figures are asked
    return (
        f"the best model {among} on validation, {variant.model} at {variant.result['size']} parameters, has {mean:.3f} "
        f"({of_seeds(len(variant.test))}), {signed(mean - line.bits_per_byte)} from it"
    )


def _carried(evidence: Evidence, main: Variant) -> list[str]:
    """What the scaling laws give at SIZE, where the data tell their exponents."""
    fits = [one for one in evidence.laws.get(main.text, []) if one.law is not None and one.identified]
    told = [f"{one.law.at(PARAMETERS):.3f} with {one.label}" for one in fits if one.law is not None]
    what = f"the laws carried to {PARAMETERS:,} parameters, an extrapolation, give"
    return [f"{what} {listed(told)}"] if told else []


def sweeps(evidence: Evidence) -> list[Finding]:
    """How many runs of each sweep are recorded, of how many."""
    root = evidence.measured.parent
    known = [sweep.read([root], path.stem) for path in sorted((root / sweep.FOLDER).glob("*.json"))]
    if not known:
        needs, command = "no sweep was started", "python run.py -m +sweeps=ladder"
        return [missing("sweeps", MISSING, "How many runs of each sweep are recorded", needs, command)]
    of_run = sweep.folders_of_runs([root])
    done = {
        one.name: sum(sweep.state(of_run.get(job.key or "", ())) in sweep.DONE for job in one.jobs) for one in known
    }
    whole = [one.name for one in known if done[one.name] == len(one.jobs)]
    parts = [f"{one.name} {done[one.name]} of {len(one.jobs)}" for one in known if one.name not in whole]
    said = [f"of the runs that each sweep asks for are recorded: {', '.join(parts)}"] if parts else []
    said += [f"all runs of {listed(whole)} are recorded"] if whole else []
    sentence = f"{'; '.join(said)}."
    repeat = tuple(f"python run.py -m +sweeps={one.name}" for one in known if one.name not in whole)
    return [Finding("sweeps", MISSING, sentence[0].upper() + sentence[1:], MEASURED, repeat)]
