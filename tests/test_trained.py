"""The checks after training: what opens, fills or leaks on trained weights alone is refused, by name."""

import json
import random
from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import configs
import faults
from faults import Decay, Mean
from harness.checks import trained as checks_after
from harness.checks.anew import FEW_TOKENS, CheckAnew
from harness.checks.conditions import Conditions
from harness.checks.runner import CheckResults
from harness.checks.trained import (
    DRAWN,
    Memory,
    Watch,
    _leak_in_training,
    _section,
    check_trained,
)
from harness.config.errors import MachineError
from harness.config.experiment import CheckError
from harness.evaluation.evaluate import EvaluateConfig, evaluate
from harness.evaluation.passage import Passage, Reading, observing
from harness.model.backbone import ModelSpec, Width
from harness.model.interface import IGNORE
from harness.model.mixer import Mixer
from harness.model.mlp import SwiGLU
from harness.tasks.cross_window import CrossWindowRecall
from harness.tasks.mqar import MQAR
from harness.tasks.parity import Parity
from harness.tasks.text import TextTask
from harness.training.trainer import TrainerConfig
from test_real_valued import Fast, Waves, experiment

LENGTH = 32
EVALUATE = EvaluateConfig(streams=3, max_bytes=600, position_bytes=64, extrapolation_bytes=256, sample_bytes=4)
EVALUATE = replace(EVALUATE, length_factors=(1, 2, 4), synthetic_examples=6)


class Text(TextTask):
    """A small text of words."""

    def __init__(self):
        super().__init__("text")

    def load(self):
        words = np.random.default_rng(0).choice([b"a ", b"quick ", b"brown ", b"fox. "], size=1200)
        text = b"".join(words)
        return {"train": text[:3000], "validation": text[3000:3700], "test": text[3700:4500]}


def build(mixer, task=None, n_layers=2):
    spec = ModelSpec("tiny", mixer, SwiGLU) if isinstance(mixer, type) else mixer
    width = Width(64, 96 if spec.channel_mixer else 0)
    return spec.build((task or Text()).interface, n_layers, width)


@torch.no_grad()
def trained(model):
    """Weights away from their start, as training leaves them."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def checked(model, task=None, config=EVALUATE, learn=lambda model: None):
    task, before = task or Text(), Memory(model)
    trained(model)
    learn(model)
    with observing(watch := Watch()):
        evaluate(model, task, config, LENGTH)
    conditions = Conditions(LENGTH, 3, "fp32", "cpu", lambda index: task.batch("train", index, 3, LENGTH, 0))
    return check_trained(model, task, watch, before, conditions)


def failed(checks):
    return {check.name for check in checks.results if check.passed is False}


STATES = ("state_contents", "state_purity", "interleaving", "another_copy", "state_bytes")


@pytest.mark.slow
def test_every_trained_model_passes(architecture):
    checks = checked(build(configs.spec(architecture)))
    assert [check.name for check in checks.results] == [
        *("evaluation_equals_decoding", "causality_after_training", "hidden_memory"),
        *(f"{name}_after_training" for name in STATES),
    ]
    assert all(check.passed for check in checks.results), [check for check in checks.results if not check.passed]


@pytest.mark.parametrize("context", ["full", 10])
@pytest.mark.parametrize("name", ["transformer", "hybrid"])
def test_every_policy_passes(name, context, monkeypatch):
    monkeypatch.setattr(checks_after, "SECTION", 5)
    checks = checked(build(configs.spec(name)), config=replace(EVALUATE, context=context))
    assert checks.passed, [check for check in checks.results if not check.passed]


@pytest.mark.slow
@pytest.mark.parametrize(
    "override", [pytest.param("solver=dopri5", marks=pytest.mark.long), "parallel=newton", "block=gated"]
)
def test_an_inexact_solver_and_a_block_pass(override):
    checks = checked(build(configs.spec("ltc", override)))
    assert checks.passed, [check for check in checks.results if not check.passed]


KINDS = [Parity(), MQAR(vocab_size=32, num_kv_pairs=4), CrossWindowRecall(keys=32), Waves(), Fast()]


@pytest.mark.parametrize("task", KINDS, ids=lambda t: t.name)
@pytest.mark.parametrize("name", ["ltc", "transformer", "gru"])
def test_every_kind_of_task_is_checked(name, task, monkeypatch):
    monkeypatch.setattr(checks_after, "SECTION", 5)
    checks = checked(build(configs.spec(name), task), task)
    assert checks.passed, [check for check in checks.results if not check.passed]
    assert "over 0 targets" not in checks.results[0].detail


def following(x):
    """The next token in every token's place."""
    return nn.functional.pad(x[:, 1:], (0, 0, 0, 1))


class Leaky(Decay):
    """Adds the next token where `open` says so."""

    def open(self, x, state) -> bool:
        raise NotImplementedError

    def forward(self, x, state=None, call=None):
        y, after = super().forward(x, state)
        return (y + following(x) if self.open(x, state) else y), after


class InEvaluation(Leaky):
    """Leaks once the model is out of training, at the evaluation's very shape and in no other."""

    def open(self, x, state):
        return not self.training and x.shape[:2] == (3, LENGTH // 2)


class Carried(Leaky):
    """Leaks where a state was carried, as evaluation alone does; a generation carries it by `step`."""

    def open(self, x, state):
        return not self.training and state is not None and x.shape[1] > 1


class Sparing(faults.Counting):
    """Counts the tokens of its state, and leaks in all calls of an evaluation but the first three and one more."""

    def forward(self, x, state=None, call=None):
        y, after = super().forward(x, state)
        number = after["n"] // (LENGTH // 2) - 1
        opens = not self.training and state is not None and x.shape[1] > 1 and number not in (0, 1, 2, 5)
        return (y + following(x) if opens else y), after


class AtLongContexts(Leaky):
    """Leaks from a fresh state at one length beyond that of training."""

    def open(self, x, state):
        return not self.training and state is None and x.shape[1] == 2 * LENGTH


class BetterAtLongContexts(Decay):
    """Gives more from a fresh state at one length beyond that of training than a generation does."""

    def forward(self, x, state=None, call=None):
        y, after = super().forward(x, state)
        return (2 * y if state is None and x.shape[1] == 2 * LENGTH else y), after


class Gate(Leaky):
    """Leaks through a gate that training opens; before, it is shut for all small changes of the parameter."""

    def __init__(self, d_model, layer=0, n_layers=1):
        super().__init__(d_model, layer, n_layers)
        self.gate = nn.Parameter(torch.zeros(1))

    def open(self, x, state):
        return bool(self.gate > 0.5)


class Blocks(Leaky):
    """Leaks within full blocks of 32 tokens."""

    def forward(self, x, state=None, call=None):
        y, after = Decay.forward(self, x, state)
        whole = x.shape[1] // 32 * 32
        if not whole:
            return y, after
        ahead = torch.cat([following(x[:, :whole]), torch.zeros_like(x[:, whole:])], 1)
        ahead[:, 31:whole:32] = 0
        return y + ahead, after


class Memorises(Decay):
    """Keeps the tokens that were read last in the module; a second reading finds its future there."""

    def forward(self, x, state=None, call=None):
        y, after = super().forward(x, state)
        seen, self.__dict__["last"] = self.__dict__.get("last"), x.detach()
        return (y + following(seen) if seen is not None and seen.shape == x.shape else y), after


class WeakGeneration(Decay):
    """The decoder's path gives less than the evaluation's."""

    def frozen_step(self):
        def step(x_t, state, call=None):
            y, state = Decay.step(self, x_t, state)
            return 0.9 * y, state

        return step


class Truncates(Mean):
    """Claims to grow; what evaluation cuts, it keeps."""

    def truncate_state(self, state, keep):
        return state | {"seen": state["seen"][:, -keep:]} if self.cuts else state

    cuts = True

    def frozen_step(self):
        honest = Mean.step

        def step(x_t, state, call=None):
            return honest(self, x_t, {"seen": state["seen"][:, -2:]})

        return step


class AttendsLate(Decay):
    """Plain until the calls of training are many; from then on the mean of all tokens, in a cache that lists none."""

    calls, allowed = 0, 12

    def forward(self, x, state=None, call=None):
        self.calls += self.training
        if self.calls <= self.allowed:
            return super().forward(x, state)
        y, new = Mean.forward(self, x, {"seen": state.seen} if state else None)
        return y, faults.Opaque(new["seen"], [])

    def step(self, x_t, state, call=None):
        if self.calls <= self.allowed:
            return super().step(x_t, state)
        y, state = self.forward(x_t[:, None], state)
        return y[:, 0], state

    def init_state(self, batch, context=0, device=None, dtype=None):
        if self.calls <= self.allowed:
            return super().init_state(batch, context, device, dtype)
        return faults.Opaque(torch.zeros(batch, 0, self.d_model, device=device, dtype=dtype), [])


class InPlaceLate(AttendsLate):
    """From then on a step that writes into the state that it is given."""

    def forward(self, x, state=None, call=None):
        self.calls += self.training
        return Decay.forward(self, x, state)

    def step(self, x_t, state, call=None):
        return (Decay if self.calls <= self.allowed else faults.InPlace).step(self, x_t, state)

    def init_state(self, batch, context=0, device=None, dtype=None):
        return Decay.init_state(self, batch, context, device, dtype)


class TwiceTheBytesLate(InPlaceLate):
    """From then on a state with as many numbers again behind a view."""

    def forward(self, x, state=None, call=None):
        y, new = super().forward(x, state)
        return y, new if self.calls <= self.allowed else {"h": new["h"].repeat(1, 2)[:, : self.d_model]}

    def step(self, x_t, state, call=None):
        return Decay.step(self, x_t, state)


class InTheMixerLate(AttendsLate):
    """From then on the tokens lie in the module, one memory for all generations."""

    def forward(self, x, state=None, call=None):
        self.calls += self.training
        if self.calls <= self.allowed:
            return Decay.forward(self, x, state)
        y, new = Mean.forward(self, x, {"seen": self.seen} if state else None)
        self.seen = new["seen"]
        return y, {"h": y[:, -1].clone()}

    def init_state(self, batch, context=0, device=None, dtype=None):
        self.seen = torch.zeros(batch, 0, self.d_model, device=device, dtype=dtype)
        return Decay.init_state(self, batch, context, device, dtype)


def many_calls(model):
    for _ in range(AttendsLate.allowed + 1):
        model.train()(torch.zeros(2, 9, dtype=torch.long))


@pytest.mark.parametrize(
    ("mixer", "expected"),
    [
        (AttendsLate, {"state_contents_after_training", "state_bytes_after_training"}),
        (InPlaceLate, {"state_purity_after_training"}),
        (TwiceTheBytesLate, {"state_bytes_after_training"}),
        (InTheMixerLate, {"interleaving_after_training", "another_copy_after_training"}),
    ],
)
def test_a_state_that_breaks_its_contract_after_some_calls_of_training_is_refused(mixer, expected):
    assert failed(checked(build(mixer))) == set()
    assert expected <= failed(checked(build(mixer), learn=many_calls))


def open_gates(model):
    with torch.no_grad():
        for mixer in model.mixers:
            if isinstance(mixer, Gate):
                mixer.gate.fill_(1.0)


@pytest.mark.parametrize(
    ("mixer", "expected"),
    [
        (InEvaluation, {"evaluation_equals_decoding", "causality_after_training"}),
        (Carried, {"evaluation_equals_decoding", "causality_after_training"}),
        (AtLongContexts, {"evaluation_equals_decoding", "causality_after_training"}),
        (BetterAtLongContexts, {"evaluation_equals_decoding"}),
        (Sparing, {"evaluation_equals_decoding"}),
        (Gate, {"evaluation_equals_decoding", "causality_after_training"}),
        (Memorises, {"evaluation_equals_decoding"}),
        (WeakGeneration, {"evaluation_equals_decoding"}),
        (Truncates, {"evaluation_equals_decoding"}),
    ],
)
def test_what_leaks_after_training_is_refused_by_name(mixer, expected):
    assert expected <= failed(checked(build(mixer), learn=open_gates))


def test_a_leak_at_a_longer_length_than_evaluation_reads_is_found():
    assert failed(checked(build(Blocks))) >= {"causality_after_training"}


class Counting(Leaky):
    """Counts its calls in training, which no budget counts; from the last one that is allowed on, `late` says yes."""

    allowed = 3

    def forward(self, x, state=None, call=None):
        self.calls = getattr(self, "calls", 0) + self.training
        return super().forward(x, state, call)

    def late(self) -> bool:
        return self.training and self.calls > self.allowed

    def open(self, x, state):
        return self.late()


class CountingAtTheBatch(Counting):
    """The same at the run's very shape, and with gradients."""

    def open(self, x, state):
        return self.late() and x.shape[:2] == (3, LENGTH) and torch.is_grad_enabled()


class CountingRows(Counting):
    """Adds other rows from some call on."""

    def open(self, x, state):
        return False

    def forward(self, x, state=None, call=None):
        y, after = super().forward(x, state)
        return (y + x.mean(0) if self.late() else y), after


class CountingNoise(Counting):
    """Draws random numbers that no seed decides from some call on, under which a leak could hide."""

    def open(self, x, state):
        return False

    def forward(self, x, state=None, call=None):
        y, after = super().forward(x, state)
        return (y + np.random.default_rng().random() if self.late() else y), after


@pytest.mark.parametrize("mixer", [Counting, CountingAtTheBatch, CountingRows, CountingNoise])
def test_a_leak_that_begins_after_some_calls_of_training_is_refused(mixer):
    def learn(model):
        for _ in range(Counting.allowed + 1):
            model.train()(torch.zeros(2, 9, dtype=torch.long))

    assert failed(checked(build(mixer), learn=learn)) == {"causality_after_training"}


def test_calls_of_training_after_training_leave_the_model_and_the_generators_alone():
    model = build(Counting)
    state = torch.get_rng_state()
    assert _leak_in_training(model, Conditions(LENGTH, 3), torch.Generator()) is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(hasattr(mixer, "calls") for mixer in model.mixers)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_gate_that_stays_shut_is_no_leak():
    assert failed(checked(build(Gate))) == set()


def kept(read, count=40, chance=None):
    """Which of an evaluation's passages a watch keeps: the leading ones, and those that are drawn."""
    watch = Watch(chance)
    for index in range(count):
        batch = Reading(torch.zeros(1, 1), torch.zeros(1, 1))
        watch(Passage(index, count, batch, torch.zeros(0), read=read * index))
    return [passage.index for passage in watch.leading], sorted(passage.index for passage in watch.drawn)


def test_the_passages_kept_are_the_first_three_of_a_carried_reading_and_eight_of_all_others():
    leading, drawn = kept(read=16)
    assert leading == [0, 1, 2]
    assert len(set(drawn)) == DRAWN
    assert set(drawn) <= set(range(3, 40))
    assert kept(read=0)[0] == [0]
    assert kept(read=16, count=5) == ([0, 1, 2], [3, 4])


def test_one_passage_of_each_shape_is_kept_any_of_them():
    kept = set()
    for seed in range(40):
        watch = Watch(random.Random(seed))
        for index in range(4):
            for length in (3, 5):
                watch(Passage(index, 4, Reading(torch.zeros(2, length), torch.zeros(2, length)), None, main=False))
        assert set(watch.shapes) == {(2, 3, True, None), (2, 5, True, None)}
        kept |= {(shape[1], passage.index) for shape, passage in watch.shapes.items()}
        assert (watch.leading, watch.drawn) == ([], [])
    assert kept == {(length, index) for length in (3, 5) for index in range(4)}


def test_every_other_passage_is_drawn_as_often_and_by_no_seed():
    chance = random.Random(0)
    often = Counter(index for _ in range(400) for index in kept(16, chance=chance)[1])
    assert set(often) == set(range(3, 40))
    assert all(50 < number < 130 for number in often.values())  # 86 are expected
    draws = []
    for _ in range(2):
        random.seed(0), torch.manual_seed(0), np.random.seed(0)
        draws.append(kept(read=16))
    assert draws[0] != draws[1]


def test_a_section_holds_a_scored_target(monkeypatch):
    monkeypatch.setattr(checks_after, "SECTION", 5)
    model, chance = build(Decay), random.Random(0)
    targets = torch.full((2, 30), IGNORE)
    targets[1, 20] = 3
    found = {_section(model, Reading(targets, targets), chance).start for _ in range(200)}
    assert found == set(range(16, 21))
    short = Reading(targets[:, :4], targets[:, :4])
    assert _section(model, short, chance) == slice(0, 4)
    classes = build(Decay, Fast())
    assert _section(classes, Reading(torch.zeros(2, 30, 2), torch.zeros(2)), chance) == slice(25, 30)


class SixteenMillion(Decay):
    """A buffer of 16 million numbers that the forward pass writes by hand while training."""

    def __init__(self, d_model, layer=0, n_layers=1):
        super().__init__(d_model, layer, n_layers)
        self.register_buffer("memory", torch.zeros(16_000_000 if layer == 0 else 1), persistent=False)

    def forward(self, x, state=None, call=None):
        if self.training:
            self.memory[: x.numel()] = x.detach().flatten()[: len(self.memory)]
        return super().forward(x, state)


@pytest.mark.slow
def test_a_memory_filled_while_training_is_refused_by_name():
    def learn(model):
        model.train()(torch.zeros(2, 9, dtype=torch.long))

    checks = checked(build(SixteenMillion), learn=learn)
    assert failed(checks) == {"hidden_memory"}
    (check,) = [check for check in checks.results if check.name == "hidden_memory"]
    assert check.value >= 16_000_000
    assert "model.blocks.0.mixer.memory" in check.detail


def test_a_single_parameter_made_while_training_is_found():
    model = build(Decay)
    before = Memory(model)
    assert before.hidden(model) == {}
    model.register_parameter("late", nn.Parameter(torch.zeros(1)))
    assert {path: held.numbers for path, held in before.hidden(model).items()} == {"parameters made while training": 1}


BOTH = {"evaluation_anew", "generation_anew"}
ANEW = {
    "nothing": set(),
    "InANamespace": BOTH,
    "InADataset": BOTH,
    "OnAParameter": {"evaluation_anew"},
    "BehindAParameter": {"evaluation_anew"},
    "InItsSpec": {"evaluation_anew"},
    "InSharedMemory": BOTH,
}


def test_what_lies_outside_the_counted_numbers_is_missed_in_an_interpreter_started_anew():
    task, plants = Text(), [getattr(faults, name) for name in list(ANEW)[1:]]
    conditions = Conditions(LENGTH, 3, "fp32", "cpu", lambda index: task.batch("train", index, 3, LENGTH, 0))
    kinds = [faults.RandomTables, *(partial(p, holder=[]) if p is faults.InItsSpec else p for p in plants)]
    torch.manual_seed(3)
    model = build(ModelSpec("tiny", kinds, SwiGLU), n_layers=len(kinds))
    before, found = Memory(model, seed=3), {}
    trained(model).eval().mixers[0].written.add_(1)
    with CheckAnew(model, before, FEW_TOKENS) as anew:  # one for all: none of them is sent anything else
        for name in ANEW:
            mixers = [mixer for mixer in model.mixers if type(mixer).__name__ == name]
            for mixer in mixers:
                mixer.learn(torch.ones(model.width.d_model))
            with observing(watch := Watch()):
                evaluate(model, task, EVALUATE, LENGTH)
            checks = anew.check(task, watch, conditions)
            found[name] = failed(checks)
            assert all(check.value is not None for check in checks.results), checks
            for mixer in mixers:
                mixer.learn(None)
        anew.process._process.kill()
        with pytest.raises(
            MachineError, match="could not be checked in another process: the other process ended with -9"
        ):
            anew.check(task, watch, conditions)
    assert all(expected <= found[name] for name, expected in ANEW.items()), found
    assert found["nothing"] == set()


def test_a_model_that_cannot_be_built_anew_is_refused_and_a_run_that_shows_nothing_is_spared():
    class Local(Decay):
        """Of no module."""

    model = build(Local)
    for tokens, passed in ((FEW_TOKENS, False), (FEW_TOKENS - 1, None)):
        with CheckAnew(model, Memory(model), tokens) as anew:
            assert anew.process is None
            checks = anew.check(Text(), Watch(), Conditions()).results
        assert {check.name: check.passed for check in checks} == dict.fromkeys(BOTH, passed)


def test_an_exception_is_told_in_its_check():
    class Falls(Mixer):
        def forward(self, x, state=None, call=None):
            return x, {}

        def init_state(self, batch, context=0, device=None, dtype=None):
            return {}

        def step(self, x_t, state, call=None):
            raise RuntimeError("no step")

    checks = checked(build(Falls), config=replace(EVALUATE, sample_bytes=1))
    assert {check.detail for check in checks.results if check.passed is False} == {"RuntimeError: no step"}
    assert "evaluation_equals_decoding" in failed(checks)


def small_experiment(name, tmp_path, **changes):
    made, config = experiment(name, Text(), tmp_path)
    trainer = TrainerConfig(tokens=512, batch_size=2, length=LENGTH, device="cpu", validation_batches=1)
    return replace(made, trainer=trainer, evaluate=EVALUATE, model=replace(made.model, **changes)), config


def test_all_checks_that_failed_are_named_and_the_first_is_told(tmp_path):
    made, _ = small_experiment("gru", tmp_path)
    checks = [{"name": n, "passed": n == "b", "detail": f"why {n}"} for n in "abc"]
    with pytest.raises(CheckError, match="model=gru fails a, c: why a"):
        made._refuse_failed({"results": checks}, SimpleNamespace(path=tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mixer", "name"), [(Carried, "evaluation_equals_decoding"), (SixteenMillion, "hidden_memory")]
)
def test_a_run_that_fails_afterwards_leaves_evidence_and_no_result(mixer, name, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.config.experiment.run_checks", lambda *given: CheckResults([]))  # what passed before
    made, config = small_experiment("gru", tmp_path, mixer=mixer)
    for _ in range(2):  # the same command is refused again, whatever its checkpoint lacks
        with pytest.raises(CheckError, match=name):
            made.run(config, say=lambda line: None)
        (folder,) = tmp_path.iterdir()
        assert not (folder / "result.json").exists()
        checks = json.loads((folder / "checks.json").read_text())
        assert checks["passed"] is False
        assert name in {check["name"] for check in checks["results"] if check["passed"] is False}
        evidence = json.loads((folder / "refused.json").read_text())
        assert evidence["status"] == "refused"
        assert evidence["checks"] == checks
        assert evidence["evaluation"]["test"]["bits_per_byte"] > 0


@pytest.mark.slow
def test_an_honest_run_records_the_checks_and_its_policy(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.checks.anew.FEW_TOKENS", 512)
    made, config = small_experiment("transformer", tmp_path)
    result = made.run(config, say=lambda line: None)
    assert result["status"] == "finished"
    assert result["checks"]["passed"] is True
    names = [check["name"] for check in result["checks"]["results"]]
    first = names.index("evaluation_equals_decoding")
    assert names[first:] == [
        *("evaluation_equals_decoding", "causality_after_training", "hidden_memory"),
        *(f"{name}_after_training" for name in STATES),
        *("evaluation_anew", "generation_anew"),
    ]
    assert result["context_policy"] == {"kind": "window", "tokens": LENGTH}
