"""What an evaluation read and what the model answered, shown to the checks after training, which read it again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from harness.model.context import FULL, ContextPolicy
from harness.model.state import State

PIECE = 2**16
"""Tokens of each row that an evaluation reads at once."""


@dataclass(frozen=True)
class Reading:
    """Inputs and targets of one call of the model, as a harness.tasks.task.Batch describes them, which is one."""

    inputs: Tensor
    targets: Tensor
    elapsed: Tensor | None = None
    cut: int | None = None

    def rows(self, chosen: slice) -> Self:
        """Returns the same of these rows alone."""
        elapsed = None if self.elapsed is None else self.elapsed[chosen]
        return replace(self, inputs=self.inputs[chosen], targets=self.targets[chosen], elapsed=elapsed)

    def to(self, device: torch.device | str) -> Self:
        """Returns the same on `device`."""
        elapsed = None if self.elapsed is None else self.elapsed.to(device)
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device), elapsed=elapsed)

    def read(self, model, state: State = None) -> Tensor:
        """The outputs (B, T, ...) of a model that reads the inputs behind `state`, with gradients across the cut."""
        if self.cut is None:
            return self._part(model, 0, self.inputs.shape[1], state)[0]
        before, state = self._part(model, 0, self.cut, state)
        state = getattr(model, "module", model).truncate_state(state, 0)  # what several processes train wraps a model
        return torch.cat([before, self._part(model, self.cut, self.inputs.shape[1], state)[0]], dim=1)

    def _part(self, model, start: int, stop: int, state: State) -> tuple[Tensor, State]:
        """What the model says of these tokens behind `state`, and the state after them.

        Where no gradient is taken, at most PIECE are read at once, so that a long sequence takes no more memory.
        """
        size, outputs = stop - start if torch.is_grad_enabled() else PIECE, []
        for low in range(start, stop, max(1, size)):
            part = slice(low, min(low + size, stop))
            elapsed = None if self.elapsed is None else self.elapsed[:, part]
            read, state = model(self.inputs[:, part], state, elapsed)
            outputs.append(read)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), state


@dataclass(frozen=True)
class Passage:
    """One call of the model whose losses enter a figure of the test split.

    index: of `count` calls. outputs: (B, T, ...). state: what the call started from, None for nothing. read: tokens of
    each row read before. policy: under which the state was carried. main: whether the figure is that of the split, and
    not the loss by position or at another length.
    """

    index: int
    count: int
    batch: Reading
    outputs: Tensor
    state: State = None
    read: int = 0
    policy: ContextPolicy = FULL
    main: bool = True


_observers: list[Callable[[Passage], None]] = []


def observe(passage: Passage) -> None:
    """Shows a passage to every observer."""
    for observer in _observers:
        observer(passage)


@contextmanager
def observing(observer: Callable[[Passage], None]) -> Iterator[None]:
    """Shows the observer every passage of the evaluations inside. What it keeps of one stays in memory."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)
