"""A sweep on disk: the runs that it consists of, and what has become of each. Imports no torch.

<root>/sweeps/<name>.json    its runs, as the command that makes them expanded them last
<root>/sweeps/<name>.jsonl   what the command in progress has begun and ended, one event a line
"""

import fcntl
import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from harness.config.errors import RecordError
from harness.records.files import replacing
from harness.records.identity import to_json

FOLDER = "sweeps"
LOCK = ".lock"


class State(StrEnum):
    """What has become of a run. STOPPED: begun, and to be taken up where it stands. WAITING: for another sweep."""

    FINISHED = "finished"
    DIVERGED = "diverged"
    RUNNING = "running"
    FAILED = "failed"
    STOPPED = "stopped"
    MISSING = "missing"
    WAITING = "waiting"


DONE = (State.FINISHED, State.DIVERGED)


@dataclass(frozen=True)
class Job:
    """One run of a sweep. overrides: of the command line that makes it. key: the run's; None where it is not known yet.

    waits: for what, "" for nothing.
    """

    overrides: list[str]
    key: str | None
    waits: str = ""

    def __str__(self) -> str:
        return " ".join(self.overrides)


@dataclass(frozen=True)
class Sweep:
    """A sweep: what it asks and the runs that answer."""

    name: str
    question: str = ""
    jobs: list[Job] = field(default_factory=list)


def write(root: Path, sweep: Sweep) -> Path:
    """Notes a sweep in the folder `root` of its records; raises RecordError where that cannot be written to."""
    path = root / FOLDER / f"{sweep.name}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write((to_json(asdict(sweep), indent=1) + "\n").encode())
    except OSError as error:
        raise RecordError(
            f"{path} cannot be written to ({error.strerror or error}).",
            "a folder for records that this user may write to, on a disk with room.",
            "set records=FOLDER to another one, or change its permissions.",
        ) from error
    return path


def read(folders: Iterable[Path], name: str) -> Sweep:
    """Reads the sweep `name` from the first of `folders` that has it; raises RecordError where none does."""
    folders = list(folders)
    found = ((root / FOLDER, path) for root in reversed(folders) for path in sorted((root / FOLDER).rglob("*.json")))
    known = {path.relative_to(folder).with_suffix("").as_posix(): path for folder, path in found}
    if name not in known:
        raise RecordError(
            f"No sweep {name!r} is recorded in {', '.join(map(str, folders)) or 'any folder'}.",
            f"a sweep that was started there ({', '.join(sorted(known)) or 'none was yet'}).",
            f"start it: python run.py -m +sweeps={name}.",
        )
    try:
        content = json.loads(known[name].read_text(encoding="utf-8"))
        jobs = [Job(list(job["overrides"]), job["key"], job["waits"]) for job in content["jobs"]]
        return Sweep(content["name"], content["question"], jobs)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(
            f"{known[name]} cannot be used ({type(error).__name__}: {error}).",
            "the file as run.py wrote it.",
            f"start the sweep again, which writes it anew: python run.py -m +sweeps={name}.",
        ) from error


def folders_of_runs(roots: Iterable[Path]) -> dict[str, list[Path]]:
    """The folders of runs below `roots` by their keys, in the order of the roots."""
    found: dict[str, list[Path]] = {}
    for root in roots:
        for path in sorted(root.iterdir()) if root.is_dir() else ():
            if path.is_dir() and not path.name.startswith("."):
                found.setdefault(path.name.rpartition("-")[2], []).append(path)
    return found


def state(folders: Iterable[Path]) -> State:
    """What has become of the run that has these folders, the best that one of them says."""
    order = list(State)
    return min((_state(folder) for folder in folders), key=order.index, default=State.MISSING)


def _state(folder: Path) -> State:
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return State.DIVERGED if result["status"] == "diverged" else State.FINISHED
    except FileNotFoundError:
        pass
    except (OSError, ValueError, LookupError, TypeError):
        return State.FAILED  # a damaged record
    if is_held(folder):
        return State.RUNNING
    if (folder / "refused.json").exists() or (folder / "failure.json").exists():
        return State.FAILED
    return State.STOPPED if (folder / "config.json").exists() else State.MISSING


def is_held(folder: Path) -> bool:
    """Whether a process is making the run in `folder`; asking takes the lock for an instant."""
    try:
        with (folder / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


class Journal:
    """What a command has begun and ended, one JSON object a line, written by all of its processes.

    A line shorter than a page is appended at once, so lines of several processes do not mix.
    """

    def __init__(self, root: Path, name: str):
        self.root, self.name, self.path = root, name, root / FOLDER / f"{name}.jsonl"
        self._lock: IO | None = None

    def begin(self, runs: int | None) -> None:
        """Starts anew, for a command of so many runs. Raises RecordError where another one makes the same sweep."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = self.path.with_suffix(".lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RecordError(
                f"Another command makes the sweep {self.name} in {self.root}.",
                "one command for a sweep.",
                "wait for it, or stop it; then the same command goes on.",
            ) from error
        self.path.write_text("")
        self.note(event="sweep", runs=runs)

    def end(self) -> None:
        """Lets another command make the sweep."""
        if self._lock is not None:
            self._lock.close()

    def note(self, **event: Any) -> None:
        """Appends one event, with the time (seconds since 1970)."""
        line = (to_json({"time": time.time(), **event}) + "\n").encode()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def events(self) -> list[dict]:
        """All events so far; a line that is being written is left out."""
        try:
            lines = self.path.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]
