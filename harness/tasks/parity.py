"""State tracking: the running parity of a sequence of bits, the smallest problem that a counter-free memory fails."""

import numpy as np
from torch import Tensor

from harness.config.ranges import Length, Name
from harness.tasks.state_tracking import Asks, StateTracking


class Parity(StateTracking):
    """Fair bits in; the answer at a position is the parity of the bits seen so far, the present one included."""

    vocab_size = 2

    def __init__(self, name: Name = "parity", asks: Asks = "every", min_length: Length | None = None):
        super().__init__(name, asks, min_length)

    def draw(self, generator: np.random.Generator, batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        bits = generator.integers(2, size=(batch_size, length), dtype=np.int64)
        return bits, np.bitwise_xor.accumulate(bits, axis=1)

    def oracle(self, inputs: Tensor) -> Tensor:
        return inputs.cumsum(dim=1) % 2
