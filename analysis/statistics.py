"""Mean, spread and intervals over seeds; paired differences, their tests, and Holm's correction."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
ALPHA = 0.05
"""A comparison is significant where its p, adjusted by Holm's method over the table, is below this."""
LEAST_SEEDS = 3
"""Fewer pairs are not tested."""
RESAMPLES = 9999
BATCH = 100
"""Resamples that are drawn at once."""
ROUNDING = 1e-12
"""Values that differ by less than this part of their size count as equal."""


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
    known = _known(values)
    if not len(known):
        return Summary(0, None, None, None, None)
    std = float(known.std(ddof=1)) if len(known) > 1 else None
    return Summary(len(known), float(known.mean()), std, float(known.min()), float(known.max()))


@dataclass(frozen=True)
class Interval:
    """Ends of an interval, and how it was made: `BCa`, `percentile`, or `constant` for values that do not differ."""

    low: float
    high: float
    method: str


def interval(values: Iterable[float | None]) -> Interval | None:
    """The 95 % bootstrap interval of the mean of the values that are there; None for fewer than LEAST_SEEDS.

    It is bias-corrected and accelerated (BCa; Efron 1987) where that is defined, else the percentile interval. The
    resamples are drawn under one fixed seed, so that the same values give the same interval. Of three to five values it
    is too narrow (a test finds it to hold the true mean of normal values in about 80 % of samples of five), so it
    describes a row and decides nothing: comparisons are decided by `paired`.
    """
    known = _known(values)
    if len(known) < LEAST_SEEDS:
        return None
    if np.ptp(known) <= ROUNDING * np.abs(known).max():
        return Interval(float(known.min()), float(known.max()), "constant")
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            made = stats.bootstrap(
                (known,),
                np.mean,
                n_resamples=RESAMPLES,
                confidence_level=CONFIDENCE,
                method=method,
                rng=np.random.default_rng(0),
            ).confidence_interval
        if np.isfinite([made.low, made.high]).all():
            return Interval(float(made.low), float(made.high), method)
    return None


@dataclass(frozen=True)
class Difference:
    """Ours less theirs, over the seeds that both have.

    count: pairs. low, high: the 95 % interval of Student's t, from two pairs on. p: of the t-test, from LEAST_SEEDS
    pairs on. unpaired: the seeds that one side alone has, which do not count. What cannot be said is None.
    """

    count: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    unpaired: tuple[int, ...] = ()

    @property
    def turned(self) -> "Difference":
        """Theirs less ours."""
        mean, low, high = (None if end is None else -end for end in (self.mean, self.high, self.low))
        return replace(self, mean=mean, low=low, high=high)


def _differences(ours: Mapping[int, float], theirs: Mapping[int, float]) -> tuple[np.ndarray, float]:
    """Ours less theirs in the seeds that both have, and how much of it may be rounding."""
    seeds = sorted(ours.keys() & theirs.keys())
    size = max((abs(figures[seed]) for figures in (ours, theirs) for seed in seeds), default=0.0)
    return np.array([ours[seed] - theirs[seed] for seed in seeds], dtype=float), ROUNDING * size


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference:
    """The difference of two architectures by seed, with its t-test.

    ours, theirs: {seed: figure}; the same seed means the same order of the data, whose part of the noise the difference
    removes. Why a t-test: with five pairs the exact sign-flip test has 2^5 arrangements, and its two-sided p cannot go
    below 2/32 = 0.0625 (with three 2/8 = 0.25), so it can find nothing at 0.05, whatever the effect, and less after
    Holm. Student's test needs differences that are about normal; sums over hundreds of thousands of predictions and
    hundreds of updates are, as far as three to five values can show. Its interval is given, not a bootstrap's, so that
    interval and p say the same: zero lies outside the interval where p, before Holm's correction, is below 0.05.

    Why no variance is pooled over the models of a table: their noise differs, and how much of it a reference has, only
    its own seeds tell, which all its differences share. A test that takes the others' noise for its own finds what is
    not there (docs/protocol.md).

    Differences that do not vary have no test (p None), or p 1 where they are zero.
    """
    differences, rounding = _differences(ours, theirs)
    count, unpaired = len(differences), tuple(sorted(ours.keys() ^ theirs.keys()))
    if not count:
        return Difference(0, unpaired=unpaired)
    mean = float(differences.mean())
    if count == 1:
        return Difference(1, mean, unpaired=unpaired)
    if np.ptp(differences) <= rounding:
        return Difference(count, mean, mean, mean, 1.0 if abs(mean) <= rounding else None, unpaired)
    error = float(differences.std(ddof=1)) / count**0.5
    reach = float(stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, count - 1)) if count >= LEAST_SEEDS else None
    return Difference(count, mean, mean - reach, mean + reach, p, unpaired)


def resampled_means(totals: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean of each model over documents that are drawn with replacement, the same ones for all models: (R, models).

    totals: (documents, models), of which a mean is the sum over that of the weights (documents,). So the differences
    between columns are a paired bootstrap (Efron 1979; Koehn 2004): what makes a document hard or easy for all models
    leaves them. Drawn under one fixed seed.
    """
    columns, count = np.column_stack([totals, weights]), len(totals)
    rng, sums = np.random.default_rng(0), []
    for first in range(0, RESAMPLES, BATCH):
        drawn = rng.integers(count, size=(min(BATCH, RESAMPLES - first), count))
        drawn += count * np.arange(len(drawn))[:, None]
        times = np.bincount(drawn.ravel(), minlength=len(drawn) * count).reshape(len(drawn), count)
        sums.append(times @ columns)
    found = np.concatenate(sums)
    return found[:, :-1] / found[:, -1:]


@dataclass(frozen=True)
class Resampled:
    """A figure with the 95 % percentile interval of its resamples, and the p of its being zero: two-sided."""

    value: float
    low: float
    high: float
    p: float


def resampled(value: float, resamples: np.ndarray) -> Resampled:
    """The interval and the p of a figure from its resamples (R,); p is no less than 2 / (R + 1)."""
    low, high = np.quantile(resamples, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    tail = min((resamples <= 0).sum(), (resamples >= 0).sum())
    return Resampled(value, float(low), float(high), min(1.0, 2 * (int(tail) + 1) / (len(resamples) + 1)))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """The p-values adjusted for their number by Holm's step-down method (1979); None stays None and is not counted."""
    order = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[place] = largest
    return adjusted


@dataclass(frozen=True)
class Slope:
    """The exponent of y = c x^k, by least squares on logarithms; low, high: its 95 % interval, from three x on."""

    value: float
    low: float | None
    high: float | None


def power(points: Mapping[int, float]) -> Slope | None:
    """The exponent with which y grows with x, of the points {x: y} where both are positive; None for fewer than two."""
    points = {x: y for x, y in points.items() if x > 0 and y > 0}
    if len(points) < 2:
        return None
    x, y = np.log(list(points)), np.log(list(points.values()))
    if np.ptp(y) <= ROUNDING:
        return Slope(0.0, 0.0, 0.0)
    fitted = stats.linregress(x, y)
    if len(points) < 3:
        return Slope(float(fitted.slope), None, None)
    reach = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(points) - 2) * fitted.stderr)
    return Slope(float(fitted.slope), float(fitted.slope) - reach, float(fitted.slope) + reach)


def _known(values: Iterable[float | None]) -> np.ndarray:
    return np.array([value for value in values if value is not None and not np.isnan(value)], dtype=float)
