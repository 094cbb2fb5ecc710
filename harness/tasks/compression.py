"""Compression as MAD has it: a whole sequence in the output at its last position (Poli et al. 2024)."""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from harness.config.errors import ConfigError
from harness.config.ranges import Count, Name
from harness.model.interface import Classes
from harness.tasks.synthetic import SyntheticTask, Vocabulary

SequenceLength = Annotated[int, Field(ge=2, le=4096)]


@dataclass(frozen=True)
class Reconstruction(Classes):
    """Several tokens of one vocabulary, all said after the last position. Targets (B, tokens), int64.

    count: logits in all, tokens x vocab_size.
    """

    vocab_size: int

    def _logits(self, outputs: Tensor) -> Tensor:
        """Outputs (B, T, count) -> logits (B, tokens, vocab_size) of the last position."""
        return outputs[:, -1].unflatten(-1, (-1, self.vocab_size))

    def scored(self, targets: Tensor) -> int:
        return targets.numel()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy (nats), summed over the tokens of all sequences, in fp32 at least."""
        logits = self._logits(outputs.to(torch.promote_types(outputs.dtype, torch.float32)))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")

    def total(self, outputs: Tensor, targets: Tensor) -> float:
        """How many tokens are the likeliest."""
        return (self._logits(outputs).argmax(dim=-1) == targets).sum().item()


class Compression(SyntheticTask):
    """Random tokens and a mark; the output at the mark must tell the length - 1 tokens before it.

    Tokens are 0 to vocab_size - 2, the mark is vocab_size - 1. Sequences of other lengths are asked for as many tokens.
    length, train_examples: of a train set; train_examples None draws without end. MAD decodes each place by an MLP that
    is told the place, here one linear map gives all of them. arXiv:2403.17844.
    """

    def __init__(
        self,
        name: Name = "compression",
        vocab_size: Vocabulary = 16,
        length: SequenceLength = 32,
        train_examples: Count | None = None,
    ):
        self.name, self.vocab_size, self.mark = name, vocab_size, vocab_size - 1
        self.length, self.train_examples, self.num_tokens = length, train_examples, length - 1
        if self.num_tokens * vocab_size > 2**20:
            raise ConfigError(
                f"task.length={length} with task.vocab_size={vocab_size} asks for too many outputs.",
                f"at most {2**20:,} of them, length - 1 times the vocabulary.",
                "lower one of them.",
            )

    @property
    def targets(self) -> Reconstruction:
        return Reconstruction(self.num_tokens * self.vocab_size, self.vocab_size)

    def parameters(self) -> dict[str, Any]:
        return {"vocab_size": self.vocab_size, "length": self.length}

    def shortest(self) -> int:
        return self.num_tokens + 1

    def generate(self, generator: np.random.Generator, batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs (B, T), targets (B, num_tokens)."""
        inputs = generator.integers(self.mark, size=(batch_size, length), dtype=np.int64)
        inputs[:, -1] = self.mark
        return inputs, inputs[:, -1 - self.num_tokens : -1].copy()

    def oracle(self, inputs: Tensor) -> Tensor:
        """The tokens (B, num_tokens) before the last."""
        return inputs[:, -1 - self.num_tokens : -1]
