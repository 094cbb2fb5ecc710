"""Quality along an axis: loss by position in the context, and by length beyond the trained one."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import pandas as pd

from analysis import tables
from analysis.curve import Curve
from analysis.entries import entries, main_recipe, quality_of
from analysis.frame import labels
from analysis.records import Record

AXES = {"loss_by_position": "position", "extrapolation": "length"}
LIMITS = {
    "bits_per_byte": (0.0, math.inf),
    "accuracy": (0.0, 1.0),
    "f1": (0.0, 1.0),
    "mean_squared_error": (0.0, math.inf),
}
"""Every metric, and what it cannot be beyond."""
METRICS = tuple(LIMITS)


def groups(records: Sequence[Record], runs: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """(name, what its title adds, rows) of the runs of each figure: one for each table, and recipe of it.

    runs: rows of the records, in their order. A table's main recipe bears its name, others of two models or more a
    number too; labels then say what sets runs of one recipe apart.
    """
    made = []
    for name, table in tables.groups(runs):
        known = entries(table, quality_of(table))
        main = main_recipe(known)[0].recipe
        others = sorted({one.recipe for one in known} - {main})
        several = [recipe for recipe in others if len({one.model for one in known if one.recipe == recipe}) > 1]
        for number, recipe in enumerate((main, *several), 1):
            group = table[table["recipe"] == recipe]
            group = group.assign(label=labels([records[place] for place in group.index], group))
            trained = f", trained on {group['tokens'].max():,.0f} tokens" if others else ""
            made.append((name if number == 1 else f"{name}-{number}", trained, group))
    return made


def curves(records: Iterable[Record], labels: Iterable[str], part: str) -> tuple[str, list[Curve]]:
    """Returns the metric and a curve a label: mean and spread over its seeds against the axis of `part`, a key of AXES.

    Diverged runs have no such figures: the curve's note counts them, and one of them alone has no points.
    """
    metric, members = METRICS[0], defaultdict(list)
    for record, label in zip(records, labels, strict=True):
        members[label].append(record.result)
    made = []
    for label, results in sorted(members.items()):
        found: dict[int, list[float]] = defaultdict(list)
        for point in (point for result in results for point in points(result, part)):
            metric = next(key for key in METRICS if point.get(key) is not None)
            found[point[AXES[part]]].append(point[metric])
        diverged = sum(result["status"] == "diverged" for result in results)
        curve = Curve.over_seeds(label, results[0]["model"], found, _note(diverged, len(results)), LIMITS[metric])
        if curve.points or diverged:
            made.append(curve)
    return metric, made


def _note(diverged: int, of: int) -> str:
    """`diverged`, or how many of several runs did; "" for none."""
    if not diverged:
        return ""
    return "diverged" if diverged == of else f"({diverged} of {of} diverged)"


def points(result: dict, part: str) -> list[dict]:
    """The recorded points of one run that carry a metric."""
    evaluation = result.get("evaluation") or {}
    holder = evaluation.get("test") or {} if part == "loss_by_position" else evaluation
    return [point for point in holder.get(part) or [] if any(point.get(key) is not None for key in METRICS)]
