"""Configurations as a run composes them, for the tests that hold for every architecture."""

import copy
from functools import cache
from pathlib import Path

import pytest

import run
from harness.model.backbone import ModelSpec

ASKED = ("ltc", "mtlnn", "m1", "transformer", "mamba", "rwkv")
"""The models that the question names."""
MODELS = sorted(path.stem for path in (Path(run.ROOT) / "conf" / "model").glob("*.yaml"))


@cache
def _composed(*overrides: str) -> dict:
    return run.resolve(run.compose(list(overrides)))


def resolved(*overrides: str) -> dict:
    """The checked configuration of one run; composing it takes a tenth of a second, and many tests ask for the same."""
    return copy.deepcopy(_composed(*overrides))


def spec(name: str, *overrides: str) -> ModelSpec:
    """The architecture that `model=NAME` and more overrides give."""
    return run.build(resolved(f"model={name}", *overrides)["model"])


def mostly_long(names) -> list:
    """The same as parameters of a test, which `make test` runs for the models that the question names."""
    return [name if name in ASKED else pytest.param(name, marks=pytest.mark.long) for name in names]


def choice(option: str) -> list[str]:
    """The overrides of a choice of a group (solver=rk4), with a model that has the group where the default has not."""
    models = run.groups_of_models().get(option.partition("=")[0], [])
    return [option] if not models or "ltc" in models else [f"model={models[0]}", option]


def is_torch_alone(name: str) -> bool:
    """Whether the architecture's mixers have no kernels to choose from."""
    mixer = resolved(f"model={name}")["model"]["mixer"]
    return not any("kernel" in part for part in (mixer if isinstance(mixer, list) else [mixer]))
