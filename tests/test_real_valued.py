"""Tasks of real vectors and of classes, with irregular times: trained, checked, evaluated and recorded."""

from dataclasses import replace

import pytest
import torch

import run
from analysis import frame, records, tables
from harness.config.experiment import Experiment
from harness.evaluation.evaluate import EVALUATION_SEED, EvaluateConfig, by_batches
from harness.model.backbone import Width
from harness.model.interface import Classes, Interface, Tokens, Vectors
from harness.tasks.task import SPLITS, Batch, Task
from harness.training.loggers import NoLogger
from harness.training.trainer import TrainerConfig


class Waves(Task):
    """Two waves of one frequency seen at irregular times: say the next sight (regression)."""

    name = "waves"
    digest = "waves-1"
    inputs = targets = Vectors(2)

    def tokens(self, split):
        return None

    def check(self, batch_size, length):
        """Every shape can be drawn."""

    def drawn(self, split, index, batch_size, length, seed):
        """Frequencies (B,), elapsed times (B, T + 1) and sights (B, T + 1, 2)."""
        generator = torch.Generator().manual_seed(1000 * seed + 3 * index + SPLITS.index(split))
        frequency = 0.2 + 0.6 * torch.rand(batch_size, generator=generator)
        elapsed = 0.2 + torch.rand(batch_size, length + 1, generator=generator)
        angle = frequency[:, None] * elapsed.cumsum(1)
        return frequency, elapsed, torch.stack([angle.sin(), angle.cos()], -1)

    def batch(self, split, index, batch_size, length, seed):
        _, elapsed, seen = self.drawn(split, index, batch_size, length, seed)
        targets = seen[:, 1:].clone()
        targets[:, 0] = torch.nan  # one sight shows no frequency: it is not scored
        return Batch(seen[:, :-1], targets, elapsed[:, :-1])


class Fast(Waves):
    """Whether the frequency is above the middle: one class for a sequence."""

    name = "fast"
    targets = Classes(2)

    def batch(self, split, index, batch_size, length, seed):
        frequency, elapsed, seen = self.drawn(split, index, batch_size, length, seed)
        return Batch(seen[:, :-1], (frequency > 0.5).long(), elapsed[:, :-1])


class AbsoluteWaves(Waves):
    """The regression judged by another figure than the one it is trained on."""

    metric = "mean_absolute_error"

    def total(self, outputs, batch):
        return (outputs - batch.targets)[:, 1:].abs().mean(-1).sum().item()


def test_a_task_owns_its_metric():
    class Zero(torch.nn.Linear):
        def forward(self, inputs, state, elapsed):
            return torch.zeros_like(inputs), state

    task = AbsoluteWaves()
    found = by_batches(Zero(1, 1), task, EvaluateConfig(synthetic_examples=4, length_factors=[1]), 6)["test"]
    targets = task.batch("test", 0, 4, 6, EVALUATION_SEED).targets[:, 1:]
    assert found["mean_absolute_error"] == pytest.approx(targets.abs().mean().item())
    assert found["loss"] == pytest.approx(targets.square().mean().item())
    assert (Waves().metric, Fast().metric) == ("mean_squared_error", "accuracy")


def experiment(model: str, task: Task, records, **changes) -> tuple[Experiment, dict]:
    """A small experiment on a task that no configuration names, and the configuration that it records."""
    plain = run.resolve(run.compose([f"model={model}", "debug=tiny", "size.params=60000"]))
    built = run.build(run.own_keys(plain))
    settings = {"tokens": 40_000, "batch_size": 8, "length": 24, "device": "cpu", "validation_batches": 2}
    trainer = TrainerConfig(**settings | changes)
    evaluate = replace(built.evaluate, length_factors=(1, 2))
    given = {"task": task, "trainer": trainer, "evaluate": evaluate, "records": str(records), "progress": False}
    return replace(built, logger=NoLogger(), **given), plain


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", ["ltc", *(pytest.param(name, marks=pytest.mark.long) for name in ("gru", "transformer", "mamba"))]
)
def test_a_regression_is_learnt_and_recorded(model, tmp_path):
    made, config = experiment(model, Waves(), tmp_path)
    result = made.run(config, say=lambda line: None)
    assert result["checks"]["passed"] is True
    figures = result["evaluation"]["test"]
    assert figures["mean_squared_error"] == pytest.approx(figures["loss"], rel=1e-5)
    assert figures["mean_squared_error"] < 0.25  # one who says nothing pays 0.5
    assert figures["targets"] == 16 * 23
    assert [row["length"] for row in result["evaluation"]["extrapolation"]] == [24, 48]
    assert result["data"]["inputs"] == "Vectors(width=2)"
    assert abs(result["parameters"]["total"] - 60_000) <= 1200
    assert result["measurement"]["contexts"][0]["decode_ms_p50"] > 0
    (table,) = tables.comparisons(frame.runs(records.load([tmp_path]).runs), "test_mean_squared_error")
    assert table.rows[0][0].startswith(model)
    (path,) = tmp_path.glob("*/curve.csv")
    assert {"loss", "validation_loss"} <= set(path.read_text().splitlines()[0].split(","))
    assert "bits_per_token" not in path.read_text()


@pytest.mark.slow
def test_a_class_for_a_sequence_is_learnt_and_recorded(tmp_path):
    made, config = experiment("ltc", Fast(), tmp_path)
    result = made.run(config, say=lambda line: None)
    assert result["checks"]["passed"] is True
    assert result["evaluation"]["test"]["accuracy"] > 0.8
    assert result["evaluation"]["test"]["targets"] == 16


def test_the_elapsed_times_reach_the_model():
    made, _ = experiment("ltc", Waves(), "unused")
    batch = Waves().batch("test", 0, 3, 10, 0)
    model = made.model.build(Waves().interface, 1, Width(32, 16))
    assert not torch.allclose(model(batch.inputs, None, batch.elapsed)[0], model(batch.inputs)[0])


def test_a_loss_counts_what_is_scored_alone():
    targets = torch.tensor([[[1.0, 3.0], [torch.nan, torch.nan]]])
    outputs = torch.tensor([[[0.0, 0.0], [9.0, 9.0]]], requires_grad=True)
    vectors = Vectors(2)
    loss = vectors.loss(outputs, targets)
    assert vectors.scored(targets) == 1
    assert loss.item() == pytest.approx((1 + 9) / 2)
    loss.backward()
    assert torch.equal(outputs.grad[0, 1], torch.zeros(2))


def test_the_interface_decides_what_a_generation_reads_next():
    outputs = torch.tensor([[0.1, 0.9]])
    assert Interface(Tokens(2), Tokens(2)).following(outputs, torch.tensor([0])).tolist() == [1]
    assert torch.equal(Interface(Vectors(2), Vectors(2)).following(outputs, torch.zeros(1, 2)), outputs)
    assert torch.equal(Interface(Vectors(3), Classes(2)).following(outputs, torch.ones(1, 3)), torch.ones(1, 3))


@pytest.mark.parametrize("inputs", [Tokens(5), Vectors(3)])
def test_changed_inputs_differ_at_every_position(inputs):
    given = inputs.random(2, 40, torch.Generator().manual_seed(0))
    differing = inputs.changed(given) != given
    assert differing.flatten(2).all() if differing.dim() > 2 else differing.all()


def test_vectors_are_read_by_the_frozen_step_as_by_the_step():
    made, _ = experiment("gru", Waves(), "unused")
    model = made.model.build(Waves().interface, 2, Width(16, 16)).eval()
    x, state = torch.randn(3, 2, dtype=torch.float64), model.init_state(3)
    with torch.no_grad():
        torch.testing.assert_close(model.frozen_step()(x, state)[0], model.step(x, state)[0], rtol=1e-4, atol=1e-5)
