"""State tracking: the value of an arithmetic expression without brackets, modulo a number."""

from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from harness.config.ranges import Length, Name
from harness.model.interface import IGNORE
from harness.tasks.state_tracking import Asks, StateTracking

Modulus = Annotated[int, Field(ge=2, le=1024)]
OPERATORS = 3
PLUS, MINUS = 0, 1
"""Of the operators, in order: +, -, *; their tokens follow the numbers."""


class ModularArithmetic(StateTracking):
    """number operator number ...; the answer after a number is the value so far, a product before a sum.

    As in Deletang et al. 2022 (arXiv:2207.02098, "modular arithmetic (simple)"). Numbers are 0 to modulus - 1, then the
    operators +, -, *. Beginnings that end in an operator have no answer.
    """

    def __init__(
        self,
        name: Name = "modular_arithmetic",
        modulus: Modulus = 5,
        asks: Asks = "every",
        min_length: Length | None = None,
    ):
        super().__init__(name, asks, min_length)
        self.modulus, self.vocab_size = modulus, modulus + OPERATORS

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | {"modulus": self.modulus}

    def draw(self, generator: np.random.Generator, batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        symbols = generator.integers(self.modulus, size=(batch_size, length), dtype=np.int64)
        operators = symbols[:, 1::2]
        operators[...] = self.modulus + generator.integers(OPERATORS, size=operators.shape)
        answers = np.full_like(symbols, IGNORE)
        total, product = np.zeros(batch_size, np.int64), symbols[:, 0]  # the sum before the last term, and that term
        answers[:, 0] = product
        for t in range(2, length, 2):
            operator, number = symbols[:, t - 1] - self.modulus, symbols[:, t]
            adds = (operator == PLUS) | (operator == MINUS)
            total = np.where(adds, total + product, total) % self.modulus
            signed = np.where(operator == MINUS, -number, number)
            product = np.where(adds, signed, product * number) % self.modulus
            answers[:, t] = (total + product) % self.modulus
        return symbols, answers

    def oracle(self, inputs: Tensor) -> Tensor:
        """Keeps the list of terms of each row; answers nothing behind the end of an expression."""
        answers = torch.zeros_like(inputs)
        for row, symbols in enumerate(inputs.tolist()):
            terms = [symbols[0]]
            answers[row, 0] = symbols[0]
            for t in range(2, len(symbols), 2):
                operator, number = symbols[t - 1] - self.modulus, symbols[t]
                if operator < 0:
                    break
                if operator in (PLUS, MINUS):
                    terms.append(number if operator == PLUS else -number)
                else:
                    terms[-1] = terms[-1] * number % self.modulus
                answers[row, t] = sum(terms) % self.modulus
        return answers
