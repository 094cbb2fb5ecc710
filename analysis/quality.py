"""Quality along an axis: loss by position in the context, and by length beyond the trained one."""

from collections import defaultdict
from collections.abc import Iterable

from analysis.records import Record
from analysis.statistics import summarise

Curve = dict[int, float]
AXES = {"loss_by_position": "position", "extrapolation": "length"}
METRICS = ("bits_per_byte", "accuracy", "mean_squared_error")


def curves(records: Iterable[Record], labels: Iterable[str], part: str) -> tuple[str, dict[str, Curve]]:
    """Returns the metric and, by label, its mean over seeds against the axis of `part`, a key of AXES.

    Runs without such figures (the diverged ones) have no part in it.
    """
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    metric = METRICS[0]
    for record, label in zip(records, labels, strict=True):
        for point in points(record.result, part):
            metric = next(key for key in METRICS if key in point)
            found[label][point[AXES[part]]].append(point[metric])
    means = {
        label: {x: mean for x in sorted(curve) if (mean := summarise(curve[x]).mean) is not None}
        for label, curve in sorted(found.items())
    }
    return metric, {label: curve for label, curve in means.items() if curve}


def points(result: dict, part: str) -> list[dict]:
    """The recorded points of one run that carry a metric."""
    evaluation = result.get("evaluation") or {}
    holder = evaluation.get("test") or {} if part == "loss_by_position" else evaluation
    return [point for point in holder.get(part) or [] if any(key in point for key in METRICS)]
