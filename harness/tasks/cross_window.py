"""Recall across windows (M1, docs/mtlnn.md): what an attention's cache has lost must stand in the state that stays."""

from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from harness.config.errors import ConfigError
from harness.config.ranges import Dimension, Fraction, Name
from harness.model.interface import IGNORE
from harness.tasks.mqar import recalled
from harness.tasks.synthetic import SyntheticTask, distinct
from harness.tasks.task import Batch


class CrossWindowRecall(SyntheticTask):
    """Pairs key, value, ...; then, in a second window, each key once more with its value behind it: answer at the key.

    Between the windows what grows with the context is forgotten (`Batch.cut`). Keys are drawn without replacement from
    [1, keys], values with it from [keys + 1, 2 keys]. A sequence of T tokens has T / 4 pairs. cross: part of the
    training batches that are cut; in the others both windows are one. Validation and test are always cut.
    """

    def __init__(self, name: Name = "cross_window", keys: Dimension = 1000, cross: Fraction = 0.75):
        self.name, self.keys, self.cross = name, keys, cross
        self.vocab_size = 2 * keys + 1

    def parameters(self) -> dict[str, Any]:
        return {"keys": self.keys, "cross": self.cross}

    def shortest(self) -> int:
        return 4

    def check(self, batch_size: int, length: int) -> None:
        """Raises ConfigError, also for a length that is no whole number of pairs twice."""
        super().check(batch_size, length)
        if length % 4 or length // 4 > self.keys:
            raise ConfigError(
                f"Two windows of task={self.name} do not fit trainer.length={length}.",
                f"four tokens a pair, and at most {self.keys} pairs (task.keys).",
                "set trainer.length to a multiple of 4, such as 32 for eight pairs.",
            )

    def generate(self, generator: np.random.Generator, batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        pairs = length // 4
        keys = 1 + distinct(generator, self.keys, batch_size, pairs)  # (B, pairs)
        values = 1 + self.keys + generator.integers(self.keys, size=(batch_size, pairs))
        order = generator.permuted(np.broadcast_to(np.arange(pairs), (batch_size, pairs)), axis=1)
        again, answers = np.take_along_axis(keys, order, 1), np.take_along_axis(values, order, 1)
        inputs = np.zeros((batch_size, length), dtype=np.int64)
        targets = np.full((batch_size, length), IGNORE, dtype=np.int64)
        second = 2 * pairs
        inputs[:, 0:second:2], inputs[:, 1:second:2] = keys, values
        inputs[:, second : 2 * second : 2], inputs[:, second + 1 : 2 * second : 2] = again, answers
        targets[:, second : 2 * second : 2] = answers
        return inputs, targets

    def batch(self, split: str, index: int, batch_size: int, length: int, seed: int) -> Batch:
        made = super().batch(split, index, batch_size, length, seed)
        is_cut = split != "train" or int((index + 1) * self.cross) > int(index * self.cross)
        return replace(made, cut=length // 4 * 2 if is_cut else None)

    def oracle(self, inputs: Tensor) -> Tensor:
        return recalled(inputs, self.keys + 1)
