"""Checkpoints of other libraries as models of ours: `harness.load_checkpoint(PATH)`.

An architecture reads its own: its module `weights`, beside its mixer, lists in READERS the kinds of checkpoint that it
knows, each with a function of the path. A kind is the `model_type` of a config.json of transformers, `mamba_ssm LAYER`
for a folder of that library's, or `pth` for a file of RWKV-7.
"""

import contextlib
import importlib
import json
import logging
import pickle
import pkgutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.config.errors import CheckpointError
from harness.model.backbone import LanguageModel

Reader = Callable[[Path], LanguageModel]
CONFIG = "config.json"
ARCHITECTURES = "arch", "baselines"
"""The packages whose folders are architectures."""


def load_checkpoint(path: str | Path) -> LanguageModel:
    """The model of another library's checkpoint, with its weights in float32, in evaluation mode.

    path: a folder that transformers or mamba-ssm wrote, or a .pth file of RWKV-7. No code in it is run. Raises
    CheckpointError for what cannot be read, or is of an architecture that is not ours in every respect.
    """
    place = Path(path)
    found, kind = readers(), _kind(place)
    if kind not in found:
        raise CheckpointError(
            f"{place} is a checkpoint of {kind!r}, which no architecture here reads.",
            f"one of {', '.join(sorted(found))}.",
            "take such a checkpoint, or give the mixer a `weights.py` with READERS.",
        )
    return found[kind](place).float().eval()


def readers() -> dict[str, Reader]:
    """What the architectures read, by its kind."""
    found: dict[str, Reader] = {}
    for package in ARCHITECTURES:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
            if module.ispkg and find_spec(f"{module.name}.weights") is not None:
                found |= getattr(importlib.import_module(f"{module.name}.weights"), "READERS", {})
    return found


def read_transformers(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration, with transformers' defaults, and the weights of a folder that transformers can load.

    transformers itself reads them, files in parts and older names included; no code of the folder is run.
    """
    from transformers import AutoModelForCausalLM

    try:
        with _quiet("transformers"):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, trust_remote_code=False, local_files_only=True, output_loading_info=True
            )
        model, notes = loaded
    except Exception as error:  # whatever a damaged file makes it raise
        raise unreadable(folder, error) from error
    if wrong := {name: found for name, found in notes.items() if found}:
        raise unreadable(folder, ValueError(f"transformers reports {wrong}"))
    return model.config.to_dict(), model.state_dict()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of torch, read without running code."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        if not (isinstance(found, dict) and found and all(isinstance(tensor, Tensor) for tensor in found.values())):
            raise ValueError("it is no table of tensors")
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise unreadable(path, error) from error
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder."""
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("config.json holds no table of keys")
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(folder, error) from error
    return found


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """What is raised for a checkpoint that cannot be read."""
    return CheckpointError(
        f"{path} cannot be read: {' '.join(str(error).split())[:300] or type(error).__name__}.",
        "a folder with config.json and weights, as transformers or mamba-ssm write it, or a .pth file of tensors.",
        "correct the path, or fetch the checkpoint again: hf download NAME --local-dir FOLDER.",
    )


def _kind(path: Path) -> str:
    if path.is_file():
        return path.suffix.removeprefix(".")
    config = read_config(path)
    layers = config.get("ssm_cfg")
    if isinstance(layers, dict):
        return f"mamba_ssm {layers.get('layer', 'Mamba1')}"
    return str(config.get("model_type", "no known library"))


@contextlib.contextmanager
def _quiet(library: str) -> Iterator[None]:
    """Without the library's bars and warnings: what they tell is raised."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
