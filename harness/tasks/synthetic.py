"""Tasks that are generated: no example is seen twice, and an oracle shows that each can be solved."""

import hashlib
import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.errors import ConfigError
from harness.tasks.task import SPLITS, Batch, Task

DIGEST_SHAPE = (4, 64)
"""Batch size and length of the examples that the digest covers; a subclass may need longer ones."""
LARGEST_BATCH = 2**27
"""Numbers drawn for one batch: a gigabyte of them."""


class SyntheticTask(Task):
    """Batches drawn from a generator seeded by (split, seed, index), so that splits never share a stream."""

    metric = "accuracy"
    version = 1
    """Raised when the generator changes what it generates."""

    def parameters(self) -> dict[str, Any]:
        """What the generator depends on, besides its code."""
        raise NotImplementedError

    def generate(self, generator: np.random.Generator, batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Draws inputs and targets, both (B, T); a target is IGNORE where nothing is asked."""
        raise NotImplementedError

    def oracle(self, inputs: Tensor) -> Tensor:
        """Solves the task: predictions (B, T), right wherever a target stands, each from inputs[:, : t + 1] alone."""
        raise NotImplementedError

    def shortest(self) -> int:
        """The least length that holds the task."""
        return 1

    @property
    def digest(self) -> str:
        """Covers the version, the parameters and examples of every split, so that a changed generator shows."""
        facts = {"task": type(self).__name__, "version": self.version, "parameters": self.parameters()}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        batch_size, length = DIGEST_SHAPE
        for split in SPLITS:
            batch = self.batch(split, 0, batch_size, max(length, self.shortest()), 0)
            digest.update(batch.inputs.numpy().data)
            digest.update(batch.targets.numpy().data)
        return digest.hexdigest()

    def tokens(self, split: str) -> None:
        return None

    def check(self, batch_size: int, length: int) -> None:
        """Raises ConfigError where a batch would take more memory than any run needs."""
        if batch_size * max(length, self.vocab_size) > LARGEST_BATCH:
            raise ConfigError(
                f"Batches of {batch_size:,} x {length:,} tokens of {self.vocab_size:,} kinds are too large to draw.",
                f"at most {LARGEST_BATCH:,} numbers, batch size x length or batch size x vocabulary.",
                "lower trainer.batch_size (trainer.accumulate makes up for it) or trainer.length.",
            )

    def batch(self, split: str, index: int, batch_size: int, length: int, seed: int) -> Batch:
        self.check(batch_size, length)
        inputs, targets = self.generate(np.random.default_rng([SPLITS.index(split), seed, index]), batch_size, length)
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets))
