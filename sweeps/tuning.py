"""What records say of a tuned key: which value is chosen, and which further ones must be tried first.

Everything here is judged on validation. A score is to be minimised: infinite where a run diverged, None where there is
no record yet.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

RATIO = 2.0
"""Between neighbours of a grid that has one value alone."""
MOST_FURTHER = 8
"""Values that a grid is extended by at most: a loss that falls without end is no optimum."""
STEEPEST = 0.5
"""The trend's exponent at most, up or down: two sizes show a direction, and their noise is not carried beyond this."""


def score(result: dict) -> float:
    """The validation figure of a record, the sign such that less is better; infinite where the run diverged."""
    from analysis.selection import HIGHER_IS_BETTER  # here, for a single run needs none of what it imports

    figures = (result.get("evaluation") or {}).get("validation") or {}
    for column, higher in HIGHER_IS_BETTER.items():
        value = figures.get(column.removeprefix("validation_"))
        if value is not None:
            return -value if higher else value
    return figures.get("loss", math.inf) if result["status"] == "finished" else math.inf


def best(scores: dict[float, float]) -> float:
    """The value with the least score; where all diverged the least value, the safest of them."""
    return min(scores, key=lambda value: (scores[value], value))


def further(scores: Mapping[float, float | None]) -> list[float]:
    """The values that a grid must be extended by: none while a score is not known, or the best lies inside.

    A step has the ratio of the two values at that edge. Raises ValueError for values that no ratio leads to.
    """
    known = {value: found for value, found in scores.items() if found is not None}
    if not known or len(known) < len(scores):
        return []
    if min(known) <= 0:
        raise ValueError("a grid is extended by a ratio, and so its values must be greater than 0")
    values, chosen = sorted(known), best(known)
    low = values[1] / values[0] if len(values) > 1 else RATIO
    high = values[-1] / values[-2] if len(values) > 1 else RATIO
    below = [_rounded(values[0] / low)] if chosen == values[0] else []
    above = [_rounded(values[-1] * high)] if chosen == values[-1] and math.isfinite(known[chosen]) else []
    return below + above


def extended(
    jobs: Sequence[list[str]], key: str, scored: Callable[[list[str]], float | None]
) -> tuple[list[list[str]], list[list[str]]]:
    """Extends the grids of `key` in the runs `jobs` (overrides) until the best value of each lies inside.

    A grid is what runs that differ in the key and their seed alone have tried; its score is the mean over seeds.
    Returns all runs, the further ones included, and those whose grid ends at its best after MOST_FURTHER steps.
    """
    families: dict[tuple[str, ...], list[list[str]]] = {}
    for job in jobs:
        families.setdefault(tuple(o for o in job if _key(o) not in (key, "seed")), []).append(job)
    made: list[list[str]] = []
    endless: list[list[str]] = []
    for family in families.values():
        if any(_value(job, key) is None for job in family):  # nothing to tune
            made += family
            continue
        first, seeds = family[0], list(dict.fromkeys(_value(job, "seed") for job in family))
        given = len({_value(job, key) for job in family})
        while True:
            values = {float(str(_value(job, key))) for job in family}
            scores = {value: _mean([scored(job) for job in family if _is(job, key, value)]) for value in values}
            more = further(scores)
            if not more:
                break
            if len(values) - given >= MOST_FURTHER:
                endless.append(first)
                break
            family += [_with(_with(first, key, f"{value:g}"), "seed", seed) for value in more for seed in seeds]
        made += family
    return made, endless


def _mean(scores: list[float | None]) -> float | None:
    known = [found for found in scores if found is not None]
    return fmean(known) if known and len(known) == len(scores) else None


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+")


def _value(job: list[str], key: str) -> str | None:
    return next((o.partition("=")[2] for o in job if _key(o) == key), None)


def _is(job: list[str], key: str, value: float) -> bool:
    return float(str(_value(job, key))) == value


def _with(job: list[str], key: str, value: str | None) -> list[str]:
    """The job with another value of a key that it has; without a value the job as it is."""
    return [f"{o.partition('=')[0]}={value}" if _key(o) == key and value is not None else o for o in job]


def _rounded(value: float) -> float:
    """To six significant digits: 0.0005 and not 0.0004999999."""
    return float(f"{value:.6g}")


@dataclass(frozen=True)
class Tried:
    """A run of the sweep that tried values. place: its size, for a trend; seed and value: of the tuned key."""

    value: float
    place: float
    seed: int
    score: float | None


class UnknownValueError(Exception):
    """A value that cannot be chosen yet; the message says what is missing."""


def chosen(tried: Iterable[Tried]) -> float:
    """The best value of one grid.

    Raises UnknownValueError where runs are missing, all of them diverged, or the best value lies at the edge.
    """
    tried = list(tried)
    if missing := sum(one.score is None for one in tried):
        raise UnknownValueError(f"{missing} of {len(tried)} runs are missing")
    if not tried:
        raise UnknownValueError("no run tried a value for it")
    scores = _scores(tried)
    if not math.isfinite(min(scores.values())):
        raise UnknownValueError("all of its runs diverged")
    if further(scores):
        raise UnknownValueError(f"the best value {best(scores):g} lies at the edge of its grid")
    return best(scores)


def trend(tried: Iterable[Tried], place: float) -> float:
    """The value for `place` by a straight line through the optima of all places, both in the logarithm.

    Each optimum is the vertex of the parabola through the best value and its neighbours. The exponent is kept within
    STEEPEST, and the result has two significant digits. Raises UnknownValueError as
    `chosen` does, and for fewer than two places.
    """
    places: dict[float, list[Tried]] = {}
    for one in tried:
        places.setdefault(one.place, []).append(one)
    optima = {}
    for where, group in sorted(places.items()):
        chosen(group)
        optima[where] = _vertex(_scores(group))
    if len(optima) < 2:
        raise UnknownValueError(f"a trend needs two sizes, and values were tried at {len(optima)}")
    xs, ys = [math.log(where) for where in optima], [math.log(value) for value in optima.values()]
    middle_x, middle_y = fmean(xs), fmean(ys)
    slope = sum((x - middle_x) * (y - middle_y) for x, y in zip(xs, ys, strict=True)) / sum(
        (x - middle_x) ** 2 for x in xs
    )
    slope = max(-STEEPEST, min(STEEPEST, slope))
    return float(f"{math.exp(middle_y + slope * (math.log(place) - middle_x)):.2g}")


def _scores(tried: list[Tried]) -> dict[float, float]:
    values = sorted({one.value for one in tried})
    seeds = [{one.seed for one in tried if one.value == value} for value in values]
    shared = set.intersection(*seeds)
    found = {}
    for value in values:
        members = [one for one in tried if one.value == value]
        counted = [one for one in members if one.seed in shared] or members
        found[value] = fmean(one.score for one in counted if one.score is not None)
    return found


def _vertex(scores: dict[float, float]) -> float:
    """Where the parabola through the best value and its two neighbours is least, in the logarithm of the value."""
    values = sorted(scores)
    at = values.index(best(scores))
    if not 0 < at < len(values) - 1:
        return values[at]
    (x0, x1, x2), (y0, y1, y2) = map(math.log, values[at - 1 : at + 2]), (scores[v] for v in values[at - 1 : at + 2])
    if not math.isfinite(y0 + y2):
        return values[at]
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curvature = (right - left) / (x2 - x0)
    vertex = (x0 + x1) / 2 - left / (2 * curvature) if curvature > 0 else x1
    return math.exp(max(x0, min(x2, vertex)))
