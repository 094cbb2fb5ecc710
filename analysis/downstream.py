"""Published tasks that runs were scored on (harness/records/scores.py), compared document by document."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import pandas as pd

from analysis import tables
from analysis.differences import REFERENCES, p_value
from analysis.records import Record
from analysis.render import MISSING, NOT_MEASURED, Table
from analysis.statistics import ALPHA, Resampled, holm, resampled, resampled_means
from harness.records import scores

FORMS = {"mean": "{:.4f}", "perplexity": "{:.4g}", "bits_per_byte": "{:.4f}"}
NOTE = (
    "Interval: of the score, by the bootstrap over documents. Differences are taken over the same documents, which the "
    "paired bootstrap draws for both models at once; p: of its two-sided test, adjusted by Holm's method over all "
    f"comparisons of this table; better or worse where p < {ALPHA:g}. Both speak of other documents, not of other "
    "seeds; of several seeds a document's value is the mean."
)
Scored = tuple[pd.Series, dict]
"""A run's row of the frame, and its entry of a task or of a metric."""


@dataclass(frozen=True)
class Column:
    """What one model scored. values: (documents,), the mean over its runs. weights: the same for all models."""

    label: str
    model: str
    runs: tuple[str, ...]
    values: np.ndarray
    weights: np.ndarray


def build(records: Sequence[Record], runs: pd.DataFrame) -> list[Table]:
    """A table for each published task and metric, among the runs of one task, size and data, the best row first.

    records: those that count (chosen on validation). runs: their rows of `frame.runs`, with labels, in their order.
    """
    made = []
    for name, group in tables.groups(runs):
        known: defaultdict[tuple[str, ...], list[Scored]] = defaultdict(list)
        for place, run in group.iterrows():
            for task, entry in records[int(str(place))].scores.items():
                known[(task, *_same(entry))].append((run, entry))
        several = [task for task, *_ in known]
        for (task, *same), scored in sorted(known.items(), key=lambda one: one[0]):
            apart = f"-{sha256(repr(same).encode()).hexdigest()[:8]}" if several.count(task) > 1 else ""
            title = f"{task}, of models trained on {group['task'].iloc[0]}, {group['size'].iloc[0]} parameters"
            for metric in scored[0][1]["scores"]:
                stem = re.sub(r"[^\w.-]+", "-", f"downstream-{task}-{metric.removesuffix(',none')}-{name}{apart}")
                table = _table(stem, title, metric, scored)
                made += [table] if table else []
    return made


def _same(entry: dict) -> tuple[str, ...]:
    """What must agree for scores to be compared: how they were made, and the documents."""
    made = {key: entry.get(key) for key in ("version", "lm_eval", "settings")}
    return json.dumps(made, sort_keys=True), ",".join(entry["documents"])


def _table(stem: str, title: str, metric: str, scored: Sequence[Scored]) -> Table | None:
    """The table of one metric; None where it is no aggregation of its documents' values."""
    found = [(run, entry["scores"][metric]) for run, entry in scored if metric in entry["scores"]]
    name, higher = found[0][1]["aggregation"], bool(found[0][1]["higher_is_better"])
    if name is None or any(score["aggregation"] != name for _, score in found):
        return None
    columns, score_of = _columns(found), scores.AGGREGATIONS[name]
    totals, weights = np.column_stack([column.values for column in columns]), columns[0].weights
    value = score_of(totals.sum(0) / weights.sum())
    drawn = score_of(resampled_means(totals, weights))
    own = [resampled(float(value[i]), drawn[:, i]) for i in range(len(columns))]
    at = {model: _plain(columns, model) for model in REFERENCES}
    pairs = [(i, j) for j in at.values() if j is not None for i in range(len(columns)) if i != j]
    less = {(i, j): resampled(float(value[i] - value[j]), drawn[:, i] - drawn[:, j]) for i, j in pairs}
    adjusted = dict(zip(pairs, holm([less[pair].p for pair in pairs]), strict=True))
    header = ["model", "seeds", f"{metric.removesuffix(',none')}", "95 % interval"]
    for model in REFERENCES:
        header += [f"less {model}", "p", f"than {model}"]
    rows, data = [], []
    order = sorted(range(len(columns)), key=lambda i: ((-1 if higher else 1) * value[i], columns[i].label))
    for i in order:
        form, column = FORMS[name], columns[i]
        row = [column.label, str(len(column.runs)), form.format(value[i])]
        row.append(f"{form.format(own[i].low)} to {form.format(own[i].high)}")
        exact = {"model": column.label, "seeds": len(column.runs), "score": value[i]}
        exact |= {"low": own[i].low, "high": own[i].high}
        for model, j in at.items():
            difference, p = (None, None) if j is None else (less.get((i, j)), adjusted.get((i, j)))
            row += [NOT_MEASURED, MISSING, NOT_MEASURED] if j is None else _cells(difference, p, higher, form)
            for key in ("value", "low", "high", "p"):
                exact[f"less_{model}_{key}"] = getattr(difference, key, None)
            exact[f"less_{model}_p_holm"] = p
        rows.append(row)
        data.append(exact)
    shots = (scored[0][1].get("settings") or {}).get("shots")
    asked = "its own number of examples" if shots is None else f"{shots} examples"
    notes = [f"{len(weights):,} documents, {asked} before each; {'higher' if higher else 'lower'} is better.", NOTE]
    paths = [list(columns[i].runs) for i in order]
    return Table(stem, title, header, rows, notes, pd.DataFrame(data), paths)


def _columns(found: Iterable[Scored]) -> list[Column]:
    """A column for each variant and code, its values the means over its runs."""
    by_variant: defaultdict[tuple, list[Scored]] = defaultdict(list)
    for run, score in found:
        by_variant[run["variant"], run["code"]].append((run, score))
    columns = []
    for members in by_variant.values():
        pairs = np.array([[_pair(value) for value in score["values"]] for _, score in members], dtype=float)
        first, paths = members[0][0], tuple(run["path"] for run, _ in sorted(members, key=lambda one: one[0]["seed"]))
        columns.append(Column(first["label"], first["model"], paths, pairs[:, :, 0].mean(0), pairs[0, :, 1]))
    return sorted(columns, key=lambda column: column.label)


def _pair(value: Any) -> list[float]:
    return value if isinstance(value, list) else [value, 1]


def _plain(columns: Sequence[Column], model: str) -> int | None:
    """The place of the column that stands for a model, the one of the shortest label; None where none was scored."""
    mine = [place for place, column in enumerate(columns) if column.model == model]
    return min(mine, key=lambda place: (len(columns[place].label), columns[place].label), default=None)


def _cells(difference: Resampled | None, p: float | None, higher: bool, form: str) -> list[str]:
    """The difference with its interval, the adjusted p, the verdict."""
    if difference is None:
        return [MISSING, MISSING, "the reference"]
    signed = form.replace(":", ":+")
    told = f"{signed.format(difference.value)} ({signed.format(difference.low)} to {signed.format(difference.high)})"
    significant = p is not None and p < ALPHA and not math.isclose(difference.value, 0, abs_tol=1e-12)
    verdict = ("better" if (difference.value > 0) == higher else "worse") if significant else "not significant"
    return [told, p_value(p), verdict]
