"""What theory says of state tracking, from docs/theory.yaml, beside what the runs of its sweep say: solver by task."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import Field, model_validator

from analysis import schema, search
from analysis.records import Record, by_key
from analysis.render import NOT_MEASURED, Table
from analysis.selection import of_one_version
from analysis.statistics import summarise

FILE = Path(__file__).resolve().parents[1] / "docs" / "theory.yaml"
UNTOLD = ("seed", "sweeps")
"""Overrides of a run that name no cell."""
Name = Field(min_length=1)
Overrides = dict[str, str | int]


class Reason(schema.Written):
    """because: a clause. source: who shows it, with the address."""

    because: str = Name
    source: str = Name


class Task(schema.Written):
    """runs: the overrides that name it. guess: the share that guessing has right, "" where answers are not uniform."""

    runs: Overrides = Field(min_length=1)
    guess: str = ""


class Prediction(schema.Written):
    """prediction: of lengths beyond the trained one. reasons: their names."""

    prediction: Literal["solves", "fails", "possible"]
    reasons: list[str] = Field(min_length=1)


class Row(schema.Written):
    """A model. runs: the overrides that name it. says: of each task."""

    runs: Overrides = Field(min_length=1)
    says: dict[str, Prediction]


class Theory(schema.Written):
    """sweep: whose runs answer. Of each row and task, the runs that were given the overrides of both and no others."""

    sweep: str = Name
    tasks: dict[str, Task] = Field(min_length=1)
    reasons: dict[str, Reason]
    rows: dict[str, Row] = Field(min_length=1)

    @model_validator(mode="after")
    def _every_cell_has_known_reasons(self) -> "Theory":
        used: set[str] = set()
        for name, row in self.rows.items():
            if wrong := sorted(row.says.keys() ^ self.tasks.keys()):
                raise ValueError(f"rows.{name}.says: one prediction for each task, unlike {wrong[0]!r}")
            for task, said in row.says.items():
                if unknown := [reason for reason in said.reasons if reason not in self.reasons]:
                    raise ValueError(f"rows.{name}.says.{task}: {unknown[0]!r} is none of reasons")
                used.update(said.reasons)
        if idle := sorted(self.reasons.keys() - used):
            raise ValueError(f"reasons.{idle[0]}: no prediction has it")
        if len(self.cells()) < len(self.rows) * len(self.tasks):
            raise ValueError("rows and tasks: two cells have the same runs")
        return self

    def cells(self) -> dict[frozenset[tuple[str, str]], tuple[str, str]]:
        """{the overrides of a cell's runs: (row, task)}."""
        return {
            named({**row.runs, **task.runs}): (model, name)
            for model, row in self.rows.items()
            for name, task in self.tasks.items()
        }


@dataclass(frozen=True)
class Cell:
    """What the runs of a cell say. at: {seed: accuracy} at the trained length and at the longest tested.

    lengths: these two, 0 where nothing was measured. diverged: runs that did. other: runs of another version of the
    code, which are left out.
    """

    lengths: tuple[int, int] = (0, 0)
    at: tuple[Mapping[int, float], Mapping[int, float]] = ({}, {})
    diverged: int = 0
    other: int = 0

    @property
    def means(self) -> tuple[float | None, float | None]:
        """Over the seeds."""
        return summarise(self.at[0].values()).mean, summarise(self.at[1].values()).mean

    def __str__(self) -> str:
        first, last = self.means
        diverged = f"{self.diverged} diverged" if self.diverged else ""
        if first is None or last is None:
            return diverged or NOT_MEASURED
        told = f"{first:.3f} at {self.lengths[0]}, {last:.3f} at {self.lengths[1]} ({len(self.at[0])})"
        return f"{told}, {diverged}" if diverged else told


def read(path: Path = FILE) -> Theory:
    """Reads the file; RecordError names what cannot be used."""
    expected = "tasks, reasons and rows as analysis/tracking.py describes them."
    return schema.from_yaml(path, Theory, expected, "complete the entry, or leave it out.")


def named(given: Mapping[str, object]) -> frozenset[tuple[str, str]]:
    """What overrides say of the cell that a run stands in."""
    return frozenset((key, str(value)) for key, value in given.items() if key not in UNTOLD)


def measure(theory: Theory, records: Iterable[Record], results: Path) -> dict[tuple[str, str], Cell]:
    """{(row, task): what its runs say}, for every cell. results: the folder beside whose runs the sweep is listed.

    A run counts by its key, whichever sweep it was made for: settings that are not equal have another key.
    """
    recorded, cells = by_key(records), theory.cells()
    tried: dict[tuple[str, str], list[tuple[int, Record]]] = {cell: [] for cell in cells.values()}
    for job in search.jobs(results, theory.sweep):
        cell = cells.get(named(search.overrides(job)))
        if cell is not None:
            tried[cell] += [(record.result["seed"], record) for record in recorded.get(job.key or "", ())]
    return {cell: _cell(found) for cell, found in tried.items()}


def _cell(found: Sequence[tuple[int, Record]]) -> Cell:
    counted = of_one_version(found)
    other = len(found) - len(counted)
    diverged = sum(record.result["status"] == "diverged" for _, record in counted)
    by_seed = {
        seed: (record.config["trainer"]["length"], known)
        for seed, record in counted
        if record.result["status"] != "diverged" and (known := _accuracies(record))
    }
    if not by_seed:
        return Cell(diverged=diverged, other=other)
    trained, first = next(iter(by_seed.values()))
    longest = max(first)
    whole = {seed: known for seed, (_, known) in sorted(by_seed.items()) if trained in known and longest in known}
    at = ({seed: known[trained] for seed, known in whole.items()}, {s: known[longest] for s, known in whole.items()})
    return Cell((trained, longest), at, diverged, other)


def _accuracies(record: Record) -> dict[int, float]:
    """By the length tested."""
    known = (record.result.get("evaluation") or {}).get("extrapolation") or []
    return {one["length"]: one["accuracy"] for one in known if one.get("accuracy") is not None}


def table(theory: Theory, measured: Mapping[tuple[str, str], Cell]) -> Table:
    """A row a model, and of each task two columns: the prediction with its reasons' numbers, and what was measured."""
    used = (reason for row in theory.rows.values() for task in theory.tasks for reason in row.says[task].reasons)
    numbers = {reason: str(place) for place, reason in enumerate(dict.fromkeys(used), 1)}
    header = ["solver, coupling", *(f"{task}: {what}" for task in theory.tasks for what in ("theory", "accuracy"))]
    rows, data = [], []
    for model, row in theory.rows.items():
        cells = [model]
        for task in theory.tasks:
            said, cell = row.says[task], measured[model, task]
            cells += [f"{said.prediction} ({', '.join(numbers[reason] for reason in said.reasons)})", str(cell)]
            data.append(
                {"model": model, "task": task, "prediction": said.prediction, "reasons": " ".join(said.reasons)}
                | {"trained_length": cell.lengths[0] or None, "accuracy": cell.means[0]}
                | {"longest_length": cell.lengths[1] or None, "accuracy_longest": cell.means[1]}
                | {"seeds": len(cell.at[0]), "diverged": cell.diverged}
            )
        rows.append(cells)
    guesses = ", ".join(f"{task.guess} of {name}" for name, task in theory.tasks.items() if task.guess)
    notes = [
        "Theory: of any length beyond the trained one, at finite precision; possible: not excluded. "
        "Accuracy: on test, at the trained length and at the longest tested, the mean over the seeds whose number "
        f"stands in brackets.{f' Guessing has right {guesses}.' if guesses else ''}",
        *(
            f"({numbers[name]}) {_capital(theory.reasons[name].because)} ({theory.reasons[name].source})."
            for name in numbers
        ),
    ]
    if mixed := [f"{model}, {task}" for (model, task), cell in measured.items() if cell.other]:
        notes.append(f"Runs of another version of the code than most of their cell are left out: {'; '.join(mixed)}.")
    return Table("tracking", "What tracks a state, by theory and by our runs", header, rows, notes, pd.DataFrame(data))


def _capital(clause: str) -> str:
    return clause[:1].upper() + clause[1:]
