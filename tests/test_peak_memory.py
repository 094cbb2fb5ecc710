"""The peak of resident memory is read from the kernel in bytes, and a system that cannot say is told apart."""

from harness.machine import memory


def test_the_peak_is_the_kernel_s_number_of_kilobytes(monkeypatch, tmp_path):
    status = tmp_path / "status"
    monkeypatch.setattr(memory, "STATUS", status)
    assert memory.peak_bytes() is None
    status.write_text("VmPeak:\t 9 kB\nVmHWM:\t 7 kB\nVmRSS:\t 5 kB\n")
    assert memory.peak_bytes() == 7 * 1024


def test_a_system_that_starts_no_new_peak_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "clear_refs")
    assert memory.reset_peak() is True
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "no folder" / "clear_refs")
    assert memory.reset_peak() is False
