"""Event-based XOR: the parity of bits of which only the changes are seen, and the time between them.

Lechner and Hasani 2020 (arXiv:2006.04418); Hasani et al. 2022 (arXiv:2106.13898). The examples are those of the
authors' generator (raminmh/CfC, irregular_sampled_datasets.py), number by number.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from harness.config.ranges import Count, Name
from harness.model.interface import IGNORE, Tokens
from harness.tasks.series import Drawn, Elapsed, SeriesTask, TimeUnit

SEEDS = {"train": 1234984, "test": 48736, "validation": 20_231}
"""The authors' two; they have no validation split, and the third is ours."""


class EventXOR(SeriesTask):
    """2 to pad_size - 1 fair bits; a step is a change of the bit: (bit, time since the last step); answer the parity.

    Where the last bit is no change, it is a further step. The steps of an example are at most pad_size; what follows
    them is padding (bit 0, one step of time). The target stands at the last step alone, as the authors mask the rest.
    The time of step i is the number of bits since step i - 1, so that the parity cannot be known without it.
    """

    features = 1
    targets = Tokens(2)

    def __init__(
        self,
        name: Name = "event_xor",
        pad_size: Annotated[int, Field(ge=4, le=4096)] = 32,
        train_examples: Count = 100_000,
        test_examples: Count = 10_000,
        elapsed: Elapsed = True,
        time_feature: bool = True,
        time_unit: TimeUnit = 32.0,
    ):
        super().__init__(name, pad_size, elapsed, time_feature, time_unit)
        self.sizes = {"train": train_examples, "validation": test_examples, "test": test_examples}

    def examples(self, split: str) -> int:
        return self.sizes[split]

    def facts(self) -> dict[str, Any]:
        return {"sizes": self.sizes}

    @cached_property
    def sets(self) -> dict[str, Drawn]:
        """All examples of each split."""
        return {split: examples_of(SEEDS[split], size, self.window) for split, size in self.sizes.items()}

    def arrays(self) -> Iterator[np.ndarray]:
        for drawn in self.sets.values():
            yield from (drawn.values, drawn.targets, drawn.elapsed)

    def mean_elapsed(self) -> float:
        drawn = self.sets["train"]
        return float(drawn.elapsed[np.arange(self.window) < drawn.lengths[:, None]].mean())

    def draw(self, split: str, numbers: np.ndarray, positions: np.ndarray, seed: int) -> Drawn:
        return Drawn(*(array[numbers] for array in vars(self.sets[split]).values()))

    def oracle(self, inputs: Tensor, elapsed: Tensor) -> Tensor:
        """The parity (B, T) of the bits up to each step: a bit lasts until the next step."""
        bits, times = inputs[..., 0].round().long(), (elapsed * self.time_unit).round().long()
        before = torch.nn.functional.pad(bits[:, :-1], (1, 0))
        return ((before * times).cumsum(1) + bits) % 2


def examples_of(seed: int, count: int, pad_size: int) -> Drawn:
    """The first `count` examples of the authors' generator under a seed."""
    starts, lengths, stream = _numbers(seed, count, pad_size)
    bits = (stream[starts + np.arange(pad_size - 1)] & 1).astype(np.int64)  # of each row, the first `lengths` of them
    place = np.arange(pad_size - 1)
    change = np.diff(bits, axis=1, prepend=-1) != 0
    seen = (change | (place == lengths - 1)) & (place < lengths)  # (count, pad_size - 1)
    rows, places = np.nonzero(seen)
    steps = seen.sum(1)
    at = np.arange(len(rows)) - np.repeat(np.cumsum(steps) - steps, steps)  # the number of the step in its example
    values, elapsed = np.zeros((count, pad_size, 1), np.float32), np.ones((count, pad_size), np.float32)
    values[rows, at, 0] = bits[rows, places]
    elapsed[rows, at] = np.where(at == 0, 1, np.diff(places, prepend=0))
    targets = np.full((count, pad_size), IGNORE, dtype=np.int64)
    targets[np.arange(count), steps - 1] = (bits * (place < lengths)).sum(1) % 2
    return Drawn(values, targets, elapsed, steps)


def _numbers(seed: int, count: int, pad_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the bits of each example start, how many they are, both (count, 1), and the 32-bit numbers that hold them.

    RandomState.randint, called once for each length and each bit, takes one number of this stream at a time, keeps its
    low bits and passes over what lies beyond the range; the authors' calls one by one would take minutes.
    """
    most = pad_size - 3  # the length, less 2, is at most this
    stream = np.random.RandomState(seed).randint(0, 2**32, size=count * (pad_size + 8) + 1000, dtype=np.uint32)
    low = stream & (2 ** most.bit_length() - 1)
    starts, lengths, at = np.zeros((count, 1), dtype=np.int64), np.zeros((count, 1), dtype=np.int64), 0
    for row in range(count):
        while low[at] > most:
            at += 1
        starts[row], lengths[row] = at + 1, 2 + int(low[at])
        at += 1 + lengths[row, 0]
    return starts, lengths, stream
