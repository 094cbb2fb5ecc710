"""Reads recorded runs from disk and refuses those that do not count."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import RecordError
from harness.records.identity import SCHEMA_VERSION

STATUSES = ("finished", "diverged")
REQUIRED = ("key", "name", "status", "model", "size", "task", "seed", "parameters", "data", "training", "checks")


@dataclass(frozen=True)
class Record:
    """One recorded run: its result, the configuration that made it and the machine it ran on."""

    path: Path
    result: dict
    config: dict
    environment: dict


@dataclass
class Records:
    """What the folders hold. refused: (folder, reason) of runs that do not count. unfinished: folders with no result.

    repeated: folders whose run was already read from an earlier folder.
    """

    runs: list[Record] = field(default_factory=list)
    refused: list[tuple[Path, str]] = field(default_factory=list)
    unfinished: list[Path] = field(default_factory=list)
    repeated: list[Path] = field(default_factory=list)


def load(folders: Iterable[Path | str]) -> Records:
    """Reads every run below `folders`, in order of name; a run found twice counts once, from the first folder.

    Raises RecordError, naming the file, for a folder that does not exist and for a record that cannot be read.
    """
    records = Records()
    seen: set[str] = set()
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise RecordError(
                f"There is no folder {folder}.",
                "a folder of recorded runs.",
                "make a run first (python run.py), or name the folder that holds the records.",
            )
        for path in sorted(part for part in folder.iterdir() if part.is_dir() and not part.name.startswith(".")):
            _read_into(records, path, seen)
    return records


def _read_into(records: Records, path: Path, seen: set[str]) -> None:
    if not (path / "result.json").exists():
        if (path / "config.json").exists():
            records.unfinished.append(path)
        return
    record = read(path)
    failed = _failed_checks(record.result)
    if failed is not None:
        records.refused.append((path, failed))
    elif record.result["key"] in seen:
        records.repeated.append(path)
    else:
        seen.add(record.result["key"])
        records.runs.append(record)


def read(path: Path) -> Record:
    """Reads the run in folder `path`; raises RecordError where a file is missing, torn or of another schema."""
    result = _json(path / "result.json")
    if result.get("schema_version") != SCHEMA_VERSION:
        raise RecordError(
            f"{path / 'result.json'} has schema_version {result.get('schema_version')!r}.",
            f"schema_version {SCHEMA_VERSION}.",
            "for schema 1: python -m harness.records.migrate FOLDER; else repeat the run with this version.",
        )
    missing = [key for key in REQUIRED if key not in result]
    if missing or result["status"] not in STATUSES:
        raise _broken(path / "result.json", f"lacks {', '.join(missing)}" if missing else "has an unknown status")
    return Record(path, result, _json(path / "config.json"), _json(path / "environment.json"))


def _json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _broken(path, "is missing") from error
    except (OSError, ValueError) as error:
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
    checks = result["checks"]
    if isinstance(checks, dict) and checks.get("passed") is True:
        return None
    checks = checks.get("results") or [] if isinstance(checks, dict) else []
    failed = [str(check.get("name")) for check in checks if check.get("passed") is False]
    return f"checks failed: {', '.join(failed)}" if failed else "not checked"
