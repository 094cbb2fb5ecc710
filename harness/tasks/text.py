"""Byte-level language modelling over three splits, and the ways a corpus is cut into them."""

import hashlib
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch

from harness.config.errors import TaskError
from harness.evaluation.evaluate import EvaluateConfig
from harness.evaluation.text import text_figures
from harness.tasks.task import SPLITS, Batch, Task

JOIN = b"\n\n"


class TextTask(Task):
    """Predict the next byte. A corpus is one stream of bytes per split; `load` reads them."""

    vocab_size = 256
    metric = "bits_per_byte"

    def __init__(self, name: str):
        self.name = name

    def load(self) -> dict[str, bytes]:
        """Reads the corpus: the bytes of every split. Raises TaskError."""
        raise NotImplementedError

    @cached_property
    def streams(self) -> dict[str, np.ndarray]:
        """The bytes of every split, uint8, in reading order."""
        return {split: np.frombuffer(data, dtype=np.uint8) for split, data in self.load().items()}

    @cached_property
    def digest(self) -> str:
        digest = hashlib.sha256()
        for split in SPLITS:
            digest.update(f"{split} {len(self.streams[split])}\n".encode())
            digest.update(self.streams[split].data)
        return digest.hexdigest()

    def tokens(self, split: str) -> int:
        return len(self.streams[split])

    def words(self, split: str) -> int:
        """Words of a split, separated by white space."""
        return len(self.streams[split].tobytes().split())

    def evaluate(self, model, config: EvaluateConfig, train_length: int, seed: int) -> dict[str, Any]:
        self.check(1, train_length)
        return text_figures(model, self.streams, config, train_length, seed)

    def windows(self, split: str, length: int) -> int:
        """Windows of `length` inputs in one epoch: the same number at every epoch's offset."""
        room = self.tokens(split) - (length if split == "train" else 1)
        return max(0, room // length)

    def check(self, batch_size: int, length: int) -> None:
        needed = {"train": (batch_size + 1) * length, "validation": length + 1, "test": length + 1}
        for split in SPLITS:
            if self.tokens(split) < needed[split]:
                raise TaskError(
                    f"The {split} split of task={self.name} has {self.tokens(split)} bytes.",
                    f"at least {needed[split]} for batches of {batch_size} x {length} bytes.",
                    "give a larger corpus, or lower trainer.length or trainer.batch_size.",
                )

    def batch(self, split: str, index: int, batch_size: int, length: int, seed: int) -> Batch:
        """Returns windows of the split's stream, inputs and the same shifted by one byte.

        An epoch visits every window once, in an order that depends on (seed, epoch); the train windows start at an
        offset below `length` drawn anew each epoch, so that no byte keeps its position in the context. What an offset
        cuts off at the ends (less than two windows) is out for that epoch only. Validation and test have no offset.
        """
        windows = self.windows(split, length)
        if windows == 0:
            self.check(batch_size, length)
            raise TaskError(f"{split} holds no window of {length} bytes.", "a longer split.", "lower trainer.length.")
        samples = np.arange(index * batch_size, (index + 1) * batch_size)
        starts = np.array([self._start(split, windows, length, seed, int(sample)) for sample in samples])
        rows = np.lib.stride_tricks.sliding_window_view(self.streams[split], length + 1)[starts]
        tokens = torch.from_numpy(rows.astype(np.int64))  # (B, T + 1)
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())

    @staticmethod
    def _start(split: str, windows: int, length: int, seed: int, sample: int) -> int:
        epoch, position = divmod(sample, windows)
        order, offset = epoch_order(SPLITS.index(split), windows, length, seed, epoch)
        return int(order[position]) * length + (offset if split == "train" else 0)


@lru_cache(maxsize=8)
def epoch_order(split: int, windows: int, length: int, seed: int, epoch: int) -> tuple[np.ndarray, int]:
    """The order of an epoch's windows and the offset of the first one."""
    generator = np.random.default_rng([split, seed, epoch, length])
    return generator.permutation(windows), int(generator.integers(length))


def by_fraction(data: bytes, validation: float, test: float) -> dict[str, bytes]:
    """Cuts one stream in three contiguous parts: train, then validation, then test."""
    ends = [round(len(data) * (1 - validation - test)), round(len(data) * (1 - test))]
    return {"train": data[: ends[0]], "validation": data[ends[0] : ends[1]], "test": data[ends[1] :]}


def by_size(data: bytes, sizes: Sequence[int], source: str) -> dict[str, bytes]:
    """Cuts one stream in contiguous parts of exactly `sizes` bytes; raises TaskError unless they add up to it."""
    if len(sizes) != len(SPLITS) or len(data) != sum(sizes):
        raise TaskError(
            f"{source} has {len(data)} bytes.",
            f"three sizes that add up to it; {list(sizes)} add up to {sum(sizes)}.",
            "fetch the corpus again, or correct task.sizes.",
        )
    ends = np.cumsum([0, *sizes])
    return {split: data[start:end] for split, start, end in zip(SPLITS, ends[:-1], ends[1:], strict=True)}


def by_document(documents: Sequence[bytes], every: int) -> dict[str, bytes]:
    """Puts one document of every `every` in validation and one in test, interleaved, so that eras are alike.

    Documents of one split are joined by a blank line. every: at least 3.
    """
    parts: dict[str, list[bytes]] = {split: [] for split in SPLITS}
    held_out = {every // 2 - 1: "validation", every - 1: "test"}
    for index, document in enumerate(documents):
        parts[held_out.get(index % every, "train")].append(document)
    return {split: JOIN.join(part) for split, part in parts.items()}
