"""The training loop: schedule, groups, accumulation, precision, divergence, result."""

import json
import math
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

import tiny
from harness.config.configure import checked
from harness.config.errors import ConfigError, TaskError
from harness.machine.runtime import use_threads
from harness.records.record import Run
from harness.training import checkpoint, optimizer
from harness.training.trainer import Trainer, TrainerConfig, train

DEFAULT = Path(__file__).parent.parent / "conf" / "trainer" / "default.yaml"


class Recorder:
    def __init__(self):
        self.lines = []

    def log(self, metrics, step):
        self.lines.append((step, metrics))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_the_rate_of_the_schedule_is_the_rate_of_the_update(tmp_path, schedule):
    """Also of a parameter that is trained at twice the rate, and behind a checkpoint."""
    rules = {"warmup_ratio": 0.1, "schedule": schedule}
    net = tiny.model()
    net.blocks[0].mixer.rate._lr_multiplier = 2.0
    applied = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", noted(torch.optim.AdamW.step, applied))
        _, _, metrics = tiny.run_once(tmp_path, net, **rules)
    expected = [tiny.config(**rules).learning_rate_at(update) for update in range(30)]
    assert [line["learning_rate"] for line in metrics if "learning_rate" in line] == pytest.approx(expected)
    assert [rates["decay"] for rates in applied] == pytest.approx(expected)
    assert [rates["no_decay"] for rates in applied] == pytest.approx(expected)
    assert [rates["no_decay_lr_2"] for rates in applied] == pytest.approx([2 * rate for rate in expected])


def noted(step, applied: list[dict]):
    """`step` of an optimizer that also notes the rate of each group."""

    def noting(self, *given, **options):
        applied.append({group["name"]: group["lr"] for group in self.param_groups})
        return step(self, *given, **options)

    return noting


@pytest.mark.parametrize("epsilon", [1e-8, 1e-3])
def test_one_update_is_adamw_by_hand(tmp_path, epsilon):
    """Clipped gradient, bias-corrected moments, decoupled decay, in float64."""
    net = tiny.model().double()
    old = {name: p.detach().clone() for name, p in net.named_parameters()}
    batch = tiny.Counting().batch("train", 0, 2, 8, 0)
    logits, _ = net(batch.inputs)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-100).backward()
    gradients = {name: p.grad.clone() for name, p in net.named_parameters()}
    norm = torch.sqrt(sum((g**2).sum() for g in gradients.values()))
    net.zero_grad()
    tiny.run_once(tmp_path, net, tokens=16, warmup_ratio=1.0, clip_norm=0.01, weight_decay=0.5, epsilon=epsilon)
    decayed = {"blocks.0.mixer.output.weight", "blocks.1.channel_mixer.down.weight", "head.weight"}
    for name, parameter in net.named_parameters():
        g = gradients[name] * 0.01 / (norm + 1e-6)
        decay = 0.5 if parameter.ndim > 1 and "embedding" not in name and "rate" not in name else 0.0
        assert (decay > 0) or name not in decayed
        expected = old[name] * (1 - 1e-2 * decay) - 1e-2 * g / (g.abs() + epsilon)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-9, atol=1e-12, msg=name)


def test_accumulation_equals_a_larger_batch(tmp_path):
    whole, parts = tiny.model().double(), tiny.model().double()
    _, one, lines = tiny.run_once(tmp_path / "whole", whole, batch_size=6, tokens=480)
    _, three, more = tiny.run_once(tmp_path / "parts", parts, batch_size=2, accumulate=3, tokens=480)
    assert one["updates"] == three["updates"] == 10
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    figures = ("loss", "gradient_norm")
    assert [[a.get(f) for f in figures] for a in lines if "loss" in a] == [
        pytest.approx([b.get(f) for f in figures], rel=1e-9) for b in more if "loss" in b
    ]


@pytest.mark.parametrize("tied", [False, True])
def test_groups_spare_embeddings_norms_vectors_and_what_asks_for_it(tied):
    net = tiny.model(tie_embeddings=tied)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    groups = optimizer.parameter_groups(net, 0.1)
    decayed = {re.sub(r"blocks\.\d\.", "", names[id(p)]) for p in groups[0]["params"]}
    assert decayed == {"mixer.output.weight", "channel_mixer.gate_up.weight", "channel_mixer.down.weight"} | (
        set() if tied else {"head.weight"}
    )
    reported = [(g.name, g.weight_decay, g.lr_multiplier) for g in optimizer.report(groups)]
    assert reported == [("decay", 0.1, 1.0), ("no_decay", 0.0, 1.0)]
    assert sum(g.parameters for g in optimizer.report(groups)) == sum(p.numel() for p in net.parameters())


def test_a_parameter_says_whether_it_decays_and_at_which_part_of_the_rate_it_is_trained():
    net = tiny.model()
    block = net.blocks[1]
    block.mixer.output.weight._no_weight_decay = True
    block.norm.weight._no_weight_decay = False
    block.mixer.rate._lr_multiplier = 2
    block.channel_mixer.down.weight._lr_multiplier = 0.5
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    groups = {group["name"]: group for group in optimizer.parameter_groups(net, 0.1)}
    held = {name: [names[id(p)] for p in group["params"]] for name, group in groups.items()}
    assert held.pop("no_decay_lr_2") == ["blocks.1.mixer.rate"]
    assert held.pop("decay_lr_0.5") == ["blocks.1.channel_mixer.down.weight"]
    assert "blocks.1.norm.weight" in held["decay"]
    assert "blocks.1.mixer.output.weight" in held["no_decay"]
    assert set(held) == {"decay", "no_decay"}
    assert [(g.lr_multiplier, g.weight_decay) for g in optimizer.report(list(groups.values()))] == [
        (1.0, 0.1), (1.0, 0.0), (2.0, 0.0), (0.5, 0.1)
    ]  # fmt: skip


@pytest.mark.parametrize("multiplier", [0, -1.0, math.nan, math.inf, "2"])
def test_a_multiplier_of_the_rate_that_is_no_positive_number_is_told(multiplier):
    net = tiny.model()
    net.blocks[0].mixer.rate._lr_multiplier = multiplier
    with pytest.raises(ConfigError, match=r"blocks\.0\.mixer\.rate has _lr_multiplier"):
        optimizer.parameter_groups(net, 0.1)


def test_a_run_with_several_rates_resumes_as_if_it_had_never_stopped(tmp_path, monkeypatch):
    def net():
        made = tiny.model(dropout=0.2)
        made.blocks[0].mixer.rate._lr_multiplier = 3.0
        return made

    whole, _, _ = tiny.run_once(tmp_path / "whole", net())
    resumed = net()
    monkeypatch.setattr(Trainer, "apply", stopping_at(17, Trainer.apply))
    with pytest.raises(KeyboardInterrupt):
        tiny.run_once(tmp_path / "stopped", net())
    monkeypatch.undo()
    tiny.run_once(tmp_path / "stopped", resumed)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def stopping_at(update: int, apply):
    """`apply` that is interrupted at an update."""

    def stop(self, rate):
        if self.ledger.update == update:
            raise KeyboardInterrupt
        apply(self, rate)

    return stop


def test_training_learns_and_its_result_counts_tokens_and_updates(tmp_path):
    net, result, metrics = tiny.run_once(tmp_path, tiny.model(), tokens=1590)
    assert (result["status"], result["updates"], result["tokens"]) == ("finished", 100, 1600)
    assert result["epochs"] == pytest.approx(1.6)
    losses = [line["loss"] for line in metrics if "loss" in line]
    assert losses[0] == pytest.approx(math.log(tiny.VOCAB), rel=0.1)
    assert result["final_loss"] == pytest.approx(sum(losses[-10:]) / 10)
    assert result["final_loss"] < 0.5 * losses[0]
    assert result["flops_per_token"] == 3 * net.flops_per_token(8).total
    assert result["peak_memory_bytes"] is None or result["peak_memory_bytes"] < 50_000_000  # beyond what was in use
    assert result["tokens_per_second"] > 0
    assert result["divergence"] is None


def test_validation_is_the_mean_over_scored_tokens_and_leaves_training_alone(tmp_path):
    with_validation, _, metrics = tiny.run_once(tmp_path / "a", validate_every=30)
    without, _, silent = tiny.run_once(tmp_path / "b", validate_every=0)
    for a, b in zip(with_validation.parameters(), without.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not any("validation_loss" in line for line in silent)
    batches = [tiny.Counting().batch("validation", index, 2, 8, 0) for index in range(2)]
    inputs, targets = (torch.cat([getattr(b, part) for b in batches]) for part in ("inputs", "targets"))
    logits, _ = with_validation.eval()(inputs)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
    assert metrics[-1] == {"update": 30, "validation_loss": pytest.approx(loss.item(), rel=1e-5)}


def test_bf16_computes_in_bf16_and_keeps_fp32_weights(tmp_path):
    net = tiny.model()
    seen = set()
    net.head.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    _, result, _ = tiny.run_once(tmp_path / "bf16", net, precision="bf16", tokens=1600)
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert net(torch.zeros(1, 2, dtype=torch.long))[0].dtype == torch.float32
    _, exact, _ = tiny.run_once(tmp_path / "fp32", tiny.model(), tokens=1600)
    assert result["final_loss"] == pytest.approx(exact["final_loss"], rel=0.1)


def test_a_loss_that_is_not_finite_ends_the_run_as_a_record(tmp_path):
    net = tiny.model()
    calls = []

    def spoil(module, inputs, output):
        calls.append(1)
        return output * math.nan if len(calls) == 7 else output

    net.head.register_forward_hook(spoil)
    _, result, metrics = tiny.run_once(tmp_path, net, validate_every=0)
    assert (result["status"], result["updates"]) == ("diverged", 6)
    assert result["divergence"]["update"] == 7
    assert "loss is not finite (nan)" in result["divergence"]["reason"]
    assert all(p.isfinite().all() for p in net.parameters())
    assert metrics[-1]["update"] == 7
    assert metrics[-1]["loss"] is None


def test_a_gradient_that_is_not_finite_ends_the_run(tmp_path):
    net = tiny.model()
    net.head.weight.register_hook(lambda gradient: gradient * math.inf)
    _, result, _ = tiny.run_once(tmp_path, net)
    assert result["divergence"]["update"] == 1
    assert "gradient norm is not finite" in result["divergence"]["reason"]
    assert (result["updates"], result["final_loss"], result["tokens_per_second"]) == (0, None, None)


def test_only_a_gradient_that_stays_long_ends_the_run(tmp_path):
    _, brief, _ = tiny.run_once(tmp_path / "brief", divergence_norm=1e-6, divergence_patience=31)
    assert brief["status"] == "finished"
    _, result, _ = tiny.run_once(tmp_path / "long", divergence_norm=1e-6, divergence_patience=9)
    assert (result["status"], result["updates"]) == ("diverged", 8)
    assert "for 9 updates in a row" in result["divergence"]["reason"]
    assert result["divergence"]["value"] > 1e-6


def test_a_checkpoint_is_saved_every_so_many_updates_and_at_the_end(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(checkpoint, "save", lambda path, key, content: saved.append(content["ledger"]["update"]))
    tiny.run_once(tmp_path, checkpoint_every=7)
    assert saved == [7, 14, 21, 28, 30]


def test_every_line_reaches_the_logger(tmp_path):
    logger = Recorder()
    with Run.open(tmp_path, "tiny", {}, "data") as run:
        train(tiny.model(), tiny.Counting(), tiny.config(log_every=7), 0, run, logger, progress=False)
        assert [(line.pop("update"), line) for line in run.metrics()] == logger.lines
    assert [step for step, line in logger.lines if "loss" in line] == [1, 7, 14, 21, 28, 30]


def test_a_line_holds_the_means_over_the_updates_since_the_line_before(tmp_path):
    _, _, every = tiny.run_once(tmp_path / "every", log_every=1, validate_every=0)
    _, _, seventh = tiny.run_once(tmp_path / "seventh", log_every=7, validate_every=0)
    losses, (first, *lines) = [line["loss"] for line in every], seventh
    assert first["loss"] == losses[0]
    ends = [7, 14, 21, 28, 30]
    means = [sum(losses[a:b]) / (b - a) for a, b in zip([0, *ends], ends, strict=False)]
    assert [(line["update"], line["loss"]) for line in lines] == list(zip(ends, map(pytest.approx, means), strict=True))
    assert first["bits_per_token"] == pytest.approx(losses[0] / math.log(2))


def test_progress_is_told_in_lines_where_there_is_no_terminal(tmp_path, capsys):
    with Run.open(tmp_path, "tiny", {}, "data") as run:
        train(tiny.model(), tiny.Counting(), tiny.config(), 0, run, Recorder(), progress=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("update")]
    assert 10 <= len([line for line in lines if "left" in line]) <= 12
    assert all(part in lines[-2] for part in ("30/30", "loss", "bits/token", "tokens/s", "0:00 left"))
    assert re.search(r"update 30: validation \d\.\d{3} bits/token$", lines[-1])
    tiny.run_once(tmp_path / "silent")
    assert capsys.readouterr().out == ""


def test_a_configuration_that_cannot_be_served_is_told_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA device"):
        tiny.config(device="cuda").check(tiny.Counting())

    class Short(tiny.Counting):
        def check(self, batch_size, length):
            raise TaskError(f"{batch_size} x {length}", "more", "less")

    with pytest.raises(TaskError, match="2 x 8"):
        tiny.run_once(tmp_path, task=Short())


def test_the_default_configuration_is_checked_and_is_the_class_s_own():
    node = checked(yaml.safe_load(DEFAULT.read_text()), "trainer")
    assert node.pop("_target_") == "harness.training.trainer.TrainerConfig"
    assert node == asdict(TrainerConfig())
    bad = {"tokens": -1, "warmup_ratio": 1.5, "precision": "fp8", "clip_norm": 0.0, "beta2": 1.0}
    bad |= {"tokens_per_parameter": 0.0, "epochs": -1.0, "schedule": "step", "epsilon": 0.0, "decay_ratio": 2.0}
    bad |= {"warmup_updates": -1}
    for key, value in bad.items():
        with pytest.raises(ConfigError, match=f"trainer.{key}="):
            checked({"_target_": "harness.training.trainer.TrainerConfig", key: value}, "trainer")


def test_threads_are_those_asked_for_and_recorded(tmp_path):
    before = torch.get_num_threads()
    try:
        tiny.run_once(tmp_path, tokens=16, threads=before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        use_threads(None)
    assert torch.get_num_threads() == before
    (path,) = tmp_path.glob("tiny-*/environment.json")
    assert json.loads(path.read_text())["threads"] == before + 1
