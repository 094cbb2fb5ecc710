"""Multi-query associative recall (Arora et al. 2023, "Zoology", arXiv:2312.04927)."""

from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from harness.errors import ConfigError
from harness.model.interface import IGNORE
from harness.ranges import Dimension, Exponent, Name
from harness.tasks.synthetic import SyntheticTask


class MQAR(SyntheticTask):
    """Pairs key, value, key, value, ... and later, among fillers, each key once more: answer its value there.

    Keys are drawn without replacement from [1, vocab_size / 2), values from [vocab_size / 2, vocab_size). The slots of
    the queries (every second position after the pairs) are drawn without replacement with probability proportional to
    slot^(power_a - 1), slot = 1, 2, ...: a small power_a asks soon, power_a = 1 asks anywhere alike. The other
    positions hold random tokens (random_non_queries) or 0. Raises ConfigError where the pairs do not fit.
    """

    def __init__(
        self,
        name: Name = "mqar",
        vocab_size: Annotated[int, Field(ge=4, le=2**20)] = 1024,
        num_kv_pairs: Dimension = 32,
        power_a: Exponent = 0.01,
        random_non_queries: bool = True,
    ):
        if num_kv_pairs > vocab_size // 2 - 1:
            raise ConfigError(
                f"task.num_kv_pairs={num_kv_pairs} needs as many distinct keys; task.vocab_size={vocab_size} has "
                f"{vocab_size // 2 - 1}.",
                "num_kv_pairs below vocab_size / 2.",
                f"set task.vocab_size={2 * num_kv_pairs + 2} or more, or fewer pairs.",
            )
        self.name, self.vocab_size, self.num_kv_pairs = name, vocab_size, num_kv_pairs
        self.power_a, self.random_non_queries = power_a, random_non_queries

    def parameters(self) -> dict[str, Any]:
        names = ("vocab_size", "num_kv_pairs", "power_a", "random_non_queries")
        return {name: getattr(self, name) for name in names}

    def shortest(self) -> int:
        return 4 * self.num_kv_pairs

    def check(self, batch_size: int, length: int) -> None:
        super().check(batch_size, length)
        if length < self.shortest():
            raise ConfigError(
                f"Sequences of {length} tokens cannot hold {self.num_kv_pairs} pairs and their queries.",
                f"at least {self.shortest()} tokens: two for a pair and two for a query.",
                "raise trainer.length or lower task.num_kv_pairs.",
            )

    def generate(self, generator: np.random.Generator, batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        pairs, half, context = self.num_kv_pairs, self.vocab_size // 2, 2 * self.num_kv_pairs
        keys = 1 + _distinct(generator, np.zeros(half - 1), batch_size, pairs)  # (B, pairs)
        values = half + _distinct(generator, np.zeros(self.vocab_size - half), batch_size, pairs)
        slots = np.arange(1, (length - context) // 2 + 1)
        asked = context + 2 * _distinct(generator, (self.power_a - 1) * np.log(slots), batch_size, pairs)
        inputs = np.zeros((batch_size, length), dtype=np.int64)
        if self.random_non_queries:
            inputs = generator.integers(self.vocab_size, size=(batch_size, length), dtype=np.int64)
        inputs[:, 0:context:2], inputs[:, 1:context:2] = keys, values
        np.put_along_axis(inputs, asked, keys, axis=1)
        targets = np.full((batch_size, length), IGNORE, dtype=np.int64)
        np.put_along_axis(targets, asked, values, axis=1)
        return inputs, targets

    def oracle(self, inputs: Tensor) -> Tensor:
        context = 2 * self.num_kv_pairs
        memory = torch.zeros(len(inputs), self.vocab_size, dtype=torch.long)
        memory.scatter_(1, inputs[:, 0:context:2], inputs[:, 1:context:2])
        return memory.gather(1, inputs)


def _distinct(generator: np.random.Generator, log_weights: np.ndarray, batch_size: int, count: int) -> np.ndarray:
    """Draws `count` of the indices without replacement, one after the other, by weight: (B, count).

    The largest sums of log-weight and Gumbel noise, in order, are such a draw (Efraimidis and Spirakis 2006).
    """
    noisy = log_weights + generator.gumbel(size=(batch_size, len(log_weights)))
    return np.argsort(-noisy, axis=1, kind="stable")[:, :count]
