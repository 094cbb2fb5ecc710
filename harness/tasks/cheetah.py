"""Half-cheetah kinematics: the next state of a simulated body from those before (Hasani et al. 2021, table 3)."""

from pathlib import Path

import numpy as np

from harness.config.ranges import Name, PathName
from harness.model.interface import Vectors
from harness.tasks.series import Elapsed, TimeUnit, Window
from harness.tasks.windows import DropShare, Series, Source, WindowTask

JOINTS = 17
SPLITS = {"train": range(15, 25), "validation": range(5), "test": range(5, 15)}
"""The traces of each split, by their place in the order of their names; further ones are not used."""
STRIDE = 10


class Cheetah(WindowTask):
    """Traces of 17 joint angles and velocities, *.npy of shape (n, 17): say the next state at each step."""

    features = JOINTS
    targets = Vectors(JOINTS)
    source = Source(
        "the 25 traces trace_0000.npy to trace_0024.npy or more, each of shape (n, 17)",
        "https://github.com/raminmh/liquid_time_constant_networks, its folder experiments_with_ltcs/data/cheetah",
        "Apache-2.0",
    )

    def __init__(
        self,
        path: PathName,
        name: Name = "cheetah",
        window: Window = 32,
        drop: DropShare = 0.0,
        elapsed: Elapsed = True,
        time_feature: bool = True,
        time_unit: TimeUnit = 1.0,
    ):
        super().__init__(name, path, window, drop, elapsed, time_feature, time_unit)

    def load(self, folder: Path) -> list[Series]:
        files = sorted(folder.glob("*.npy"))[: SPLITS["train"].stop]
        if len(files) < SPLITS["train"].stop:
            raise ValueError(f"it holds {len(files)} files *.npy")
        return [self._trace(path) for path in files]

    def _trace(self, path: Path) -> Series:
        states = np.load(path, allow_pickle=False)
        if states.ndim != 2 or states.shape[1] != JOINTS or not np.isfinite(states).all():
            raise ValueError(f"{path.name} has the shape {states.shape}, or holds numbers that are not finite")
        states = states.astype(np.float32)
        return Series(states[:-1], states[1:], np.ones(len(states) - 1))

    def places(self) -> dict[str, np.ndarray]:
        return {split: self.cut(traces, STRIDE) for split, traces in SPLITS.items()}


class CheetahSeen(Cheetah):
    """The state at the next step that is left, after the time that is told, is asked for.

    So Lechner & Hasani (2020, arXiv:2006.04418) ask of a walker whose frames are dropped. Without the time nobody can
    know how far ahead that is, where the very next state depends on little but the last one.
    """

    ahead = True
