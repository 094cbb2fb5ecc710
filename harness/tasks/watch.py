"""Exercises by a smartwatch: which of seven a person does, from acceleration and rotation (Burns et al. 2018).

The data set of the package `seglearn`; windows as in its examples, the split by person is ours.
"""

import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from harness.config.ranges import Name, PathName
from harness.model.interface import Tokens
from harness.tasks.series import Elapsed, TimeUnit, Window
from harness.tasks.windows import DropShare, Series, Source, WindowTask

FILE = "watch_dataset.npy"
FEATURES, EXERCISES = 6, 7
STRIDE = 50
SPLITS = {"train": range(1, 7), "validation": range(7, 9), "test": range(9, 11)}
"""The persons of each split."""
RECONSTRUCT = {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}
NAMES = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"), *RECONSTRUCT}
"""All that an array in the file may name: none of it runs code of the file's."""


class Watch(WindowTask):
    """140 recordings at 50 Hz of seven shoulder exercises of ten persons: say at each step which one it is.

    Each of the six components is standardised by mean and deviation over the persons that are trained on. No person is
    in two splits.
    """

    features = FEATURES
    targets = Tokens(EXERCISES)
    source = Source(
        f"the file {FILE}", "the wheel of the package seglearn 1.2.5, a zip archive: its folder seglearn/data", "BSD"
    )

    def __init__(
        self,
        path: PathName,
        name: Name = "watch",
        window: Window = 100,
        drop: DropShare = 0.0,
        elapsed: Elapsed = True,
        time_feature: bool = True,
        time_unit: TimeUnit = 1.0,
    ):
        super().__init__(name, path, window, drop, elapsed, time_feature, time_unit)

    def load(self, folder: Path) -> list[Series]:
        with (folder / FILE).open("rb") as file:
            read = _read(file)
        recordings = [np.asarray(values, dtype=np.float64) for values in read["X"]]
        if any(
            values.ndim != 2 or values.shape[1] != FEATURES or not np.isfinite(values).all() for values in recordings
        ):
            raise ValueError(f"a recording of {FILE} is not of the shape (n, {FEATURES}), or not finite")
        exercises, self.persons = (np.asarray(read[key], dtype=np.int64) for key in ("y", "subject"))
        if not len(recordings) == len(exercises) == len(self.persons) or not np.isin(exercises, range(EXERCISES)).all():
            raise ValueError(f"{FILE} has not one of {EXERCISES} exercises and a person for each recording")
        people = zip(recordings, self.persons.tolist(), strict=True)
        trained = np.concatenate([values for values, person in people if person in SPLITS["train"]])
        mean, deviation = trained.mean(0), trained.std(0)
        values = [((one - mean) / deviation).astype(np.float32) for one in recordings]
        return [Series(v, np.full(len(v), y), np.ones(len(v))) for v, y in zip(values, exercises, strict=True)]

    def places(self) -> dict[str, np.ndarray]:
        def of(people: range) -> list[int]:
            return [number for number, _ in enumerate(self.series) if self.persons[number] in people]

        return {split: self.cut(of(people), STRIDE) for split, people in SPLITS.items()}


class _Unpickler(pickle.Unpickler):
    """Reads arrays, and no other objects: a pickle may else run what it likes."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in NAMES:
            raise ValueError(f"{FILE} names {module}.{name}, which is no array")
        return super().find_class(module, name)


def _read(file: BinaryIO) -> dict[str, Any]:
    """The dictionary in a *.npy file of one object."""
    try:
        npy.read_magic(file)
        npy.read_array_header_1_0(file)
        read = _Unpickler(file).load().item()
        return {key: read[key] for key in ("X", "y", "subject")}
    except (AttributeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{FILE} does not hold what seglearn keeps there ({error})") from error
