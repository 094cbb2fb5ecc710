"""The conditions of the run that follows: the shape of its batches, their inputs, its precision and its device."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from harness.tasks.task import Batch

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Conditions:
    """What a run's batches are: `batch_size` rows of `length` tokens on `device`, in `precision`.

    batch: the run's own training batches by number, whose inputs the checks then read; None for random inputs.
    """

    length: int = 512
    batch_size: int = 4
    precision: Precision = "fp32"
    device: str = "cpu"
    batch: Callable[[int], Batch] | None = None


@dataclass(frozen=True)
class Inputs:
    """What a call reads: tokens (B, T) or vectors (B, T, F), and the elapsed times (B, T) where the task has any."""

    values: Tensor
    elapsed: Tensor | None = None

    def spliced(self, other: "Inputs", places: Sequence[int]) -> "Inputs":
        """These rows up to their `places` (one a row), and from there on those of `other`."""
        ours = torch.arange(self.values.shape[1]) < torch.tensor(places)[:, None]  # (B, T)
        shown = ours.view(*ours.shape, *(1 for _ in self.values.shape[2:]))
        values = torch.where(shown, self.values, other.values)
        if self.elapsed is None or other.elapsed is None:
            return Inputs(values)
        return Inputs(values, torch.where(ours, self.elapsed, other.elapsed))


def called(device: str, precision: Precision, training: bool) -> ExitStack:
    """The context of a call: gradients in training, else inference mode; autocast for bf16."""
    stack = ExitStack()
    stack.enter_context(torch.inference_mode(not training))
    kind = torch.device(device).type
    stack.enter_context(torch.autocast(kind, dtype=torch.bfloat16, enabled=precision == "bf16"))
    return stack
