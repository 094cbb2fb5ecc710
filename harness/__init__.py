"""The rules of the contest: one contract, one backbone, one trainer, one instrument. No architecture, no Hydra.

As a library: `harness.load("runs/RUN")` and the other names of docs/api.md.
"""

import os

if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    # OpenMP's threads, torch's, wait for more work by spinning, milliseconds long, on the cores that the kernels'
    # threads then want (harness/ops/toolbox/threads.py): read when torch is first imported, so it must stand here.
    os.environ["GOMP_SPINCOUNT"] = "10000"


def __getattr__(name: str):
    """The public names, imported when one is first asked for; harness/__init__.pyi tells type checkers of them."""
    import importlib

    places = {
        "load": "library",
        "TrainedModel": "library",
        "Generation": "library",
        "build_model": "library",
        "LanguageModel": "model.backbone",
        "ModelSpec": "model.backbone",
        "Mixer": "model.mixer",
        "ContextPolicy": "model.context",
        "state_bytes": "model.state",
        "UserError": "errors",
    }
    if name not in places:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{places[name]}"), name)
