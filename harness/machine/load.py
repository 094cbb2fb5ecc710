"""How busy other processes kept the machine while something was timed: a speed on a busy machine says little."""

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

STAT = Path("/proc/stat")
BUSY_SHARE = 0.1
"""A machine is called busy where others used more than this part of its CPU time."""
FEWEST_TICKS = 20
"""Over fewer ticks of the kernel's clock the load is not known: the rounding of its counters is all there is to see."""


@dataclass(frozen=True)
class Load:
    """other_cpu: the part of the machine's CPU time that other processes used, 0 to 1; None where it is not known."""

    other_cpu: float | None
    busy: bool

    @classmethod
    def of(cls, other_seconds: float | None, machine_seconds: float) -> "Load":
        """The load from seconds of CPU time: of others, and of the whole machine (all CPUs, idle time included)."""
        if other_seconds is None or machine_seconds < FEWEST_TICKS / _ticks_per_second():
            return cls(None, False)
        share = min(1.0, max(0.0, other_seconds / machine_seconds))
        return cls(share, share > BUSY_SHARE)


class LoadMeter:
    """Context manager: `other_seconds` and `machine_seconds` of CPU time between entry and exit, and `load` of them.

    other_seconds is None where the system does not tell (no /proc/stat). This process and its children are not others;
    what a hypervisor gave to another machine is.
    """

    def __init__(self, stat: Path = STAT):
        self._stat = stat
        self.other_seconds: float | None = None
        self.machine_seconds = 0.0

    def __enter__(self) -> "LoadMeter":
        self._start = self._read()
        return self

    def __exit__(self, *exception) -> None:
        end = self._read()
        if self._start is None or end is None:
            return
        busy, total, own = (after - before for before, after in zip(self._start, end, strict=True))
        self.other_seconds, self.machine_seconds = busy - own, total

    @property
    def load(self) -> Load:
        return Load.of(self.other_seconds, self.machine_seconds)

    def _read(self) -> tuple[float, float, float] | None:
        """Seconds of CPU time: busy and in all since the machine started, and this process's own with its children."""
        try:
            ticks = [int(field) for field in self._stat.read_text().split("\n", 1)[0].split()[1:9]]
            user, nice, system, idle, waiting, interrupts, soft, stolen = ticks  # proc(5); guests are in user and nice
            processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        except (OSError, ValueError, psutil.Error):
            return None
        busy, rate = user + nice + system + interrupts + soft + stolen, _ticks_per_second()
        return busy / rate, (busy + idle + waiting) / rate, sum(map(_cpu_seconds, processes))


def _cpu_seconds(process: psutil.Process) -> float:
    """CPU time of a process and of its children that have ended; 0 for one that is gone meanwhile."""
    try:
        return sum(process.cpu_times()[:4])  # user, system, and the same of ended children
    except psutil.Error:
        return 0.0


def _ticks_per_second() -> int:
    return os.sysconf("SC_CLK_TCK")
