"""What the machine is and how much memory it has left."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from harness.config.errors import MachineError

OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory")
"""How torch's CPU allocator and the libraries below it say so, in errors of no type of their own."""


def device_name(device: torch.device | str) -> str:
    """The commercial name of the GPU or the CPU."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def available_bytes(device: torch.device | str, cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can still be allocated: the GPU's free memory, or the machine's within its container's limit."""
    device = torch.device(device)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    free = psutil.virtual_memory().available
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):  # no container, or the limit "max"
        return free
    return min(free, limit - used)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, numpy or Python says that memory could not be had."""
    told = any(sign in str(error).lower() for sign in OUT_OF_MEMORY)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and told)


@contextmanager
def memory_errors_told(what: str, remedy: str) -> Iterator[None]:
    """Raises MachineError where what is done inside needs more memory than there is. what: its subject."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MachineError(
            f"{what} needs more memory than is free ({' '.join(str(error).split())[:200] or type(error).__name__}).",
            "a run that fits the machine's memory.",
            remedy,
        ) from error
