"""What records already say of the runs of a sweep."""

import json
from collections.abc import Iterable
from pathlib import Path

from harness.records.code import changed_modules
from harness.records.sweep import DONE, State, folders_of_runs, state
from sweeps import tuning


class Known:
    """The records below `folders`, looked up by a run's key.

    root: a checkout; records that other code than its own made then count for nothing, and else for all.
    """

    def __init__(self, folders: Iterable[Path], root: Path | None = None):
        self.folders, self.root = [Path(folder) for folder in folders], root
        self._read: dict[Path, tuple[int, dict | None]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Looks again which runs there are."""
        self._paths = folders_of_runs(self.folders)

    def result(self, key: str | None) -> dict | None:
        """The record of a run, from the first folder that has a usable one; None where there is none."""
        results = (self._result(path) for path in self._paths.get(key or "", ()))
        return next((result for result in results if result is not None), None)

    def path(self, key: str | None) -> Path | None:
        """The folder of that record."""
        return next((path for path in self._paths.get(key or "", ()) if self._result(path) is not None), None)

    def score(self, key: str | None) -> float | None:
        """The validation figure of a run, less is better; None where there is no record."""
        result = self.result(key)
        return None if result is None else tuning.score(result)

    def state(self, key: str | None) -> State:
        """What has become of a run; one that older code finished is still to be made."""
        found = state(self._paths.get(key or "", ()))
        if found in DONE:
            return found if self.result(key) is not None else State.MISSING
        return found

    def _result(self, path: Path) -> dict | None:
        file = path / "result.json"
        try:
            written = file.stat().st_mtime_ns
            if path not in self._read or self._read[path][0] != written:
                self._read[path] = written, self._usable(json.loads(file.read_text(encoding="utf-8")))
            return self._read[path][1]
        except (OSError, ValueError):
            return None

    def _usable(self, result: dict) -> dict | None:
        made = result.get("code")
        if self.root is not None and (made is None or changed_modules(made, self.root)):
            return None
        return result
