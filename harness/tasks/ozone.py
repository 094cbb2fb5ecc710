"""Ozone level detection: whether a day has too much ozone, from its weather (Zhang and Fan 2008), the eight-hour set.

Windows, splits, loss and figure are those of Hasani et al. 2021, table 3 (raminmh/liquid_time_constant_networks,
ozone.py).
"""

import csv
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.config.ranges import Name, PathName
from harness.model.interface import Tokens
from harness.tasks.series import Elapsed, TimeUnit, Window
from harness.tasks.task import Batch
from harness.tasks.windows import DropShare, Series, Source, Split, WindowTask

FILE = "eighthr.data"
FEATURES = 72
STRIDE = 4
VALIDATION, TEST, SHUFFLE = 0.1, 0.15, 23_489
"""The parts held out, and the seed that the authors shuffle the windows by."""
WEIGHTS = (0.1, 1.6)
"""Of a day without and with too much ozone in the loss: one day of sixteen has."""


class Ozone(WindowTask):
    """72 measurements a day, 0 where one is missing: say for each day whether it is an ozone day; judged by F1.

    Measurements are standardised by one mean and one deviation of them all. The time since the day before is had from
    the dates, of which 23 are missing. split: published (a random 15 % of all windows, one every four days, is for test
    and 10 % for validation, so that the days of most of them are trained on, labels included), or blocked (the first
    75 % of the days are trained on, then come 10 % for validation and 15 % for test).
    """

    features = FEATURES
    targets = Tokens(2)
    metric = "f1"
    source = Source(f"the file {FILE}", "https://archive.ics.uci.edu/dataset/172/ozone+level+detection", "CC BY 4.0")

    def __init__(
        self,
        path: PathName,
        name: Name = "ozone",
        window: Window = 32,
        split: Split = "published",
        drop: DropShare = 0.0,
        elapsed: Elapsed = True,
        time_feature: bool = True,
        time_unit: TimeUnit = 1.0,
    ):
        super().__init__(name, path, window, drop, elapsed, time_feature, time_unit)
        self.split = split

    def load(self, folder: Path) -> list[Series]:
        with (folder / FILE).open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
        if not rows or any(len(row) != FEATURES + 2 for row in rows):
            raise ValueError(f"a row of {FILE} has other than {FEATURES + 2} entries")
        days = np.array([datetime.strptime(row[0], "%m/%d/%Y").toordinal() for row in rows], dtype=np.float64)
        values = np.array([["0" if entry == "?" else entry for entry in row[1:-1]] for row in rows], dtype=np.float64)
        labels = np.array([float(row[-1]) for row in rows]).astype(np.int64)
        elapsed = np.diff(days, prepend=days[0] - 1)
        if (elapsed <= 0).any() or not np.isfinite(values).all() or not np.isin(labels, (0, 1)).all():
            raise ValueError(f"the days of {FILE} do not ascend, or a number is not finite, or a label not 0 or 1")
        return [Series(((values - values.mean()) / values.std()).astype(np.float32), labels, elapsed)]

    def places(self) -> dict[str, np.ndarray]:
        windows = self.cut([0], STRIDE)
        if self.split == "blocked":
            ends = {"train": (0, 1 - VALIDATION - TEST), "validation": (1 - VALIDATION - TEST, 1 - TEST)}
            return {split: self.within(windows, *part) for split, part in (ends | {"test": (1 - TEST, 1)}).items()}
        shuffled = windows[np.random.RandomState(SHUFFLE).permutation(len(windows))]
        validation, test = int(VALIDATION * len(windows)), int(TEST * len(windows))
        parts = np.split(shuffled, [validation, validation + test])
        return dict(zip(("validation", "test", "train"), parts, strict=True))

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"weights": WEIGHTS}

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy (nats) in which the rare class weighs more, summed over the days."""
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32)).flatten(0, 1)
        weights = torch.tensor(WEIGHTS, dtype=outputs.dtype, device=outputs.device)
        return F.cross_entropy(outputs, batch.targets.flatten(), weights, reduction="sum")

    def tally(self, outputs: Tensor, batch: Batch) -> list[float]:
        """Hits, days said to be ozone days, and days that are."""
        said, true = outputs.argmax(-1), batch.targets
        return [(said * true).sum().item(), said.sum().item(), true.sum().item()]

    def judge(self, tallied: np.ndarray, scored: int) -> dict[str, float]:
        hits, said, true = (float(number) for number in tallied)
        figures = {"precision": hits / max(said, 1), "recall": hits / max(true, 1)}
        return {"f1": 2 * hits / max(said + true, 1), **figures}
