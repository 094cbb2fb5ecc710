"""What trained models of texts gain from more context, as `python -m bench context` measured it: tables and figures."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis import figures
from analysis.curve import Curve
from analysis.styles import styles

COMPARED = ["task", "corpus", "size", "longest", "scored", "places"]
"""What the rows of one table share: the bytes that are scored, and the budget."""
ALIKE = ["label", "variant", "window"]
"""What the runs of one line share, which differ in their seed alone, and to how many bytes their cache was cut."""
SETTINGS = {"learning_rate": "learning rate", "train_length": "trained at", "tokens": "tokens"}
"""What may set apart runs that are called alike."""

NOTE = (
    "Beyond training: the longest context against the longest that training showed, run by run; better in: the "
    "documents, of all runs, in which the longest context is the better. Every model reads its context from a fresh "
    "state, nothing cut; where the run's policy cuts a cache, a second row has it cut as in the run's own losses."
)


def tables(content: dict) -> list[tuple[str, list[dict[str, str]]]]:
    """(title, rows) of each table: bits per byte by context, mean over the seeds, and what lies beyond training.

    The last two columns compare the longest context with the longest that training showed, run by run, and count the
    documents, of all runs, in which the longest is the better.
    """
    return [(f"Bits per byte by context, {what}", [_row(*line) for line in lines]) for what, lines in _groups(content)]


def plots(content: dict) -> dict[str, tuple[str, Callable[..., Figure]]]:
    """{stem: (title, what draws it)}: a figure for each table that has two lengths of a model at least."""
    made: dict[str, tuple[str, Callable[..., Figure]]] = {}
    for what, lines in _groups(content):
        curves = [curve for line in lines if (curve := _curve(*line)).points]
        if not any(len(curve.points) > 1 for curve in curves):
            continue
        rows = pd.concat([rows for _, rows in lines])
        task, size = rows[["task", "size"]].iloc[0]
        lengths = sorted(set(rows["train_length"]))
        xlabel = f"context (bytes); trained at {', '.join(f'{length:,}' for length in lengths)}"
        looks = styles(curve.model for curve in curves)
        draw = partial(figures.quality, curves, looks, xlabel=xlabel, ylabel="bits per byte (test)")
        stem = f"context-{task}-{size}"
        number = sum(name == stem or name.startswith(f"{stem}-") for name in made)
        made[f"{stem}-{number + 1}" if number else stem] = (f"Bits per byte by context, {what}", draw)
    return made


def _groups(content: dict) -> list[tuple[str, list[tuple[str, pd.DataFrame]]]]:
    """(what it is of, [(label, rows of its runs)]) for each set of rows that may be compared."""
    frame = pd.DataFrame(content.get("rows", []))
    if frame.empty:
        return []
    made = []
    frame = frame.astype({"bits": float})
    for _, rows in frame.groupby(COMPARED, sort=False):
        first = rows.iloc[0]
        what = f"{first['task']}, {first['size']} parameters"
        lines = [of_one for _, of_one in rows.groupby(ALIKE, sort=False, dropna=False)]
        made.append((what, list(zip(_labels(lines), lines, strict=True))))
    return made


def _labels(lines: list[pd.DataFrame]) -> list[str]:
    """What each line is called: its model, in what it differs from others called so, and whether its cache was cut."""
    firsts = [rows.iloc[0] for rows in lines]
    made = []
    for first in firsts:
        others = [other for other in firsts if other["label"] == first["label"]]
        differing = [key for key in SETTINGS if len({other[key] for other in others}) > 1]
        parts = [f"{SETTINGS[key]} {first[key]:,g}" for key in differing]
        told = {tuple(other[key] for key in SETTINGS): other["variant"] for other in others}
        if len({other["variant"] for other in others}) > len(told):
            parts.append(first["variant"][:6])
        label = first["label"] + (f" ({', '.join(parts)})" if parts else "")
        made.append(label if pd.isna(first["window"]) else f"{label}, cache cut to {first['window']:,.0f}")
    return made


def _by_length(rows: pd.DataFrame) -> pd.DataFrame:
    """Bits per byte, one row a run and one column a length; without lengths that a run has no figure of."""
    return rows.pivot(index="contestant", columns="length", values="bits").sort_index(axis=1).dropna(axis=1)


def _curve(label: str, rows: pd.DataFrame) -> Curve:
    found = {int(str(length)): values for length, values in _by_length(rows).items()}
    return Curve.over_seeds(label, rows["model"].iloc[0], found)


def _row(label: str, rows: pd.DataFrame) -> dict[str, str]:
    """One row of a table, by heading."""
    first, bits = rows.iloc[0], _by_length(rows)
    row: dict[Any, str] = {"": label, "runs": str(rows["contestant"].nunique())}
    row |= {"parameters": f"{first['params']:,}", "trained at": f"{first['train_length']:,}"}
    for length in sorted(rows["length"].unique()):
        row[f"{length:,}"] = f"{bits[length].mean():.3f}" if length in bits else ""
    lengths = [int(str(length)) for length in bits]
    known = [length for length in lengths if length <= first["train_length"]]
    beyond, count = "", ""
    if known and lengths[-1] > known[-1]:
        change = bits[lengths[-1]] - bits[known[-1]]
        ends = f" ({change.min():+.3f} to {change.max():+.3f})" if len(change) > 1 else ""
        beyond, count = f"{change.mean():+.3f}{ends}", _better(rows, lengths[-1], known[-1])
    return row | {"beyond training": beyond, "better in": count}


def _better(rows: pd.DataFrame, longest: int, trained: int) -> str:
    """In how many documents the longest context is better than the trained one: `9 of 10`, summed over the runs."""
    at = {length: of_one.set_index("contestant")["by_document"] for length, of_one in rows.groupby("length")}
    pairs = [
        (long, short)
        for run in at[longest].index
        for long, short in zip(at[longest][run], at[trained][run], strict=True)
    ]
    return f"{sum(long < short for long, short in pairs)} of {len(pairs)}"
