"""The learning-rate schedule: a warm-up, then one of three ways down to the same floor."""

import math
from dataclasses import dataclass
from typing import Literal

Shape = Literal["cosine", "linear", "wsd"]
"""How the rate falls after the warm-up: in a half cosine (Loshchilov and Hutter 2017, arXiv:1608.03983), in a line, or
not at all until a line ends it (warm-up, stable, decay: Hu et al. 2024, arXiv:2404.06395)."""


@dataclass(frozen=True)
class Schedule:
    """The rate of every update as a part of the peak.

    updates: of the whole run. warmup, decay: the updates at its two ends in which the rate rises, and in which `wsd`
    falls; the other two fall in all updates after the warm-up. final: the rate of the last update.
    """

    shape: Shape
    updates: int
    warmup: int
    decay: int
    final: float

    def at(self, update: int) -> float:
        """The part of the peak at the update with this index, from 0.

        The first update of the warm-up is made at 1 / warmup, its last at the peak, and the last update of all at
        `final`.
        """
        if update < self.warmup:
            return (update + 1) / self.warmup
        falling = min(self.decay, self.updates - self.warmup) if self.shape == "wsd" else self.updates - self.warmup
        progress = max(0, update + 1 - (self.updates - falling)) / max(1, falling)
        left = (1 + math.cos(math.pi * progress)) / 2 if self.shape == "cosine" else 1 - progress
        return self.final + (1 - self.final) * left
