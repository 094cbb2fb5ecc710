"""kill -9 while a run is exported, scored and served. Training has tests/test_checkpoint.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import recorded_run
import run

KILLS = int(os.environ.get("LIQUIDBENCH_KILLS", "4"))


@pytest.mark.slow
def test_nothing_that_was_written_is_lost_to_kills_at_random_moments(tmp_path):
    pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    folder = recorded_run.make(tmp_path, "model=gru", "kernel=reference")
    (tmp_path / "used").mkdir()
    seed = int.from_bytes(os.urandom(4))
    script = Path(__file__).with_name("killed_use.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(tmp_path / "used"), str(KILLS), str(seed)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": run.ROOT},
        capture_output=True,
        text=True,
        timeout=120 + 10 * KILLS,
    )
    assert done.returncode == 0, (seed, done.stderr)
    survived = json.loads(done.stdout)
    print(f"kills survived, seed {seed}: {survived}")
    assert survived["scoring"] == survived["serving"] == KILLS, (seed, survived)
    assert survived["exporting"] >= KILLS / 4, (seed, survived)
