"""Findings on cost: what generation holds, what a token takes, training, gradients and Newton's method."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import bench
from analysis.cost import CONTEXTS, dollars, measured_dollars, same_size
from analysis.findings.evidence import Evidence, Variant, commands
from analysis.findings.factors import factor, families, keys, values
from analysis.findings.finding import MEASURED, Finding, Ratio, by_extremes, by_rounds, figure, listed, missing
from analysis.findings.pairs import BASELINES, OURS, best, paths, slug
from analysis.frame import machine
from analysis.render import si_bytes
from analysis.statistics import power, summarise

MEMORY, SPEED, COST = "Memory", "Speed", "Cost"
AT = 32_768
"""The context after which memory and generation are compared."""
SHOWN = (OURS, *BASELINES)
"""The models whose cost is told; that of the others is in the tables."""
Contestants = dict[str, dict[Any, Any]]
"""{contestant: its row of the bench}"""
Timed = dict[int, Contestants]
"""{length: the contestants timed at it}"""


@dataclass(frozen=True)
class Timing:
    """What the bench timed. key: of the figure that is told, in `said`. unit: of the rounds' times a token."""

    key: str
    said: str
    unit: str

    @property
    def is_rate(self) -> bool:
        return self.said == "tokens/s"

    def rate(self, row: dict[Any, Any]) -> float:
        """Tokens a second."""
        return row[self.key] if self.is_rate else 1e3 / row[self.key]


TRAINING = Timing("tokens_per_second", "tokens/s", "us")
DECODING = Timing("decode_ms", "ms", "ms")


def state(evidence: Evidence) -> list[Finding]:
    """How the bytes that generation keeps grow with the context, by model."""
    known = [v for model in SHOWN if (v := best(evidence.of(evidence.headline, model))) is not None]
    sides = [variant for variant in known if len(_held(variant)) > 1]
    if not sides:
        command = f"python run.py -m model={','.join(SHOWN)}"
        return [missing("state", MEMORY, "How what generation keeps grows", "no measured run", command)]
    spans = sorted({(min(held), max(held)) for held in map(_held, sides)})
    span = " or ".join(f"{low:,} to {high:,}" for low, high in spans)
    sentence = (
        f"From {span} tokens of context, at {sides[0].result['size']} parameters, generation keeps: "
        f"{listed(map(_growth, sides))}."
    )
    return [Finding("state", MEMORY, sentence, MEASURED, commands(sides), paths(sides))]


def _growth(variant: Variant) -> str:
    """`transformer 2.10 MB to 268 MB (exponent 1.00)`, or `ltc 10.2 kB throughout`."""
    held = _held(variant)
    if len(set(held.values())) == 1:
        return f"{variant.spoken} {si_bytes(held[min(held)])} throughout{_policy(variant)}"
    ends = " to ".join(si_bytes(held[context]) for context in (min(held), max(held)))
    grows = power(held)
    exponent = f" (exponent {grows.value:.2f})" if grows else ""
    return f"{variant.spoken} {ends}{exponent}{_policy(variant)}"


def _held(variant: Variant) -> dict[int, int]:
    """{context: bytes of state}, as the first run that measured it."""
    for record in variant.records:
        rows = (record.result.get("measurement") or {}).get("contexts") or []
        held = {row["context"]: row["state_bytes"] for row in rows if row.get("state_bytes")}
        if held:
            return held
    return {}


def _policy(variant: Variant) -> str:
    """What is said beside a state that is kept small by forgetting."""
    policy = variant.result.get("context_policy") or {}
    return f" with its context cut to {policy['tokens']:,} tokens" if policy.get("tokens") is not None else ""


def uncut(evidence: Evidence) -> list[Finding]:
    """What generation keeps of one sequence where nothing of the context is cut, as a ratio to ours."""
    sides = _sides(evidence, kept)
    if not sides:
        command = f"python run.py -m model={','.join(SHOWN)}"
        what = "What generation keeps where no context is cut, against each rival"
        return [missing("state-uncut", MEMORY, what, "no measured runs of both", command)]
    ours, *theirs = sides
    parts = [
        f"{si_bytes(kept(side))} with {side.model} ({figure(kept(side) / kept(ours))} times{_computed(side)})"
        for side in theirs
    ]
    sentence = (
        f"After {AT:,} tokens of context, none of them cut, at {ours.result['size']} parameters, generation keeps "
        f"{si_bytes(kept(ours))} with {ours.model}, {listed(parts)}: bytes counted, the same in every run."
    )
    return [Finding("state-uncut", MEMORY, sentence, MEASURED, commands(sides), paths(sides), headline=True)]


def kept(variant: Variant) -> float:
    """Bytes of state after AT tokens; of a window's, as it would be with all of them; 0 where not measured."""
    held, policy = _held(variant), variant.result.get("context_policy") or {}
    if policy.get("kind") == "window":
        return held.get(AT, 0) / policy["tokens"] * AT
    return held.get(AT, 0)


def _computed(variant: Variant) -> str:
    """What is said of a state that was not held."""
    if (variant.result.get("context_policy") or {}).get("kind") != "window":
        return ""
    tokens = variant.result["context_policy"]["tokens"]
    return f", computed from the {si_bytes(_held(variant)[AT])} of its last {tokens:,} tokens"


def processes(evidence: Evidence) -> list[Finding]:
    """By how much the memory of the process grows in generation and in training, as the runs measured it."""
    told: tuple[tuple[str, str, Callable[[Variant], list[float]]], ...] = (
        ("generation", f"generating up to {AT:,} tokens under its context policy", _generation_bytes),
        ("training", "training", _training_bytes),
    )
    return [_process(evidence, name, what, measured) for name, what, measured in told]


def _process(evidence: Evidence, name: str, what: str, measured: Callable[[Variant], list[float]]) -> Finding:
    sides = _sides(evidence, measured)
    if not sides:
        command = f"python run.py -m model={','.join(SHOWN)}"
        title = f"How much memory {name} takes, against each rival"
        return missing(f"memory-{name}", MEMORY, title, "no measured runs of both", command)
    ours, *theirs = sides
    middle = {side.label: float(np.median(np.array(measured(side)))) for side in sides}
    parts = [
        f"{si_bytes(middle[side.label])} with {side.model}{_policy(side) if name == 'generation' else ''}, "
        f"{by_extremes(middle[side.label] / middle[ours.label], measured(side), measured(ours))}"
        for side in theirs
    ]
    sentence = (
        f"At {ours.result['size']} parameters, {what} the process takes {si_bytes(middle[ours.label])} with "
        f"{ours.model}; {'; '.join(parts)}: the median of the runs, the range by their extremes."
    )
    return Finding(f"memory-{name}", MEMORY, sentence, MEASURED, commands(sides), paths(sides))


def _sides(evidence: Evidence, measured: Callable[[Variant], object]) -> list[Variant]:
    """Ours, then the rivals, of those that were measured; none where ours or every rival was not."""
    own = [variant for variant in evidence.of(evidence.headline, *SHOWN) if variant.entry.own and measured(variant)]
    found = [one for model in SHOWN if (one := best(v for v in own if v.model == model)) is not None]
    return found if len(found) > 1 and found[0].model == OURS else []


def _generation_bytes(variant: Variant) -> list[float]:
    rows = [row for one in variant.records for row in (one.result.get("measurement") or {}).get("contexts") or []]
    found = (row.get("generation_memory_bytes") for row in rows if row["context"] == AT)
    return [value for value in found if value]


def _training_bytes(variant: Variant) -> list[float]:
    found = (record.result["training"].get("peak_memory_bytes") for record in variant.records)
    return [value for value in found if value]


def decoding(evidence: Evidence) -> list[Finding]:
    """Milliseconds a generated token behind a whole context, as the bench measured them in one process."""
    what = "after {:,} tokens of context, none of them cut, a generated token takes"
    made = [_speed_of(f"decoding-{at}", what.format(at), known, DECODING) for at, known in decoded(evidence).items()]
    found = [finding for finding in made if finding is not None]
    needs = "no measurement of the bench"
    return found or [missing("decoding", SPEED, "The time of a generated token", needs, "python -m bench models")]


def under_policy(evidence: Evidence) -> list[Finding]:
    """Milliseconds a generated token under the context policy that the losses are of, as the runs measured them."""
    sides = [v for model in SHOWN if (v := best(evidence.of(evidence.headline, model))) is not None and _latencies(v)]
    machines = {machine(record) for variant in sides for record in variant.records}
    contexts = set.intersection(*(set(_latencies(variant)) for variant in sides)) if sides else set()
    if len(sides) < 2 or len(machines) > 1 or not contexts:
        what, needs = "The time of a token under each run's context policy", "no quiet measurement on one machine"
        command = f"python run.py -m model={','.join(SHOWN)}"
        return [missing("decoding-policy", SPEED, what, needs, command)]
    at = max(contexts)
    told = listed(f"{v.spoken} {figure(_latencies(v)[at])} ms{_policy(v)}" for v in sides)
    sentence = (
        f"On {machines.pop()}, under each run's own context policy, after {at:,} tokens and at "
        f"{sides[0].result['size']} parameters, a generated token takes: {told}."
    )
    return [Finding("decoding-policy", SPEED, sentence, MEASURED, commands(sides), paths(sides))]


def _latencies(variant: Variant) -> dict[int, float]:
    """{context: the median over seeds of the milliseconds a token}, of the runs that no other process disturbed."""
    found: dict[int, list[float]] = {}
    for record in variant.records:
        measurement = record.result.get("measurement") or {}
        for row in measurement.get("contexts") or [] if (measurement.get("load") or {}).get("busy") is not True else []:
            if row.get("decode_ms_p50") is not None:
                found.setdefault(row["context"], []).append(row["decode_ms_p50"])
    return {context: float(np.median(known)) for context, known in found.items()}


def training(evidence: Evidence) -> list[Finding]:
    """Training tokens a second at each length, as the bench measured them in one process."""
    what = "at {:,} tokens a sequence training makes"
    made = [_speed_of(f"training-{at}", what.format(at), known, TRAINING) for at, known in trained(evidence).items()]
    found = [finding for finding in made if finding is not None]
    needs = "no measurement of the bench"
    return found or [missing("training", SPEED, "The speed of training", needs, "python -m bench models")]


def decoded(evidence: Evidence) -> Timed:
    return _by(_bench(evidence, "decoding"), "length")


def trained(evidence: Evidence) -> Timed:
    return _by(_bench(evidence, "training"), "length")


def costs(evidence: Evidence) -> list[Finding]:
    """Dollars for a million tokens of training and of generation by the bench's speeds; and extrapolated, said so."""
    made: list[Finding] = []
    if evidence.prices is not None:
        price, generated = evidence.prices.measured.dollars_per_hour, decoded(evidence)
        for at, known in [*trained(evidence).items()][:1]:  # at the shortest length, as the table of cost
            made += _cost("training", f"in sequences of {at:,}", known, TRAINING, price)
        for at, known in generated.items():
            made += _cost("generation", f"after {at:,}", known, DECODING, price)
        made += [*_by_runs(evidence, generated), *_extrapolated(evidence)]
    command = "python -m bench models"
    return made or [missing("cost", COST, "The cost of a million tokens", "no measurement of the bench", command)]


def _bench(evidence: Evidence, what: str) -> list[dict[Any, Any]]:
    """The rows of the bench's whole models on the CPU, each with the machine that measured it; [] for none."""
    path = bench.files(evidence.measured, "models")[0]
    if not path.exists():
        return []
    content = bench.read(path)
    sizes = {row["contestant"]: row["parameters"] for row in content["rows"] if row.get("parameters")}
    facts = {"machine": _machine(content)}
    return [
        row | facts | {"parameters": sizes.get(row["contestant"])} for row in content["rows"] if row["what"] == what
    ]


def _by(rows: Iterable[dict[Any, Any]], key: str) -> dict[int, dict[str, dict[Any, Any]]]:
    """{value of the key: {contestant: row}}, in order of the value."""
    found: dict[int, dict[str, dict[Any, Any]]] = {}
    for row in sorted(rows, key=lambda row: row[key]):
        found.setdefault(row[key], {})[row["contestant"]] = row
    return found


def against(known: Contestants, timing: Timing) -> dict[str, Ratio]:
    """{baseline: the ratio of its time a token to ours}; {} where ours is not timed."""
    ours = known.get(OURS)
    if ours is None:
        return {}
    return {model: _ratio(known[model], ours, timing) for model in BASELINES if model in known}


def _ratio(theirs: dict[Any, Any], ours: dict[Any, Any], timing: Timing) -> Ratio:
    """By the rounds that both were timed in or, of a bench that kept their extremes alone, by these."""
    each = f"each_{timing.unit}"
    if each in theirs and each in ours and (found := by_rounds(theirs[each], ours[each])):
        return found
    value, ends = timing.rate(ours) / timing.rate(theirs), f"range_{timing.unit}"
    if ends not in theirs or ends not in ours:
        return Ratio(value, 0.0, math.inf)
    return by_extremes(value, theirs[ends], ours[ends])


def _speed_of(name: str, what: str, known: Contestants, timing: Timing) -> Finding | None:
    """Ours beside each baseline, with the ratio and how far it is known."""
    ratios = against(known, timing)
    if not ratios:
        return None
    ours = known[OURS]
    parts = [
        f"{figure(known[model][timing.key])} with {model}, {one.turned if timing.is_rate else one}"
        for model, one in ratios.items()
    ]
    size = f"with {ours['parameters']:,} parameters " if ours["parameters"] else ""
    sentence = (
        f"On {ours['machine']}, {size}{what} {figure(ours[timing.key])} {timing.said} with {OURS}; "
        f"{'; '.join(parts)}{_method(ratios.values())}."
    )
    return Finding(name, SPEED, sentence, MEASURED, ("python -m bench models",), headline=name.startswith("decoding"))


def _method(ratios: Iterable[Ratio]) -> str:
    """How the ranges were made where they are no intervals."""
    return "" if all(one.rounds for one in ratios) else ": between the extremes of the rounds"


def _cost(what: str, where: str, known: Contestants, timing: Timing, price: float) -> list[Finding]:
    """Dollars for a million tokens at the bench's speed, ours beside each baseline."""
    ratios = against(known, timing)
    if not ratios:
        return []
    paid = {model: dollars(measured_dollars(1e3 / timing.rate(row), price)) for model, row in known.items()}
    parts = [f"{paid[model]} with {model}, {ratio}" for model, ratio in ratios.items()]
    sentence = (
        f"At ${price:.2f} an hour, on {known[OURS]['machine']}, a million tokens of {what} {where} tokens cost "
        f"{paid[OURS]} with {OURS}; {'; '.join(parts)}{_method(ratios.values())}."
    )
    return [Finding(f"cost-{what}", COST, sentence, MEASURED, ("python -m bench models",))]


def _by_runs(evidence: Evidence, timed: Iterable[int]) -> list[Finding]:
    """Dollars for a million generated tokens after the contexts that the bench has not timed, by the recorded runs."""
    rows, parts = evidence.costs.get("cost-measured", pd.DataFrame()).to_dict("records"), []
    for at in sorted(set(CONTEXTS) - set(timed)):
        key = f"generation_{at}"
        known = [row for row in rows if pd.notna(row[key])]
        ours = next((row for row in known if row["model"] == OURS), None)
        if ours is None:
            continue
        alike = {row["model"]: row[key] for row in known if same_size(row["parameters"], ours["parameters"])}
        rest = [f"{figure(alike[one] / ours[key])} times as much with {one}" for one in BASELINES if one in alike]
        parts += [f"after {at:,} {dollars(ours[key])} with {OURS} and {listed(rest)}"] if rest else []
    if not parts:
        return []
    sentence = (
        "By the recorded runs, each under its own context policy, a million tokens of generation cost "
        f"{'; '.join(parts)}: each timed in its own run, so how far these ratios are known is not told."
    )
    return [Finding("cost-runs", COST, sentence, MEASURED, (f"python run.py -m model={','.join(SHOWN)}",))]


def _extrapolated(evidence: Evidence) -> list[Finding]:
    """The ratios of the costs at the larger size of docs/prices.yaml."""
    table = evidence.costs.get("cost-extrapolated", pd.DataFrame())
    rows = {str(row["model"]): row for row in table.to_dict("records")}
    if evidence.prices is None or OURS not in rows or not rows.keys() & set(BASELINES):
        return []
    inputs = evidence.prices.extrapolated
    columns = {"training": "training"} | {f"generation_{at}": f"generation after {at:,}" for at in inputs.contexts}
    parts = []
    for key, what in columns.items():
        rest = [f"{_beside(rows[model], rows[OURS], key)} with {model}" for model in BASELINES if model in rows]
        parts.append(f"{what} {_span(rows[OURS], key)} with {OURS}, {listed(rest)}")
    sentence = (
        f"Extrapolated to {inputs.parameters / 1e9:g}B parameters on one {inputs.accelerator}, not measured, a million "
        f"tokens cost: {'; '.join(parts)}. The range is of the utilisation, which is taken to be the same for all."
    )
    return [Finding("cost-extrapolated", COST, sentence, MEASURED, (f"python run.py -m model={','.join(SHOWN)}",))]


def _span(row: dict[Any, Any], key: str) -> str:
    """`$0.084 (0.068 to 0.11)`, or the bound where that is all there is."""
    value, low, high = (row[f"{key}{end}"] for end in ("", "_low", "_high"))
    if pd.isna(value):
        return f"above {dollars(float(low))}"
    return f"{dollars(float(value))} ({low:.2g} to {high:.2g})"


def _beside(theirs: dict[Any, Any], ours: dict[Any, Any], key: str) -> str:
    """`3.4 times`, or what it costs where ours has but a bound; a bound; or that it does not fit."""
    if pd.isna(theirs[key]):
        return "not to be had (it does not fit)" if pd.isna(theirs[f"{key}_low"]) else _span(theirs, key)
    if pd.isna(ours[key]):
        return dollars(float(theirs[key]))
    return f"{figure(float(theirs[key]) / float(ours[key]))} times"


def newton(evidence: Evidence) -> list[Finding]:
    """What Newton's method over time takes against the sequential scan, over all sizes that the bench measured."""
    command, made = "python -m bench newton", []
    for path in filter(Path.exists, bench.files(evidence.measured, "newton")):
        content = bench.read(path)
        rows = [row for row in content["rows"] if row["what"] == "study"]
        if rows:
            least, most = (pick(rows, key=lambda row: row["training_ratio"]) for pick in (min, max))
            sentence = (
                f"On {_machine(content)}, Newton's method over time takes {least['training_ratio']:.2f} "
                f"({_size(least)}) to {most['training_ratio']:.2f} times ({_size(most)}) as long as the sequential "
                f"scan, forward and backward, over {len(rows)} sizes."
            )
            made.append(Finding(path.stem, SPEED, sentence, MEASURED, (command,)))
    what = "Newton's method against the sequential scan"
    return made or [missing("newton", SPEED, what, "no measurement of the bench", command)]


def _machine(content: dict[str, Any]) -> str:
    """The device that the bench ran on."""
    machine = content["machine"]
    return str(machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads")


def _size(row: dict[Any, Any]) -> str:
    return f"{row['batch']} x {row['length']:,} tokens"


def gradients(evidence: Evidence) -> list[Finding]:
    """Speed and memory of training by the gradient's method; quality is told beside the other factors."""
    what, made = factor("gradient"), []
    for family in families(evidence, what):
        known = values(family, what)
        parts = [f"{text} {_speed(variant)} and {_memory(variant)}" for text, variant in sorted(known.items())]
        sides = list(known.values())
        sentence = f"On {sides[0].where}, training {sides[0].model} runs at: {listed(parts)}."
        name = f"gradient-cost-{slug(sides[0].table)}-{slug(sides[0].model)}"
        made.append(Finding(name, SPEED, sentence, MEASURED, commands(sides, keys(sides, what)), paths(sides)))
    title, needs = "What the gradient's method costs in speed and memory", "no runs that differ in it alone"
    return made or [missing("gradient-cost", SPEED, title, needs, what.command)]


def _speed(variant: Variant) -> str:
    """Tokens a second of training, of the runs that no other process disturbed."""
    trainings = [record.result["training"] for record in variant.records]
    quiet = [part.get("tokens_per_second") for part in trainings if (part.get("load") or {}).get("busy") is not True]
    mean = summarise(quiet).mean
    return "at a speed not measured (busy machine)" if mean is None else f"{mean:,.0f} tokens/s"


def _memory(variant: Variant) -> str:
    known = pd.Series([record.result["training"].get("peak_memory_bytes") for record in variant.records], dtype=float)
    return "an unknown memory" if known.isna().all() else f"{si_bytes(float(known.median()))} of memory"
