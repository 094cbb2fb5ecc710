"""A run that was stopped, at whatever moment, ends as if it had not been."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from harness.config.errors import CheckpointError, MachineError, RecordError
from harness.machine.signals import held_back
from harness.records import code, weights
from harness.records.record import Run
from harness.training import checkpoint
from harness.training.loggers import NoLogger
from harness.training.trainer import train

TIMED = ("seconds", "tokens_per_second", "peak_memory_bytes", "energy_joules", "load")


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


class Signalled(tiny.Counting):
    """Sends its own process signals, one for each training batch `at`."""

    def __init__(self, number, *at):
        self.number, self.at = number, at

    def batch(self, split, index, *shape):
        if split == "train" and index in self.at:
            signal.raise_signal(self.number)
        return super().batch(split, index, *shape)


@pytest.fixture
def handled():
    """SIGINT and SIGTERM raise StopError, as run.py's handlers end the command."""

    def stop(number, frame):
        raise StopError(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    yield stop
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_takes_effect_once_the_update_is_on_the_disk(tmp_path, whole, handled, number):
    for at in (5, 17):
        with pytest.raises(StopError):
            tiny.run_once(tmp_path, tiny.model(dropout=0.2), Signalled(number, at), checkpoint_every=100)
        (path,) = tmp_path.glob("tiny-*/checkpoint.pt")
        assert checkpoint.load(path, path.parent.name.split("-")[-1])["ledger"]["update"] == at + 1
        assert signal.getsignal(number) is handled
    assert_same(tiny.run_once(tmp_path, tiny.model(dropout=0.2, seed=5), checkpoint_every=100), whole)


def test_a_snapshot_has_the_weights_of_its_update_and_changes_nothing(tmp_path, whole, handled):
    made = tiny.run_once(tmp_path / "kept", snapshots=3)
    assert_same(made, whole)
    (folder,) = (tmp_path / "kept").glob("tiny-*")
    kept = weights.snapshots(folder)
    assert list(kept) == [3, 10, 30]
    with pytest.raises(StopError):
        tiny.run_once(tmp_path / "stopped", None, Signalled(signal.SIGTERM, 9), snapshots=3)
    (stopped,) = (tmp_path / "stopped").glob("tiny-*")
    assert stopped.name == folder.name  # snapshots make no other run
    saved = checkpoint.load(stopped / checkpoint.NAME, stopped.name.split("-")[-1])
    for update, model in ((10, saved["model"]), (30, made[0].state_dict())):
        found = weights.load(kept[update])
        assert found.keys() == model.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in model.items())


def test_a_second_signal_does_not_wait(handled):
    def work(signals):
        with held_back() as held:
            for number in signals:
                signal.raise_signal(number)
                assert held.number == signals[0]

    for signals in ([signal.SIGINT, signal.SIGTERM], [signal.SIGTERM]):  # one comes through at the end
        with pytest.raises(StopError, match=f"^{int(signals[0])}$"):
            work(signals)
    assert signal.getsignal(signal.SIGINT) is handled


def test_a_signal_whose_handler_goes_on_stops_nothing(tmp_path, whole, handled):
    came = []
    signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    run = tiny.run_once(tmp_path, tiny.model(dropout=0.2), Signalled(signal.SIGTERM, 3, 9))
    assert came == [signal.SIGTERM] * 2
    assert_same(run, whole)


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
def test_kills_at_random_moments_leave_no_trace(tmp_path):
    """kill -9, several times, in real processes; one thread each."""
    seed, kills = int.from_bytes(os.urandom(4)), os.environ.get("LIQUIDBENCH_KILLS", "3")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, str(Path(__file__).parent / "killed_run.py"), str(tmp_path), kills, str(seed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(f"a training through kills: {found}")
    assert found["kills"] >= int(kills) / 2, found
    assert not found["differences"], found


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


@pytest.fixture
def full_disk():
    """No file may grow beyond 20,000 bytes: what a full disk does, for one process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_and_the_old_checkpoint_stays(tmp_path, full_disk):
    path = tmp_path / "c.pt"
    checkpoint.save(path, "key", {"value": torch.arange(3)})
    with pytest.raises(CheckpointError) as error:
        checkpoint.save(path, "key", {"value": torch.randn(100_000)})
    assert all(part in str(error.value) for part in (str(path), "File too large", "make room"))
    assert checkpoint.load(path, "key")["value"].tolist() == [0, 1, 2]
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.pt"]


def test_a_disk_that_fills_up_between_lines_is_told(tmp_path, full_disk):
    with Run.open(tmp_path, "tiny", {}, "data") as run:
        run.log({"text": "x" * 19_900})
        with pytest.raises(RecordError, match=r"metrics\.jsonl cannot be written to \(File too large\)"):
            run.log({"text": "x" * 200})


@pytest.mark.parametrize("bytes_wanted", [2**50, None])
def test_too_little_memory_is_told_with_the_keys_that_need_it(tmp_path, bytes_wanted):
    net = tiny.model()

    def ask(module, inputs, output):
        if bytes_wanted is None:
            raise MemoryError
        torch.empty(bytes_wanted)

    net.head.register_forward_hook(ask)
    with pytest.raises(MachineError) as error:
        tiny.run_once(tmp_path, net)
    named = ("batch_size=2, length=8, accumulate=1", "trainer.batch_size", "trainer.length", "trainer.accumulate")
    assert all(part in str(error.value) for part in named)


def test_an_error_that_is_not_of_memory_stays_what_it_is(tmp_path):
    net = tiny.model()
    net.head.register_forward_hook(lambda *given: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        tiny.run_once(tmp_path, net)


@pytest.mark.parametrize(("left", "lost"), [(None, 35), (20, 15), (35, 0)])
def test_lost_lines_of_the_curve_are_counted(tmp_path, whole, left, lost):
    """30 updates and 5 validations: the checkpoint knows how many lines there were."""
    tiny.run_once(tmp_path)
    (path,) = tmp_path.glob("tiny-*/metrics.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.unlink() if left is None else path.write_text("".join(lines[:left]))
    assert tiny.run_once(tmp_path, task=Stopping(0))[1]["lost_lines"] == lost
    assert whole[1]["lost_lines"] == 0


def test_a_checkpoint_of_older_code_is_not_gone_on_from(tmp_path, monkeypatch):
    """Half a training by each would be nobody's figures."""
    config = tiny.config()
    with Run.open(tmp_path, "tiny", {}, "data") as run:
        run.code = {"digest": "0", "modules": {"harness.training.trainer": "0123456789abcdef"}}
        with pytest.raises(StopError):
            train(tiny.model(), Stopping(9), config, 0, run, NoLogger(), progress=False)
        with pytest.raises(
            CheckpointError, match=r"older code, for harness\.training\.trainer changed since.*force=true"
        ):
            train(tiny.model(), tiny.Counting(), config, 0, run, NoLogger(), progress=False)
        monkeypatch.setattr("harness.training.trainer.changed_modules", lambda made: [])
        assert train(tiny.model(), tiny.Counting(), config, 0, run, NoLogger(), progress=False).updates == 30
    assert code.changed_modules(run.code) == ["harness.training.trainer"]


def test_random_states_come_back():
    state = checkpoint.random_state()
    first = (random.random(), np.random.rand(), np.random.randn(), torch.rand(2).tolist())
    checkpoint.restore_random_state(state)
    assert (random.random(), np.random.rand(), np.random.randn(), torch.rand(2).tolist()) == first
