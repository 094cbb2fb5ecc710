"""What a finding is, and the words that every finding shares."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from analysis.statistics import summarise

SIGNIFICANT, NOT_SIGNIFICANT, NOT_TESTED = "significant", "not significant", "not tested"
MEASURED, NOT_MEASURED = "measured", "not measured"
LEVEL = 0.05
"""A difference is significant where its p-value, corrected for all comparisons of its kind, lies below this."""


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


@dataclass(frozen=True)
class Difference:
    """Ours less theirs, paired by seed: over `count` seeds the mean, its 95 % interval and its p-value.

    What too few seeds cannot tell is None.
    """

    count: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference:
    """The mean difference over the seeds that both have."""
    summary = summarise(ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys()))
    return Difference(summary.count, summary.mean)


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """The differences with their p-values adjusted for their number, by Holm's step-down method (1979)."""
    order = sorted((d.p, place) for place, d in enumerate(differences) if d.p is not None)
    made, largest = list(differences), 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        made[place] = replace(made[place], p=largest)
    return made


def status(difference: Difference) -> str:
    """Whether the difference is significant, or was not tested."""
    if difference.p is None:
        return NOT_TESTED
    return SIGNIFICANT if difference.p < LEVEL else NOT_SIGNIFICANT


def overall(differences: Iterable[Difference]) -> str:
    """The status of a finding that tells several differences: the strongest of theirs."""
    found = set(map(status, differences))
    return next((one for one in (SIGNIFICANT, NOT_SIGNIFICANT, NOT_TESTED) if one in found), NOT_TESTED)


def told(difference: Difference, digits: int = 3) -> str:
    """`−0.395 (95 % interval −0.412 to −0.378, p = 0.003, 5 seeds)`, and in words what that does not show."""
    if difference.mean is None:
        return "unknown (no seed in common)"
    value = signed(difference.mean, digits)
    seeds = "one seed" if difference.count == 1 else f"{difference.count} seeds"
    if difference.low is None or difference.high is None:
        return f"{value} ({seeds}: no interval)"
    said = f"95 % interval {signed(difference.low, digits)} to {signed(difference.high, digits)}"
    if difference.p is None:
        return f"{value} ({said}, {seeds}: not tested)"
    p = "p < 0.001" if difference.p < 0.001 else f"p = {difference.p:.3f}"
    return f"{value} ({'not significant: ' * (status(difference) == NOT_SIGNIFICANT)}{said}, {p}, {seeds})"


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
