"""State tracking: the running parity of a sequence of bits, the smallest problem that a counter-free memory fails."""

from typing import Any

import numpy as np
from torch import Tensor

from harness.ranges import Name
from harness.tasks.synthetic import SyntheticTask


class Parity(SyntheticTask):
    """Fair bits in; at each position the parity of the bits seen so far, the present one included."""

    vocab_size = 2

    def __init__(self, name: Name = "parity"):
        self.name = name

    def parameters(self) -> dict[str, Any]:
        return {}

    def generate(self, generator: np.random.Generator, batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        bits = generator.integers(2, size=(batch_size, length), dtype=np.int64)
        return bits, np.bitwise_xor.accumulate(bits, axis=1)

    def oracle(self, inputs: Tensor) -> Tensor:
        return inputs.cumsum(dim=1) % 2
