"""The sessions of a server: what the model remembers of each, held in memory and, where asked for, in files.

A file is safetensors, which holds no code, below the one folder that the server was started with; its name is the
session's id, which the server itself drew.
"""

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from harness.config.errors import CheckpointError, UserError
from harness.generation.library import Past, TrainedModel
from harness.model.backbone import LanguageModel
from harness.model.state import State, map_tensors, state_bytes, tensors
from harness.records.files import replacing

ID = re.compile(r"[0-9a-f]{32}")
ROOM = 1 << 20
"""Bytes that a snapshot may take beyond its tensors."""


@dataclass(frozen=True)
class Limits:
    """What a server takes. body_bytes: of one request. prompt_tokens, new_tokens: of one generation.

    sessions: held at once. state_bytes: of all of them; beyond it nothing more is generated. snapshots: files kept.
    streams: generations at once.
    """

    body_bytes: int = 1 << 20
    prompt_tokens: int = 65_536
    new_tokens: int = 4096
    sessions: int = 1000
    state_bytes: int = 1 << 30
    snapshots: int = 10_000
    streams: int = 16


class RefusedError(UserError):
    """A request that cannot be served as things stand. status: of the answer, by HTTP."""

    def __init__(self, status: int, what: str, expected: str, remedy: str):
        super().__init__(what, expected, remedy)
        self.status = status


@dataclass
class Session:
    """past: None until something was generated. busy: while a request works on it."""

    past: Past | None = None
    busy: bool = False
    state_bytes: int = 0

    def keep(self, past: Past) -> None:
        """Goes on from here."""
        self.past, self.state_bytes = past, state_bytes(past.state)


class Sessions:
    """All sessions of one model. folder: of snapshots; None for a server that keeps none."""

    def __init__(self, trained: TrainedModel, limits: Limits, folder: Path | None = None):
        self.trained, self.limits, self.folder = trained, limits, folder
        self._held: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    @property
    def state_bytes(self) -> int:
        """Of all states that are held."""
        return sum(session.state_bytes for session in self._held.values())

    def open(self) -> str:
        """Makes an empty session; returns its id."""
        self._room()
        name = secrets.token_hex(16)
        self._held[name] = Session()
        return name

    @contextmanager
    def claimed(self, name: str) -> Iterator[Session]:
        """The session, which no other request may touch meanwhile."""
        session = self.claim(name)
        try:
            yield session
        finally:
            session.busy = False

    def claim(self, name: str) -> Session:
        """Likewise, until its `busy` is unset. Raises RefusedError where there is none, or it is in use."""
        session = self._held.get(_checked(name))
        if session is None:
            raise RefusedError(
                404, f"There is no session {name}.", "the id of a session that is held.", "open one, or restore it."
            )
        if session.busy:
            raise RefusedError(
                409, f"The session {name} is in use.", "one request a session at a time.", "wait until it has ended."
            )
        session.busy = True
        return session

    def close(self, name: str) -> None:
        """Forgets a session, and its snapshot."""
        with self.claimed(name):
            del self._held[name]
        if self.folder is not None:
            self._path(name).unlink(missing_ok=True)

    def check_memory(self) -> None:
        """Raises RefusedError where the states take all that they may."""
        if self.state_bytes >= self.limits.state_bytes:
            raise RefusedError(
                429,
                f"The states of {len(self)} sessions take {self.state_bytes:,} bytes.",
                f"fewer than {self.limits.state_bytes:,}.",
                "close sessions, or start the server with a larger state_bytes.",
            )

    def snapshot(self, name: str, session: Session) -> int:
        """Writes a claimed session's file, whole or not at all; returns its bytes."""
        path = self._path(name)
        if session.past is None:
            raise RefusedError(
                409, f"The session {name} is empty.", "a session that has read something.", "generate in it first."
            )
        if not path.exists() and sum(1 for _ in path.parent.glob("*.safetensors")) >= self.limits.snapshots:
            raise RefusedError(
                429, f"{self.limits.snapshots} snapshots are kept.", "fewer.", "close sessions that have snapshots."
            )
        data = serialised(session.past, self._model)
        try:
            with replacing(path) as file:
                file.write(data)
        except OSError as error:
            raise CheckpointError(
                f"The snapshot {name} cannot be written ({error.strerror or error}).",
                "room in the folder that the server was started with.",
                "make room, and ask again.",
            ) from error
        return len(data)

    def restore(self, name: str) -> Session:
        """Holds the session of a file again, in the place of what is held of it."""
        path = self._path(name)
        if not path.is_file():
            raise RefusedError(
                404, f"There is no snapshot {name}.", "the id of a session that was written.", "open a session."
            )
        if _checked(name) not in self._held:
            self._room()
            self._held[name] = Session()
        with self.claimed(name) as session:
            try:
                session.keep(restored(path, self.trained, self._model, self.limits.state_bytes))
            except CheckpointError:
                if session.past is None:
                    del self._held[name]
                raise
        return session

    @property
    def _model(self) -> str:
        """What a snapshot is of: the run, and its weights."""
        kept = self.trained.result.get("weights") or {}
        return f"{self.trained.result.get('key')} {kept.get('sha256')}"

    def _room(self) -> None:
        self.check_memory()
        if len(self) >= self.limits.sessions:
            raise RefusedError(
                429,
                f"{len(self)} sessions are held.",
                f"fewer than {self.limits.sessions}.",
                "close some, or start the server with more sessions.",
            )

    def _path(self, name: str) -> Path:
        if self.folder is None:
            raise RefusedError(
                409, "This server keeps no snapshots.", "one that does.", "start it with folder=FOLDER for them."
            )
        return self.folder / f"{_checked(name)}.safetensors"


def _checked(name: str) -> str:
    """The id, which is no path."""
    if not ID.fullmatch(name):
        raise RefusedError(
            400, f"The session {name[:40]!r} cannot be.", "32 digits from 0 to f.", "take the id that opening gave."
        )
    return name


def serialised(past: Past, model: str) -> bytes:
    """The bytes of a file. model: what they are of."""
    known = {f"{place:05}": tensor.detach().cpu().clone().contiguous() for place, tensor in _numbered(past.state)}
    about = {"model": model, "read": str(past.read), "last": "" if past.last is None else str(past.last)}
    return safetensors.torch.save(known, about)


def restored(path: Path, trained: TrainedModel, model: str, most_bytes: int) -> Past:
    """What a file holds; nothing in it is believed. Raises CheckpointError for what is no snapshot of this model."""
    try:
        if path.stat().st_size > most_bytes + ROOM:
            raise ValueError("it is larger than all states together may be")
        with safe_open(path, "pt") as file:
            about, found = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about.get("model") != model:
            raise ValueError("it is of another model")
        read, last = _count(about["read"]), _count(about["last"]) if about["last"] else None
        if last is not None and last >= trained.model.head.out_features:
            raise ValueError(f"its last token is {last}")
        return Past(_filled(trained, found, read), read, last)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"The snapshot {path.stem} cannot be used: {' '.join(str(error).split())[:200]}.",
            "a file that this server wrote, of the same run.",
            "open a session anew.",
        ) from error


def _count(text: str) -> int:
    if not re.fullmatch(r"\d{1,15}", text):
        raise ValueError(f"{text[:20]!r} is no number of tokens")
    return int(text)


def _filled(trained: TrainedModel, found: dict[str, Tensor], read: int) -> State:
    """The state after `read` tokens with these tensors, which have the shapes of such a state."""
    model, policy = trained.model, trained.policy
    held = read if model.constant_state else policy.held(read)
    stated = {f"{place:05}": (tensor.shape, tensor.dtype) for place, tensor in _numbered(_outline(model, held))}
    if {name: (tensor.shape, tensor.dtype) for name, tensor in found.items()} != stated:
        raise ValueError(f"its tensors are not those of a state after {read} tokens")
    device, left = model.head.weight.device, iter(sorted(found))
    return map_tensors(lambda _: found[next(left)].to(device), _outline(model, read))


def _outline(model: LanguageModel, context: int) -> State:
    """`init_state` whose tensors have shapes and no numbers, so that it takes no memory at any context."""
    where = {"device": "meta", "dtype": model.head.weight.dtype}
    return [[mixer.init_state(1, context, **where) for _, mixer in block.parts()] for block in model.blocks]


def _numbered(state: State) -> Iterator[tuple[int, Tensor]]:
    yield from enumerate(tensors(state))
