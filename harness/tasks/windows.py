"""Windows of recorded series, some of whose steps may be dropped, with the true time between those that are left."""

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from harness.config.errors import ConfigError, TaskError
from harness.tasks.series import DROP, Drawn, Elapsed, SeriesTask, generator

DropShare = Annotated[float, Field(ge=0, le=0.9)]
Split = Literal["published", "blocked"]
"""Windows shuffled, so that those of two splits overlap, as published; or stretches of time that share no step."""


@dataclass(frozen=True)
class Series:
    """One recording. values: (n, F). targets: (n,) or (n, F), what is asked at each step. elapsed: (n,), since the
    step before."""

    values: np.ndarray
    targets: np.ndarray
    elapsed: np.ndarray


@dataclass(frozen=True)
class Source:
    """Where the files of a task are had from. what: they are. site: that gives them. licence: theirs."""

    what: str
    site: str
    licence: str


class WindowTask(SeriesTask):
    """Examples that are windows of series: `window` steps, drawn at random from a stretch of window / (1 - drop).

    So an example has the same number of steps whatever the share that is dropped, spread over the more time. What is
    asked at a step stays what it was, of Cheetah the very next state. Of the steps to drop a new choice is made
    whenever an example is drawn in training; in the other splits an example keeps its own. path: the folder of the
    files. ahead: whether a step is asked for what is known just before the next that is left (of Cheetah: the state at
    that next step) and told the time until then.
    """

    source: Source
    ahead: bool = False

    def __init__(
        self, name: str, path: str, window: int, drop: float, elapsed: Elapsed, time_feature: bool, time_unit: float
    ):
        super().__init__(name, window, elapsed, time_feature, time_unit)
        self.path, self.drop = path, drop

    @property
    def span(self) -> int:
        """Steps of the stretch that an example is drawn from."""
        return math.ceil(round(self.window / (1 - self.drop), 6))

    def load(self, folder: Path) -> list[Series]:
        """Reads the series. Raises OSError and ValueError for files that are missing or damaged."""
        raise NotImplementedError

    def places(self) -> dict[str, np.ndarray]:
        """The windows of each split, (N, 2): the series and the first step of each."""
        raise NotImplementedError

    @cached_property
    def series(self) -> list[Series]:
        """The recordings; raises TaskError where there are none."""
        folder = Path(os.path.expanduser(self.path))
        try:
            if not folder.is_dir():
                raise FileNotFoundError("there is no such folder")
            return self.load(folder)
        except (OSError, ValueError) as error:
            raise TaskError(
                f"task={self.name} cannot be read from task.path={self.path}: {error}.",
                f"a folder with {self.source.what}.",
                f"get it from {self.source.site} ({self.source.licence}) and set task.path to its folder.",
            ) from error

    @cached_property
    def windows(self) -> dict[str, np.ndarray]:
        """`places`, none of them empty; raises ConfigError where a stretch is too long for the series."""
        found = self.places()
        if empty := [split for split, places in found.items() if len(places) == 0]:
            raise ConfigError(
                f"task={self.name} has no {empty[0]} window of {self.span} steps (task.window={self.window} of them "
                f"left by task.drop={self.drop}).",
                f"at most {max(len(one.values) for one in self.series) - 1} steps, where a split is one series.",
                "lower task.window or task.drop.",
            )
        return found

    def examples(self, split: str) -> int:
        return len(self.windows[split])

    def facts(self) -> dict[str, Any]:
        return {"drop": self.drop}

    def arrays(self) -> Iterator[np.ndarray]:
        for one in self.series:
            yield from (one.values, one.targets, one.elapsed)
        yield from self.windows.values()

    def mean_elapsed(self) -> float:
        trained = {number for number, _ in self.windows["train"].tolist()}
        return float(np.concatenate([self.series[number].elapsed for number in trained]).mean()) / (1 - self.drop)

    def draw(self, split: str, numbers: np.ndarray, positions: np.ndarray, seed: int) -> Drawn:
        ahead, drawn = int(self.ahead), []
        for (number, start), position in zip(self.windows[split][numbers], positions, strict=True):
            kept = np.arange(self.window + ahead)
            if self.span > self.window:
                choice = generator(DROP, split, position, seed)
                kept = np.sort(choice.choice(self.span + ahead, self.window + ahead, replace=False))
            one, rows = self.series[number], start + kept
            clock = np.cumsum(one.elapsed[start : start + self.span + ahead])[kept]
            since = np.diff(clock, prepend=clock[0] - one.elapsed[rows[0]])
            read, asked = (rows[:-1], rows[1:] - 1) if ahead else (rows, rows)
            drawn.append((one.values[read], one.targets[asked], since[ahead:]))
        values, targets, elapsed = (np.stack(arrays) for arrays in zip(*drawn, strict=True))
        return Drawn(values, targets, elapsed, np.full(len(numbers), self.window))

    def cut(self, numbers: Iterable[int], stride: int) -> np.ndarray:
        """Windows (N, 2) of these series, one every `stride` steps; as published, none ends with the last step."""
        starts = [(n, s) for n in numbers for s in range(0, len(self.series[n].values) - self.span, stride)]
        return np.array(starts, dtype=np.int64).reshape(-1, 2)

    def within(self, places: np.ndarray, first: float, last: float) -> np.ndarray:
        """Those of one series' windows that lie in a part of it, given by the shares where it begins and ends."""
        steps = len(self.series[places[0, 0]].values) if len(places) else 0
        begin, end = round(first * steps), round(last * steps)
        return places[(places[:, 1] >= begin) & (places[:, 1] + self.span <= end)]
