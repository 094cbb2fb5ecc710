"""The rules of training as a configuration."""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from harness.errors import ConfigError
from harness.ranges import Batch, Count, CountOrNone, Decay, Fraction, Length, Momentum, Norm, Rate, Threads, Tokens
from harness.tasks.task import Task
from harness.training import optimizer


@dataclass(frozen=True)
class TrainerConfig:
    """The rules of training; conf/trainer/default.yaml says what each key means."""

    tokens: Tokens = 1_048_576
    batch_size: Batch = 4
    length: Length = 512
    accumulate: Count = 1
    learning_rate: Rate = 3e-3
    warmup_ratio: Fraction = 0.05
    final_learning_rate_ratio: Fraction = 0.1
    weight_decay: Decay = 0.1
    beta1: Momentum = 0.9
    beta2: Momentum = 0.95
    clip_norm: Norm | None = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Threads | None = None
    divergence_norm: Norm = 1e3
    divergence_patience: Count = 20
    checkpoint_every: Count = 50
    validate_every: CountOrNone = 100
    validation_batches: Count = 8
    log_every: Count = 10

    @property
    def tokens_per_update(self) -> int:
        return self.batch_size * self.length * self.accumulate

    @property
    def shape(self) -> str:
        """What one update computes, for messages."""
        return f"batch_size={self.batch_size}, length={self.length}, accumulate={self.accumulate}"

    @property
    def updates(self) -> int:
        """Optimizer updates that spend the budget; the last one may overspend it."""
        return math.ceil(self.tokens / self.tokens_per_update)

    @property
    def device_type(self) -> str:
        """The type of device that training will run on."""
        return "cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu"

    def learning_rate_at(self, update: int) -> float:
        """The learning rate of the update with this index, from 0."""
        ratios = (self.final_learning_rate_ratio, self.warmup_ratio)
        return optimizer.learning_rate(update, self.updates, self.learning_rate, *ratios)

    def check(self, task: Task) -> None:
        """Raises UserError where this machine or this task cannot serve the configuration."""
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                "trainer.device=cuda was given, but torch sees no CUDA device.",
                "a GPU with a driver, and a torch built for it.",
                "set trainer.device=cpu or trainer.device=auto.",
            )
        task.check(self.batch_size, self.length)
