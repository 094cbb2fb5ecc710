"""Selective copying: say again, in order, the few tokens that stood among blanks (Gu and Dao 2023, MAD)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.config.ranges import Count, Dimension, Length, Name
from harness.model.interface import IGNORE
from harness.tasks.synthetic import SyntheticTask, Vocabulary, distinct


class SelectiveCopying(SyntheticTask):
    """`num_tokens` tokens at random places among blanks, a mark, and as many blanks, at each of which one is asked for.

    Tokens are 0 to vocab_size - 3; vocab_size - 2 is the blank and vocab_size - 1 the mark. length, train_examples: of
    a train set; None draws without end.
    """

    def __init__(
        self,
        name: Name = "selective_copying",
        vocab_size: Vocabulary = 16,
        num_tokens: Dimension = 16,
        length: Length | None = None,
        train_examples: Count | None = None,
    ):
        self.name, self.vocab_size, self.num_tokens = name, vocab_size, num_tokens
        self.length, self.train_examples = length, train_examples
        self.blank, self.mark = vocab_size - 2, vocab_size - 1

    def parameters(self) -> dict[str, Any]:
        return {"vocab_size": self.vocab_size, "num_tokens": self.num_tokens}

    def shortest(self) -> int:
        return 2 * self.num_tokens + 1

    def generate(self, generator: np.random.Generator, batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        count = self.num_tokens
        context = length - count - 1
        tokens = generator.integers(self.blank, size=(batch_size, count), dtype=np.int64)
        places = np.sort(distinct(generator, context, batch_size, count), axis=1)
        inputs, targets = np.full((batch_size, length), self.blank), np.full((batch_size, length), IGNORE)
        np.put_along_axis(inputs, places, tokens, axis=1)
        inputs[:, context], targets[:, -count:] = self.mark, tokens
        return inputs, targets

    def oracle(self, inputs: Tensor) -> Tensor:
        answers = torch.zeros_like(inputs)
        for row, symbols in enumerate(inputs.tolist()):
            kept: list[int] = []
            asked = None
            for t, symbol in enumerate(symbols):
                if symbol == self.mark:
                    asked = iter(kept)
                elif asked is not None:
                    answers[row, t] = next(asked, 0)
                elif symbol != self.blank:
                    kept.append(symbol)
        return answers
