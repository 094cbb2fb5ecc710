"""What an engineer asks of a model that serves: sessions held in a gigabyte, the time and the price of a token.

As measured, and extrapolated, said to be so, to the size of docs/prices.yaml.
"""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from analysis import cost
from analysis.cost import CONTEXTS, MILLION, Larger, Prices
from analysis.field import by_context, policy
from analysis.render import NOT_MEASURED, Table, si_bytes

GB = 1e9
RIVALS = ("transformer", "transformer_gqa", "transformer_window")
"""Whose caches a state is compared with: all of the past, the same with grouped queries, the last tokens alone."""
SMALLER, NEVER = "at any", "never"
"""Beside a cache of fixed size, which has no context at which it overtakes."""


@dataclass(frozen=True)
class Held:
    """What one session of a model keeps. cache: of what past. after: {context: its bytes}. size: of the model."""

    model: str
    size: str
    cache: str
    after: dict[int, float]

    @property
    def per_token(self) -> float | None:
        """Bytes by which it grows with a token; None where it does not."""
        (first, least), *_, (last, most) = sorted(self.after.items())
        return None if most == least else (most - least) / (last - first)


def tables(standing: dict[str, pd.DataFrame], whole: dict[str, Any], prices: Prices) -> list[Table]:
    """As measured, the contexts from which a state is the smaller one, and extrapolated.

    standing: the runs that stand for each model, none for one that was not measured. whole: the bench's content of the
    subject `models`, {} for none.
    """
    held = {model: _held(model, runs) for model, runs in standing.items()}
    larger = {model: _larger(model, runs, prices) for model, runs in standing.items()}
    at_size = f"{prices.extrapolated.parameters / 1e9:g}B"
    return [
        _measured(standing, held, whole, prices),
        _break_even(held, {model: known for model, (known, _) in larger.items()}, at_size),
        _extrapolated(larger, at_size, prices),
    ]


def _held(model: str, runs: pd.DataFrame) -> list[Held]:
    """As the runs kept it and, where they cut it, as it is with all of the past; nothing for what was not measured."""
    known = {context: size for context, size in by_context(runs, "state_bytes").items() if context in CONTEXTS}
    if CONTEXTS[0] not in known or len(known) < 2:  # one context does not tell how it grows
        return []
    size, span = str(runs["size"].iloc[0]), cost.spanned(runs.iloc[0])
    kept = Held(model, size, policy(runs), known)
    if span is None or kept.cache == "full":
        return [kept]
    return [kept, Held(model, size, "full", {at: known[CONTEXTS[0]] / span * at for at in CONTEXTS})]


def _larger(model: str, runs: pd.DataFrame, prices: Prices) -> tuple[list[Held], Larger | None]:
    shape = cost.shape(runs.iloc[0]) if len(runs) else None
    if shape is None:
        return [], None
    inputs, grown = prices.extrapolated, Larger(shape, prices.extrapolated)
    after = {context: grown.numbers_at(context) * inputs.bytes_per_number for context in inputs.contexts}
    return [Held(model, "", "state" if shape.window is None else "full", after)], grown


def memory_dollars(state_bytes: float, prices: Prices) -> float:
    """Of holding a session's state for as long as it takes to generate a million tokens."""
    hours = MILLION / prices.serving.tokens_per_session_hour
    return state_bytes / GB * prices.serving.memory_dollars_per_gb_hour * hours


def _measured(
    standing: dict[str, pd.DataFrame], held: dict[str, list[Held]], whole: dict[str, Any], prices: Prices
) -> Table:
    """A row a model and cache: sessions in a gigabyte, milliseconds and dollars a token, after each context."""
    header = ["model", "cache", "parameters", *_headings("sessions per GB", CONTEXTS)]
    header += [*_headings("ms a token", CONTEXTS), *_headings("$ per million tokens", CONTEXTS)]
    price, bench, rows, data = prices.measured.dollars_per_hour, cost.timed(whole.get("rows", [])), [], []
    for model, runs in standing.items():
        for kept in held[model]:
            size = round(float(runs["parameters"].mean()))
            known = [one for one in cost.speeds(model, runs, bench) if one.cache == kept.cache]
            times = next((one.generation for one in known if cost.same_size(one.parameters, size)), {})
            row: dict[str, Any] = {"model": model, "cache": kept.cache, "parameters": size}
            row |= {f"sessions_{at}": kept.after.get(at) and math.floor(GB / kept.after[at]) for at in CONTEXTS}
            shown = [_or_not(row[f"sessions_{at}"], _whole) for at in CONTEXTS]
            costs: dict[int, Callable[[float], float]] = {
                at: partial(_dollars, state_bytes=state, prices=prices) for at, state in kept.after.items()
            }
            for what, of, unit in (("ms", dict.fromkeys(CONTEXTS, float), ""), ("dollars", costs, "$")):
                for at in CONTEXTS:
                    time = times.get(at) if at in of else None
                    row[f"{what}_{at}"] = time and of[at](time.ms)
                    shown.append(NOT_MEASURED if time is None else time.told(of[at], unit))
            data.append(row)
            rows.append([model, kept.cache, f"{size:,}", *shown])
    notes = [
        "Sessions: 1,000,000,000 bytes over the state of one at batch 1 in float32. A full cache's is computed from "
        "what the cut one holds, token by token; nothing else in the table is. Milliseconds: of one token at batch 1, "
        f"by the bench, the median of its rounds, and the fastest and the slowest. {cost.OWNS} Dollars: the machine at "
        f"${price:.2f} an hour for the time of a token, and memory at "
        f"${prices.serving.memory_dollars_per_gb_hour:g} a GB and hour for a session that generates "
        f"{prices.serving.tokens_per_session_hour:,.0f} tokens an hour, its pauses counted (docs/prices.yaml).",
        _uncut(whole, [model for model, known in held.items() if not known]),
        _absent(model for model, known in held.items() if not known),
    ]
    return Table("serving", "Serving, measured", header, rows, [note for note in notes if note], pd.DataFrame(data))


def _dollars(ms: float, state_bytes: float, prices: Prices) -> float:
    """The machine for a million tokens that take so long each, and the memory that their session holds meanwhile."""
    return cost.measured_dollars(ms, prices.measured.dollars_per_hour) + memory_dollars(state_bytes, prices)


def _absent(models: Iterable[str]) -> str:
    """Which models a table lacks; "" for none."""
    names = ", ".join(models)
    return f"{NOT_MEASURED.capitalize()}: {names}." if names else ""


def _uncut(whole: dict[str, Any], models: Collection[str]) -> str:
    """The bench's times of models that have no row, none of them cut; "" for none."""
    rows = [row for row in whole.get("rows", []) if row["what"] == "decoding" and row["contestant"] in models]
    if not rows:
        return ""
    said = ", ".join(f"{row['contestant']} {row['decode_ms']:.2g}" for row in sorted(rows, key=_by_time))
    where = f"{whole['machine']['gpu'] or whole['machine']['cpu']}, after {rows[0]['length']:,} tokens"
    return f"By the bench, on {where}, of models without records of a state: {said} ms a token."


def _by_time(row: dict[str, Any]) -> float:
    return row["decode_ms"]


def _break_even(held: dict[str, list[Held]], larger: dict[str, list[Held]], at_size: str) -> Table:
    """A row a model of constant state: the context from which each rival's cache holds more, here and at `at_size`."""
    header = ["model", "state", *RIVALS, f"state at {at_size}", *(f"{rival} at {at_size}" for rival in RIVALS)]
    rows, data = [], []
    for model in held:
        if model in RIVALS or not held[model] or any(kept.per_token for kept in held[model]):
            continue
        row: dict[str, Any] = {"model": model}
        cells = []
        for sizes, suffix in ((held, ""), (larger, f"_at_{at_size}")):
            own = sizes[model][-1] if sizes[model] else None
            state = None if own is None else own.after[min(own.after)]
            cells.append(NOT_MEASURED if state is None else si_bytes(state))
            row[f"state{suffix}"] = state
            for rival in RIVALS:
                at = break_even(own, next(iter(reversed(sizes.get(rival, []))), None))
                cells.append(f"{at:,}" if isinstance(at, int) else at)
                row[f"{rival}{suffix}"] = at
        rows.append([model, *cells])
        data.append(row)
    notes = [
        "Tokens of context from which the Transformer's cache of one session holds more bytes than the state, with all "
        f"of the past (transformer), grouped queries ({RIVALS[1]}) and a sliding window ({RIVALS[2]}), whose cache "
        f"has one size: {SMALLER} context the state is smaller, or {NEVER}. Models of one size each; float32 here. "
        f"At {at_size}: extrapolated as below, the window as long as here.",
    ]
    return Table("serving-break-even", "Break-even context, in bytes held", header, rows, notes, pd.DataFrame(data))


def break_even(own: Held | None, rival: Held | None) -> int | str:
    """The first context at which the rival holds more; SMALLER or NEVER where its cache does not grow."""
    if own is None or rival is None or own.size != rival.size:
        return NOT_MEASURED
    state, cache = own.after[min(own.after)], rival.after[min(rival.after)]
    if rival.per_token is None:
        return SMALLER if cache > state else NEVER
    return math.floor(state / rival.per_token) + 1


def _extrapolated(larger: dict[str, tuple[list[Held], Larger | None]], at_size: str, prices: Prices) -> Table:
    """A row a model: the same at another size, by the method of the cost that is extrapolated."""
    inputs = prices.extrapolated
    _, middle, _ = inputs.utilisation.memory
    header = ["model", "cache", *_headings("sessions per GB", inputs.contexts)]
    header += [*_headings("ms a token", inputs.contexts), *_headings("$ per million tokens", inputs.contexts)]
    rows, data = [], []
    for model, (known, grown) in larger.items():
        if grown is None:
            continue
        (kept,) = known
        row: dict[str, Any] = {"model": model, "cache": kept.cache}
        for at, state in kept.after.items():
            seconds = grown.step_seconds(at, middle)
            row |= {f"sessions_{at}": math.floor(GB / state), f"ms_{at}": seconds and 1e3 * seconds}
            row[f"dollars_{at}"] = grown.decoding_dollars(at, middle)
        rows.append([model, kept.cache, *_cells(row, inputs.contexts, "does not fit")])
        data.append(row)
    notes = [
        f"Extrapolation, not a measurement, by the method of the cost at {at_size} (comparison.md): the state of the "
        f"measured model, times layers and d_model, in {inputs.bytes_per_number} bytes a number; a growing state is "
        f"taken to hold the whole context. Milliseconds: of a step that generates a token for each of "
        f"{inputs.sequences} sessions, or as many as fit beside the weights, on one {inputs.accelerator}, which reads "
        f"the weights and the states at {100 * middle:.0f} % of its memory's rate. Dollars: of that step at "
        f"${inputs.dollars_per_hour:.2f} an hour, its memory included; for the uncertainty see there.",
        _absent(model for model, (known, _) in larger.items() if not known),
    ]
    title = f"Serving at {at_size}, extrapolated"
    return Table("serving-extrapolated", title, header, rows, [note for note in notes if note], pd.DataFrame(data))


def _headings(what: str, contexts: Sequence[int]) -> list[str]:
    return [f"{what} at {context // 1024}k" for context in contexts]


def _cells(row: dict[str, Any], contexts: Sequence[int], absent: str) -> list[str]:
    """Sessions, milliseconds and dollars after each context."""
    shown: dict[str, Callable[[float], str]] = {"sessions": _whole, "ms": _three, "dollars": cost.dollars}
    return [_or_not(row[f"{key}_{at}"], show, absent) for key, show in shown.items() for at in contexts]


def _or_not(value: float | None, show: Callable[[float], str], absent: str = NOT_MEASURED) -> str:
    return absent if value is None else show(value)


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _three(value: float) -> str:
    return f"{value:.3g}"
