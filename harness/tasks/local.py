"""Your own text: a UTF-8 file, or a folder of them."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness.config.errors import TaskError
from harness.config.ranges import Glob, HeldOut, HeldOutEvery, Name, PathName
from harness.tasks import overlap
from harness.tasks.task import SPLITS
from harness.tasks.text import JOIN, TextTask, by_document, by_fraction

NAMED_IN_RECORD = 100
NAMED_ON_SCREEN = 3
NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass
class Survey:
    """What became of the files of a folder. taken: names, in order. left_out: names by the reason.

    together: the names of those that share much, and so stand in one split.
    """

    taken: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    together: list[list[str]] = field(default_factory=list)

    def leave_out(self, name: str, reason: str) -> None:
        self.left_out.setdefault(reason, []).append(name)

    def to_dict(self) -> dict[str, Any]:
        """Counts and the first names, as the record holds them."""
        left_out = {reason: _counted(names) for reason, names in self.left_out.items()}
        facts = {"taken": _counted(self.taken), "left_out": left_out}
        together = [_counted(names) for names in self.together[:NAMED_IN_RECORD]]
        return facts | {"together": together} if together else facts

    def __str__(self) -> str:
        reasons = [f"{len(names):,} {reason} ({_listed(names)})" for reason, names in self.left_out.items()]
        taken = f"{len(self.taken):,} taken" + (f" ({_listed(self.taken)})" if self.taken else "")
        groups = [f"{names[0]} with {_listed(names[1:])}" for names in self.together]
        together = f"; sharing much, and so in one split: {_listed(groups)}" if groups else ""
        return f"{taken}; left out: {', '.join(reasons) or 'none'}{together}"


def _counted(names: list[str]) -> dict[str, Any]:
    return {"count": len(names), "names": names[:NAMED_IN_RECORD]}


def _listed(names: list[str]) -> str:
    return ", ".join(names[:NAMED_ON_SCREEN]) + (", ..." if len(names) > NAMED_ON_SCREEN else "")


class LocalText(TextTask):
    """The text at `path`.

    One file is cut contiguously: its end is for test, what lies before it for validation. A folder (files matching
    `pattern`, searched recursively, in the order of their names) is split by document, one of every `holdout_every`
    in validation and one in test, where files that share much (harness/tasks/overlap.py) count as one; a folder of
    fewer than three texts is joined and cut as one. Of a folder, hidden files and folders, links to folders, files that
    are not UTF-8 or hold white space alone, and every copy of a text taken before are left out, as are files whose
    lines mostly stand in texts taken before (a collection, an edited copy); the record and the screen say which.
    """

    def __init__(
        self,
        path: PathName,
        name: Name = "text",
        pattern: Glob = "*.txt",
        validation_fraction: HeldOut = 0.05,
        test_fraction: HeldOut = 0.05,
        holdout_every: HeldOutEvery = 20,
    ):
        super().__init__(name)
        self.path, self.pattern, self.holdout_every = path, pattern, holdout_every
        self.validation_fraction, self.test_fraction = validation_fraction, test_fraction
        self.survey: Survey | None = None  # of a folder, once it is loaded

    def load(self) -> dict[str, bytes]:
        path = Path(os.path.expanduser(self.path))
        documents = self._folder(path) if os.path.isdir(path) else [self._file(path)]
        if len(documents) >= 3:
            return by_document(documents, min(self.holdout_every, len(documents)))
        return by_fraction(JOIN.join(documents), self.validation_fraction, self.test_fraction)

    def remarks(self) -> list[str]:
        _ = self.streams
        return [] if self.survey is None else [f"task.path={self.path}: {self.survey}."]

    def describe(self) -> dict[str, Any]:
        facts = super().describe()
        return facts if self.survey is None else facts | {"files": self.survey.to_dict()}

    def _file(self, path: Path) -> bytes:
        if not os.path.isfile(path):
            raise TaskError(
                f"task.path={self.path} does not exist.",
                "a UTF-8 text file, or a folder that holds some.",
                "correct task.path (relative to the current folder).",
            )
        data = read_utf8(path)
        if not data.strip():
            raise TaskError(
                f"task.path={self.path} holds no text, nothing but white space.",
                "a text of at least some thousand bytes.",
                "give another file or folder.",
            )
        return data

    def _folder(self, folder: Path) -> list[bytes]:
        """The texts of a folder, in the order of their paths, those joined that share much.

        Raises TaskError where there is none, and where too few are left to be split.
        """
        self.survey, matching = Survey(), _matching(folder, self.pattern)

        def unwanted(path: Path) -> str | None:
            return None if path in matching else f"not matching {self.pattern!r}"

        documents = distinct_texts(folder, self.survey, unwanted)
        if not documents:
            raise TaskError(
                f"No file in task.path={self.path} can be used: {self.survey}.",
                f"UTF-8 texts whose names match task.pattern={self.pattern!r}.",
                "correct task.path (relative to the current folder), or task.pattern for other file names.",
            )
        names, texts = list(documents), list(documents.values())
        found = overlap.groups(texts)
        self.survey.together = [[names[number] for number in group] for group in found if len(group) > 1]
        if self.survey.together and len(found) < len(SPLITS):
            raise TaskError(
                f"The files of task.path={self.path} share too much to be split: {self.survey}.",
                f"texts of which at least {len(SPLITS)} share less than a fifth with any other.",
                "remove what repeats others; or give one file, which is cut by position.",
            )
        return [JOIN.join(texts[number] for number in group) for group in found]


def distinct_texts(
    folder: Path, survey: Survey, unwanted: Callable[[Path], str | None], skipped: Mapping[str, str] = NOTHING
) -> dict[str, bytes]:
    """The texts below `folder` by the names of their files, in the order of their paths; no text stands in two.

    survey: learns what is taken, and what is left out and why. unwanted: of a file, the reason to leave it out, or
    None. skipped: {name: reason} of folders that are left out whole.
    """
    documents: dict[str, bytes] = {}
    seen: set[bytes] = set()
    lines: set[int] = set()
    for path in visible_files(folder, survey, skipped):
        name = _name(path, folder)
        if (reason := unwanted(path)) is not None:
            survey.leave_out(name, reason)
            continue
        try:
            data = read_utf8(path)
        except TaskError as error:
            survey.leave_out(name, "not UTF-8" if isinstance(error.__cause__, UnicodeError) else "unreadable")
            continue
        text = hashlib.sha256(b" ".join(data.split())).digest()  # a copy with other line ends is a copy
        if not data.strip():
            survey.leave_out(name, "without text")
        elif text in seen:
            survey.leave_out(name, "with the text of another")
        elif _known_part(own := overlap.telling_lines(data), lines) > 0.5:
            survey.leave_out(name, "with more than half of its lines in others")
        else:
            seen.add(text)
            lines.update(map(hash, own))
            survey.taken.append(name)
            documents[name] = data
    return documents


def _known_part(own: list[bytes], lines: set[int]) -> float:
    """The part of a file's telling bytes that stands in lines whose hashes are known."""
    return sum(len(line) for line in own if hash(line) in lines) / max(1, sum(map(len, own)))


def visible_files(folder: Path, survey: Survey, skipped: Mapping[str, str] = NOTHING) -> list[Path]:
    """The files below `folder` in the order of their paths, but hidden ones and those behind links to folders.

    survey: learns what is left out; a folder is left out as a whole. skipped: {name: reason} of more such folders.
    """
    found: list[Path] = []

    def unreadable(error: OSError) -> None:
        survey.leave_out(f"{_name(Path(error.filename), folder)}/", "unreadable")

    for root, folders, files in os.walk(folder, onerror=unreadable):
        for path in [Path(root, name) for name in sorted(folders)]:
            reason = skipped.get(path.name)
            if path.name.startswith("."):
                reason = "hidden"
            elif path.is_symlink():
                reason = "linked"
            if reason is not None:
                folders.remove(path.name)
                survey.leave_out(f"{_name(path, folder)}/", reason)
        for path in [Path(root, name) for name in sorted(files)]:
            if path.name.startswith("."):
                survey.leave_out(_name(path, folder), "hidden")
            elif os.path.isfile(path):
                found.append(path)
            else:  # a link to nothing, or a device
                survey.leave_out(_name(path, folder), "unreadable")
    return sorted(found)


def _name(path: Path, folder: Path) -> str:
    """The path below the folder, in characters that can be printed and recorded whatever bytes it holds."""
    return str(path.relative_to(folder)).encode("utf-8", "backslashreplace").decode()


def _matching(folder: Path, pattern: str) -> set[Path]:
    try:
        return set(folder.rglob(pattern))
    except (ValueError, NotImplementedError) as error:
        raise TaskError(
            f"task.pattern={pattern!r} cannot be used: {error}.",
            "file names below task.path, such as *.txt or drafts/*.md.",
            "correct task.pattern.",
        ) from error


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
