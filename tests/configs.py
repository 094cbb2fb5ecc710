"""Configurations as a run composes them, for the tests that hold for every architecture."""

from pathlib import Path

import yaml

import run
from harness.model.backbone import ModelSpec

MODELS = sorted(path.stem for path in (Path(run.ROOT) / "conf" / "model").glob("*.yaml"))


def resolved(*overrides: str) -> dict:
    """The checked configuration of one run."""
    return run.resolve(run.compose(list(overrides)))


def spec(name: str, *overrides: str) -> ModelSpec:
    """The architecture that `model=NAME` and more overrides give."""
    return run.build(resolved(f"model={name}", *overrides)["model"])


def variants() -> set[str]:
    """The architectures that are made of the classes of others: with other options, or in another pattern."""
    classes = {name: _classes(_model_node(name)) for name in MODELS}
    known: set[str] = set()
    found = set()
    for name in sorted(MODELS, key=lambda name: (len(classes[name]), len(name), name)):
        if classes[name] <= known:
            found.add(name)
        known |= classes[name]
    return found


def _model_node(name: str) -> dict:
    return yaml.safe_load((Path(run.ROOT) / "conf" / "model" / f"{name}.yaml").read_text())


def _classes(node) -> set[str]:
    """The classes that a node names, of its mixers and their like."""
    if isinstance(node, dict):
        own = {node["_target_"]} if "_target_" in node else set()
        return own.union(*map(_classes, node.values()))
    return set().union(*map(_classes, node)) if isinstance(node, list) else set()


def choice(option: str) -> list[str]:
    """The overrides of a choice of a group (solver=rk4), with a model that has the group where the default has not."""
    models = run.groups_of_models().get(option.partition("=")[0], [])
    return [option] if not models or "ltc" in models else [f"model={models[0]}", option]


def is_torch_alone(name: str) -> bool:
    """Whether the architecture's mixers have no kernels to choose from."""
    mixer = resolved(f"model={name}")["model"]["mixer"]
    return not any("kernel" in part for part in (mixer if isinstance(mixer, list) else [mixer]))
