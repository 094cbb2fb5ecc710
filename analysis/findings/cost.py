"""Findings on cost: what generation holds, what a token takes, training, gradients and Newton's method."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import bench
from analysis.findings.evidence import Evidence, Variant, commands
from analysis.findings.factors import factor, families, keys, values
from analysis.findings.finding import MEASURED, Finding, listed, missing
from analysis.findings.pairs import BASELINES, OURS, best, paths, slug
from analysis.frame import machine
from analysis.render import si_bytes
from analysis.statistics import power, summarise

MEMORY, SPEED = "Memory of generation", "Speed"
SHOWN = (OURS, *BASELINES)
"""The models whose cost is told; that of the others is in the tables."""


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
    return [Finding("state", MEMORY, sentence, MEASURED, commands(sides), paths(sides), headline=True)]


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


def decoding(evidence: Evidence) -> list[Finding]:
    """Milliseconds a generated token behind a whole context, as the bench measured them in one process."""
    rows = _bench(evidence, "decoding")
    made = [
        _ratio(
            f"decoding-{at}",
            f"after {at:,} tokens of context, none of them cut, a generated token takes",
            "ms",
            known,
            "decode_ms",
        )
        for at, known in _by(rows, "length").items()
    ]
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
    told = listed(f"{v.spoken} {_figure(_latencies(v)[at])} ms{_policy(v)}" for v in sides)
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
    rows = _bench(evidence, "training")
    made = [
        _ratio(f"training-{at}", f"at {at:,} tokens a sequence training makes", "tokens/s", known, "tokens_per_second")
        for at, known in _by(rows, "length").items()
    ]
    found = [finding for finding in made if finding is not None]
    needs = "no measurement of the bench"
    return found or [missing("training", SPEED, "The speed of training", needs, "python -m bench models")]


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


def _ratio(name: str, what: str, unit: str, known: dict[str, dict[Any, Any]], key: str) -> Finding | None:
    """Ours beside each baseline, with the ratio and how far the rounds of a figure lie apart."""
    ours = known.get(SHOWN[0])
    theirs = {model: known[model] for model in BASELINES if model in known}
    if ours is None or not theirs:
        return None
    parts = [
        f"{_figure(row[key])} with {model} ({_figure(row[key] / ours[key])} times)" for model, row in theirs.items()
    ]
    spread = max(_spread(row) for row in (ours, *theirs.values()))
    rounds = f"; rounds at most {100 * (spread - 1):.0f} % apart" if spread else ""
    size = f"with {ours['parameters']:,} parameters " if ours["parameters"] else ""
    sentence = (
        f"On {ours['machine']}, {size}{what} {_figure(ours[key])} {unit} with {SHOWN[0]}, {listed(parts)}{rounds}."
    )
    return Finding(name, SPEED, sentence, MEASURED, ("python -m bench models",), headline=name.startswith("decoding"))


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _spread(row: dict[Any, Any]) -> float:
    """The slowest round over the fastest; 0 where the rounds were not kept."""
    ends = next((value for key, value in row.items() if key.startswith("range")), None)
    return ends[1] / ends[0] if ends else 0.0


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
