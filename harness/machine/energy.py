"""Energy over a stretch of work, where the machine measures it: by NVML's counter on a GPU, by RAPL's on a CPU."""

import threading
from collections.abc import Callable
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")
SAMPLE_SECONDS = 60.0
"""A RAPL counter wraps every ten minutes or so under heavy load: sampled this often, no wrap is missed."""


class RaplCounter:
    """Microjoules used by the CPU packages, through Linux's powercap tree; counts on across wraparounds."""

    source = "rapl"

    def __init__(self, root: Path = POWERCAP):
        zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if _text(zone / "name").startswith("package")]
        self.zones = [zone for zone in zones if _text(zone / "energy_uj")]
        if not self.zones:
            raise OSError(f"no readable RAPL package under {root}")
        self._ranges = [int(_text(zone / "max_energy_range_uj") or 0) for zone in self.zones]
        self._last = [int(_text(zone / "energy_uj")) for zone in self.zones]
        self._total_uj = 0

    def joules(self) -> float:
        """Joules since construction."""
        now = [int(_text(zone / "energy_uj")) for zone in self.zones]
        for last, new, span in zip(self._last, now, self._ranges, strict=True):
            self._total_uj += new - last if new >= last else new - last + span
        self._last = now
        return self._total_uj / 1e6


class NvmlCounter:
    """Joules used by one GPU since its driver was loaded (NVML counts millijoules)."""

    source = "nvml"

    def __init__(self, device: torch.device, nvml=None):
        self._nvml = nvml or _import_nvml()
        self._nvml.nvmlInit()
        self._handle = self._find(device)
        self.joules()  # GPUs before Volta have no counter, and say so here

    def _find(self, device: torch.device):
        """CUDA may number the devices otherwise than NVML does (CUDA_VISIBLE_DEVICES), so the identity decides."""
        index = device.index
        if torch.cuda.is_available():
            index = torch.cuda.current_device() if index is None else index
            uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
            if uuid is not None:
                return self._nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        return self._nvml.nvmlDeviceGetHandleByIndex(index or 0)

    def joules(self) -> float:
        """Joules on the device's own counter."""
        return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1e3


class EnergyMeter:
    """Context manager: `joules` used between entry and exit, or None where the machine cannot tell.

    source: "nvml" (the one GPU), "rapl" (all CPU packages, whatever else they ran) or None. powercap, nvml: stand-ins
    for the machine's own. On a GPU only the GPU is counted.
    """

    def __init__(self, device: torch.device | str = "cpu", powercap: Path = POWERCAP, nvml=None):
        self.device = torch.device(device)
        self._powercap, self._nvml = powercap, nvml
        self._done = threading.Event()
        self.joules: float | None = None
        self.source: str | None = None

    def __enter__(self) -> "EnergyMeter":
        self._counter = self._open()
        if self._counter is None:
            return self
        self.source = self._counter.source
        self._start = self._counter.joules()
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self._done.set()
        if self._counter is not None:
            total = self._read()
            self.joules = None if total is None else total - self._start

    def _open(self) -> "RaplCounter | NvmlCounter | None":
        make: Callable = lambda: RaplCounter(self._powercap)  # noqa: E731
        if self.device.type == "cuda":
            make = lambda: NvmlCounter(self.device, self._nvml)  # noqa: E731
        elif self.device.type != "cpu":
            return None
        try:
            return make()
        except Exception:  # NVML raises its own types; no energy reading is ever worth a run
            return None

    def _read(self) -> float | None:
        with self._lock:
            try:
                return None if self._counter is None else self._counter.joules()
            except Exception:  # the counter was taken away meanwhile (permissions, a lost GPU)
                return None

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self._read()


def _import_nvml():
    import pynvml

    return pynvml


def _text(path: Path) -> str:
    """The content of a sysfs file, or "" where it is missing or not ours to read (RAPL is root's by default)."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
