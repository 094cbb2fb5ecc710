"""What every task gives: batches whose targets are already shifted, their loss, its metric, and the record's facts."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from harness.evaluation.evaluate import EvaluateConfig, by_batches
from harness.evaluation.passage import Reading
from harness.model.interface import Inputs, Interface, Targets, Tokens

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Batch(Reading):
    """Inputs and targets as the task's `inputs` and `targets` describe them (harness/model/interface.py).

    inputs: ids (B, T) or vectors (B, T, F). targets: ids (B, T), vectors (B, T, F) or classes (B,); targets[:, t] is
    what the model must say after inputs[:, : t + 1]. The shift is done here and nowhere else. elapsed: (B, T), time
    since the previous token, or None where it is 1. cut: tokens after which what a model holds of the context is
    forgotten as far as it grows with it (an attention's cache), or None.
    """


class Task:
    """A source of batches with the loss that trains on them and the figure that judges a model.

    Constructing one reads no data: the first use does, and raises TaskError where it cannot. A task over tokens of one
    vocabulary states its `vocab_size`; any other states `inputs` and `targets`.
    """

    name: str
    vocab_size: int

    @property
    def metric(self) -> str:
        """The name of the figure that a model is judged by, which `total` sums; a task may have another."""
        return self.targets.figure

    @property
    def inputs(self) -> Inputs:
        """What a model reads."""
        return Tokens(self.vocab_size)

    @property
    def targets(self) -> Targets:
        """What a model says."""
        return Tokens(self.vocab_size)

    @property
    def interface(self) -> Interface:
        """Both, as a model is built from them."""
        return Interface(self.inputs, self.targets)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The loss of the outputs (B, T, ...), summed over what is scored, in fp32 at least."""
        return self.targets.loss(outputs, batch.targets)

    def scored(self, batch: Batch) -> int:
        """How many targets `loss` sums over."""
        return self.targets.scored(batch.targets)

    def total(self, outputs: Tensor, batch: Batch) -> float:
        """The metric of the outputs (B, T, ...), summed over what is scored."""
        return self.targets.total(outputs, batch.targets)

    def evaluate(self, model, config: EvaluateConfig, train_length: int, seed: int) -> dict[str, Any]:
        """The record's "evaluation" block: each split's figure, and the test split's beyond the training length.

        model: in evaluation mode. train_length: positions of a training sequence. seed: of what is sampled.
        """
        return by_batches(model, self, config, train_length)

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
        shape: dict[str, Any]
        if isinstance(self.inputs, Tokens) and self.interface.language:
            shape = {"vocab_size": self.inputs.vocab_size}
        else:
            shape = {"inputs": repr(self.inputs), "targets": repr(self.targets)}
        return {"name": self.name, "digest": self.digest, **counts, **shape}

    def remarks(self) -> list[str]:
        """What the user should know about the data before training, a line each."""
        return []

    def check(self, batch_size: int, length: int) -> None:
        """Raises UserError when batches of this shape cannot be drawn from every split."""
        raise NotImplementedError

    def batch(self, split: str, index: int, batch_size: int, length: int, seed: int) -> Batch:
        """Returns batch number `index` of `split`: a pure function of its arguments."""
        raise NotImplementedError
