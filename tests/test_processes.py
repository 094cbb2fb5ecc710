"""Several processes that train one model: the same figures as by one, one record, and resumed by another number."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import run
import tiny
from harness.config.errors import ConfigError
from harness.machine.runtime import make_accelerator
from harness.training import checkpoint, sharing

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("together")
    command = [sys.executable, str(TESTS / "trained_together.py"), str(root)]
    environment = os.environ | {"PYTHONPATH": str(run.ROOT)}
    done = subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return root, json.loads(done.stdout.splitlines()[-1])


def lines(root: Path) -> list[dict]:
    (path,) = root.glob("tiny-*/metrics.jsonl")
    return tiny.untimed(list(map(json.loads, path.read_text().splitlines())))


def weights(root: Path) -> dict[str, torch.Tensor]:
    (path,) = root.glob("tiny-*")
    return checkpoint.load(path / checkpoint.NAME, path.name.removeprefix("tiny-"))["model"]


@pytest.mark.slow
@pytest.mark.parametrize("other", ["two", "sharded", "stopped", "sharded and stopped"])
def test_two_processes_train_as_one_does(trained, other):
    """Losses, gradient norms, validation and weights, where rows have different numbers of scored targets."""
    root, _ = trained
    one, several = lines(root / "one"), lines(root / other)
    assert len(one) == len(several) == 35
    for a, b in zip(one, several, strict=True):
        assert a == pytest.approx(b, rel=1e-9)
    kept = weights(root / other)
    for name, tensor in weights(root / "one").items():
        torch.testing.assert_close(kept[name], tensor, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_behind_the_same_update(trained):
    _, stops = trained
    assert len(stops) == 2
    for stop in stops.values():
        assert stop == {"statuses": [-signal.SIGTERM, -signal.SIGTERM], "at": 14}


def test_a_batch_that_cannot_be_shared_is_told(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    tiny.config(batch_size=4).check(tiny.Counting())
    with pytest.raises(ConfigError, match=r"trainer\.batch_size=3 cannot be shared by 2 processes"):
        tiny.config(batch_size=3).check(tiny.Counting())


def a_single_number(net):
    net.blocks[0].mixer.factor = torch.nn.Parameter(torch.ones(()))


def kernels(net):
    net.norm.kernel = "auto"


@pytest.mark.parametrize(("change", "said"), [(a_single_number, "factor is a single number"), (kernels, "has numba")])
def test_a_model_that_cannot_be_held_in_parts_is_told(change, said, monkeypatch):
    net, accelerator = tiny.model(kernel="reference"), make_accelerator("cpu", "fp32", 1)
    change(net)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=said):
        sharing.shared(net, accelerator, shard=True)


def test_a_sweep_is_not_started_by_several_processes(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="A sweep was given to 2 processes"):
        run.preflight(["-m", "model=gru", "seed=0,1", f"records={tmp_path}"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.long
def test_torchrun_makes_one_record_and_finds_it_again(tmp_path):
    (tmp_path / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 400)
    ours = ["model=gru", "debug=tiny", "trainer.batch_size=4", "task=text", f"task.path={tmp_path / 'corpus.txt'}"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "run.py", *ours, f"records={tmp_path / 'runs'}"]
    first, second = (
        subprocess.run(command, cwd=run.ROOT, capture_output=True, text=True, timeout=300) for _ in range(2)
    )
    assert first.returncode == second.returncode == 0, first.stderr
    assert len(re.findall("Checking gru", first.stdout)) == 1
    assert len(re.findall("Already recorded", second.stdout)) == 1
    assert len(list(tmp_path.glob("runs/**/result.json"))) == 1
