"""Synthetic tasks: an oracle solves each, splits share no stream, and MQAR follows its definition."""

import numpy as np
import pytest
import torch

from harness.errors import ConfigError
from harness.model.interface import IGNORE
from harness.tasks.mqar import MQAR
from harness.tasks.parity import Parity
from harness.tasks.task import SPLITS

TASKS = [MQAR(vocab_size=64, num_kv_pairs=6), MQAR(vocab_size=64, num_kv_pairs=6, random_non_queries=False), Parity()]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
class TestEveryTask:
    @pytest.mark.parametrize("length", [24, 49, 200])
    def test_the_oracle_solves_it(self, task, length):
        for split in SPLITS:
            batch = task.batch(split, 3, 16, length, seed=1)
            asked = batch.targets != IGNORE
            assert asked.any(dim=1).all()
            assert batch.inputs.shape == batch.targets.shape == (16, length)
            assert task.oracle(batch.inputs)[asked].equal(batch.targets[asked])
            assert 0 <= batch.inputs.min() <= batch.inputs.max() < task.vocab_size
            assert batch.targets.max() < task.vocab_size

    def test_no_answer_needs_an_unseen_token(self, task):
        batch = task.batch("test", 0, 4, 40, seed=0)
        asked = batch.targets != IGNORE
        for t in range(2 * getattr(task, "num_kv_pairs", 0), 40, 5):
            changed = batch.inputs.clone()
            changed[:, t + 1 :] = (changed[:, t + 1 :] + 1) % task.vocab_size
            seen = asked[:, : t + 1]
            answers = task.oracle(changed)[:, : t + 1]
            assert answers[seen].equal(batch.targets[:, : t + 1][seen])

    def test_a_batch_is_a_function_of_its_arguments_and_splits_differ(self, task):
        first = task.batch("train", 2, 4, 64, seed=7)
        assert task.batch("train", 2, 4, 64, seed=7).inputs.equal(first.inputs)
        others = [("validation", 2, 7), ("test", 2, 7), ("train", 3, 7), ("train", 2, 8)]
        for split, index, seed in others:
            assert not task.batch(split, index, 4, 64, seed=seed).inputs.equal(first.inputs)

    def test_an_epoch_has_no_end(self, task):
        assert task.train_tokens is None
        assert task.epochs(1000) is None
        assert task.describe()["test_tokens"] is None


def test_digests_depend_on_the_parameters():
    digests = {MQAR().digest, MQAR(power_a=0.1).digest, MQAR(num_kv_pairs=8).digest, Parity().digest}
    assert len(digests) == 4
    assert MQAR().digest == MQAR().digest


def test_parity_counts_the_present_bit():
    batch = Parity().batch("train", 0, 2, 12, seed=0)
    for bits, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        assert targets == [sum(bits[: t + 1]) % 2 for t in range(12)]
    assert len({tuple(row) for row in batch.inputs.tolist()}) == 2


def test_mqar_has_the_published_form():
    task = MQAR(vocab_size=32, num_kv_pairs=4, random_non_queries=False)
    inputs, targets = (
        tensor.numpy() for tensor in vars(task.batch("train", 0, 64, 40, seed=0)).values() if tensor is not None
    )
    keys, values = inputs[:, 0:8:2], inputs[:, 1:8:2]
    assert keys.min() >= 1
    assert keys.max() < 16 <= values.min()
    assert all(len(set(row)) == 4 for row in [*keys, *values])
    assert (targets[:, :8] == IGNORE).all()
    for row in range(64):
        asked = np.flatnonzero(targets[row] != IGNORE)
        assert len(asked) == 4
        assert (asked % 2 == 0).all()  # every second position after the pairs
        pairs = dict(zip(keys[row], values[row], strict=True))
        assert sorted(inputs[row, asked]) == sorted(keys[row])
        assert [pairs[key] for key in inputs[row, asked]] == list(targets[row, asked])
        assert not inputs[row, 8:][targets[row, 8:] == IGNORE].any()


def test_mqar_gaps_follow_the_power_law():
    task, space = MQAR(vocab_size=8, num_kv_pairs=1, power_a=0.5), 10
    targets = task.batch("train", 0, 20_000, 2 + 2 * space, seed=0).targets
    counts = (targets[:, 2::2] != IGNORE).sum(dim=0).double()
    expected = 0.5 * torch.arange(1, space + 1, dtype=torch.float64) ** (0.5 - 1)
    expected = 20_000 * expected / expected.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 27.9  # chi-squared, 9 degrees of freedom, p = 0.001


def test_a_batch_beyond_memory_is_refused():
    for task in (Parity(), MQAR()):
        with pytest.raises(ConfigError, match=r"Batches of 65,536 x 65,536 tokens .*lower trainer\.batch_size"):
            task.check(65_536, 65_536)
    with pytest.raises(ConfigError, match=r"of 1,048,576 kinds"):
        MQAR(vocab_size=2**20).check(256, 512)


def test_mqar_tells_what_does_not_fit():
    with pytest.raises(ConfigError, match=r"num_kv_pairs=40 .*set task.vocab_size=82"):
        MQAR(vocab_size=64, num_kv_pairs=40)
    with pytest.raises(ConfigError, match=r"Sequences of 64 tokens .*at least 128"):
        MQAR(num_kv_pairs=32).check(4, 64)
