"""What one line, or one set of points, of a figure shows."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from analysis.statistics import summarise


@dataclass(frozen=True)
class Curve:
    """A line of a figure, by name and by the model whose colour and marker it has.

    points: {x: y}, in order of x; none for a model all of whose runs diverged. spread: {x: standard deviation over
    seeds}, where there are several. note: what the legend adds to the label. limits: what the figure cannot be beyond.
    """

    label: str
    model: str
    points: dict[int, float]
    spread: dict[int, float] = field(default_factory=dict)
    note: str = ""
    limits: tuple[float, float] = field(default=(-math.inf, math.inf), compare=False)

    @classmethod
    def over_seeds(
        cls,
        label: str,
        model: str,
        found: Mapping[int, Iterable[float]],
        note: str = "",
        limits: tuple[float, float] = (-math.inf, math.inf),
    ) -> "Curve":
        """The means and the spread of {x: figures, one a seed}."""
        at = {x: summarise(found[x]) for x in sorted(found)}
        means = {x: summary.mean for x, summary in at.items() if summary.mean is not None}
        spread = {x: one.std for x, one in at.items() if one.std is not None}
        return cls(label, model, means, spread, note, limits)

    @property
    def single(self) -> set[int]:
        """The x at which one seed alone ran."""
        return self.points.keys() - self.spread.keys()


@dataclass(frozen=True)
class Series:
    """Points of a figure with their own intervals and a line of their own.

    points: {x: y}. bars: {x: (low, high)}, where there are several seeds. line: {x: y}, a fit or the points themselves.
    marked: the x whose point is ringed. note: what the legend adds to the label. band: {x: (low, high)} of the line.
    """

    label: str
    model: str
    points: dict[float, float]
    bars: dict[float, tuple[float, float]] = field(default_factory=dict)
    line: dict[float, float] = field(default_factory=dict)
    marked: float | None = None
    note: str = ""
    band: dict[float, tuple[float, float]] = field(default_factory=dict)
