"""What a finding is, and the words that every finding shares."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from analysis.differences import Comparison
from analysis.statistics import paired

SIGNIFICANT, NOT_SIGNIFICANT, NOT_TESTED = "significant", "not significant", "not tested"
MIXED = "see each"
MEASURED, NOT_MEASURED, EXTRAPOLATED = "measured", "not measured", "extrapolated"


@dataclass(frozen=True)
class Finding:
    """One sentence whose numbers come from records.

    name: what a link to it is called. topic: the heading it stands under. status: how much it says. commands: what
    reproduces it. runs: the folders of the runs behind it; none where it comes from the bench, or was not measured.
    headline: whether the README tells it.
    """

    name: str
    topic: str
    sentence: str
    status: str
    commands: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    headline: bool = False


def status(comparison: Comparison) -> str:
    """Whether the difference is significant, or was not tested."""
    if comparison.adjusted is None:
        return NOT_TESTED
    return SIGNIFICANT if comparison.significant else NOT_SIGNIFICANT


def overall(comparisons: Iterable[Comparison]) -> str:
    """The status of a finding that tells several comparisons: theirs where it is one, else that each has its own."""
    found = set(map(status, comparisons))
    return next(iter(found)) if len(found) == 1 else MIXED if found else NOT_TESTED


def told(comparison: Comparison, digits: int = 3) -> str:
    """`−0.395 (significant: 95 % interval −0.412 to −0.378, p = 0.003, 5 seeds)`, or in words why it is not."""
    difference, p = comparison.difference, comparison.adjusted
    if difference.mean is None:
        return "unknown (no seed in common)"
    value = signed(difference.mean, digits)
    seeds = of_seeds(difference.count)
    if difference.low is None or difference.high is None:
        return f"{value} ({seeds}: no interval)"
    said = f"95 % interval {signed(difference.low, digits)} to {signed(difference.high, digits)}"
    if p is None:
        return f"{value} ({said}, {seeds}: not tested)"
    return f"{value} ({status(comparison)}: {said}, {probability(p)}, {seeds})"


def of_seeds(count: int) -> str:
    """`one seed`, `5 seeds`."""
    return "one seed" if count == 1 else f"{count} seeds"


def probability(p: float) -> str:
    """`p = 0.003`, and no more precision than small samples have."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


@dataclass(frozen=True)
class Ratio:
    """Theirs over ours. low, high: how far it is known, by the 95 % interval over rounds that both were timed in or,
    where only the extremes of each side were kept, by these; 0 and infinity where none were. rounds: how many; 0 for
    extremes. p: of the t-test that it is 1, None for too few rounds.
    """

    value: float
    low: float
    high: float
    rounds: int = 0
    p: float | None = None

    @property
    def apart(self) -> bool:
        """Whether one side is known to be the larger."""
        return not self.low <= 1 <= self.high

    @property
    def turned(self) -> "Ratio":
        """Ours over theirs."""
        low, high = 1 / self.high, 1 / self.low if self.low else math.inf
        return Ratio(1 / self.value, low, high, self.rounds, self.p)

    def __str__(self) -> str:
        """`26.8 times (19.5 to 44)`, or that the sides are not told apart."""
        ends = f"{figure(self.low)} to {figure(self.high)}" if math.isfinite(self.high) else "its range not kept"
        if self.rounds:
            tested = "" if self.p is None else f"{probability(self.p)}, "
            ends = f"95 % interval {ends}, {tested}{self.rounds} rounds"
        return f"{figure(self.value)} times ({ends}{'' if self.apart else ': not told apart'})"


def by_rounds(theirs: Sequence[float | None], ours: Sequence[float | None]) -> Ratio | None:
    """The ratio of two contestants that were timed in turn, paired by round; None for fewer than two rounds of both."""
    one, other = ({turn: math.log(x) for turn, x in enumerate(each) if x} for each in (theirs, ours))
    found = paired(one, other)
    if found.mean is None or found.low is None or found.high is None:
        return None
    return Ratio(math.exp(found.mean), math.exp(found.low), math.exp(found.high), found.count, found.p)


def by_extremes(value: float, theirs: Sequence[float], ours: Sequence[float]) -> Ratio:
    """The ratio of two figures, between the ratios of the extremes of their repetitions."""
    return Ratio(value, min(theirs) / max(ours), max(theirs) / min(ours))


def figure(value: float) -> str:
    """Three figures, and no fraction from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign."""
    return f"{value:+.{digits}f}".replace("-", "−")


def listed(parts: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    known = list(parts)
    return " and ".join(filter(None, (", ".join(known[:-1]), *known[-1:])))


def missing(name: str, topic: str, what: str, needs: str, *commands: str) -> Finding:
    """A finding that no record can tell yet: what is missing, and the commands that measure it."""
    return Finding(name, topic, f"{what}: not measured ({needs}).", NOT_MEASURED, commands)
