"""Writes a trained model in a format of others.

`hf` serves every model, `onnx` and `onnx_int8` every one whose step is a fixed graph. Any other format is an
architecture's own: its module `weights`, beside its mixer (the first of several), lists in FORMATS what writes it, a
function of the model and of the folder.
"""

import importlib
import shutil
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from harness.config.errors import ConfigError, RecordError
from harness.generation.library import TrainedModel
from harness.model.backbone import LanguageModel

Writer = Callable[[TrainedModel, Path], None]


def export(trained: TrainedModel, name: str, folder: Path) -> Path:
    """Writes `trained` as format `name` into `folder`, which is whole or not there.

    Raises ConfigError for a format that the model does not have, and RecordError where the folder cannot be made.
    """
    if not trained.model.interface.language:
        raise ConfigError(
            f"The model of {trained.path} says no next token: it reads {trained.model.interface.inputs}.",
            "a model trained on text or on tokens of one vocabulary.",
            "export another run.",
        )
    found = formats(trained)
    if name not in found:
        raise ConfigError(
            f"format={name} was asked for, and model={trained.model.spec.name} has no such format.",
            f"one of {', '.join(found)}.",
            "choose one of these, or give the mixer a `weights.py` with FORMATS.",
        )
    if folder.exists():
        raise RecordError(
            f"{folder} is there already.", "a folder that is not there yet.", "give to=FOLDER, or move it."
        )
    unfinished = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        found[name](trained, unfinished)
        unfinished.rename(folder)
    except OSError as error:
        raise RecordError(
            f"{folder} cannot be written ({error.strerror or error}).",
            "a folder that this user may write to, on a disk with room.",
            "give to=FOLDER another one.",
        ) from error
    return folder


def formats(trained: TrainedModel) -> dict[str, Writer]:
    """The formats that this model has, by name."""
    mixer = trained.config["model"]["mixer"]
    first = mixer[0] if isinstance(mixer, list) else mixer
    folder = first["_target_"].rpartition(".")[0].rpartition(".")[0]
    found: dict[str, Writer] = {"hf": _hf, "onnx": _onnx, "onnx_int8": _onnx_int8}
    if folder and find_spec(f"{folder}.weights") is not None:
        for name, write in getattr(importlib.import_module(f"{folder}.weights"), "FORMATS", {}).items():
            found[name] = partial(_own, write)
    return found


def _own(write: Callable[[LanguageModel, Path], None], trained: TrainedModel, folder: Path) -> None:
    write(trained.model, folder)


def _onnx(trained: TrainedModel, folder: Path) -> None:
    from harness.export.onnx_step import write

    write(trained, folder)


def _onnx_int8(trained: TrainedModel, folder: Path) -> None:
    from harness.export.onnx_step import write_int8

    write_int8(trained, folder)


def _hf(trained: TrainedModel, folder: Path) -> None:
    from harness.export.hf import write  # transformers takes seconds to import

    write(trained, folder)
