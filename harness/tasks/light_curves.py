"""Light curves: the next brightness of a star or galaxy that is seen at irregular times (Elorrieta et al. 2019).

The data sets of the package `iar`, Irregularly Observed Autoregressive Models; the split is ours, they have none.
"""

import csv
from pathlib import Path

import numpy as np

from harness.config.ranges import Name, PathName
from harness.model.interface import Vectors
from harness.tasks.series import Elapsed, TimeUnit, Window
from harness.tasks.windows import DropShare, Series, Source, WindowTask

CURVES = ("agn", "clcep", "cvnovag", "cvnovar", "dmcep", "dscut", "eb", "Planets")
TRAIN, VALIDATION = 0.6, 0.8
"""The shares of a curve's time line at which training and validation end."""


class LightCurves(WindowTask):
    """Eight curves of 65 to 470 observations, minutes to months apart: say each brightness from those before it.

    A step tells the brightness before, with the error of its measurement (0 where none is given) and the days since:
    what is asked is the brightness now. Each curve is standardised by its first 60 %, which is trained on; then come
    20 % for validation and 20 % for test. Mean squared error, so that 1 is about what the mean of the curve has.
    """

    features = 2
    targets = Vectors(1)
    source = Source(
        f"the files {', '.join(f'{name}.csv' for name in CURVES)}",
        "the wheel of the package iar 1.2.9, a zip archive: its folder data",
        "MIT",
    )

    def __init__(
        self,
        path: PathName,
        name: Name = "light_curves",
        window: Window = 12,
        drop: DropShare = 0.0,
        elapsed: Elapsed = True,
        time_feature: bool = True,
        time_unit: TimeUnit = 1.0,
    ):
        super().__init__(name, path, window, drop, elapsed, time_feature, time_unit)

    def load(self, folder: Path) -> list[Series]:
        return [_curve(folder / f"{name}.csv") for name in CURVES]

    def places(self) -> dict[str, np.ndarray]:
        parts = {"train": (0.0, TRAIN, 1), "validation": (TRAIN, VALIDATION, self.window)}
        parts["test"] = (VALIDATION, 1.0, self.window)
        return {
            split: np.concatenate([self._part(n, *part) for n in range(len(CURVES))]) for split, part in parts.items()
        }

    def _part(self, number: int, first: float, last: float, stride: int) -> np.ndarray:
        return self.within(self.cut([number], 1), first, last)[::stride]


def _curve(path: Path) -> Series:
    """A step for each observation but the first."""
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    if len(header) < 2 or len(rows) < 3 or {len(row) for row in rows} != {len(header)}:
        raise ValueError(f"{path.name} has no rows of time, brightness and its error")
    read = np.array(rows, dtype=np.float64)
    days = np.diff(read[:, 0])
    if not np.isfinite(read).all() or not (days > 0).all():
        raise ValueError(f"a number of {path.name} is not finite, or its times do not rise")
    trained = read[: round(TRAIN * len(read)), 1]
    if not (deviation := trained.std()) > 0:
        raise ValueError(f"the brightness of {path.name} is the same in all rows")
    brightness = (read[:, 1] - trained.mean()) / deviation
    error = read[:, 2] / deviation if len(header) > 2 else np.zeros(len(read))
    told = np.stack([brightness[:-1], error[:-1]], axis=1)
    return Series(told.astype(np.float32), brightness[1:, None].astype(np.float32), days)
