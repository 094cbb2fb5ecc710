"""The trained weights of a finished run, in float32, as safetensors: a format that can hold no code."""

import hashlib
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from harness.config.errors import CheckpointError
from harness.records.files import replacing
from harness.training import checkpoint

NAME = "weights.safetensors"
SNAPSHOTS = "snapshots"
"""The folder of the weights that stay on the way of a training (trainer.snapshots)."""


def keep(folder: Path, key: str) -> dict[str, Any] | None:
    """Writes what the checkpoint in `folder` has for weights, and returns the record's "weights" block.

    None where there is no checkpoint. Raises CheckpointError for one that cannot be read.
    """
    content = checkpoint.load(folder / checkpoint.NAME, key)
    return None if content is None else save(folder / NAME, content["model"])


def save(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Writes tensors by their names, and returns {"file", "sha256", "tensors", "bytes"}."""
    data = safetensors.torch.save({name: _as_saved(tensor) for name, tensor in tensors.items()}, {"format": "pt"})
    try:
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror or error}).",
            "room on the disk and the permission to write there.",
            "make room; then the same command goes on.",
        ) from error
    return {"file": path.name, "sha256": _digest(data), "tensors": len(tensors), "bytes": len(data)}


def load(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file; raises CheckpointError where it is no safetensors file, or not the one of this digest."""
    try:
        data = path.read_bytes()
        if sha256 is not None and _digest(data) != sha256:
            raise ValueError("its bytes do not match the sha256 of the record")
        return safetensors.torch.load(data)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"The weights {path} cannot be used: {' '.join(str(error).split())[:200]}.",
            "the safetensors file that the run wrote.",
            f"copy it again, or make the run again: python -m harness.records.again {path.parent}",
        ) from error


def snapshot(folder: Path, update: int) -> Path:
    """The file of a run's weights behind this update; its folder is made."""
    (folder / SNAPSHOTS).mkdir(exist_ok=True)
    return folder / SNAPSHOTS / f"{update}.safetensors"


def snapshots(folder: Path) -> dict[int, Path]:
    """The files of a run's weights on the way by their updates, in order."""
    found = {int(path.stem): path for path in (folder / SNAPSHOTS).glob("*.safetensors") if path.stem.isdecimal()}
    return dict(sorted(found.items()))


def _as_saved(tensor: Tensor) -> Tensor:
    """A copy, since safetensors takes no two names of one storage (a tied head)."""
    return tensor.detach().cpu().to(torch.float32 if tensor.is_floating_point() else tensor.dtype).clone().contiguous()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
