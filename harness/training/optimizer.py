"""AdamW's parameter groups: what decays, and at which part of the learning rate each parameter is trained.

A mixer says by attributes of its parameters where its authors prescribe something else than the rule:
`_no_weight_decay` (True spares what would decay, False lets decay what would be spared) and `_lr_multiplier` (the
parameter's learning rate over that of the schedule, throughout).
"""

import math
from dataclasses import dataclass

from torch import nn

from harness.config.errors import ConfigError

EMBEDDINGS = (nn.Embedding,)
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


@dataclass(frozen=True)
class GroupReport:
    """One parameter group as it is recorded. lr_multiplier: its learning rate over that of the schedule."""

    name: str
    weight_decay: float
    lr_multiplier: float
    parameters: int


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Returns AdamW's groups: `decay` for the matrices, `no_decay` for all the rest, of each multiplier one.

    Weights of two and more dimensions decay, but for embeddings (a tied head's among them) and norms, unless a
    parameter's own `_no_weight_decay` says otherwise. Raises ConfigError for an `_lr_multiplier` that is no positive
    number.
    """
    exempt = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, EMBEDDINGS + NORMS)
        for parameter in module.parameters(recurse=False)
    }
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {(True, 1.0): [], (False, 1.0): []}
    for name, parameter in model.named_parameters():  # a tied parameter comes once
        if parameter.requires_grad:
            by_rule = parameter.ndim < 2 or id(parameter) in exempt
            spared = getattr(parameter, "_no_weight_decay", by_rule)
            groups.setdefault((not spared, _multiplier(name, parameter)), []).append(parameter)
    return [
        {
            "name": ("decay" if decays else "no_decay") + ("" if multiplier == 1 else f"_lr_{multiplier:g}"),
            "params": parameters,
            "weight_decay": weight_decay if decays else 0.0,
            "lr_multiplier": multiplier,
        }
        for (decays, multiplier), parameters in groups.items()
        if parameters
    ]


def _multiplier(name: str, parameter: nn.Parameter) -> float:
    multiplier = getattr(parameter, "_lr_multiplier", 1.0)
    if not (isinstance(multiplier, int | float) and math.isfinite(multiplier) and multiplier > 0):
        raise ConfigError(
            f"The parameter {name} has _lr_multiplier={multiplier!r}.",
            "a positive number, by which the schedule's learning rate is multiplied.",
            "correct it in the mixer that sets it; requires_grad=False is for what is not trained.",
        )
    return float(multiplier)


def report(groups: list[dict]) -> list[GroupReport]:
    """Returns what the record says about the groups."""
    return [
        GroupReport(g["name"], g["weight_decay"], g["lr_multiplier"], sum(p.numel() for p in g["params"]))
        for g in groups
    ]


def set_rate(groups: list[dict], rate: float) -> None:
    """Gives every group its part of the schedule's learning rate."""
    for group in groups:
        group["lr"] = rate * group["lr_multiplier"]
