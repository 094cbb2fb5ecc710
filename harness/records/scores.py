"""Scores of published tasks beside a run's result: RUN/lm_eval.json. Imports no torch.

The file is no part of the result: a score can be added at any time after the run, and changes nothing in its record. It
names the run and the weights that were scored, and begins anew where they are others.

{"schema_version", "key", "weights", "tasks": {NAME: {"asked", "settings", "version", "lm_eval", "git", "documents",
"scores": {METRIC: {"value", "higher_is_better", "aggregation", "values"}}, "parts": {PART: {METRIC: value}}}}}

METRIC is lm-evaluation-harness's "metric,filter". documents: a hash of each, in order. values: of each document, a
number or [sum, weight], so that models are compared document by document; null, as the aggregation is, where the score
is none of AGGREGATIONS of them. asked: the name that was asked for, which may stand for several tasks. parts: of a
group of tasks.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.config.errors import RecordError
from harness.records.curve import unreadable
from harness.records.files import replacing
from harness.records.identity import to_json

NAME = "lm_eval.json"
VERSION = 1
AGGREGATIONS: dict[str, Callable[[Any], Any]] = {
    "mean": lambda mean: mean,
    "perplexity": lambda mean: np.exp(-mean),
    "bits_per_byte": lambda mean: -mean / np.log(2),
}
"""How a score follows from the mean over documents, weighted where their values have weights: of numbers and arrays."""


def read(folder: Path, result: dict) -> dict[str, dict[str, Any]]:
    """{task: its entry} of the run in `folder`; {} where it was not scored, or its weights were not these.

    Raises RecordError for a file that cannot be read.
    """
    path = folder / NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, str(error)) from error
    if not isinstance(found, dict) or found.get("schema_version") != VERSION:
        raise unreadable(path, f"it is no file of scores of schema version {VERSION}")
    return found.get("tasks", {}) if {name: found.get(name) for name in _scored(result)} == _scored(result) else {}


def add(folder: Path, result: dict, entries: dict[str, dict[str, Any]]) -> None:
    """Adds entries to the scores of the run in `folder`, in the place of those of the same tasks, or none."""
    tasks = read(folder, result) | entries
    content = {"schema_version": VERSION} | _scored(result) | {"tasks": dict(sorted(tasks.items()))}
    try:
        with replacing(folder / NAME) as file:
            file.write((to_json(content) + "\n").encode())
    except OSError as error:
        raise RecordError(
            f"{folder / NAME} cannot be written to ({error.strerror or error}).",
            "a run's folder that this user may write to, on a disk with room.",
            "change its permissions, or score a copy of the run.",
        ) from error


def aggregation_of(values: Sequence[Any], score: float) -> str | None:
    """Which of AGGREGATIONS of the documents' values the score is; None for none of them."""
    if not values or any(value is None for value in values):
        return None
    pairs = [value if isinstance(value, list) else [value, 1] for value in values]
    weight = math.fsum(weight for _, weight in pairs)
    if not weight:
        return None
    mean = math.fsum(total for total, _ in pairs) / weight
    with np.errstate(over="ignore"):
        found = {name: float(score_of(mean)) for name, score_of in AGGREGATIONS.items()}
    return next((name for name, one in found.items() if math.isclose(one, score, rel_tol=1e-9, abs_tol=1e-12)), None)


def _scored(result: dict) -> dict[str, Any]:
    """What was scored: the run, and its weights where the record names them."""
    return {"key": result.get("key"), "weights": (result.get("weights") or {}).get("sha256")}
