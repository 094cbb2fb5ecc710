"""State tracking: the product of the elements of a group so far, its word problem (Merrill et al. 2024)."""

from functools import lru_cache
from itertools import permutations
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from harness.config.ranges import Length, Name
from harness.tasks.state_tracking import Asks, StateTracking

Group = Literal["S3", "A5", "S5"]


class WordProblem(StateTracking):
    """Elements of a group of permutations in; the answer at a position is the product of all of them so far.

    S3 is solvable; A5 and S5 are not, and their word problem is complete for NC1 (Barrington 1989), which no
    Transformer and no linear recurrence with a diagonal transition solves for all lengths if TC0 is not NC1 (Merrill et
    al. 2024, arXiv:2404.08819). Token i is the i-th permutation in lexicographic order; a product applies its first
    factor first.
    """

    def __init__(
        self,
        name: Name = "word_problem",
        group: Group = "A5",
        asks: Asks = "every",
        min_length: Length | None = None,
    ):
        super().__init__(name, asks, min_length)
        self.group, self.vocab_size = group, len(elements(group))

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | {"group": self.group}

    def draw(self, generator: np.random.Generator, batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        symbols = generator.integers(self.vocab_size, size=(batch_size, length), dtype=np.int64)
        products, table = symbols.copy(), product_table(self.group)
        for t in range(1, length):
            products[:, t] = table[products[:, t - 1], symbols[:, t]]
        return symbols, products

    def oracle(self, inputs: Tensor) -> Tensor:
        """Follows where the permutations take each point."""
        listed = elements(self.group)
        places = {element: token for token, element in enumerate(listed)}
        answers = torch.zeros_like(inputs)
        for row, symbols in enumerate(inputs.tolist()):
            points = tuple(range(len(listed[0])))
            for t, symbol in enumerate(symbols):
                points = tuple(listed[symbol][point] for point in points)
                answers[row, t] = places[points]
        return answers


@lru_cache
def elements(group: Group) -> list[tuple[int, ...]]:
    """The permutations of a group, each as the images of 0, 1, ...: all, or for A the even ones."""
    listed = permutations(range(int(group[1:])))
    return [p for p in listed if group.startswith("S") or _is_even(p)]


def _is_even(p: tuple[int, ...]) -> bool:
    return sum(p[i] > p[j] for j in range(len(p)) for i in range(j)) % 2 == 0


@lru_cache
def product_table(group: Group) -> np.ndarray:
    """The token of the product of tokens a and b at [a, b]."""
    listed = np.array(elements(group))  # (n, points)
    products = listed[np.arange(len(listed))[None, :, None], listed[:, None, :]]  # [a, b, point] -> b(a(point))
    base = listed.shape[1] ** np.arange(listed.shape[1])
    codes = listed @ base
    order = np.argsort(codes)
    return order[np.searchsorted(codes, products @ base, sorter=order)]
