"""Sweeps by Hydra's joblib launcher: one view of all runs, whatever fails, dies or is told to stop."""

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest

import run
from started import start, wait_for

pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="pip install -e .[sweeps]")
pytestmark = pytest.mark.slow

FOUR = """# @package _global_
question: Do workers share a sweep?
sweep:
  grids:
    - {model: [gru, rwkv, lstm], block: gated}
    - {model: gru, block: transformer}
"""


@pytest.fixture
def four(tmp_path, monkeypatch):
    """The command of four tiny runs by two workers, one of which cannot be made."""
    folder = tmp_path / "plugins" / "sweeps"
    folder.mkdir(parents=True)
    (folder / "four.yaml").write_text(FOUR)
    (tmp_path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 400)
    monkeypatch.setenv("LIQUIDBENCH_PLUGINS", str(folder.parent))
    tiny = ["debug=tiny", "task=text", f"task.path={tmp_path / 'corpus.txt'}", f"records={tmp_path / 'runs'}"]
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    return [sys.executable, "run.py", "-m", "+sweeps=four", *launcher, *tiny, "progress=false"]


def workers(process):
    found = psutil.Process(process.pid).children()
    return [child for child in found if "resource_tracker" not in " ".join(child.cmdline())]


LONG = ["trainer.tokens=25600000", "trainer.checkpoint_every=9999", "model=gru", "seed=0,1"]


@pytest.mark.long
def test_workers_share_a_sweep_and_a_failing_run_ends_nothing(four, tmp_path):
    done = subprocess.run(four, cwd=run.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 3
    assert "Run 4 of 4" in done.stdout
    assert "Ended 4 of 4" in done.stdout
    assert "on validation in" in done.stdout
    assert "Checking" not in done.stdout  # it stands in the worker's log
    assert any("Checking" in log.read_text() for log in (tmp_path / "runs" / "sweeps" / "four").glob("*.log"))
    assert "4 runs: 3 finished, 1 failed" in done.stdout
    assert "bits per byte (test)" in done.stdout
    assert "error: 1 of 4 runs failed:\n  model=rwkv block=gated" in done.stderr
    environments = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/environment.json")]
    assert {environment["threads"] for environment in environments} == {1}
    again = subprocess.run([*four, "model=gru"], cwd=run.ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "2 runs: 2 finished" in again.stdout


@pytest.mark.long
def test_a_worker_that_is_killed_ends_neither_the_others_nor_the_sweep(four, tmp_path):
    process = start([*four, "trainer.tokens=256000", "trainer.validate_every=0"])
    wait_for(lambda: list((tmp_path / "runs").glob("*/metrics.jsonl")))
    workers(process)[0].kill()
    out, err = process.communicate(timeout=900)
    assert "the process that made it ended" in out
    assert "it is resumed" in out
    assert "error: 1 of 4 runs failed:\n  model=rwkv" in err
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 3


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_that_are_told_to_stop_write_their_checkpoints(four, tmp_path, number):
    process = start([*four, *LONG])
    wait_for(lambda: len(list((tmp_path / "runs").glob("*/metrics.jsonl"))) == 2)
    if number == signal.SIGTERM:
        process.send_signal(number)
    else:
        os.killpg(process.pid, number)  # as a terminal does
    _, err = process.communicate(timeout=600)
    assert process.returncode == 128 + number
    assert err.strip().splitlines()[-1].startswith(f"Stopped by {number.name}.")
    assert len(list((tmp_path / "runs").glob("*/checkpoint.pt"))) == 2
    assert not list((tmp_path / "runs").glob("*/failure.json"))


@pytest.mark.long
def test_workers_whose_command_is_killed_write_their_checkpoints_and_end(four, tmp_path):
    process = start([*four, *LONG])
    wait_for(lambda: len(list((tmp_path / "runs").glob("*/metrics.jsonl"))) == 2)
    left = workers(process)
    process.kill()
    assert psutil.wait_procs(left, timeout=300)[1] == []
    assert len(list((tmp_path / "runs").glob("*/checkpoint.pt"))) == 2
