"""Configurations as a run composes them, for the tests that hold for every architecture."""

from pathlib import Path

import run
from harness.model.backbone import ModelSpec

MODELS = sorted(path.stem for path in (Path(run.ROOT) / "conf" / "model").glob("*.yaml"))


def resolved(*overrides: str) -> dict:
    """The checked configuration of one run."""
    return run.resolve(run.compose(list(overrides)))


def spec(name: str, *overrides: str) -> ModelSpec:
    """The architecture that `model=NAME` and more overrides give."""
    return run.build(resolved(f"model={name}", *overrides)["model"])
