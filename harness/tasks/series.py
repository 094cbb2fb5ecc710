"""Tasks of real vectors at irregular times: finite sets of examples, their elapsed times, and figures of each example.

Every model is given the same inputs, and time among them (`time_feature`); what can integrate time has it as
`Batch.elapsed` besides. docs/time_series.md says why.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from harness.config.errors import ConfigError, TaskError
from harness.evaluation.evaluate import EVALUATION_SEED, EvaluateConfig
from harness.evaluation.passage import Passage, observe
from harness.model.interface import Vectors
from harness.tasks.task import SPLITS, Batch, Task

Elapsed = Literal[True, "constant", "permuted"]
"""The time between two steps: as it was, its mean at every step, or in a random order within each example."""
TimeUnit = Annotated[float, Field(ge=1e-6, le=1e9)]
"""The time that a model is told as 1, in the steps of the data."""
Window = Annotated[int, Field(ge=2, le=2**20)]

ORDER, DROP, PERMUTE = range(3)
"""What random numbers are for, so that no two uses share a stream."""


@dataclass(frozen=True)
class Drawn:
    """Examples as the data has them.

    values: (B, T, F). targets: as the task's `targets` describe them. elapsed: (B, T), in the steps of the data.
    lengths: (B,), the steps that are no padding; padding follows them and is not scored.
    """

    values: np.ndarray
    targets: np.ndarray
    elapsed: np.ndarray
    lengths: np.ndarray


class SeriesTask(Task):
    """Examples of `window` steps: those of training shuffled anew in each epoch, the others in order.

    A subclass states `features` and `targets`, counts its examples, draws them, and says what their digest covers.
    name: of the task. window: steps of an example, and so of a training sequence. elapsed: what is told of time.
    time_feature: whether log(1 + elapsed) is one more component of the inputs. time_unit: what is told as 1.
    """

    features: int
    version = 1
    """Raised when batches of the same data change."""

    def __init__(self, name: str, window: int, elapsed: Elapsed, time_feature: bool, time_unit: float):
        self.name, self.window = name, window
        self.elapsed, self.time_feature, self.time_unit = elapsed, time_feature, time_unit

    def examples(self, split: str) -> int:
        """How many examples a split has."""
        raise NotImplementedError

    def draw(self, split: str, numbers: np.ndarray, positions: np.ndarray, seed: int) -> Drawn:
        """The examples `numbers` (B,) of a split. positions, seed: what random numbers may depend on (`generator`)."""
        raise NotImplementedError

    def mean_elapsed(self) -> float:
        """The mean time between two steps of training, in the steps of the data."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """The parameters, beside those of every task of this kind, that the batches depend on."""
        raise NotImplementedError

    def arrays(self) -> Iterator[np.ndarray]:
        """The data, for the digest."""
        raise NotImplementedError

    @property
    def inputs(self) -> Vectors:
        return Vectors(self.features + self.time_feature)

    @property
    def digest(self) -> str:
        told = {"elapsed": self.elapsed, "time_feature": self.time_feature, "time_unit": self.time_unit}
        facts = {"task": type(self).__name__, "version": self.version, "window": self.window, **told, **self.facts()}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for array in self.arrays():
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def tokens(self, split: str) -> int:
        return self.examples(split) * self.window

    def describe(self) -> dict[str, Any]:
        return super().describe() | {f"{split}_examples": self.examples(split) for split in SPLITS}

    def check(self, batch_size: int, length: int) -> None:
        """Raises ConfigError for another length than the window's, and TaskError where there are no data."""
        if length != self.window:
            raise ConfigError(
                f"trainer.length={length} was given, and an example of task={self.name} has {self.window} steps.",
                "a training sequence for each example, whole.",
                f"set trainer.length={self.window}.",
            )
        for split in SPLITS:
            self.examples(split)

    def batch(self, split: str, index: int, batch_size: int, length: int, seed: int) -> Batch:
        if length != self.window:
            raise TaskError(
                f"task={self.name} has no examples of {length} steps.", f"{self.window}, all alike.", "ask for these."
            )
        positions = index * batch_size + np.arange(batch_size)
        epochs, places = np.divmod(positions, count := self.examples(split))
        if split == "train":
            places = np.array([_order(seed, epoch, count)[place] for epoch, place in zip(epochs, places, strict=True)])
        drawn = self.draw(split, places, positions, seed)
        elapsed = self._told(split, drawn, positions, seed)
        values = drawn.values.astype(np.float32)
        if self.time_feature:
            values = np.concatenate([values, np.log1p(elapsed)[..., None]], axis=-1)
        return Batch(torch.from_numpy(values), torch.from_numpy(drawn.targets), torch.from_numpy(elapsed))

    def _told(self, split: str, drawn: Drawn, positions: np.ndarray, seed: int) -> np.ndarray:
        """The elapsed times (B, T) as they are told: in the unit, and true, constant or permuted; float32."""
        told = drawn.elapsed.astype(np.float64)
        if self.elapsed == "constant":
            told = np.full_like(told, self.mean_elapsed())
        elif self.elapsed == "permuted":
            for row, (position, length) in enumerate(zip(positions, drawn.lengths, strict=True)):
                told[row, :length] = generator(PERMUTE, split, position, seed).permutation(drawn.elapsed[row, :length])
        return (told / self.time_unit).astype(np.float32)

    def evaluate(self, model, config: EvaluateConfig, train_length: int, seed: int) -> dict[str, Any]:
        """The figures of validation and test over each example once, as far as `max_bytes` goes: a step is a byte."""
        figures = {split: self._figures(model, split, config) for split in ("validation", "test")}
        return figures | {"extrapolation": [{"length": self.window, **figures["test"]}]}

    def _figures(self, model, split: str, config: EvaluateConfig) -> dict[str, Any]:
        device, examples = next(model.parameters()).device, self.examples(split)
        if config.max_bytes is not None:
            examples = min(examples, max(1, config.max_bytes // self.window))
        batch_size = min(config.streams, examples)
        count = math.ceil(examples / batch_size)
        loss, scored, tallies = torch.zeros((), dtype=torch.float64, device=device), 0, []
        for index in range(count):
            batch = self.batch(split, index, batch_size, self.window, EVALUATION_SEED).to(device)
            batch = batch.rows(slice(examples - index * batch_size))
            outputs = batch.read(model)
            if split == "test":
                observe(Passage(index, count, batch, outputs))
            loss += self.loss(outputs, batch).double()
            scored += self.scored(batch)
            tallies.append(self.tally(outputs, batch))
        return {**self.judge(np.sum(tallies, axis=0), scored), "loss": loss.item() / scored, "targets": scored}

    def tally(self, outputs: Tensor, batch: Batch) -> list[float]:
        """What `judge` needs of one batch; summed over batches."""
        return [self.total(outputs, batch)]

    def judge(self, tallied: np.ndarray, scored: int) -> dict[str, float]:
        """The figures of a split from the sums of its tallies, the metric first."""
        return {self.metric: float(tallied[0]) / scored}


def generator(purpose: int, split: str, position: int, seed: int) -> np.random.Generator:
    """Random numbers for one example of a stream, the same however the stream is cut into batches."""
    return np.random.default_rng([purpose, SPLITS.index(split), seed, position])


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([ORDER, seed, epoch]).permutation(count)
