"""Reads recorded runs from disk, and says which do not count and why."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from analysis import schema
from harness.checks.names import wanting
from harness.config.errors import RecordError
from harness.records import scores
from harness.records.code import listed
from harness.records.curve import CURVE, METRICS
from harness.records.identity import SCHEMA_VERSION


@dataclass(frozen=True)
class Record:
    """One recorded run: its result, the configuration that made it and the machine it ran on.

    scores: of published tasks, by the name of the task.
    """

    path: Path
    result: dict
    config: dict
    environment: dict
    scores: dict[str, dict] = field(default_factory=dict)

    @property
    def code(self) -> str:
        """The digest of the code that made the figures; "" for a record that has none."""
        return (self.result.get("code") or {}).get("digest", "")


@dataclass
class Records:
    """What the folders hold. refused: (folder, reason) of runs that do not count. unfinished: folders with no result.

    damaged: what is wrong with each record that cannot be read. repeated: folders whose run, made by the same code, was
    already read from an earlier folder.
    """

    runs: list[Record] = field(default_factory=list)
    refused: list[tuple[Path, str]] = field(default_factory=list)
    unfinished: list[Path] = field(default_factory=list)
    damaged: list[RecordError] = field(default_factory=list)
    repeated: list[Path] = field(default_factory=list)


def load(folders: Iterable[Path | str]) -> Records:
    """Reads every run below `folders`, in order of name; a run found twice counts once, from the first folder.

    A damaged record is named among the others and stops nothing. Raises RecordError for a folder that does not exist.
    """
    records = Records()
    seen: set[tuple[str, str]] = set()
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise RecordError(
                f"There is no folder {folder}.",
                "a folder of recorded runs.",
                "make a run first (python run.py), or name the folder that holds the records.",
            )
        for path in sorted(part for part in folder.iterdir() if part.is_dir() and not part.name.startswith(".")):
            try:
                _read_into(records, path, seen)
            except RecordError as error:
                records.damaged.append(error)
    return records


def _read_into(records: Records, path: Path, seen: set[tuple[str, str]]) -> None:
    if not (path / "result.json").exists():
        if (path / "refused.json").exists():
            records.refused.append((path, _failed_checks(_json(path / "refused.json")) or "refused after training"))
        elif (path / "config.json").exists():
            records.unfinished.append(path)
        return
    record = read(path)
    run = (record.result["key"], record.code)
    failed = _failed_checks(record.result)
    if failed is not None:
        records.refused.append((path, failed))
    elif run in seen:
        records.repeated.append(path)
    else:
        seen.add(run)
        records.runs.append(record)


def read(path: Path) -> Record:
    """Reads the run in folder `path`; raises RecordError where a file is missing, damaged or of another schema."""
    result = _json(path / "result.json")
    version = result.get("schema_version")
    if version != SCHEMA_VERSION:
        older = isinstance(version, int) and version < SCHEMA_VERSION
        migrate = f"python -m harness.records.migrate {path.parent}"
        raise RecordError(
            f"{path / 'result.json'} has schema_version {version!r}.",
            f"schema_version {SCHEMA_VERSION}.",
            f"bring it to today's: {migrate}." if older else "repeat the run with this version of LiquidBench.",
        )
    beside = (_json(path / "config.json"), _json(path / "environment.json"), scores.read(path, result))
    record = Record(path, result, *beside)
    parts: dict[str, type[schema.Part]] = {
        "result": schema.Result,
        "config": schema.Config,
        "environment": schema.Environment,
    }
    for name, part in parts.items():
        if wrong := schema.problem(getattr(record, name), part):
            raise _broken(path / f"{name}.json", f"cannot be used ({wrong})")
    if wrong := schema.problem({"tasks": record.scores}, schema.Scores):
        raise _broken(path / scores.NAME, f"cannot be used ({wrong})")
    for name in (METRICS, CURVE):
        if (path / name).is_dir():
            raise _broken(path / name, "is a folder")
    return record


def by_key(records: Iterable[Record]) -> dict[str, list[Record]]:
    """{key of a run: its records, one by each version of the code that made it}."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.result["key"], []).append(record)
    return found


def failure(path: Path) -> str | None:
    """What ended the last attempt at an unfinished run, in a line; None where its folder does not say."""
    try:
        return str(json.loads((path / "failure.json").read_text(encoding="utf-8"))["message"]).splitlines()[0]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def unclean(records: Iterable[Record]) -> list[tuple[Path, str]]:
    """(folder, reason) of each run whose code no commit holds: its tree was changed, or was no checkout.

    Whoever reads a published figure must be able to check out what made it.
    """
    found = []
    for record in records:
        git = record.environment.get("git")
        if git is None:
            found.append((record.path, "its environment.json names no commit"))
        elif git["dirty"]:
            found.append((record.path, f"its tree had changes beyond commit {git['commit'][:12]}"))
    return found


def _json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _broken(path, "is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise _broken(path, f"cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise _broken(path, "holds no JSON object")
    return value


def _broken(path: Path, what: str) -> RecordError:
    return RecordError(
        f"The record file {path} {what}.",
        "a complete record, as run.py writes it.",
        f"delete the folder {path.parent} and repeat its run, or restore it from a copy.",
    )


def _failed_checks(result: dict) -> str | None:
    """Why the checks do not let this run count; None where they do."""
    checks = result.get("checks") or {}
    failed = [check["name"] for check in checks.get("results") or [] if check.get("passed") is False]
    if failed:
        return f"checks failed: {', '.join(failed)}"
    if checks.get("passed") is not True:
        return "not checked"
    tried = {check["name"]: check.get("passed") for check in checks.get("results") or []}
    lacking = wanting(tried, trained=result.get("status") != "diverged")
    return f"checks not tried: {listed(lacking)}" if lacking else None
