"""What every task gives: batches whose targets are already shifted, and the facts the record keeps."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

SPLITS = ("train", "validation", "test")
IGNORE = -100
"""The target of a position that is not scored."""


@dataclass(frozen=True)
class Batch:
    """inputs (B, T) and targets (B, T), int64: targets[:, t] is what the model must say after inputs[:, : t + 1].

    The shift is done here and nowhere else. elapsed: (B, T), time since the previous token, or None where it is 1.
    """

    inputs: Tensor
    targets: Tensor
    elapsed: Tensor | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """Returns the batch on `device`."""
        elapsed = None if self.elapsed is None else self.elapsed.to(device)
        return Batch(self.inputs.to(device), self.targets.to(device), elapsed)


class Task:
    """A source of batches. Constructing one reads no data: the first use does, and raises TaskError where it cannot.

    metric: the figure the task is judged by.
    """

    name: str
    vocab_size: int
    metric: Literal["bits_per_byte", "accuracy"]

    @property
    def digest(self) -> str:
        """The sha256 (hex) of everything the batches are made from."""
        raise NotImplementedError

    def tokens(self, split: str) -> int | None:
        """Tokens in a split; None where it is generated without end."""
        raise NotImplementedError

    @property
    def train_tokens(self) -> int | None:
        """Tokens in one epoch of training; None where no example is seen twice."""
        return self.tokens("train")

    def epochs(self, tokens: int) -> float | None:
        """How often `tokens` tokens of training pass over the train split; None where it has no end."""
        return None if self.train_tokens is None else tokens / self.train_tokens

    def describe(self) -> dict[str, Any]:
        """The record's "data" block."""
        counts = {f"{split}_tokens": self.tokens(split) for split in SPLITS}
        return {"name": self.name, "digest": self.digest, **counts, "vocab_size": self.vocab_size}

    def check(self, batch_size: int, length: int) -> None:
        """Raises UserError when batches of this shape cannot be drawn from every split."""
        raise NotImplementedError

    def batch(self, split: str, index: int, batch_size: int, length: int, seed: int) -> Batch:
        """Returns batch number `index` of `split`: a pure function of its arguments."""
        raise NotImplementedError
