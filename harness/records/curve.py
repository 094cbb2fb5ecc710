"""A finished run's curve, and what else makes its record light. Imports no torch.

While a run trains, metrics.jsonl has every line, for a resumed run goes on with it. Once the run is finished, curve.csv
takes its place: one row an update, at most MOST of them, six digits a figure. Every validation keeps its row, and so do
the first and the last update; the others are evenly spaced. Between two rows a curve has what a figure would not show.
"""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.config.errors import RecordError
from harness.records.files import replacing
from harness.records.identity import to_json

METRICS, CURVE = "metrics.jsonl", "curve.csv"
MOST = 200
DIGITS = 6
Row = dict[str, Any]
"""The figures of one update by name, its number among them as `update`."""


def read(folder: Path) -> list[Row]:
    """The curve of the run in `folder`: every line while it is unfinished, one row an update then; [] for none.

    Raises RecordError for a file that cannot be read.
    """
    try:
        if (folder / CURVE).is_file():
            return _from_csv((folder / CURVE).read_text(encoding="utf-8"))
        if (folder / METRICS).is_file():
            return lines(folder / METRICS)
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise unreadable(folder / CURVE, str(error)) from error
    return []


def kept(folder: Path) -> bool:
    """Whether the run in `folder` has a curve, as lines or as rows."""
    return any((folder / name).is_file() for name in (METRICS, CURVE))


def lines(path: Path) -> list[Row]:
    """The lines of a metrics.jsonl; a last one that a kill cut short is left out.

    Raises RecordError for a file that cannot be read, and a line in the middle that is no JSON object.
    """
    try:
        whole = path.read_bytes().split(b"\n")[:-1]  # whatever follows the last newline was cut short
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from error
    return [_parsed(line, number, path) for number, line in enumerate(whole, 1)]


def thinned(metrics: Iterable[Row], most: int = MOST) -> list[Row]:
    """At most `most` rows of a curve, more only where more validations were made; figures are rounded, not averaged."""
    by_update: dict[Any, Row] = {}
    for line in metrics:
        by_update.setdefault(line.get("update"), {}).update(line)
    rows = [{name: _rounded(value) for name, value in row.items()} for row in by_update.values()]
    chosen = {place for place, row in enumerate(rows) if any(name.startswith("validation") for name in row)}
    chosen |= {0, len(rows) - 1}
    rest = [place for place in range(len(rows)) if place not in chosen]
    room = min(len(rest), max(0, most - len(chosen)))
    chosen |= {rest[int((pick + 0.5) * len(rest) / room)] for pick in range(room)}
    return [row for place, row in enumerate(rows) if place in chosen]


def lighten(folder: Path, result: dict) -> None:
    """Puts curve.csv in the place of metrics.jsonl in a finished record, and leaves the checks to its result alone.

    Nothing is lost to a kill on the way: what is dropped goes last, and the next call ends what this one began. Raises
    RecordError for metrics that cannot be read, and OSError.
    """
    if (folder / METRICS).exists():
        if metrics := lines(folder / METRICS):  # none: an older curve is the whole one
            with replacing(folder / CURVE) as file:
                file.write(_to_csv(thinned(metrics)).encode())
        (folder / METRICS).unlink()
    checks = folder / "checks.json"
    if checks.exists() and json.loads(checks.read_text()) == result.get("checks"):
        checks.unlink()


def unreadable(path: Path, why: str) -> RecordError:
    """The error of a file of a record that cannot be used."""
    return RecordError(
        f"The record {path} cannot be used: {why}.",
        "the file as a run of this version wrote it.",
        "make the run again with force=true, or move the folder away.",
    )


def _to_csv(rows: list[Row]) -> str:
    """Cells are JSON; an empty one is a figure that the update does not have."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: to_json(value) for name, value in row.items()} for row in rows)
    return file.getvalue()


def _from_csv(text: str) -> list[Row]:
    rows = csv.DictReader(io.StringIO(text), strict=True)
    return [{name: json.loads(cell) for name, cell in row.items() if cell} for row in rows]


def _rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _parsed(line: bytes, number: int, path: Path) -> Row:
    try:
        parsed = json.loads(line)
    except ValueError as error:
        raise unreadable(path, f"line {number}: {error}") from error
    if not isinstance(parsed, dict):
        raise unreadable(path, f"line {number} is no JSON object")
    return parsed
