"""What one line of a figure shows."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Curve:
    """A line of a figure, by name and by the model whose colour and marker it has.

    points: {x: y}, in order of x; none for a model all of whose runs diverged. spread: {x: standard deviation over
    seeds}, where there are several. note: what the legend adds to the label.
    """

    label: str
    model: str
    points: dict[int, float]
    spread: dict[int, float] = field(default_factory=dict)
    note: str = ""
