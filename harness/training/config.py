"""The rules of training as a configuration."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch

from harness.config.errors import ConfigError
from harness.config.ranges import (
    Batch,
    Count,
    CountOrNone,
    Decay,
    Epochs,
    Epsilon,
    Fraction,
    Length,
    Momentum,
    Norm,
    Rate,
    Threads,
    Tokens,
    TokensPerParameter,
)
from harness.machine import processes
from harness.tasks.task import Task
from harness.training.schedule import Schedule, Shape

BUDGETS = ("tokens", "tokens_per_parameter", "epochs")
"""The keys that may state the budget; `resolved` turns each into `tokens`."""


@dataclass(frozen=True)
class TrainerConfig:
    """The rules of training; conf/trainer/default.yaml says what each key means.

    Raises ConfigError where not exactly one of BUDGETS is given, and for a schedule of more than all updates.
    """

    tokens: Tokens | None = 1_048_576
    tokens_per_parameter: TokensPerParameter | None = None
    epochs: Epochs | None = None
    batch_size: Batch = 1
    length: Length = 512
    accumulate: Count = 1
    learning_rate: Rate = 3e-3
    schedule: Shape = "cosine"
    warmup_ratio: Fraction = 0.1
    warmup_updates: CountOrNone = 0
    decay_ratio: Fraction = 0.2
    final_learning_rate_ratio: Fraction = 0.1
    weight_decay: Decay = 0.1
    beta1: Momentum = 0.8
    beta2: Momentum = 0.95
    epsilon: Epsilon = 1e-8
    clip_norm: Norm | None = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Threads | None = None
    shard: bool = False
    recompute: bool = False
    divergence_norm: Norm = 1e3
    divergence_patience: Count = 20
    checkpoint_every: Count = 50
    snapshots: CountOrNone = 0
    validate_every: CountOrNone = 100
    validation_batches: Count = 8
    log_every: Count = 10

    def __post_init__(self) -> None:
        given = [f"trainer.{key}={value}" for key in BUDGETS if (value := getattr(self, key)) is not None]
        if len(given) != 1:
            raise ConfigError(
                f"{' and '.join(given) or 'No budget'} was given.",
                f"one of {', '.join(f'trainer.{key}' for key in BUDGETS)}, and null for the others.",
                "set those that are not meant to null (trainer.tokens=null trainer.tokens_per_parameter=20).",
            )
        if self.schedule == "wsd" and self.warmup_ratio + self.decay_ratio > 1:
            raise ConfigError(
                f"trainer.warmup_ratio={self.warmup_ratio} and trainer.decay_ratio={self.decay_ratio} exceed the run.",
                "a sum of at most 1 under trainer.schedule=wsd.",
                "lower one of them.",
            )

    def resolved(self, parameters: int, task: Task) -> "TrainerConfig":
        """The same rules with the budget in tokens.

        parameters: the budget of the size, so that every architecture of one size sees the same tokens. Raises
        ConfigError where a task without an end is to be trained for epochs.
        """
        if self.tokens is not None:
            return self
        tokens: float
        if self.tokens_per_parameter is not None:
            tokens = self.tokens_per_parameter * parameters
        elif task.train_tokens is not None and self.epochs is not None:
            tokens = self.epochs * task.train_tokens
        else:
            raise ConfigError(
                f"trainer.epochs={self.epochs} was given, but task={task.name} draws its examples without end.",
                "a budget in tokens where no epoch ends.",
                "set trainer.epochs=null and trainer.tokens, or trainer.tokens_per_parameter.",
            )
        return replace(self, tokens=max(1, round(tokens)), tokens_per_parameter=None, epochs=None)

    @property
    def budget(self) -> dict[str, float | None]:
        """The keys of BUDGETS, for the record."""
        return {key: getattr(self, key) for key in BUDGETS}

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
        if self.tokens is None:
            raise ValueError("a budget is resolved before its updates are counted (TrainerConfig.resolved).")
        return math.ceil(self.tokens / self.tokens_per_update)

    @property
    def snapshot_updates(self) -> frozenset[int]:
        """The updates behind which a copy of the weights stays, evenly spaced in the logarithm up to the last one."""
        return frozenset(round(self.updates ** (k / self.snapshots)) for k in range(1, self.snapshots + 1))

    @property
    def device_type(self) -> str:
        """The type of device that training will run on."""
        return "cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu"

    @property
    def rates(self) -> Schedule:
        """The schedule of this budget.

        The warm-up takes warmup_ratio of all updates, but at least warmup_updates of them as far as a half goes: a
        short run would else meet its peak within a few updates, before the moments of AdamW have settled.
        """
        updates = self.updates
        warmup = max(round(self.warmup_ratio * updates), min(self.warmup_updates, updates // 2))
        decay = round(self.decay_ratio * updates)
        return Schedule(self.schedule, updates, warmup, decay, self.final_learning_rate_ratio)

    def learning_rate_at(self, update: int) -> float:
        """The learning rate of the update with this index, from 0."""
        return self.learning_rate * self.rates.at(update)

    def check(self, task: Task) -> None:
        """Raises UserError where this machine or this task cannot serve the configuration."""
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError(
                "trainer.device=cuda was given, but torch sees no CUDA device.",
                "a GPU with a driver, and a torch built for it.",
                "set trainer.device=cpu or trainer.device=auto.",
            )
        processes.check(self.batch_size)
        task.check(self.batch_size, self.length)
