"""Checkpoints of other libraries as models of ours: `harness.load_checkpoint(PATH)`.

An architecture reads its own: its module `weights`, beside its mixer, lists in READERS the kinds of checkpoint that it
knows, each with a function of the path. A kind is the `model_type` of a config.json of transformers, `mamba_ssm LAYER`
for a folder of that library's, or `pth` for a file of RWKV-7.
"""

import contextlib
import importlib
import json
import logging
import pkgutil
from collections.abc import Callable, Iterable, Iterator
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
    try:
        return found[kind](place).float().eval()
    except CheckpointError:
        raise
    except Exception as error:  # whatever a damaged or a strange file makes a reader raise
        raise unreadable(place, error) from error


def readers() -> dict[str, Reader]:
    """What the architectures read, by its kind."""
    found: dict[str, Reader] = {}
    for package in ARCHITECTURES:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
            if module.ispkg and find_spec(f"{module.name}.weights") is not None:
                found |= getattr(importlib.import_module(f"{module.name}.weights"), "READERS", {})
    return found


def read_transformers(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration, with transformers' defaults, and the weights of a folder of transformers' `kind`ForCausalLM.

    transformers itself reads them, files in parts and older names included; no code of the folder is run, nor a kernel
    that it names.
    """
    from transformers import AutoModelForCausalLM

    with _quiet("transformers"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    model, notes = loaded
    if wrong := {name: found for name, found in notes.items() if found}:
        raise ValueError(f"transformers reports {wrong}")
    if type(model).__name__ != f"{kind}ForCausalLM":
        raise ValueError(f"transformers makes a {type(model).__name__} of it")
    return model.config.to_dict(), model.state_dict()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of torch, by their names, read without running code."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        if not (isinstance(found, dict) and found and all(_is_entry(*entry) for entry in found.items())):
            raise ValueError("it is no table of dense tensors of real numbers by their names")
    except Exception as error:  # what torch raises of damaged files is of many kinds
        raise unreadable(path, error) from error
    return found


def layers(names: Iterable[str], prefix: str) -> int:
    """How many layers `PREFIX.NUMBER...` the names tell of; raises ValueError where one between them is missing."""
    numbers = {int(name.removeprefix(prefix).split(".")[0]) for name in names if name.startswith(prefix)}
    if numbers != set(range(len(numbers))) or not numbers:
        raise ValueError(f"its tensors are of {len(numbers)} layers, and none of one between them")
    return len(numbers)


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


def _is_entry(name: Any, tensor: Any) -> bool:
    if not (isinstance(name, str) and isinstance(tensor, Tensor)):
        return False
    return tensor.layout is torch.strided and tensor.is_floating_point() and not tensor.is_meta


def _kind(path: Path) -> str:
    try:
        if path.is_file():
            return path.suffix.removeprefix(".")
    except OSError as error:  # such as a name that is too long
        raise unreadable(path, error) from error
    config = read_config(path)
    options = config.get("ssm_cfg")
    if "model_type" not in config and isinstance(options, dict):  # transformers' folders may carry it along
        return f"mamba_ssm {options.get('layer', 'Mamba1')}"
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
