"""The search for the recipe that all architectures share: each choice tried, and its loss on validation."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import mean

import pandas as pd

from analysis.records import Record, by_key
from analysis.render import MISSING, Table
from analysis.selection import of_one_version
from harness.config.errors import RecordError
from harness.records import sweep

SWEEPS = ("recipe_batch", "recipe", "recipe_joint")
"""The sweeps that sought it and tried what was chosen. Their runs are shown here alone, by their validation."""
UNTOLD = ("seed", "size", "measure", "model", "sweeps")
"""Keys of a run's overrides that are no choice of the recipe."""
RATE = "trainer.learning_rate"
"""Told where it was tuned."""
FIGURE = "validation_bits_per_byte"


def tables(records: Iterable[Record], results: Path) -> list[Table]:
    """A table a sweep that was started: a row a choice, a column a model, with the difference to the first choice.

    The last column is the mean of the models' differences. Figures are means over the seeds that the choice and the
    first one both ran. Of each model, the runs of one version of the code count: of the one that made most.
    """
    recorded = by_key(records)
    return [table for known in _started(results) if (table := _table(known, recorded))]


def keys(results: Path) -> set[str]:
    """The keys of all runs of the search."""
    return {job.key for known in _started(results) for job in known.jobs if job.key is not None}


def jobs(results: Path, name: str) -> list[sweep.Job]:
    """The runs that a sweep is listed with; none of one that has not started."""
    return [job for known in _started(results, [name]) for job in known.jobs]


def _started(results: Path, names: Iterable[str] = SWEEPS) -> Iterator[sweep.Sweep]:
    for name in names:
        with suppress(RecordError):  # not started
            yield sweep.read([results], name)


def _table(known: sweep.Sweep, recorded: Mapping[str, Sequence[Record]]) -> Table | None:
    figures: dict[str, dict[str, dict[int, float]]] = {}  # by choice, model and seed
    starts, untold = (_shared(known), UNTOLD) if _varied(known) else (_starts(known), (*UNTOLD, RATE))
    runs_of: dict[str, list[tuple[str, Record]]] = {}  # by model, each with its choice
    for job in known.jobs:
        choice = _changed(job, starts, untold)
        figures[choice] = {}
        for record in recorded.get(job.key or "", ()):
            runs_of.setdefault(record.result["model"], []).append((choice, record))
    behind: dict[str, list[str]] = {choice: [] for choice in figures}
    left_out = 0
    for model, found in runs_of.items():
        counted = of_one_version(found)
        left_out += len(found) - len(counted)
        for choice, record in counted:
            behind[choice].append(str(record.path))
            if (figure := _figure(record.result)) is not None:
                figures[choice].setdefault(model, {})[record.result["seed"]] = figure
    models = sorted({model for cells in figures.values() for model in cells})
    if not models:
        return None
    first = next(iter(figures.values()))
    rows, data = [], []
    for choice, cells in figures.items():
        row, differences = [choice], []
        for model in models:
            value, difference = _beside(cells.get(model, {}), first.get(model, {}))
            differences.append(difference)
            told = MISSING if value is None else f"{value:.4f}"
            row.append(told if difference is None or cells is first else f"{told} ({difference:+.4f})")
            data.append({"choice": choice, "model": model, FIGURE: value, "difference": difference})
        known_of_all = [difference for difference in differences if difference is not None]
        of_all = f"{mean(known_of_all):+.4f}" if len(known_of_all) == len(models) and cells is not first else MISSING
        rows.append([*row, of_all] if len(models) > 1 else row)
    seeds = max(len(seeds) for cells in figures.values() for seeds in cells.values())
    notes = [f"Bits per byte on validation, over seeds: {seeds}. In brackets: the difference to the first row."]
    if left_out:
        notes.append(f"Left out, since another version of the code made them: {left_out} runs.")
    header = ["choice", *models, *(["difference, mean"] if len(models) > 1 else [])]
    return Table(f"search-{known.name}", known.question, header, rows, notes, pd.DataFrame(data), list(behind.values()))


def _starts(known: sweep.Sweep) -> dict[str, dict[str, str]]:
    """What each model's first run was given: what it differs by, another run tries."""
    starts: dict[str, dict[str, str]] = {}
    for job in known.jobs:
        starts.setdefault(overrides(job).get("model", ""), overrides(job))
    return starts


def _shared(known: sweep.Sweep) -> dict[str, dict[str, str]]:
    """What all runs of a model were given."""
    shared: dict[str, dict[str, str]] = {}
    for job in known.jobs:
        given = overrides(job)
        before = shared.setdefault(given.get("model", ""), given)
        shared[given.get("model", "")] = dict(before.items() & given.items())
    return shared


def _varied(known: sweep.Sweep) -> bool:
    """Whether the sweep tuned the learning rate itself, and was not given one."""
    rates: dict[str, set[str]] = {}
    for job in known.jobs:
        rates.setdefault(_changed(job, {}, (*UNTOLD, RATE)), set()).add(overrides(job).get(RATE, ""))
    return any(len(found) > 2 for found in rates.values())  # two models may have one each


def _changed(job: sweep.Job, starts: Mapping[str, Mapping[str, str]], untold: Collection[str]) -> str:
    """What a run was given beside what its model starts from."""
    given = overrides(job)
    start = starts.get(given.get("model", ""), {})
    return _words({key: value for key, value in given.items() if key not in untold and start.get(key) != value})


def _words(choices: Mapping[str, str]) -> str:
    return ", ".join(f"{key.partition('.')[2]}={value}" for key, value in choices.items()) or "as it stands"


def overrides(job: sweep.Job) -> dict[str, str]:
    """The values that a run was given, by key."""
    pairs = (override.lstrip("+~").partition("=") for override in job.overrides)
    return {key: value for key, _, value in pairs}


def _figure(result: dict) -> float | None:
    validation = (result.get("evaluation") or {}).get("validation") or {}
    return validation.get("bits_per_byte")


def _beside(mine: dict[int, float], first: dict[int, float]) -> tuple[float | None, float | None]:
    if not mine:
        return None, None
    shared = mine.keys() & first.keys()
    difference = mean(mine[seed] - first[seed] for seed in shared) if shared else None
    return mean(mine.values()), difference
