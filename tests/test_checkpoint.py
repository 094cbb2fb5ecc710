"""A run that was stopped, at whatever moment, ends as if it had not been."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from harness.errors import CheckpointError
from harness.records.record import Run
from harness.training import checkpoint

TIMED = ("seconds", "tokens_per_second", "peak_memory_bytes", "energy_joules")


class StopError(Exception):
    pass


class Stopping(tiny.Counting):
    """Raises once when the training batch `at` is asked for."""

    def __init__(self, at):
        self.at = at

    def batch(self, split, index, *shape):
        if split == "train" and index == self.at:
            self.at = None
            raise StopError
        return super().batch(split, index, *shape)


def assert_same(one, other):
    """Weights bit by bit, and everything recorded that no clock gave."""
    for a, b in zip(one[0].state_dict().values(), other[0].state_dict().values(), strict=True):
        assert torch.equal(a, b)
    results = [{key: value for key, value in run[1].items() if key not in TIMED} for run in (one, other)]
    assert results[0] == results[1]
    assert tiny.untimed(one[2]) == tiny.untimed(other[2])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny.run_once(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("stops", [[2], [4], [7, 7, 26], [29]])
def test_a_stopped_run_ends_bit_identical(tmp_path, whole, stops):
    for at in stops:
        with pytest.raises(StopError):
            tiny.run_once(tmp_path, tiny.model(dropout=0.2), Stopping(at))
        np.random.rand(3)  # another process would come with other random states
        torch.rand(3)
        random.random()
    assert_same(tiny.run_once(tmp_path, tiny.model(dropout=0.2, seed=5) if stops[-1] > 4 else None), whole)


def test_a_stop_without_the_state_would_show(tmp_path, whole):
    """The comparison can fail: with dropout, another random state gives other weights."""
    other = tiny.run_once(tmp_path, tiny.model(dropout=0.2), seed=1)
    with pytest.raises(AssertionError):
        assert_same(other, whole)


def test_a_finished_training_is_not_repeated(tmp_path, whole):
    tiny.run_once(tmp_path)
    again = tiny.run_once(tmp_path, tiny.model(dropout=0.2, seed=9), Stopping(0))
    assert_same(again, whole)
    assert again[1]["seconds"] > 0


def test_a_streak_of_long_gradients_is_counted_across_a_stop(tmp_path):
    limits = {"divergence_norm": 1e-6, "divergence_patience": 10}
    with pytest.raises(StopError):
        tiny.run_once(tmp_path, task=Stopping(6), **limits)
    assert tiny.run_once(tmp_path, **limits)[1]["divergence"]["update"] == 10


@pytest.mark.slow
def test_kill_at_random_moments(tmp_path):
    """kill -9, several times, in real processes; one thread each."""
    seed = int.from_bytes(os.urandom(4))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, str(Path(__file__).parent / "killed_run.py"), str(tmp_path), "3", str(seed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    deaths = json.loads(done.stdout)
    assert deaths.count(-9) >= 1, (seed, deaths)
    whole, killed = (next((tmp_path / part).glob("tiny-*")) for part in ("whole", "killed"))
    contents = [checkpoint.load(path / "checkpoint.pt", path.name.split("-")[-1]) for path in (whole, killed)]
    for name, tensor in contents[0]["model"].items():
        assert torch.equal(tensor, contents[1]["model"][name]), (seed, name)
    assert contents[0]["ledger"]["losses"] == contents[1]["ledger"]["losses"], seed
    lines = [[json.loads(line) for line in (p / "metrics.jsonl").read_text().splitlines()] for p in (whole, killed)]
    assert tiny.untimed(lines[0]) == tiny.untimed(lines[1]), seed


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text"])
def test_a_damaged_checkpoint_is_told(tmp_path, damage):
    tiny.run_once(tmp_path, tokens=64)
    path = next(tmp_path.glob("tiny-*/checkpoint.pt"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"flip": bytes(data), "cut": bytes(data[:-100]), "empty": b"", "text": b"hello" * 99}[damage])
    with pytest.raises(CheckpointError) as error:
        tiny.run_once(tmp_path, tokens=64)
    assert all(part in str(error.value) for part in (str(path), "damaged", "Expected:", "force=true"))
    with Run.open(tmp_path, "tiny", {"trainer": {"tokens": 64}, "seed": 0}, "counting-1") as run:
        run.clear()
    assert tiny.run_once(tmp_path, tokens=64)[1]["updates"] == 4


def test_a_checkpoint_of_another_run_or_model_is_told(tmp_path):
    checkpoint.save(tmp_path / "c.pt", "one", {"model": {}})
    with pytest.raises(CheckpointError, match="belongs to the run one, not to two"):
        checkpoint.load(tmp_path / "c.pt", "two")
    tiny.run_once(tmp_path, tokens=64)
    with pytest.raises(CheckpointError, match="does not fit this model"):
        tiny.run_once(tmp_path, tiny.model(tie_embeddings=True), tokens=64)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path):
    class UnwritableError(Exception):
        def __reduce__(self):
            raise OSError(28, "No space left on device")

    path = tmp_path / "c.pt"
    checkpoint.save(path, "key", {"value": torch.arange(3)})
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoint.save(path, "key", {"value": UnwritableError()})
    assert checkpoint.load(path, "key")["value"].tolist() == [0, 1, 2]
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.pt"]


def test_random_states_come_back():
    state = checkpoint.random_state()
    first = (random.random(), np.random.rand(), np.random.randn(), torch.rand(2).tolist())
    checkpoint.restore_random_state(state)
    assert (random.random(), np.random.rand(), np.random.randn(), torch.rand(2).tolist()) == first
