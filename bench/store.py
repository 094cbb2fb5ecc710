"""The bench's measurements: one JSON file a subject, replaced atomically, which the next command continues."""

import json
import math
import re
from collections.abc import Callable, Sequence
from datetime import date
from importlib.util import find_spec
from pathlib import Path

from analysis.bench import Row, read
from harness.machine.environment import environment
from harness.records.files import replacing

PLACE = ("cpu", "threads", "gpu")
PEERS = ("torch", "numba", "ncps", "torchdiffeq", "mambapy", "mamba-ssm", "transformers", "rwkv", "pararnn-torch")


class Store:
    """The rows of one subject, in a file or (path None) in memory, all of one machine and one set of packages.

    Ratios across machines or versions mean nothing: a file of others is moved aside (`aside`: where to) and a new one
    begins. Raises RecordError for a broken file.
    """

    def __init__(self, path: Path | None, force: bool = False):
        self.path, self.aside = path, None
        whole = environment()
        self.stamp = {"date": date.today().isoformat(), "commit": (whole["git"] or {}).get("commit")}
        facts = {
            "machine": {fact: whole[fact] for fact in PLACE},
            "packages": {package: whole["packages"].get(package) for package in PEERS},
        }
        self.content = facts | {"rows": [], "skipped": {}}
        if path is not None and path.exists():
            found = read(path)
            if {key: found.get(key) for key in facts} != facts:
                self.aside = _moved_aside(path, found)
            elif not force:
                self.content = found | {"skipped": {}}

    def holds(self, contestants: Sequence[str], **cell) -> bool:
        """Whether the cell, the rows with these keys, holds these contestants; drops its rows where it does not."""
        inside = [row for row in self.rows if all(row.get(key) == value for key, value in cell.items())]
        if {row.get("contestant") for row in inside} == set(contestants):
            return True
        self.content["rows"] = [row for row in self.rows if row not in inside]
        return False

    @property
    def rows(self) -> list[Row]:
        return self.content["rows"]

    def add(self, rows: list[Row]) -> None:
        """Adds rows, stamped with the date and the commit, and writes the file."""
        self.content["rows"] = [*self.rows, *(row | self.stamp for row in rows)]
        self.write()

    def note(self, **facts) -> None:
        """Adds facts beside the rows, and writes the file."""
        self.content |= facts
        self.write()

    def skip(self, contestant: str, reason: str, say: Callable[[str], None]) -> None:
        """Reports why a contestant is not measured; the reason is written with the next rows."""
        self.content["skipped"][contestant] = reason
        say(f"skipped {contestant}: {reason}")

    def write(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as file:
            file.write(json.dumps(self.content, indent=1, allow_nan=False).encode() + b"\n")


def absent(modules: Sequence[str]) -> str | None:
    """Which of a contestant's modules are not installed, and the remedy; None where all are."""
    missing = [name for name in modules if find_spec(name) is None]
    return f"{', '.join(missing)} not installed (make peers)" if missing else None


def _moved_aside(path: Path, content: dict) -> Path:
    """Renames a file after the machine it was measured on, with a number where that name is taken."""
    slug = re.sub(r"[^a-z0-9]+", "-", " ".join(str(fact) for fact in content["machine"].values() if fact).lower())
    names = [f"{path.stem}.{slug}.json", *(f"{path.stem}.{slug}.{number}.json" for number in range(2, 1000))]
    free = next(place for name in names if not (place := path.with_name(name)).exists())
    return path.rename(free)


def finite(value: float) -> float | None:
    """What a file holds of a figure: null for one that is no finite number."""
    return value if math.isfinite(value) else None
