"""AdamW's parameter groups and the learning-rate schedule."""

import math
from dataclasses import dataclass

from torch import nn

EMBEDDINGS = (nn.Embedding,)
NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


@dataclass(frozen=True)
class GroupReport:
    """One parameter group as it is recorded."""

    name: str
    weight_decay: float
    parameters: int


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Returns AdamW's groups: `decay` for the matrices, `no_decay` for all the rest.

    Weights of two and more dimensions decay, but for embeddings (a tied head's among them), norms, and parameters
    that carry the attribute `_no_weight_decay` (time constants, state matrices).
    """
    exempt = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, EMBEDDINGS + NORMS)
        for parameter in module.parameters(recurse=False)
    }
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for parameter in model.parameters():  # a tied parameter comes once
        if parameter.requires_grad:
            spared = parameter.ndim < 2 or id(parameter) in exempt or getattr(parameter, "_no_weight_decay", False)
            (rest if spared else decay).append(parameter)
    groups: list[dict] = [
        {"name": "decay", "params": decay, "weight_decay": weight_decay},
        {"name": "no_decay", "params": rest, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def report(groups: list[dict]) -> list[GroupReport]:
    """Returns what the record says about the groups."""
    return [GroupReport(g["name"], g["weight_decay"], sum(p.numel() for p in g["params"])) for g in groups]


def learning_rate(update: int, updates: int, peak: float, final_ratio: float, warmup_ratio: float) -> float:
    """The rate of the update with this index (from 0): linear warm-up to `peak`, then a cosine to final_ratio x peak.

    The warm-up takes round(warmup_ratio x updates) updates, the first of them at peak / that number, the last at the
    peak; the last update of all is made at the final rate.
    """
    warmup = round(warmup_ratio * updates)
    if update < warmup:
        return peak * (update + 1) / warmup
    progress = (update - warmup + 1) / (updates - warmup)
    return peak * (final_ratio + (1 - final_ratio) * (1 + math.cos(math.pi * progress)) / 2)
