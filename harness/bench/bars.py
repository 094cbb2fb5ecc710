"""Bars: ratios that were promised, and what was measured."""

from dataclasses import dataclass

from harness.bench.table import Row


@dataclass(frozen=True)
class Bar:
    """`faster` is to take at most 1 / `by` of the time a token that `than` takes, in the rows that agree with `where`.

    time: the column compared.
    """

    where: dict
    faster: str
    than: str
    by: float
    time: str = "training_us"

    def verdict(self, rows: list[Row]) -> Row:
        """The measured ratio, and whether it is met; None for both where a side was not measured."""
        found = {}
        for row in rows:
            if all(row.get(key) == value for key, value in self.where.items()) and row.get(self.time) is not None:
                found[row["contestant"]] = row[self.time]
        ratio = found[self.than] / found[self.faster] if {self.than, self.faster} <= found.keys() else None
        met = None if ratio is None else ratio >= self.by
        where = ", ".join(f"{key} {value}" for key, value in self.where.items())
        return {"bar": f"{self.faster} / {self.than}", "where": where, "asked": self.by, "measured": ratio, "met": met}
