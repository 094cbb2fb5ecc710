"""Targets: the ratios that conf/bench/ asks for, and what was measured."""

from dataclasses import dataclass

from analysis.bench import Row
from harness.config.errors import ConfigError


@dataclass(frozen=True)
class Target:
    """`of` is at least `at_least` times as fast as `than`, or takes at most `at_most` times its time.

    where: what the two rows must agree with, one row of each. time: the column compared, of a token. Raises
    ConfigError unless just one of the two bounds is given.
    """

    where: dict
    of: str
    than: str
    at_least: float | None = None
    at_most: float | None = None
    time: str = "training_us"

    def __post_init__(self):
        if (self.at_least is None) == (self.at_most is None):
            raise ConfigError(
                f"The target of {self.of} against {self.than} has at_least={self.at_least}, at_most={self.at_most}.",
                "one of them: the least ratio of speeds, or the greatest of times.",
                "give that one in conf/bench/.",
            )

    def verdict(self, rows: list[Row]) -> Row:
        """The measured ratio, and whether it is met; None for both where a side was not measured."""
        of, than = (self._time(rows, name) for name in (self.of, self.than))
        kind, asked = ("speed", self.at_least) if self.at_most is None else ("time", self.at_most)
        measured = met = None
        if of is not None and than is not None:
            measured = than / of if kind == "speed" else of / than
            met = measured >= asked if kind == "speed" else measured <= asked
        verdict = {"ratio": kind, "of": self.of, "than": self.than, "where": self.where}
        return verdict | {"asked": asked, "measured": measured, "met": met}

    def _time(self, rows: list[Row], contestant: str) -> float | None:
        where = self.where | {"contestant": contestant}
        found = [row for row in rows if all(row.get(key) == value for key, value in where.items())]
        return found[0].get(self.time) if found else None
