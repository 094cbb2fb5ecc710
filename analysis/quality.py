"""Quality along an axis: loss by position in the context, and by length beyond the trained one."""

from collections import defaultdict
from collections.abc import Iterable

from analysis.curve import Curve
from analysis.records import Record

AXES = {"loss_by_position": "position", "extrapolation": "length"}
METRICS = ("bits_per_byte", "accuracy", "f1", "mean_squared_error")


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
        curve = Curve.over_seeds(label, results[0]["model"], found, _note(diverged, len(results)))
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
