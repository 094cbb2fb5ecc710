"""Memorization as MAD has it: facts that stand in no context and must be learned by heart (Poli et al. 2024)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.config.ranges import Count, Length, Name
from harness.model.interface import IGNORE
from harness.tasks.synthetic import SyntheticTask, Vocabulary

FACTS_SEED = 12345


class Memorization(SyntheticTask):
    """key, blank, key, blank, ...; at each blank the value of the key is asked for, by one map for all sequences.

    Keys are the first half of the vocabulary without its last token, the blank; each key has its own value of the other
    half. The map is the same in all splits and for all seeds. length, train_examples: of a train set; None draws
    without end. arXiv:2403.17844.
    """

    def __init__(
        self,
        name: Name = "memorization",
        vocab_size: Vocabulary = 256,
        length: Length | None = None,
        train_examples: Count | None = None,
    ):
        self.name, self.vocab_size, self.blank = name, vocab_size, vocab_size - 1
        self.length, self.train_examples = length, train_examples
        self.keys = (vocab_size - 1) // 2
        values = np.random.default_rng(FACTS_SEED).permutation(vocab_size - 1 - self.keys)
        self.facts = self.keys + values[: self.keys]

    def parameters(self) -> dict[str, Any]:
        return {"vocab_size": self.vocab_size}

    def shortest(self) -> int:
        return 2

    def generate(self, generator: np.random.Generator, batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        inputs, targets = np.full((batch_size, length), self.blank), np.full((batch_size, length), IGNORE)
        inputs[:, ::2] = generator.integers(self.keys, size=inputs[:, ::2].shape)
        targets[:, 1::2] = self.facts[inputs[:, : length - 1 : 2]]
        return inputs, targets

    def oracle(self, inputs: Tensor) -> Tensor:
        before = torch.cat([inputs[:, :1], inputs[:, :-1]], 1).clamp(max=self.keys - 1)
        return torch.from_numpy(self.facts)[before]
