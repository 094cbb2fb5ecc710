"""Your own text: a UTF-8 file, or a folder of them."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from harness.errors import TaskError
from harness.tasks.text import JOIN, TextTask, by_document, by_fraction

Fraction = Annotated[float, Field(gt=0, le=0.4)]


class LocalText(TextTask):
    """The text at `path`.

    One file is cut contiguously: its end is for test, what lies before it for validation. A folder (files matching
    `pattern`, searched recursively, in the order of their names) is split by document, one of every `holdout_every`
    in validation and one in test; a folder of fewer than three files is joined and cut as one.
    """

    def __init__(
        self,
        path: str,
        name: str = "text",
        pattern: str = "*.txt",
        validation_fraction: Fraction = 0.05,
        test_fraction: Fraction = 0.05,
        holdout_every: Annotated[int, Field(ge=3)] = 20,
    ):
        super().__init__(name)
        self.path, self.pattern, self.holdout_every = path, pattern, holdout_every
        self.validation_fraction, self.test_fraction = validation_fraction, test_fraction

    def load(self) -> dict[str, bytes]:
        files = self.files()
        documents = [data for data in map(read_utf8, files) if data.strip()]
        if not documents:
            raise TaskError(
                f"task.path={self.path} holds no text ({len(files)} file(s), nothing but white space).",
                "a text of at least some thousand bytes.",
                "give another file or folder.",
            )
        if len(documents) >= 3:
            return by_document(documents, min(self.holdout_every, len(documents)))
        return by_fraction(JOIN.join(documents), self.validation_fraction, self.test_fraction)

    def files(self) -> list[Path]:
        """The files of the corpus, in order. Raises TaskError where there are none."""
        path = Path(self.path).expanduser()
        if path.is_file():
            return [path]
        files = sorted(file for file in path.rglob(self.pattern) if file.is_file()) if path.is_dir() else []
        if not files:
            missing = f"has no file matching {self.pattern!r}" if path.is_dir() else "does not exist"
            raise TaskError(
                f"task.path={self.path} {missing}.",
                "a UTF-8 text file, or a folder that holds some.",
                "correct task.path (relative to the current folder), or task.pattern for other file names.",
            )
        return files


def read_utf8(path: Path) -> bytes:
    """Reads a file; raises TaskError, with the byte offset, unless it is UTF-8."""
    try:
        data = path.read_bytes()
        data.decode("utf-8")
    except OSError as error:
        raise TaskError(
            f"{path} cannot be read ({error.strerror or error}).", "a readable file.", "check its permissions."
        ) from error
    except UnicodeDecodeError as error:
        raise TaskError(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start} ({error.reason}).",
            "UTF-8 text.",
            f"convert it, e.g. iconv -f latin1 -t utf-8 '{path}' > converted.txt, or remove the file.",
        ) from error
    return data
