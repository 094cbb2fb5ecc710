"""Series at irregular times: event-based XOR is the authors', windows and splits are as published, time is true."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import configs
import run
from harness.config.errors import ConfigError
from harness.evaluation.evaluate import EvaluateConfig
from harness.evaluation.passage import observing
from harness.model.interface import IGNORE
from harness.tasks.event_xor import SEEDS, EventXOR, examples_of
from harness.tasks.task import SPLITS

SMALL = {"train_examples": 60, "test_examples": 50}


def as_the_authors_draw(random, pad_size):
    """One example as raminmh/CfC draws it, bit by bit: steps (bit, bits since the last step), and the parity."""
    length, last, since, ones, steps = random.randint(low=2, high=pad_size), -1, 0, 0, []
    for _ in range(length):
        since += 1
        bit = int(random.randint(low=0, high=2))
        ones += bit
        if bit != last:
            steps.append((bit, since))
            since = 0
        last = bit
    return [*steps, *([(last, since)] if since else [])], ones % 2


@pytest.mark.parametrize("pad_size", [4, 24, 32])
def test_event_xor_has_the_examples_of_the_authors_generator(pad_size):
    random, drawn = np.random.RandomState(7), examples_of(7, 80, pad_size)
    for row in range(80):
        steps, parity = as_the_authors_draw(random, pad_size)
        n = drawn.lengths[row]
        assert list(zip(drawn.values[row, :n, 0], drawn.elapsed[row, :n], strict=True)) == steps
        assert drawn.targets[row, n - 1] == parity
        assert (np.delete(drawn.targets[row], n - 1) == IGNORE).all()
        assert (drawn.values[row, n:] == 0).all()


def test_their_test_set_gives_one_who_always_says_even_what_they_report_for_the_ltc():
    targets = examples_of(SEEDS["test"], 10_000, 32).targets
    assert (targets == 0).sum() / 10_000 == 0.4911


def test_the_oracle_solves_event_xor_and_needs_the_time():
    def right(**told):
        task, found = EventXOR(**SMALL, **told), []
        for split in SPLITS:
            batch = task.batch(split, 0, 50, 32, seed=1)
            asked = batch.targets != IGNORE
            assert asked.sum(1).eq(1).all()
            found.append((task.oracle(batch.inputs, batch.elapsed) == batch.targets)[asked].double().mean().item())
        return np.mean(found)

    assert right() == right(time_unit=1.0) == right(time_feature=False) == 1.0
    assert right(elapsed="constant") < 0.75
    assert right(elapsed="permuted") < 0.75


def test_what_is_told_of_time():
    made = {told: EventXOR(**SMALL, elapsed=told) for told in (True, "constant", "permuted")}
    batches = {told: task.batch("test", 0, 50, 32, 0) for told, task in made.items()}
    true, lengths = batches[True].elapsed, (batches[True].targets != IGNORE).long().argmax(1) + 1
    assert torch.equal(batches["permuted"].elapsed.sort(1).values, true.sort(1).values)
    assert not torch.equal(batches["permuted"].elapsed, true)
    real = torch.arange(32) < lengths[:, None]
    assert (batches["permuted"].elapsed[~real] == 1 / 32).all()  # padding stays behind
    mean = made[True].mean_elapsed() / 32
    assert batches["constant"].elapsed.unique().tolist() == pytest.approx([mean])
    for told, batch in batches.items():
        assert torch.equal(batch.inputs[..., 0], batches[True].inputs[..., 0])
        torch.testing.assert_close(batch.inputs[..., 1], batch.elapsed.log1p())
        assert made[told].digest != EventXOR(**SMALL, elapsed=told, time_feature=False).digest
    assert len({task.digest for task in made.values()}) == 3
    assert made[True].digest == EventXOR(**SMALL).digest
    assert EventXOR(**SMALL, time_feature=False).batch("test", 0, 2, 32, 0).inputs.shape == (2, 32, 1)


def test_an_epoch_shows_each_example_once_in_an_order_of_its_own():
    task = EventXOR(**SMALL)
    shown = torch.cat([task.batch("train", index, 8, 32, 3).inputs for index in range(15)]).numpy()  # two epochs of 60
    epochs = [shown[:60], shown[60:]]
    assert [set(map(bytes, epoch)) for epoch in epochs] == [{bytes(x) for x in epochs[0]}] * 2
    assert not np.array_equal(*epochs)
    assert not np.array_equal(task.batch("train", 0, 60, 32, 4).inputs, epochs[0])
    assert task.batch("train", 3, 8, 32, 3).inputs.equal(torch.from_numpy(shown[24:32]))
    assert task.batch("test", 0, 50, 32, 3).inputs.equal(task.batch("test", 1, 50, 32, 4).inputs)
    assert (task.train_tokens, task.tokens("test"), task.epochs(60 * 32 * 5)) == (60 * 32, 50 * 32, 5)


class Saying(torch.nn.Linear):
    """A model that says what it is told to, whatever it reads; it counts the rows."""

    def __init__(self, says):
        super().__init__(1, 1)
        self.says, self.rows = says, 0

    def forward(self, inputs, state, elapsed):
        assert elapsed.shape == inputs.shape[:2]
        self.rows += len(inputs)
        return torch.tensor(self.says).expand(*inputs.shape[:2], 2), state


def test_every_example_is_judged_once():
    task, model, seen = EventXOR(**SMALL), Saying([1.0, 0.0]), []
    with observing(seen.append):
        found = task.evaluate(model, EvaluateConfig(streams=16), 32, seed=5)
    assert model.rows == 100
    even = (task.sets["test"].targets == 0).sum() / 50
    assert (found["test"]["accuracy"], found["test"]["targets"]) == (even, 50)
    assert [len(passage.batch.inputs) for passage in seen] == [16, 16, 16, 2]
    assert found["extrapolation"] == [{"length": 32, **found["test"]}]
    assert task.evaluate(model, EvaluateConfig(max_bytes=32 * 20), 32, 0)["validation"]["targets"] == 20


def test_the_length_is_the_windows():
    with pytest.raises(ConfigError, match=r"trainer\.length=512 .*set trainer\.length=32"):
        EventXOR().check(4, 512)


@pytest.mark.slow
@pytest.mark.long
def test_event_xor_is_trained_checked_and_recorded(tmp_path):
    sizes = [f"task.{key}={value}" for key, value in SMALL.items()]
    settings = ["model=gru", "debug=tiny", "task=event_xor", *sizes, "trainer.length=32", "trainer.tokens=1024"]
    plain = configs.resolved(*settings, f"records={tmp_path}", "progress=false")
    made = replace(run.build(run.own_keys(plain)), size=run.build(plain["size"] | {"n_layers": 1, "params": 40_000}))
    result = made.run(plain, say=lambda line: None)
    assert result["checks"]["passed"] is True
    assert result["evaluation"]["test"]["targets"] == 50
    assert result["data"]["train_examples"] == 60
