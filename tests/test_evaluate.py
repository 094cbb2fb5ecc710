"""Evaluation against slow oracles: every byte counted once, no context beyond what is claimed."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import configs
from harness.evaluation import passage
from harness.evaluation.evaluate import EvaluateConfig, evaluate
from harness.evaluation.passage import Reading, observing
from harness.evaluation.text import extrapolation, loss_by_position, stream_loss, stream_rows, token_losses
from harness.model.backbone import Width
from harness.model.context import ContextPolicy
from harness.model.interface import IGNORE, Tokens
from harness.tasks.mqar import MQAR
from harness.tasks.parity import Parity
from harness.tasks.text import TextTask

ROOT = Path(__file__).resolve().parent.parent
STREAM = np.random.default_rng(0).integers(97, 123, 997, dtype=np.uint8)


class Text(TextTask):
    """A task over bytes made here."""

    def load(self):
        generator = np.random.default_rng(1)
        letters = np.frombuffer(b"etaoin  ", dtype=np.uint8)
        sizes = {"train": 2000, "validation": 801, "test": 1203}
        return {split: letters[generator.integers(8, size=size)].tobytes() for split, size in sizes.items()}


class Bigram(nn.Module):
    """Logits from the last byte alone."""

    constant_state = True

    def __init__(self, vocab_size=256):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(vocab_size, vocab_size))

    def forward(self, tokens, state=None, elapsed=None):
        return self.table[tokens], state

    def step(self, tokens, state, elapsed=None):
        return self.table[tokens], state

    def frozen_step(self):
        return self.step

    def truncate_state(self, state, keep):
        return state

    def bits(self, before, after):
        """The bits of each `after`, in numpy."""
        return -torch.log_softmax(self.table.detach().double(), -1).numpy()[before, after] / math.log(2)


class Bag(Bigram):
    """Logits from the mean of all the bytes in its context: a state that grows with it."""

    constant_state = False

    def forward(self, tokens, state=None, elapsed=None):
        seen = tokens if state is None else torch.cat([state, tokens], 1)
        sums = self.table[seen].cumsum(1) / torch.arange(1, seen.shape[1] + 1)[:, None]
        return sums[:, seen.shape[1] - tokens.shape[1] :], seen

    def step(self, tokens, state, elapsed=None):
        logits, state = self.forward(tokens[:, None], state)
        return logits[:, 0], state

    def truncate_state(self, state, keep):
        return state[:, max(0, state.shape[1] - keep) :]

    def nats(self, context, target):
        """The nats of one target after `context` (1-D), from scratch."""
        logits = self.table.detach()[torch.from_numpy(context.astype(int))].double().mean(0)
        return -torch.log_softmax(logits, -1)[int(target)].item()


class Carry(Bag):
    """The same memory, claimed constant: nothing is ever forgotten."""

    constant_state = True

    def truncate_state(self, state, keep):
        return state


def trained_context_loss(model, stream, streams, train_length):
    """The loss under the policy of the training length."""
    return stream_loss(model, stream_rows(stream, streams, train_length), ContextPolicy(train_length), 1)


@pytest.mark.parametrize("size", [997, 64, 17])
def test_every_byte_but_the_first_of_each_row_is_scored_once(size):
    model, stream = Bigram(), STREAM[:size]
    nats, scored = trained_context_loss(model, stream, 4, train_length=8)
    rows = np.array_split(stream, min(4, size // 16))
    assert scored == size - len(rows)
    expected = sum(model.bits(row[:-1], row[1:]).sum() for row in rows)
    assert nats / math.log(2) == pytest.approx(expected, rel=1e-6)


def test_a_growing_state_never_sees_beyond_the_training_length():
    model, stream, train_length = Bag(), STREAM[:203], 12
    nats, scored = trained_context_loss(model, stream, 3, train_length)
    expected = 0.0
    for row in np.array_split(stream, 3):
        for target in range(1, len(row)):
            chunk_start = (target - 1) // 6 * 6
            context = row[max(0, chunk_start - 6) : target]
            assert len(context) <= train_length
            expected += model.nats(context, row[target])
    assert scored == 200
    assert nats == pytest.approx(expected, rel=1e-6)


def test_a_constant_state_carries_the_whole_row():
    model, stream = Carry(), STREAM[:101]
    nats, _ = trained_context_loss(model, stream, 1, train_length=10)
    assert nats == pytest.approx(sum(model.nats(stream[:t], stream[t]) for t in range(1, 101)), rel=1e-6)


def test_the_record_of_a_text_task():
    task, model = Text("text"), Bigram().train()
    config = EvaluateConfig(
        streams=2, position_bytes=256, extrapolation_bytes=512, sample_prompt_bytes=5, sample_bytes=9
    )
    result = evaluate(model, task, config, train_length=16)
    assert model.training
    assert result["validation"]["bytes"] == 799
    test = task.streams["test"]
    rows = np.array_split(test, 2)
    bits = np.concatenate([model.bits(row[:-1], row[1:]) for row in rows]).mean()
    assert result["test"]["bits_per_byte"] == pytest.approx(bits, rel=1e-6)
    assert result["test"]["perplexity_per_byte"] == pytest.approx(2**bits, rel=1e-5)
    words = len(test.tobytes().split())
    assert result["test"]["perplexity_per_word"] == pytest.approx(2 ** (bits * 1203 / words), rel=1e-5)
    assert [row["length"] for row in result["extrapolation"]] == [16, 32, 64, 128]
    assert result["sample"]["prompt"] == test[:5].tobytes().decode()
    assert evaluate(model, task, config, train_length=16) == result
    assert evaluate(model, task, config, train_length=16, seed=1)["sample"]["text"] != result["sample"]["text"]


def test_who_observes_is_shown_the_passages_of_the_test_split():
    task, shown = Text("text"), []
    with observing(shown.append):
        result = evaluate(Bigram(), task, EvaluateConfig(streams=3, sample_bytes=1), train_length=16)
    seen = [passage for passage in shown if passage.main]
    assert [passage.index for passage in seen] == list(range(seen[0].count))
    assert [passage.read for passage in seen] == [8 * index for index in range(len(seen))]
    read = torch.cat([passage.batch.inputs for passage in seen], 1)
    assert torch.equal(read, torch.from_numpy(task.streams["test"].reshape(3, 401)[:, :-1].astype(int)))
    nats = sum(token_losses(passage.outputs, passage.batch.targets).sum().item() for passage in seen)
    assert nats / math.log(2) / 1200 == pytest.approx(result["test"]["bits_per_byte"], rel=1e-6)
    others = [passage for passage in shown if not passage.main]
    assert {passage.batch.inputs.shape[1] for passage in others} == {16, 32, 64, 128}
    for row in result["extrapolation"][1:]:
        losses = [
            token_losses(passage.outputs, passage.batch.targets).sum().item()
            for passage in others
            if passage.batch.inputs.shape[1] == row["length"]
        ]
        assert sum(losses) / math.log(2) / row["bytes"] == pytest.approx(row["bits_per_byte"], rel=1e-6)


def test_a_limit_reads_the_head_of_each_split():
    result = evaluate(Bigram(), Text("text"), EvaluateConfig(streams=2, max_bytes=200), train_length=16)
    assert result["validation"]["bytes"] == result["test"]["bytes"] == 198


def test_loss_by_position_starts_from_a_fresh_state():
    model, config = Bag(), EvaluateConfig(streams=2, position_bytes=64, position_buckets=3)
    rows = loss_by_position(model, STREAM[:70], config, train_length=16)
    assert [row["position"] for row in rows] == [1, 4, 16]
    ends = [16, 33, 51, 69]  # four windows of sixteen bytes in seventy
    losses = [[model.nats(STREAM[end - 16 : end - 15 + p], STREAM[end - 15 + p]) for p in range(16)] for end in ends]
    by_position = np.mean(losses, axis=0) / math.log(2)
    expected = [by_position[0:1].mean(), by_position[1:4].mean(), by_position[4:16].mean()]
    assert [row["bits_per_byte"] for row in rows] == pytest.approx(expected, rel=1e-6)


def test_extrapolation_scores_the_same_bytes_at_every_length():
    config = EvaluateConfig(streams=2, extrapolation_bytes=192, length_factors=(1, 4, 1000))
    same = extrapolation(Bigram(), STREAM, config, train_length=16)
    assert [row["length"] for row in same] == [16, 64]  # the stream does not hold the third
    assert same[0]["bits_per_byte"] == pytest.approx(same[1]["bits_per_byte"], rel=1e-6)
    assert same[0]["bytes"] == same[1]["bytes"] == 3 * 8
    model = Bag()
    ends = np.linspace(64, 996, 3).astype(int)
    for row in extrapolation(model, STREAM, config, train_length=16):
        targets = [(end, t) for end in ends for t in range(end - 7, end + 1)]
        expected = np.mean([model.nats(STREAM[end - row["length"] : t], STREAM[t]) for end, t in targets])
        assert row["bits_per_byte"] == pytest.approx(expected / math.log(2), rel=1e-6)


class Shown(Bigram):
    """Notes the shape of what it is given."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def forward(self, tokens, state=None, elapsed=None):
        self.shapes.append(tuple(tokens.shape))
        return super().forward(tokens, state)


def test_windows_do_not_overlap_and_as_many_are_read_at_once_as_streams_hold():
    model, config = Shown(), EvaluateConfig(streams=2, position_bytes=4096)
    loss_by_position(model, STREAM[:64], config, train_length=16)
    assert model.shapes == [(2, 16), (1, 16)]  # the first of 64 bytes is predicted from nothing
    model.shapes.clear()
    loss_by_position(model, STREAM[:65], config, train_length=16)
    assert model.shapes == [(2, 16), (2, 16)]
    model.shapes.clear()
    extrapolation(model, STREAM, replace(config, extrapolation_bytes=192, length_factors=(1, 2, 4)), train_length=16)
    assert model.shapes == [(2, 16), (1, 16), (1, 32), (1, 32), (1, 32), (1, 64), (1, 64), (1, 64)]


@pytest.mark.parametrize(("size", "segments"), [(24, 1), (25, 2), (32, 2), (33, 3)])
def test_extrapolation_scores_no_byte_twice(size, segments):
    config = EvaluateConfig(streams=2, length_factors=(1,))
    (row,) = extrapolation(Bigram(), STREAM[:size], config, train_length=16)
    assert row["bytes"] == 8 * segments


def test_the_default_configuration_is_the_class_s_own():
    node = yaml.safe_load((ROOT / "conf" / "evaluate" / "default.yaml").read_text())
    assert node.pop("_target_") == "harness.evaluation.evaluate.EvaluateConfig"
    assert json.loads(json.dumps(asdict(EvaluateConfig()))) == node


class Solved(nn.Module):
    """Answers as the task's oracle does, with all its confidence."""

    def __init__(self, task):
        super().__init__()
        self.task, self.sharpness = task, nn.Parameter(torch.tensor(50.0))

    def forward(self, tokens, state=None, elapsed=None):
        answers = self.task.oracle(tokens)
        return self.sharpness * nn.functional.one_hot(answers, self.task.vocab_size), state


@pytest.mark.parametrize("task", [Parity(), MQAR(vocab_size=32, num_kv_pairs=4)], ids=lambda task: task.name)
def test_accuracy_of_one_who_knows_and_of_one_who_guesses(task):
    config = EvaluateConfig(streams=4, synthetic_examples=40, length_factors=(1, 2))
    known = evaluate(Solved(task), task, config, train_length=32)
    assert known["validation"]["accuracy"] == known["test"]["accuracy"] == 1.0
    assert known["test"]["loss"] < 1e-6
    assert [(row["length"], row["accuracy"]) for row in known["extrapolation"]] == [(32, 1.0), (64, 1.0)]
    assert {row["sequence_accuracy"] for row in (known["test"], *known["extrapolation"])} == {1.0}
    guessed = evaluate(Bigram(task.vocab_size), task, config, train_length=32)
    assert guessed["test"]["accuracy"] < 0.7
    assert guessed["test"]["loss"] > 0.5
    assert guessed["test"]["sequence_accuracy"] < 0.1


def test_long_lengths_read_fewer_examples():
    config = EvaluateConfig(streams=8, synthetic_examples=40, extrapolation_bytes=1024, length_factors=(1, 2, 8, 64))
    rows = evaluate(Bigram(2), Parity(), config, train_length=32)["extrapolation"]
    assert [row["targets"] // row["length"] for row in rows] == [40, 16, 4, 1]


@pytest.mark.parametrize("cut", [None, 9])
@pytest.mark.parametrize("timed", [False, True])
def test_what_is_read_in_pieces_is_what_is_read_at_once(cut, timed, monkeypatch):
    model = configs.spec("ltc", "kernel=reference").build(16, 2, Width(16, 16)).eval()
    tokens = torch.randint(16, (2, 23))
    reading = Reading(tokens, tokens, torch.rand(2, 23) if timed else None, cut)
    whole = reading.read(model)
    monkeypatch.setattr(passage, "PIECE", 4)
    sizes = []
    model.register_forward_hook(lambda _, given, __: sizes.append(given[0].shape[1]))
    with torch.no_grad():
        torch.testing.assert_close(reading.read(model), whole.detach())
    assert max(sizes) == 4
    sizes.clear()
    reading.read(model).sum().backward()  # training reads whole sequences
    assert sizes == ([23] if cut is None else [9, 14])


def test_a_sequence_is_right_where_all_that_it_is_asked_is_right():
    targets = torch.tensor([[1, 2, 3], [1, 2, IGNORE], [1, IGNORE, IGNORE], [IGNORE, IGNORE, IGNORE]])
    said = torch.tensor([[1, 2, 3], [1, 2, 0], [0, 2, 3], [0, 0, 0]])
    assert Tokens(4).whole(nn.functional.one_hot(said, 4).float(), targets) == (2, 3)
