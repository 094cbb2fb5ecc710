"""Reference lines: what a text costs without a model, as `python -m bench references` recorded it.

They stand below the models in tables of the same task and data, and as lines across figures of loss. They are no
models: no ranking, choice or statistic sees them.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from pydantic import Field, model_validator

from analysis import schema
from analysis.render import MISSING, Table
from analysis.tables import QUALITY, groups
from harness.config.errors import RecordError

REFERENCES = "references"
"""The folder of the records, beside the bench's measurements."""
STATUS = "reference"
"""In a table's exact figures, the status of what no run made."""
METRIC = "test_bits_per_byte"
NOTE = (
    "No model: what a compressor spends on the test split once it has read the train split; counts alone: an n-gram of "
    "the train split (docs/protocol.md)."
)
SAID, SAID_OF = "no model", {"ngram": "counts alone"}
"""What is said of a line beside its name, and of the lines of some methods."""


class Splits(schema.Part):
    digest: str = schema.Name
    train_tokens: int
    test_tokens: int


class Row(schema.Part):
    name: str = schema.Name
    method: str = schema.Name
    bits: float


class Content(schema.Part):
    """A record: of the whole splits, or its figures are of another text."""

    schema_version: int = Field(ge=1, le=1)
    task: str = schema.Name
    data: Splits
    train_bytes: int
    test_bytes: int = Field(gt=0)
    rows: list[Row]

    @model_validator(mode="after")
    def _whole_splits(self) -> "Content":
        if (self.train_bytes, self.test_bytes) != (self.data.train_tokens, self.data.test_tokens):
            raise ValueError("the lines are of other bytes than the train and the test split")
        return self


@dataclass(frozen=True)
class Line:
    """name: of the compressor or n-gram with its setting. method: the same for all settings of one."""

    name: str
    method: str
    bits_per_byte: float

    @property
    def label(self) -> str:
        return f"{self.name} ({SAID_OF.get(self.method, SAID)})"

    @property
    def counts(self) -> bool:
        """Whether it counts the train split alone, and learns nothing from the test split."""
        return self.method in SAID_OF


def read(folder: Path) -> dict[tuple[str, str], list[Line]]:
    """{(task, digest of its data): lines} of the records in `folder`, there or not.

    Raises RecordError for a damaged one.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            record = dict(json.loads(path.read_text(encoding="utf-8")))
            wrong = schema.problem(record, Content)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            wrong = str(error)
        if wrong:
            raise RecordError(
                f"{path} cannot be used ({wrong}).",
                "a file that `python -m bench references` wrote.",
                "measure again: python -m bench references task=NAME --force.",
            )
        found[record["task"], record["data"]["digest"]] = lines(record)
    return found


def lines(record: dict) -> list[Line]:
    """The lines of one record, as they were measured."""
    return [Line(row["name"], row["method"], row["bits"] / record["test_bytes"]) for row in record["rows"]]


def by_table(known: dict[tuple[str, str], list[Line]], runs: pd.DataFrame) -> dict[str, list[Line]]:
    """The lines that belong to each table of runs, by its name: those of the very task and data."""
    keys = {name: (group["task"].iloc[0], group["digest"].iloc[0]) for name, group in groups(runs)}
    return {name: known[key] for name, key in keys.items() if key in known}


def best(known: Iterable[Line]) -> list[Line]:
    """The best setting of each method."""
    found: dict[str, Line] = {}
    for line in sorted(known, key=lambda line: line.bits_per_byte):
        found.setdefault(line.method, line)
    return list(found.values())


def below(table: Table, known: Iterable[Line], digits: int = 3) -> Table:
    """The table with the lines below its models, the best first; no run leads to them."""
    known = sorted(known, key=lambda line: line.bits_per_byte)
    if not known:
        return table
    quality = QUALITY[METRIC]
    rows = [
        [
            line.label,
            *(f"{line.bits_per_byte:.{digits}f}" if head == quality.heading else MISSING for head in table.header[1:]),
        ]
        for line in known
    ]
    name, figure = (one if one in table.data else other for one, other in (("label", "model"), (METRIC, "mean")))
    exact = [{name: line.label, "status": STATUS, figure: line.bits_per_byte} for line in known]
    data = pd.concat([table.data.astype(object), pd.DataFrame(exact, dtype=object)], ignore_index=True)
    runs = [*table.runs, *([] for _ in known)] if table.runs else []
    return replace(table, rows=[*table.rows, *rows], notes=[*table.notes, NOTE], data=data, runs=runs)


def table(record: dict) -> str:
    """A record as Markdown: bits per byte of the test split."""
    known = lines(record)
    frame = pd.DataFrame({"": [line.name for line in known]})
    frame["bits per byte (test)"] = [f"{line.bits_per_byte:.3f}" for line in known]
    title = f"**{record['task']}, {record['test_bytes']:,} bytes after {record['train_bytes']:,}**"
    return f"{title}\n\n{frame.to_markdown(index=False, disable_numparse=True)}\n"
