"""State tracking with a stack: well-nested brackets of bounded depth (Hewitt et al. 2020, arXiv:2010.07515)."""

from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from harness.config.ranges import Length, Name
from harness.tasks.state_tracking import Asks, StateTracking

Kinds = Annotated[int, Field(ge=1, le=1024)]
Depth = Annotated[int, Field(ge=1, le=4096)]


class Dyck(StateTracking):
    """Beginnings of Dyck-(k, m), k kinds of brackets nested at most m deep: which bracket may be closed next?

    Opening brackets are 0 to k - 1, the closing ones follow in the same order; the answer 2 k says that none is open.
    A bracket opens where none is open, closes at the greatest depth, and else does either with probability 1/2.
    """

    def __init__(
        self,
        name: Name = "dyck",
        kinds: Kinds = 8,
        max_depth: Depth = 5,
        asks: Asks = "every",
        min_length: Length | None = None,
    ):
        super().__init__(name, asks, min_length)
        self.kinds, self.max_depth, self.vocab_size = kinds, max_depth, 2 * kinds + 1

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | {"kinds": self.kinds, "max_depth": self.max_depth}

    def draw(self, generator: np.random.Generator, batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        kinds = generator.integers(self.kinds, size=(batch_size, length))
        opens = generator.random((batch_size, length)) < 0.5
        rows, depth = np.arange(batch_size), np.zeros(batch_size, dtype=np.int64)
        stack = np.full((batch_size, self.max_depth + 1), self.kinds)  # kinds that are open, behind a bottom
        symbols, answers = np.empty((2, batch_size, length), dtype=np.int64)
        for t in range(length):
            opening = (depth == 0) | (opens[:, t] & (depth < self.max_depth))
            symbols[:, t] = np.where(opening, kinds[:, t], self.kinds + stack[rows, depth])
            depth = depth + np.where(opening, 1, -1)
            stack[rows, depth] = np.where(opening, kinds[:, t], stack[rows, depth])
            answers[:, t] = self.kinds + stack[rows, depth]
        return symbols, answers

    def oracle(self, inputs: Tensor) -> Tensor:
        answers = torch.zeros_like(inputs)
        for row, symbols in enumerate(inputs.tolist()):
            still_open: list[int] = []
            for t, symbol in enumerate(symbols):
                if symbol < self.kinds:
                    still_open.append(symbol)
                elif still_open:
                    still_open.pop()
                answers[row, t] = self.kinds + (still_open[-1] if still_open else self.kinds)
        return answers
