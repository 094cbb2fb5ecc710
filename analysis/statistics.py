"""Mean and spread over seeds."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Summary:
    """count values: their mean, and the sample standard deviation where there is more than one."""

    count: int
    mean: float | None
    std: float | None
    low: float | None
    high: float | None


def summarise(values: Iterable[float | None]) -> Summary:
    """Summarises the values that are there; all None where there are none."""
    known = np.array([value for value in values if value is not None and not np.isnan(value)], dtype=float)
    if not len(known):
        return Summary(0, None, None, None, None)
    std = float(known.std(ddof=1)) if len(known) > 1 else None
    return Summary(len(known), float(known.mean()), std, float(known.min()), float(known.max()))
