"""An operation's contestants, and how a layer becomes one."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.timing import Call, Contestant


@dataclass(frozen=True)
class Comparison:
    """Implementations of one operation; ratios are relative to the first.

    note: how they differ besides their speed, a sentence or two above the table.
    """

    operation: str
    contestants: list[Contestant]
    note: str


def layer(module: nn.Module, batch: int, length: int, channels: int, device: torch.device) -> Call:
    """A layer over random inputs (batch, length, channels)."""
    return sequence(module.to(device), torch.randn(batch, length, channels, device=device))


def sequence(module: nn.Module, x: Tensor) -> Call:
    """A module that maps sequences x to sequences, or to them and a state."""
    x.requires_grad_()

    def run() -> Tensor:
        y = module(x)
        return y if isinstance(y, Tensor) else y[0]

    return Call(run, [x, *(p for p in module.parameters() if p.requires_grad)])


class Projected(nn.Module):
    """Another package's layer with an output projection, which every mixer of ours has."""

    def __init__(self, module: nn.Module, channels: int):
        super().__init__()
        self.module, self.projection = module, nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self.module(x)[0])
