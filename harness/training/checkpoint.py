"""Checkpoints: all that training needs to go on as if it had never stopped, in one file that is whole or not there."""

import hashlib
import io
import random
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch

from harness.config.errors import CheckpointError
from harness.records.files import replacing

NAME = "checkpoint.pt"
FORMAT = "liquidbench-checkpoint-1"
DIGEST_BYTES = hashlib.sha256().digest_size


def save(path: Path, key: str, content: dict) -> None:
    """Writes `content` (tensors and plain values) and the random generators, followed by their sha256.

    torch.load notices no flipped bit, hence the digest. Raises CheckpointError where the disk refuses.
    """
    refused: list[OSError] = []
    try:
        with replacing(path) as file:
            hashing = _Hashing(file, refused)
            torch.save({"format": FORMAT, "key": key, "random": random_state(), **content}, cast(BinaryIO, hashing))
            file.write(hashing.sha256.digest())
    except (OSError, RuntimeError) as error:  # torch hides what the disk said behind an error of its zip writer
        cause = refused[0] if refused else error
        if not isinstance(cause, OSError):
            raise
        raise CheckpointError(
            f"The checkpoint {path} cannot be written ({cause.strerror or cause}).",
            "room on the disk and the permission to write there.",
            "make room, or set records=FOLDER; then the same command resumes.",
        ) from error


def load(path: Path, key: str) -> dict | None:
    """Returns what `save` was given (on the CPU) and "random"; None where there is no checkpoint.

    Raises CheckpointError where the file is damaged or belongs to another run.
    """
    if not path.exists():
        return None
    try:
        content = _read(path)
    except Exception as error:  # zip, pickle and torch each raise their own
        raise unusable(path, f"it is damaged ({' '.join(str(error).split())[:120]})") from error
    if content["key"] != key:
        raise unusable(path, f"it belongs to the run {content['key']}, not to {key}")
    return content


def unusable(path: Path, why: str) -> CheckpointError:
    """The error for a checkpoint that training cannot go on from."""
    return CheckpointError(
        f"The checkpoint {path} cannot be used: {why}.",
        "the file as this run and this version of the code wrote it.",
        "delete it, or give force=true: training then starts from the beginning.",
    )


def random_state() -> dict:
    """The state of every global random generator, in types that torch loads without running code."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict) -> None:
    """Puts the global random generators back to a state of `random_state`."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


class _Hashing:
    """A file to write to that hashes what passes: no second copy of a checkpoint in memory, no second pass.

    refused: receives the errors of the file itself.
    """

    def __init__(self, file: BinaryIO, refused: list[OSError]):
        self.file, self.refused, self.sha256 = file, refused, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.refused.append(error)
            raise

    def flush(self) -> None:
        self.file.flush()


def _read(path: Path) -> dict:
    data = path.read_bytes()
    body, digest = memoryview(data)[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError("its bytes do not match their digest")
    content = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    if content["format"] != FORMAT:
        raise ValueError(f"its format is {content['format']}")
    return content
