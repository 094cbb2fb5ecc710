"""Tasks that are generated, without end or as a train set; an oracle shows that each can be solved."""

import hashlib
import json
import math
from functools import cached_property, lru_cache
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from harness.config.errors import ConfigError
from harness.tasks.task import SPLITS, Batch, Task

Vocabulary = Annotated[int, Field(ge=4, le=2**20)]
DIGEST_SHAPE = (4, 64)
"""Batch size and length of the examples that the digest covers; a subclass may need longer ones."""
LARGEST_BATCH = 2**27
"""Numbers drawn for one batch: a gigabyte of them."""
BLOCK = 1000
"""Examples of a train set that are drawn together."""
TRAIN_SET, ORDER = 1, 2
"""Last words of the seeds of a train set and of its order, where a batch that is drawn by itself has none (a zero)."""


class SyntheticTask(Task):
    """Batches drawn from a generator seeded by (split, seed, index), so that splits never share a stream.

    With `train_examples`, training passes over a train set of so many examples of `length` tokens, the same for all
    seeds, in an order that depends on (seed, epoch). Validation and test never end.
    """

    metric = "accuracy"
    version = 1
    """Raised when the generator changes what it generates."""
    train_examples: int | None = None
    length: int | None = None

    def parameters(self) -> dict[str, Any]:
        """What the generator depends on, besides its code."""
        raise NotImplementedError

    def generate(self, generator: np.random.Generator, batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Draws inputs and targets, both (B, T); a target is IGNORE where nothing is asked."""
        raise NotImplementedError

    def generate_train(
        self, generator: np.random.Generator, batch_size: int, length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same for training, where a task trains on other examples than it is judged by."""
        return self.generate(generator, batch_size, length)

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
        if self.train_examples is not None:
            facts |= {"train_examples": self.train_examples, "length": self.length}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        batch_size, length = DIGEST_SHAPE
        for split in SPLITS:
            if split == "train" and self.train_examples is not None:
                inputs, targets = self._block(0)
            else:
                batch = self.batch(split, 0, batch_size, max(length, self.shortest()), 0)
                inputs, targets = batch.inputs.numpy(), batch.targets.numpy()
            digest.update(inputs.data)
            digest.update(targets.data)
        return digest.hexdigest()

    def tokens(self, split: str) -> int | None:
        if split != "train" or self.train_examples is None or self.length is None:
            return None
        return self.train_examples * self.length

    def check(self, batch_size: int, length: int) -> None:
        """Raises ConfigError where a batch would take more memory than any run needs, or cannot hold the task."""
        self._check_drawn(batch_size, length)
        if self.train_examples is not None and length != self.length:
            raise ConfigError(
                f"trainer.length={length} was given; the train set of task={self.name} has examples of {self.length}.",
                "one length for both.",
                f"set trainer.length={self.length}, or task.length, or take an experiment of docs/tasks.md that does.",
            )

    def _check_drawn(self, batch_size: int, length: int) -> None:
        if batch_size * max(length, self.vocab_size) > LARGEST_BATCH:
            raise ConfigError(
                f"Batches of {batch_size:,} x {length:,} tokens of {self.vocab_size:,} kinds are too large to draw.",
                f"at most {LARGEST_BATCH:,} numbers, batch size x length or batch size x vocabulary.",
                "lower trainer.batch_size (trainer.accumulate makes up for it) or trainer.length.",
            )
        if length < self.shortest():
            raise ConfigError(
                f"Sequences of {length} tokens cannot hold task={self.name}.",
                f"at least {self.shortest()} tokens with the task's other settings.",
                "raise trainer.length, or ask for less in the task.",
            )

    def batch(self, split: str, index: int, batch_size: int, length: int, seed: int) -> Batch:
        if split == "train" and self.train_examples is not None:
            self.check(batch_size, length)
            rows = self._rows(index, batch_size, seed)
            inputs, targets = (part[rows].astype(np.int64) for part in self._train_set)
        else:
            self._check_drawn(batch_size, length)
            generate = self.generate_train if split == "train" else self.generate
            inputs, targets = generate(np.random.default_rng([SPLITS.index(split), seed, index]), batch_size, length)
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets))

    @cached_property
    def _train_set(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of all train examples, in the smallest type that holds them."""
        kind = np.int16 if self.vocab_size <= 2**15 else np.int32
        examples = self.train_examples or 0
        blocks = [self._block(number) for number in range(math.ceil(examples / BLOCK))]
        inputs, targets = (np.concatenate([part.astype(kind) for part in parts]) for parts in zip(*blocks, strict=True))
        return inputs[:examples], targets[:examples]

    def _block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The train examples from number * BLOCK on, at most BLOCK of them."""
        generator = np.random.default_rng([SPLITS.index("train"), 0, number, TRAIN_SET])
        return self.generate_train(generator, min(BLOCK, self.train_examples or 0), self.length or 0)

    def _rows(self, index: int, batch_size: int, seed: int) -> np.ndarray:
        """The places in the train set of the examples of a batch; an epoch has each once."""
        examples = self.train_examples or 0
        epochs, places = np.divmod(np.arange(index * batch_size, (index + 1) * batch_size), examples)
        return np.array([_order(examples, seed, int(e))[p] for e, p in zip(epochs, places, strict=True)])


@lru_cache(maxsize=4)
def _order(examples: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits the examples of a train set."""
    return np.random.default_rng([SPLITS.index("train"), seed, epoch, ORDER]).permutation(examples)


def distinct(generator: np.random.Generator, below: int, batch_size: int, count: int) -> np.ndarray:
    """Draws `count` different numbers of those from 0 to `below` - 1, all orders alike: (batch_size, count).

    Floyd's sampling (Bentley and Floyd 1987), all rows at once, and a shuffle.
    """
    drawn = np.empty((batch_size, count), dtype=np.int64)
    for place, top in enumerate(range(below - count, below)):
        new = generator.integers(top + 1, size=batch_size)
        taken = (drawn[:, :place] == new[:, None]).any(axis=1)
        drawn[:, place] = np.where(taken, top, new)
    return generator.permuted(drawn, axis=1)
