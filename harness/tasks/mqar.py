"""Multi-query associative recall (Arora et al. 2023, "Zoology", arXiv:2312.04927)."""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from harness.config.errors import ConfigError
from harness.config.ranges import Count, Dimension, Exponent, Length, Name
from harness.model.interface import IGNORE
from harness.tasks.synthetic import SyntheticTask, Vocabulary, distinct

Mixture = Annotated[Sequence[Annotated[list[Count], Field(min_length=3, max_length=3)]], Field(min_length=1)]
"""Of each kind of train example its length, its pairs and its share of the whole."""


class MQAR(SyntheticTask):
    """Pairs key, value, key, value, ... and later, among fillers, each key once more: answer its value there.

    Keys are drawn without replacement from [1, vocab_size / 2), values from [vocab_size / 2, vocab_size). The slots of
    the queries (every second position after the pairs) are drawn without replacement with probability proportional to
    slot^(power_a - 1), slot = 1, 2, ...: a small power_a asks soon, power_a = 1 asks anywhere alike. The other
    positions hold random tokens (random_non_queries) or 0.

    With `length`, sequences of another length have as many pairs a token. train_examples: None draws without end.
    mixture: training draws its examples from several lengths and numbers of pairs, with zeros behind shorter ones.
    Raises ConfigError where the pairs do not fit.
    """

    version = 2

    def __init__(
        self,
        name: Name = "mqar",
        vocab_size: Vocabulary = 8192,
        num_kv_pairs: Dimension = 4,
        power_a: Exponent = 0.01,
        random_non_queries: bool = False,
        length: Length | None = None,
        train_examples: Count | None = None,
        mixture: Mixture | None = None,
    ):
        self.name, self.vocab_size, self.num_kv_pairs = name, vocab_size, num_kv_pairs
        self.power_a, self.random_non_queries = power_a, random_non_queries
        self.length, self.train_examples, self.mixture = length, train_examples, mixture
        most = max([num_kv_pairs, *(pairs for _, pairs, _ in mixture or ())])
        if most > vocab_size // 2 - 1:
            raise ConfigError(
                f"{most} pairs need as many distinct keys; task.vocab_size={vocab_size} has {vocab_size // 2 - 1}.",
                "fewer pairs than vocab_size / 2.",
                f"set task.vocab_size={2 * most + 2} or more, or fewer pairs.",
            )
        if length is None and (train_examples is not None or mixture is not None):
            raise ConfigError(
                "task.train_examples or task.mixture was given without task.length.",
                "the length of the train set's examples.",
                "set task.length, or both to null.",
            )
        kinds = [(length, num_kv_pairs), *((each, pairs) for each, pairs, _ in mixture or ())]
        for each, pairs in kinds:
            if length is not None and each is not None and not 4 * pairs <= each <= length:
                raise ConfigError(
                    f"{pairs} pairs in {each} tokens do not fit task.length={length}.",
                    "four tokens a pair, two to state and two to ask, in at most task.length of them.",
                    "raise task.length, or lower the pairs.",
                )

    def parameters(self) -> dict[str, Any]:
        names = ("vocab_size", "num_kv_pairs", "power_a", "random_non_queries", "length", "mixture")
        return {name: getattr(self, name) for name in names}

    def pairs(self, length: int) -> int:
        """The pairs of sequences of this length: as many a token as the train set has, where there is one."""
        if self.length is None:
            return self.num_kv_pairs
        return max(1, min(self.num_kv_pairs * length // self.length, self.vocab_size // 2 - 1))

    def shortest(self) -> int:
        return 4 * self.num_kv_pairs if self.length is None else 4

    def generate(self, generator: np.random.Generator, batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        return self._examples(generator, batch_size, length, self.pairs(length))

    def generate_train(
        self, generator: np.random.Generator, batch_size: int, length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.mixture is None:
            return self.generate(generator, batch_size, length)
        inputs, targets = np.zeros((batch_size, length), np.int64), np.full((batch_size, length), IGNORE, np.int64)
        shares = np.array([share for _, _, share in self.mixture], dtype=float)
        kinds = generator.choice(len(shares), size=batch_size, p=shares / shares.sum())
        for kind, (each, pairs, _) in enumerate(self.mixture):
            rows = np.flatnonzero(kinds == kind)
            inputs[rows, :each], targets[rows, :each] = self._examples(generator, len(rows), each, pairs)
        return inputs, targets

    def _examples(
        self, generator: np.random.Generator, batch_size: int, length: int, pairs: int
    ) -> tuple[np.ndarray, np.ndarray]:
        half, context = self.vocab_size // 2, 2 * pairs
        keys = 1 + distinct(generator, half - 1, batch_size, pairs)  # (B, pairs)
        values = half + distinct(generator, self.vocab_size - half, batch_size, pairs)
        slots = np.arange(1, (length - context) // 2 + 1)
        asked = context + 2 * _weighted(generator, (self.power_a - 1) * np.log(slots), batch_size, pairs)
        inputs = np.zeros((batch_size, length), dtype=np.int64)
        if self.random_non_queries:
            inputs = generator.integers(self.vocab_size, size=(batch_size, length), dtype=np.int64)
        inputs[:, 0:context:2], inputs[:, 1:context:2] = keys, values
        np.put_along_axis(inputs, asked, keys, axis=1)
        targets = np.full((batch_size, length), IGNORE, dtype=np.int64)
        np.put_along_axis(targets, asked, values, axis=1)
        return inputs, targets

    def oracle(self, inputs: Tensor) -> Tensor:
        return recalled(inputs, self.vocab_size // 2)


def recalled(inputs: Tensor, first_value: int) -> Tensor:
    """The value that stood behind each token (B, T), where that is a key, when it first stood behind it: (B, T).

    Keys are the tokens from 1 to first_value - 1, values those above; 0 stands for an unknown one.
    """
    rows = torch.arange(len(inputs))
    memory = torch.zeros(len(inputs), int(inputs.max()) + 1, dtype=torch.long)
    answers, before = [], torch.zeros_like(inputs[:, 0])
    for token in inputs.unbind(1):
        known = memory[rows, before]
        stated = (before > 0) & (before < first_value) & (token >= first_value) & (known == 0)
        memory[rows, before] = torch.where(stated, token, known)
        answers.append(memory[rows, token])
        before = token
    return torch.stack(answers, 1)


def _weighted(generator: np.random.Generator, log_weights: np.ndarray, batch_size: int, count: int) -> np.ndarray:
    """Draws `count` of the indices without replacement, one after the other, by weight: (B, count).

    The largest sums of log-weight and Gumbel noise, in order, are such a draw (Efraimidis and Spirakis 2006).
    """
    noisy = log_weights + generator.gumbel(size=(batch_size, len(log_weights)))
    return np.argsort(-noisy, axis=1, kind="stable")[:, :count]
