"""Source code as a corpus of another kind than prose: the Python standard library, which every Python brings along."""

import hashlib
import platform
import sysconfig
from pathlib import Path
from typing import Any

from harness.config.errors import TaskError
from harness.config.ranges import HeldOutEvery, Name
from harness.tasks.local import Survey, distinct_texts
from harness.tasks.text import JOIN, TextTask

INSTALLED, TESTS = "installed by pip", "tests"
SKIPPED = {
    **dict.fromkeys(("site-packages", "dist-packages"), INSTALLED),
    **dict.fromkeys(("test", "tests", "idle_test"), TESTS),
    "__pycache__": "compiled",
    "pydoc_data": "a page of the documentation",  # one file of prose, larger than a held-out split
}
"""Folders that are left out, and why."""
OF_THE_MACHINE = ("_sysconfigdata", "sitecustomize", "usercustomize")
"""How the names of files begin that differ between two machines with the same Python."""


class StandardLibrary(TextTask):
    """The .py files of the running Python's standard library, but for its tests, split by file.

    A file's split follows from its name alone (a hash of its path below the library): of every `holdout_every` names
    one is for test and one for validation, and a file that another version of Python adds moves no other. Files of a
    split stand in the order of their paths, a blank line between them. Copies are left out as of a folder of one's own
    (harness/tasks/local.py). Versions of Python differ in their library, so the record names the version beside the
    digest, and runs of two digests are never compared.
    """

    def __init__(self, name: Name = "stdlib", holdout_every: HeldOutEvery = 20):
        super().__init__(name)
        self.holdout_every = holdout_every
        self.survey = Survey()

    def load(self) -> dict[str, bytes]:
        folder = Path(sysconfig.get_path("stdlib"))
        self.survey = Survey()
        parts: dict[str, list[bytes]] = {"train": [], "validation": [], "test": []}
        for name, text in distinct_texts(folder, self.survey, _unwanted, SKIPPED).items():
            parts[self.split(name)].append(text)
        if not all(parts.values()):
            raise TaskError(
                f"{folder} holds too few sources of the standard library for three splits: {self.survey}.",
                "a Python that was installed with the sources of its library.",
                "use such a Python, or lower task.holdout_every; or choose your own text: task=text task.path=FILE.",
            )
        return {split: JOIN.join(texts) for split, texts in parts.items()}

    def split(self, name: str) -> str:
        """The split of the file with this path below the library (its parts joined by /)."""
        number = int(hashlib.sha256(name.encode()).hexdigest(), 16) % self.holdout_every
        return {0: "test", 1: "validation"}.get(number, "train")

    def remarks(self) -> list[str]:
        _ = self.streams
        return [f"task={self.name}: the library of Python {platform.python_version()}; {self.survey}."]

    def describe(self) -> dict[str, Any]:
        """Counts of files alone: which they are follows from the version of Python."""
        facts = super().describe()
        left_out = {reason: len(names) for reason, names in self.survey.left_out.items()}
        files = {"taken": len(self.survey.taken), "left_out": left_out}
        return facts | {"python": platform.python_version(), "files": files}


def _unwanted(path: Path) -> str | None:
    """Why a file is no part of the corpus; None for one that is."""
    if path.suffix != ".py":
        return "no source"
    if path.name.startswith(OF_THE_MACHINE) or path.parent.name.startswith("config-"):
        return "made for this machine"
    return None
