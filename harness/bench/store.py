"""What the bench has measured: one JSON file a subject, whole at any time, taken up again by the next command."""

import json
from datetime import date
from pathlib import Path

from harness.bench.table import Row, read
from harness.environment import environment
from harness.errors import RecordError
from harness.files import replacing

FACTS = ("cpu", "threads", "gpu")
PEERS = ("torch", "numba", "ncps", "torchdiffeq", "mambapy", "transformers", "rwkv", "pararnn-torch")


class Store:
    """The rows of one subject, all of one machine, in a file or (path None) in memory.

    Raises RecordError for a file of another machine or a broken one.
    """

    def __init__(self, path: Path | None, force: bool = False):
        self.path = path
        whole = environment()
        machine = {fact: whole[fact] for fact in FACTS}
        self.content = {"machine": machine, "rows": [], "skipped": {}}
        if path is not None and path.exists() and not force:
            self.content = read(path)
            if self.content["machine"] != machine:
                raise RecordError(
                    f"{path} was measured on another machine ({self.content['machine']}).",
                    f"rows of one machine, {machine}: the ratios of two are no ratios.",
                    "add --force to measure all of it again, or --out with another folder.",
                )
        self.content |= {"date": date.today().isoformat(), "packages": {p: whole["packages"].get(p) for p in PEERS}}

    def has(self, **cell) -> bool:
        """Whether some row agrees with the cell's keys."""
        return any(all(row.get(key) == value for key, value in cell.items()) for row in self.rows)

    @property
    def rows(self) -> list[Row]:
        return self.content["rows"]

    def add(self, rows: list[Row]) -> None:
        """Keeps more rows, on the disk too."""
        self.content["rows"] = [*self.rows, *rows]
        self.write()

    def note(self, **facts) -> None:
        """Keeps facts beside the rows, on the disk too."""
        self.content |= facts
        self.write()

    def write(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as file:
            file.write(json.dumps(self.content, indent=1, allow_nan=False).encode() + b"\n")
