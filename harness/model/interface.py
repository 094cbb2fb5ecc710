"""What a model reads and what it says: token ids, real vectors, or one class for a sequence.

A task declares both; the model takes its encoder and its head from them.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORE = -100
"""The target of a position that is not scored."""


def _summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats of logits (N, V) by targets (N,), summed over those that are not IGNORE, in fp32 at least."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")


@dataclass(frozen=True)
class Tokens:
    """Token ids (B, T), int64, below vocab_size. As targets: one for each position, IGNORE where none is scored."""

    vocab_size: int

    in_nats = True
    figure = "accuracy"

    def encoder(self, d_model: int) -> nn.Embedding:
        """ids (...) -> (..., d_model)."""
        return nn.Embedding(self.vocab_size, d_model)

    def head(self, d_model: int) -> nn.Linear:
        """(..., d_model) -> logits (..., vocab_size)."""
        return nn.Linear(d_model, self.vocab_size, bias=False)

    def random(self, batch: int, length: int, generator: torch.Generator) -> Tensor:
        """Inputs (batch, length) to try a model on."""
        return torch.randint(self.vocab_size, (batch, length), generator=generator)

    def changed(self, inputs: Tensor) -> Tensor:
        """Inputs (B, T) that differ from `inputs` at every position."""
        return (inputs + 1 + torch.arange(inputs.shape[1]) % (self.vocab_size - 1)) % self.vocab_size

    def scored(self, targets: Tensor) -> int:
        """How many targets are scored."""
        return int((targets != IGNORE).sum())

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy (nats) of logits (B, T, vocab_size), summed over the scored targets (B, T)."""
        return _summed_cross_entropy(outputs.flatten(0, 1), targets.flatten())

    def total(self, outputs: Tensor, targets: Tensor) -> float:
        """How many scored targets are the likeliest token."""
        return (outputs.argmax(dim=-1) == targets).sum().item()

    def whole(self, outputs: Tensor, targets: Tensor) -> tuple[int, int]:
        """How many rows have every scored target as the likeliest token, and how many have one scored."""
        scored = targets != IGNORE
        asked = scored.any(dim=1)
        missed = (scored & (outputs.argmax(dim=-1) != targets)).any(dim=1)
        return int((asked & ~missed).sum()), int(asked.sum())


@dataclass(frozen=True)
class Classes:
    """One of `count` classes for a sequence, said after its last position. Targets (B,), int64."""

    count: int

    in_nats = True
    figure = "accuracy"

    def head(self, d_model: int) -> nn.Linear:
        """(..., d_model) -> logits (..., count)."""
        return nn.Linear(d_model, self.count)

    def scored(self, targets: Tensor) -> int:
        """How many targets are scored: one a sequence."""
        return len(targets)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy (nats) of the last of the logits (B, T, count), summed over the sequences."""
        return _summed_cross_entropy(outputs[:, -1], targets)

    def total(self, outputs: Tensor, targets: Tensor) -> float:
        """How many sequences' class is the likeliest."""
        return (outputs[:, -1].argmax(dim=-1) == targets).sum().item()


@dataclass(frozen=True)
class Vectors:
    """Real vectors (B, T, width), float. As targets: one for each position, NaN throughout where none is scored."""

    width: int

    in_nats = False
    figure = "mean_squared_error"

    def encoder(self, d_model: int) -> nn.Linear:
        """(..., width) -> (..., d_model)."""
        return nn.Linear(self.width, d_model)

    def head(self, d_model: int) -> nn.Linear:
        """(..., d_model) -> (..., width)."""
        return nn.Linear(d_model, self.width)

    def random(self, batch: int, length: int, generator: torch.Generator) -> Tensor:
        """Inputs (batch, length, width) to try a model on."""
        return torch.randn(batch, length, self.width, generator=generator)

    def changed(self, inputs: Tensor) -> Tensor:
        """Inputs (B, T, width) that differ from `inputs` at every position."""
        return inputs + 1 + torch.arange(inputs.shape[1], dtype=inputs.dtype)[:, None] % 3

    def scored(self, targets: Tensor) -> int:
        """How many positions are scored."""
        return int((~targets.isnan().any(dim=-1)).sum())

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The squared error, the mean over the components, summed over the scored positions, in fp32 at least."""
        kept = ~targets.isnan().any(dim=-1)
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return F.mse_loss(outputs[kept], targets[kept].to(outputs.dtype), reduction="sum") / self.width

    def total(self, outputs: Tensor, targets: Tensor) -> float:
        """The summed squared error."""
        return self.loss(outputs, targets).item()


Inputs = Tokens | Vectors
Targets = Tokens | Classes | Vectors


@dataclass(frozen=True)
class Interface:
    """A model's inputs and targets."""

    inputs: Inputs
    targets: Targets

    @property
    def language(self) -> bool:
        """Whether the model says what it reads next: tokens of one vocabulary in and out."""
        return isinstance(self.inputs, Tokens) and self.inputs == self.targets

    @property
    def out_width(self) -> int:
        """Components of an output."""
        return next(iter(vars(self.targets).values()))

    def following(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        """The next inputs of a generation: the likeliest of `outputs` (B, ...); `inputs` where these are no tokens."""
        if self.language:
            return outputs.argmax(-1)
        return outputs if self.inputs == self.targets else inputs


def interface(given: Interface | int) -> Interface:
    """An interface; a number stands for a language model of that vocabulary."""
    return given if isinstance(given, Interface) else Interface(Tokens(given), Tokens(given))
