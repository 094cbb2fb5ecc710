"""What tasks of state tracking share: an answer after every symbol, how much is asked, and lengths in training."""

from typing import Any, Literal

import numpy as np

from harness.config.ranges import Length, Name
from harness.model.interface import IGNORE
from harness.tasks.synthetic import SyntheticTask

Asks = Literal["every", "last"]


class StateTracking(SyntheticTask):
    """A sequence of symbols, each of whose beginnings has an answer.

    asks: every answer, or the last alone. min_length: training draws the length of each sequence from min_length to the
    training length, with zeros behind it; None has all at the training length. Evaluation fills its lengths.
    """

    def __init__(self, name: Name, asks: Asks = "every", min_length: Length | None = None):
        self.name, self.asks, self.min_length = name, asks, min_length

    def parameters(self) -> dict[str, Any]:
        return {"asks": self.asks, "min_length": self.min_length}

    def shortest(self) -> int:
        return self.min_length or 1

    def draw(self, generator: np.random.Generator, batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Symbols and answers, both (B, T); an answer is IGNORE where a beginning has none."""
        raise NotImplementedError

    def generate(self, generator: np.random.Generator, batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        symbols, answers = self.draw(generator, batch_size, length)
        return symbols, self._asked(answers)

    def generate_train(
        self, generator: np.random.Generator, batch_size: int, length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.min_length is None:
            return self.generate(generator, batch_size, length)
        lengths = generator.integers(self.min_length, length + 1, size=batch_size)
        symbols, answers = self.draw(generator, batch_size, length)
        behind = np.arange(length) >= lengths[:, None]  # (B, T)
        return np.where(behind, 0, symbols), self._asked(np.where(behind, IGNORE, answers))

    def _asked(self, answers: np.ndarray) -> np.ndarray:
        if self.asks == "every":
            return answers
        last = answers.shape[1] - 1 - np.argmax((answers != IGNORE)[:, ::-1], axis=1)
        return np.where(np.arange(answers.shape[1]) == last[:, None], answers, IGNORE)
