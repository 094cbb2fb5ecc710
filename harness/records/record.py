"""Recorded runs: one folder each, named after a hash of what makes the run what it is.

<root>/<name>-<key>/  config.json, environment.json, checks.json, metrics.jsonl, checkpoint.pt,
                      failure.json (why the last attempt ended, where it failed),
                      refused.json (in place of a result: a run that failed the checks after training),
                      weights.safetensors (of a finished run, its sha256 in the result),
                      result.json (where it lies, the run is finished),
                      curve.csv (then takes the place of metrics.jsonl, and checks.json is in the result),
                      lm_eval.json (scores of published tasks, whenever they were made: records/scores.py)
"""

import fcntl
import json
import os
import re
import shutil
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from harness.config.errors import RecordError, UserError
from harness.machine.environment import environment
from harness.records import curve, weights
from harness.records.files import replacing
from harness.records.identity import SCHEMA_VERSION, run_key, to_json

LOCK = ".lock"
FAILURE = "failure.json"
REFUSED = "refused.json"
LOCK_SECONDS = 1.0
"""How long a lock is waited for: who only asks whether a run is held (records/sweep.py) has it for an instant."""


def check_writable(root: Path) -> None:
    """Raises RecordError unless the folder `root` can be made and written to."""
    probe = root / f".probe-{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise _unwritable(root, error) from error


class Run:
    """The folder of one run, held by one process at a time. `with Run.open(...) as run:` lets go of it at the end.

    code: the modules that make the run (harness/records/code.py), which its checkpoints then name.
    """

    def __init__(self, path: Path, key: str, config: dict, lock: IO):
        self.path, self.key, self._config, self._lock = path, key, config, lock
        self.code: dict | None = None

    @classmethod
    def open(cls, root: Path, name: str, config: dict, data_digest: str) -> "Run":
        """Makes or reopens the folder of the run, and notes configuration and environment unless it is finished.

        Raises RecordError where the folder cannot be written to or another process holds the run.
        """
        key = run_key(config, data_digest)
        path = Path(root) / f"{re.sub(r'[^A-Za-z0-9._=-]+', '-', name)}-{key}"
        check_writable(path)
        run = cls(path, key, config, _locked(path / LOCK))
        if not run.is_finished():
            run.describe()
        return run

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, Exception) and not self.is_finished():
            with suppress(RecordError):  # the error itself says more
                self.write_json(FAILURE, _failure(error))
        self.close()

    def close(self) -> None:
        """Lets another process take the run up (the system does so for a killed process)."""
        self._lock.close()

    def is_finished(self) -> bool:
        return (self.path / "result.json").exists()

    def result(self) -> dict:
        """Returns the finished record; raises RecordError where it cannot be read or is another run's."""
        path = self.path / "result.json"
        try:
            result = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise curve.unreadable(path, str(error)) from error
        found = (result.get("schema_version"), result.get("key")) if isinstance(result, dict) else None
        if found != (SCHEMA_VERSION, self.key):
            raise curve.unreadable(path, f"schema version and key are {found}, not {(SCHEMA_VERSION, self.key)}")
        return result

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file of the record, whole or not at all."""
        try:
            with replacing(self.path / name) as file:
                file.write((to_json(value, indent=1) + "\n").encode())
        except OSError as error:
            raise _unwritable(self.path / name, error) from error

    def finish(self, result: dict) -> dict:
        """Writes the result, which makes the run finished, and returns it as `result()` will read it.

        Weights that training left in a checkpoint are kept beside it, unless it diverged.
        """
        kept = weights.keep(self.path, self.key) if result.get("status") == "finished" else None
        result = result if kept is None else result | {"weights": kept}
        self.write_json("result.json", {"schema_version": SCHEMA_VERSION, "key": self.key} | result)
        written = self.result()
        with suppress(RecordError, OSError, ValueError):  # what cannot be made light is whole all the same
            curve.lighten(self.path, written)
        return written

    def clear(self) -> None:
        """Forgets all that was recorded, so that the run starts anew."""
        entries = [entry for entry in self.path.iterdir() if entry.name != LOCK]
        try:  # the result first: a half-cleared run is not a finished one
            for entry in sorted(entries, key=lambda entry: entry.name != "result.json"):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self.describe()

    def describe(self) -> None:
        """Notes configuration and environment; how an earlier attempt failed is forgotten."""
        try:
            (self.path / FAILURE).unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(self.path / FAILURE, error) from error
        self.write_json("config.json", self._config)
        self.write_json("environment.json", environment())

    def log(self, metrics: dict) -> None:
        """Appends one line to metrics.jsonl."""
        try:
            with (self.path / curve.METRICS).open("a") as file:
                file.write(to_json(metrics) + "\n")
        except OSError as error:
            raise _unwritable(self.path / curve.METRICS, error) from error

    def metrics(self) -> list[dict]:
        """Returns the logged lines; a last line that a kill cut short is left out.

        Raises RecordError for a file that cannot be read, and a line in the middle that is no JSON object.
        """
        return curve.lines(self.path / curve.METRICS)

    def truncate_metrics(self, update: int) -> int:
        """Drops the lines after `update`, so that a resumed run writes them once; returns how many are left."""
        kept = [line for line in self.metrics() if line.get("update", 0) <= update]
        try:
            with replacing(self.path / curve.METRICS) as file:
                file.writelines((to_json(line) + "\n").encode() for line in kept)
        except OSError as error:
            raise _unwritable(self.path / curve.METRICS, error) from error
        return len(kept)


def _failure(error: Exception) -> dict:
    """What failure.json says: the message, and where in the code it arose unless the user can mend it."""
    where = None if isinstance(error, UserError) else "".join(traceback.format_exception(error))
    return {"error": type(error).__name__, "message": str(error), "traceback": where}


def _locked(path: Path) -> IO:
    """Opens `path` and holds the system's lock on it, which ends with this process however it ends."""
    try:
        file = path.open("a")
    except OSError as error:
        raise _unwritable(path, error) from error
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError as error:
            if time.monotonic() < deadline:
                time.sleep(0.02)
                continue
            file.close()
            raise RecordError(
                f"Another process is making the run in {path.parent}.",
                "one process for a run.",
                "wait for it, or stop it; then the same command resumes.",
            ) from error


def _unwritable(path: Path, error: OSError) -> RecordError:
    return RecordError(
        f"{path} cannot be written to ({error.strerror or error}).",
        "a folder for records that this user may write to, on a disk with room.",
        "set records=FOLDER to another one, or change its permissions.",
    )
