"""How busy others kept the machine: this process and its children are not others."""

import os
import subprocess
import sys
import time

import pytest

from harness.machine.load import Load, LoadMeter

SPIN = "import time; end = time.process_time() + {}\nwhile time.process_time() < end: pass"
STAT = "cpu  {} 0 0 {} 0 0 0 0 0 0\ncpu0 1 1 1 1\n"


def test_the_share_is_of_the_whole_machine():
    assert Load.of(1.0, 4.0) == Load(0.25, True)
    assert Load.of(0.3, 4.0) == Load(0.075, False)
    assert Load.of(-0.1, 4.0) == Load(0.0, False)  # the rounding of ticks
    assert Load.of(None, 4.0) == Load(None, False)
    assert Load.of(0.0, 0.01) == Load(None, False)
    tick = 1 / os.sysconf("SC_CLK_TCK")
    assert Load.of(5 * tick, 20 * tick) == Load(0.25, True)  # as few ticks as tell anything
    assert Load.of(5 * tick, 19.5 * tick) == Load(None, False)


def test_what_the_machine_did_beyond_this_process_is_others(tmp_path):
    stat = tmp_path / "stat"
    stat.write_text(STAT.format(1000, 5000))
    with LoadMeter(stat) as meter:
        stat.write_text(STAT.format(1000 + 3000, 5000 + 7000))
    per_second = os.sysconf("SC_CLK_TCK")
    assert meter.machine_seconds == pytest.approx(10_000 / per_second)
    assert meter.load.other_cpu == pytest.approx(0.3, abs=0.02)
    assert meter.load.busy


@pytest.mark.parametrize("content", [None, "", "cpu 1 2 3", "nonsense here"])
def test_a_system_that_does_not_tell_gives_none(tmp_path, content):
    if content is not None:
        (tmp_path / "stat").write_text(content)
    with LoadMeter(tmp_path / "stat") as meter:
        pass
    assert meter.load == Load(None, False)


def test_this_process_and_its_children_are_not_others(tmp_path):
    """All the CPU time of a made-up machine is ours: of this process, of a child that ended, and of one that lives."""
    stat = tmp_path / "stat"
    stat.write_text(STAT.format(0, 0))
    meter = LoadMeter(stat)
    meter.__enter__()
    start = time.process_time()
    while time.process_time() < start + 0.3:
        pass
    subprocess.run([sys.executable, "-c", SPIN.format(0.3)], check=True)
    code = SPIN.format(0.3) + "\nprint('spun', flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as living:
        assert living.stdout.readline() == b"spun\n"
        ticks = round(0.9 * os.sysconf("SC_CLK_TCK"))
        stat.write_text(STAT.format(ticks, 9 * ticks))
        meter.__exit__()
        living.stdin.close()
    assert meter.other_seconds == pytest.approx(0, abs=0.25)
