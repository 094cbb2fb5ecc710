import pytest
import torch

from harness.machine.energy import EnergyMeter


def zone(root, name, label, energy, span=1_000_000):
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(label + "\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text(f"{span}\n")
    return folder / "energy_uj"


class FakeNvml:
    """A GPU that has used `millijoules` since its driver was loaded."""

    def __init__(self, millijoules):
        self.millijoules = millijoules

    def nvmlInit(self):  # noqa: N802
        pass

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):  # noqa: N802
        if self.millijoules is None:
            raise RuntimeError("Not Supported")
        return self.millijoules


def test_packages_are_summed_and_nothing_is_counted_twice(tmp_path):
    first = zone(tmp_path, "intel-rapl:0", "package-0", 100)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 200)
    core = zone(tmp_path, "intel-rapl:0:0", "core", 0)  # inside package-0
    whole = zone(tmp_path, "intel-rapl:2", "psys", 0)  # holds both packages
    with EnergyMeter("cpu", tmp_path) as meter:
        for path, energy in ((first, 500_100), (second, 300_200), (core, 400_000), (whole, 900_000)):
            path.write_text(str(energy))
    assert meter.joules == pytest.approx(0.8)
    assert meter.source == "rapl"


def test_a_counter_that_wraps_counts_on(tmp_path):
    path = zone(tmp_path, "intel-rapl:0", "package-0", 900_000, span=1_000_000)
    with EnergyMeter("cpu", tmp_path) as meter:
        path.write_text("150000")
    assert meter.joules == pytest.approx(0.25)


def test_two_wraps_are_seen_when_sampled_between(tmp_path):
    path = zone(tmp_path, "intel-rapl:0", "package-0", 900_000, span=1_000_000)
    with EnergyMeter("cpu", tmp_path) as meter:
        for energy in (100_000, 50_000):  # 0.2 J, then 0.95 J more
            path.write_text(str(energy))
            meter._read()
    assert meter.joules == pytest.approx(1.15)


def test_the_meter_samples_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.machine.energy.SAMPLE_SECONDS", 0.001)
    zone(tmp_path, "intel-rapl:0", "package-0", 5)
    with EnergyMeter("cpu", tmp_path) as meter:
        path = tmp_path / "intel-rapl:0" / "energy_uj"
        path.write_text("10")
        for _ in range(5000):
            if meter._counter._last == [10]:
                break
            meter._done.wait(0.001)
        assert meter._counter._last == [10]


def test_a_machine_that_cannot_tell_gives_none(tmp_path):
    with EnergyMeter("cpu", tmp_path) as meter:
        pass
    assert meter.joules is None
    assert meter.source is None
    path = zone(tmp_path, "intel-rapl:0", "package-0", 5)
    path.unlink()
    path.mkdir()  # present, but cannot be read
    with EnergyMeter("cpu", tmp_path) as meter:
        pass
    assert meter.joules is None


def test_a_counter_that_vanishes_gives_none(tmp_path):
    path = zone(tmp_path, "intel-rapl:0", "package-0", 5)
    with EnergyMeter("cpu", tmp_path) as meter:
        path.unlink()
    assert meter.joules is None


def test_gpu_millijoules_become_joules():
    nvml = FakeNvml(5_000)
    with EnergyMeter("cuda:0", nvml=nvml) as meter:
        nvml.millijoules = 7_500
    assert meter.joules == pytest.approx(2.5)
    assert meter.source == "nvml"


def test_gpu_without_a_counter_gives_none():
    with EnergyMeter(torch.device("cuda:0"), nvml=FakeNvml(None)) as meter:
        pass
    assert meter.joules is None


def test_the_work_s_own_error_passes_through(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 5)
    with pytest.raises(KeyError), EnergyMeter("cpu", tmp_path) as meter:
        raise KeyError("work")
    assert meter.joules == 0
