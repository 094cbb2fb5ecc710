"""What a finding is, and the words that every finding shares."""

from collections.abc import Iterable
from dataclasses import dataclass

from analysis.differences import Comparison

SIGNIFICANT, NOT_SIGNIFICANT, NOT_TESTED = "significant", "not significant", "not tested"
MIXED = "see each"
MEASURED, NOT_MEASURED = "measured", "not measured"


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
    seeds = "one seed" if difference.count == 1 else f"{difference.count} seeds"
    if difference.low is None or difference.high is None:
        return f"{value} ({seeds}: no interval)"
    said = f"95 % interval {signed(difference.low, digits)} to {signed(difference.high, digits)}"
    if p is None:
        return f"{value} ({said}, {seeds}: not tested)"
    shown = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    return f"{value} ({status(comparison)}: {said}, {shown}, {seeds})"


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
