"""Induction heads: what followed the last time this token stood here? (Olsson et al. 2022; Gu and Dao 2023)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.config.ranges import Name
from harness.model.interface import IGNORE
from harness.tasks.synthetic import SyntheticTask, Vocabulary


class InductionHeads(SyntheticTask):
    """Random tokens with one mark among them, and the mark once more at the end: answer the token that followed it.

    Tokens are 0 to vocab_size - 2, the mark is vocab_size - 1.
    """

    def __init__(self, name: Name = "induction_heads", vocab_size: Vocabulary = 16):
        self.name, self.vocab_size, self.mark = name, vocab_size, vocab_size - 1

    def parameters(self) -> dict[str, Any]:
        return {"vocab_size": self.vocab_size}

    def shortest(self) -> int:
        return 3

    def generate(self, generator: np.random.Generator, batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        inputs = generator.integers(self.mark, size=(batch_size, length), dtype=np.int64)
        rows, place = np.arange(batch_size), generator.integers(length - 2, size=batch_size)
        targets = np.full((batch_size, length), IGNORE)
        targets[:, -1] = inputs[rows, place + 1]
        inputs[rows, place] = inputs[:, -1] = self.mark
        return inputs, targets

    def oracle(self, inputs: Tensor) -> Tensor:
        followed = (inputs[:, :-1] == self.mark).int().argmax(dim=1, keepdim=True) + 1
        return torch.where(inputs == self.mark, inputs.gather(1, followed), 0)
