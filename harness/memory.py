"""Peak memory of the process or of the device: reset it before the work, read it after."""

from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): writing 5 resets the peak resident set size to the current one


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


def _status_bytes(field: str) -> int | None:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024  # the kernel writes kB
    return None
