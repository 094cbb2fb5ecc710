"""Occupancy detection: whether someone is in the office, from its air and light (Candanedo and Feldheim 2016).

Windows and splits are those of Hasani et al. 2021, table 3 (raminmh/liquid_time_constant_networks, occupancy.py).
"""

import csv
from pathlib import Path

import numpy as np

from harness.config.ranges import Name, PathName
from harness.model.interface import Tokens
from harness.tasks.series import Elapsed, TimeUnit, Window
from harness.tasks.windows import DropShare, Series, Source, Split, WindowTask

FILES = ("datatraining.txt", "datatest.txt", "datatest2.txt")
FEATURES = 5
STRIDE, TEST_STRIDE = 1, 8
HELD_OUT, SHUFFLE = 0.1, 893_429
"""The part of the training file that is for validation, and the seed that the authors shuffle its windows by."""


class Occupancy(WindowTask):
    """Temperature, humidity, light, CO2 and humidity ratio, a step a minute: say at each whether someone is there.

    Each feature is standardised by mean and deviation of the training file. A row of a file ends in the five features
    and the label; UCI's rows begin with a number and a date, and their file with the names, which are passed over.
    split: published (of the training file's windows, one every step, a random tenth is for validation, so that most of
    its steps are trained on), or blocked (the file's last tenth). The test files are the same.
    """

    features = FEATURES
    targets = Tokens(2)
    source = Source(
        f"the files {', '.join(FILES)}",
        "https://archive.ics.uci.edu/dataset/357/occupancy+detection",
        "CC BY 4.0",
    )

    def __init__(
        self,
        path: PathName,
        name: Name = "occupancy",
        window: Window = 16,
        split: Split = "published",
        drop: DropShare = 0.0,
        elapsed: Elapsed = True,
        time_feature: bool = True,
        time_unit: TimeUnit = 1.0,
    ):
        super().__init__(name, path, window, drop, elapsed, time_feature, time_unit)
        self.split = split

    def load(self, folder: Path) -> list[Series]:
        read = [_read(folder / name) for name in FILES]
        mean, deviation = read[0][:, :-1].mean(0), read[0][:, :-1].std(0)
        if not (deviation > 0).all():
            raise ValueError(f"a feature of {FILES[0]} is the same in all rows")
        values = [((rows[:, :-1] - mean) / deviation).astype(np.float32) for rows in read]
        labels = [rows[:, -1].astype(np.int64) for rows in read]
        return [Series(v, y, np.ones(len(v))) for v, y in zip(values, labels, strict=True)]

    def places(self) -> dict[str, np.ndarray]:
        windows, test = self.cut([0], STRIDE), self.cut([1, 2], TEST_STRIDE)
        if self.split == "blocked":
            parts = self.within(windows, 0, 1 - HELD_OUT), self.within(windows, 1 - HELD_OUT, 1)
            return {"train": parts[0], "validation": parts[1], "test": test}
        shuffled = windows[np.random.RandomState(SHUFFLE).permutation(len(windows))]
        held_out = int(HELD_OUT * len(windows))
        return {"train": shuffled[held_out:], "validation": shuffled[:held_out], "test": test}


def _read(path: Path) -> np.ndarray:
    """The features and the label of each row, (n, 6)."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row and "Temperature" not in row]
    if not rows or any(len(row) <= FEATURES for row in rows):
        raise ValueError(f"a row of {path.name} has fewer than {FEATURES + 1} numbers")
    read = np.array([row[-FEATURES - 1 :] for row in rows], dtype=np.float64)
    if not np.isfinite(read).all() or not np.isin(read[:, -1], (0, 1)).all():
        raise ValueError(f"a number of {path.name} is not finite, or a label not 0 or 1")
    return read
