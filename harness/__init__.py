"""The rules of the contest: one contract, one backbone, one trainer, one instrument. No architecture, no Hydra.

As a library: `harness.load("runs/RUN")` and the other names of docs/api.md.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.config.errors import UserError as UserError
    from harness.export.pretrained import load_checkpoint as load_checkpoint
    from harness.generation.library import Generation as Generation
    from harness.generation.library import TrainedModel as TrainedModel
    from harness.generation.library import build_model as build_model
    from harness.generation.library import load as load
    from harness.model.backbone import LanguageModel as LanguageModel
    from harness.model.backbone import ModelSpec as ModelSpec
    from harness.model.context import ContextPolicy as ContextPolicy
    from harness.model.mixer import Mixer as Mixer
    from harness.model.state import state_bytes as state_bytes

if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    # OpenMP's threads, torch's, wait for more work by spinning, milliseconds long, on the cores that the kernels'
    # threads then want (harness/ops/toolbox/threads.py): read when torch is first imported, so it must stand here.
    os.environ["GOMP_SPINCOUNT"] = "10000"


def __getattr__(name: str):
    """The public names, imported when one is first asked for: type checkers read them above."""
    import importlib

    places = {
        "load": "generation.library",
        "load_checkpoint": "export.pretrained",
        "TrainedModel": "generation.library",
        "Generation": "generation.library",
        "build_model": "generation.library",
        "LanguageModel": "model.backbone",
        "ModelSpec": "model.backbone",
        "Mixer": "model.mixer",
        "ContextPolicy": "model.context",
        "state_bytes": "model.state",
        "UserError": "config.errors",
    }
    if name not in places:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{places[name]}"), name)
