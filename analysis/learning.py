"""A run's losses while it trained, thinned to what a small figure can show."""

import math
from pathlib import Path

from harness.config.errors import RecordError
from harness.records import curve as recorded

SHOWN = 100
"""Most points of a curve."""
CURVES = {"training": "loss", "validation": "validation_loss"}
"""{curve: its key in a row of the record}; both are in nats a token, or what the task's loss is."""

Points = list[tuple[int, float]]


def curves(folder: Path) -> dict[str, Points]:
    """{curve: [(update, loss)]} of the run in `folder`; none for a curve that its record does not hold.

    A figure that is not finite is left out, and so is a curve that cannot be read.
    """
    found: dict[str, Points] = {curve: [] for curve in CURVES}
    for line in _recorded(folder):
        for curve, key in CURVES.items():
            update, value = line.get("update"), line.get(key)
            if isinstance(update, int) and isinstance(value, int | float) and math.isfinite(value):
                found[curve].append((update, float(value)))
    return {curve: thinned(points) for curve, points in found.items() if points}


def thinned(points: Points, most: int = SHOWN) -> Points:
    """At most `most` of the points: as good as evenly spaced, the first and the last among them."""
    if len(points) <= most:
        return points
    return [points[round(place * (len(points) - 1) / (most - 1))] for place in range(most)]


def _recorded(folder: Path) -> list[recorded.Row]:
    try:
        return recorded.read(folder)
    except RecordError:
        return []
