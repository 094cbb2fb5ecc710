"""What training has done: the books kept on the way, which a checkpoint carries on, and the result they end in."""

import math
from dataclasses import asdict, dataclass, field
from statistics import fmean, median
from typing import Literal

from harness.machine.load import Load, LoadMeter
from harness.training.optimizer import GroupReport

FINAL_UPDATES = 10
"""The final loss is the mean over this many last updates: one batch alone is noise."""


@dataclass(frozen=True)
class Divergence:
    """Why training ended before its budget. update: the one that failed, from 1; value: the figure that showed it."""

    update: int
    reason: str
    value: float


@dataclass
class Ledger:
    """update: updates made. losses: nats per token of each. update_seconds: the time each took, validation and
    checkpoints apart. lines: of metrics.jsonl, written so far. energy_joules, other_cpu_seconds: None once a stretch
    could not be metered. exploded: gradients in a row that were longer than the limit."""

    update: int = 0
    losses: list[float] = field(default_factory=list)
    update_seconds: list[float] = field(default_factory=list)
    lines: int = 0
    energy_joules: float | None = 0.0
    peak_memory_bytes: int | None = None
    other_cpu_seconds: float | None = 0.0
    machine_cpu_seconds: float = 0.0
    exploded: int = 0
    divergence: Divergence | None = None

    def to_dict(self) -> dict:
        return asdict(self)

    def judge(self, loss: float, norm: float, limit: float, patience: int) -> Divergence | None:
        """Returns the divergence that the next update's loss and gradient norm show, or None."""
        if not math.isfinite(loss):
            return Divergence(self.update + 1, f"the loss is not finite ({loss})", loss)
        if not math.isfinite(norm):
            return Divergence(self.update + 1, f"the gradient norm is not finite ({norm})", norm)
        self.exploded = self.exploded + 1 if norm > limit else 0
        if self.exploded < patience:
            return None
        reason = f"the gradient norm was over {limit:g} for {patience} updates in a row, {norm:.3g} at the last"
        return Divergence(self.update + 1, reason, norm)

    def add(self, loss: float, seconds: float) -> None:
        """Enters one update made."""
        self.update += 1
        self.losses.append(loss)
        self.update_seconds.append(seconds)

    def meter(self, joules: float | None, peak_bytes: int | None) -> None:
        """Enters the energy of a stretch, and the peak memory since the process took the run up."""
        before = self.energy_joules
        self.energy_joules = None if joules is None or before is None else before + joules
        known = [peak for peak in (self.peak_memory_bytes, peak_bytes) if peak is not None]
        self.peak_memory_bytes = max(known, default=None)

    def meter_load(self, meter: LoadMeter) -> None:
        """Enters how busy others kept the machine over a stretch."""
        if self.other_cpu_seconds is not None:
            other = meter.other_seconds
            self.other_cpu_seconds = None if other is None else self.other_cpu_seconds + other
            self.machine_cpu_seconds += meter.machine_seconds

    @property
    def load(self) -> Load:
        """The machine's load over all of training."""
        return Load.of(self.other_cpu_seconds, self.machine_cpu_seconds)

    def mean_loss(self, updates: int) -> float | None:
        """Mean loss over the last `updates`, or None before the first."""
        return fmean(self.losses[-updates:]) if self.losses else None

    def median_seconds(self) -> float | None:
        """The usual time of an update: neither the first one's compilation nor a neighbour's burst moves it."""
        return median(self.update_seconds) if self.update_seconds else None


@dataclass(frozen=True)
class TrainingResult:
    """The record's training block. seconds: of updates alone. tokens_per_second: at the median update's pace.

    processes: that trained together; what follows is the first one's, and tokens are of all. load: how busy others kept
    the machine meanwhile. final_loss: nats per token, mean over the last updates. flops_per_token: forward and
    backward, by hand. lost_lines: of metrics.jsonl, which the curve then lacks. peak_memory_bytes: beyond what was in
    use before training; None where the system does not let the peak be reset.
    """

    status: Literal["finished", "diverged"]
    processes: int
    updates: int
    tokens: int
    epochs: float | None
    seconds: float
    tokens_per_second: float | None
    load: Load
    final_loss: float | None
    flops_per_token: float
    peak_memory_bytes: int | None
    energy_joules: float | None
    optimizer_groups: list[GroupReport]
    lost_lines: int
    divergence: Divergence | None

    def to_dict(self) -> dict:
        return asdict(self)
