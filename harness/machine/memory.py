"""Memory of the process or of the device: its peak, reset before the work and read after it, and its reuse."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): writing 5 resets the peak resident set size to the current one
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
DEFAULT_KEPT, MOST_KEPT = 128 * 1024, 1 << 30  # bytes: glibc's defaults, and the largest piece it can be set to keep


def reset_peak(device: torch.device | str = "cpu") -> bool:
    """Starts a new peak; returns False where the system refuses (then the peak is that of the whole process)."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError:
        return False
    return True


def peak_bytes(device: torch.device | str = "cpu") -> int | None:
    """Bytes at the peak since `reset_peak`: allocated by torch on CUDA, resident set of the process elsewhere.

    None where the system does not tell (no /proc).
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status_bytes("VmHWM")


def resident_bytes() -> int | None:
    """Bytes of the process's resident set now; None where the system does not tell."""
    return _status_bytes("VmRSS")


class Increase:
    """The peak of the memory in use since this was made, beyond what was in use then.

    Memory that was freed before is given back first: work that reused it would seem to take none.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        _give_back()
        self._known = reset_peak(self.device)
        self._before = torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else resident_bytes()

    def bytes(self) -> int | None:
        """None where the peak could not be reset: it would be that of all the process has ever done."""
        peak = peak_bytes(self.device)
        return max(0, peak - self._before) if self._known and peak is not None and self._before is not None else None


def _give_back() -> None:
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):  # another C library
        return


def _status_bytes(field: str) -> int | None:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024  # the kernel writes kB
    return None


@contextmanager
def reused_memory() -> Iterator[None]:
    """Keeps the memory that large tensors free, for the next ones to take.

    glibc gives it back to the system and asks for it anew, tensor by tensor, and every page is then cleared by a fault:
    a tenth of the time of a training update. Nothing happens where the C library is another.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError, TypeError):
        yield
        return
    _set_thresholds(mallopt, MOST_KEPT)
    try:
        yield
    finally:
        _set_thresholds(mallopt, DEFAULT_KEPT)
        trim(0)


def _set_thresholds(mallopt, size: int) -> None:
    for parameter in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
        mallopt(parameter, size)
