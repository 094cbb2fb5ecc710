"""The checks pass an honest architecture, and fail each planted fault, by name."""

import json
import math
import time
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import faults
import tiny
from baselines.recurrent.mixer import LSTM
from faults import Agrees, Decay, Mean, NotANumber, NotInstalled, Raises, ZeroStart
from harness.checks import running
from harness.checks.case import CHECKS, Case, Outcome
from harness.checks.conditions import Conditions
from harness.checks.elsewhere import Elsewhere
from harness.checks.runner import CheckResult, run_checks, tried
from harness.checks.trial import LONG, LONG_ROWS, Moves, Trial, places_of_change
from harness.model.backbone import ModelSpec, Width
from harness.model.mlp import SwiGLU
from harness.model.sizing import SizeConfig, count
from harness.records.summary import checks_line
from harness.tasks.task import Batch


def checked(mixer, params=None, vocab_size=11, layers=1, **conditions):
    spec = ModelSpec("tiny", mixer, partial(SwiGLU))
    model = spec.build(vocab_size, layers, Width(8, 6))
    size = SizeConfig(params or count(model).total, layers)
    return run_checks(model, spec, vocab_size, size, conditions=Conditions(**conditions))


def failed(checks):
    return {check.name for check in checks.results if check.passed is False}


def named(checks, name) -> CheckResult:
    return next(check for check in checks.results if check.name == name)


PATHS = {"prefill_and_step", "chunks", "scan"}


UNJUDGED = {"oracle"}  # nobody else has these mixers


@pytest.mark.parametrize("mixer", [Decay, Mean, LSTM, Agrees, faults.Counting])
def test_an_honest_architecture_passes_every_check(mixer):
    checks = checked(mixer)
    assert checks.passed
    assert [check.name for check in checks.results] == ["contract", *CHECKS]
    untried = UNJUDGED if mixer in (Decay, Mean, faults.Counting) else set()
    assert {check.name for check in checks.results if check.passed is None} == untried


RUNNING = {"causality_in_training", "causality_in_evaluation"}
ROWS = {"batch_independence_in_training", "batch_independence_in_evaluation"}
LONG_PATHS = {"long_generation"}
PURITY = {"state_contents", "state_purity", "interleaving", "another_copy", "another_process"}
FAULTS = {
    "Future": {"causality", "causality_by_perturbation", "scan_gradients", "generation", *PATHS, *RUNNING, *LONG_PATHS},
    "HiddenFuture": {"causality_by_perturbation", "scan_gradients", *PATHS, *RUNNING},
    "BatchMean": {"batch_independence", "causality", *RUNNING, *ROWS},
    "WrongStep": {"prefill_and_step", "scan", "scan_gradients"},
    "Forgetful": {"chunks", *LONG_PATHS},
    "WrongGradient": {"scan_gradients"},
    "WrongGeneration": {"generation", *LONG_PATHS},
    "SecretlyGrowing": {"state_growth"},
    "NotGrowing": {"state_growth"},
    "WrongShape": {"state_shape"},
    "WrongFlops": {"flops"},
    "ContextFlops": {"flops"},
    "FlopsOfTheSecondToken": {"flops"},
    "NoFlops": {"contract"},
    "FewFlops": {"flops"},
    "Disagrees": {"oracle"},
    "Raises": {"prefill_and_step", "scan", "scan_gradients", "generation", "flops", "long_state", *PURITY, *LONG_PATHS},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_fails_its_checks_and_no_other(fault):
    checks = checked(getattr(faults, fault))
    assert failed(checks) == FAULTS[fault]
    assert not checks.passed


def alike(index):
    """A batch of a run whose neighbouring tokens are often alike, as letters are."""
    tokens = torch.randint(11, (4, 256), generator=torch.Generator().manual_seed(index)).repeat_interleave(2, dim=1)
    return Batch(tokens, tokens)


def timed(index):
    generator = torch.Generator().manual_seed(index)
    tokens = torch.randint(11, (4, 512), generator=generator)
    return Batch(tokens, tokens, torch.rand(4, 512, generator=generator))


# Each fault, what the run is like, and the checks that must name it.
PLANTS = {
    "WithinFullBlocks": ({}, RUNNING),
    "WithinBlocksOf1024": ({}, {"causality_in_evaluation"}),
    "AcrossBlocks": ({}, RUNNING),
    "InSinglePrecisionInTheLastLayer": ({"layers": 2}, RUNNING),
    "InSinglePrecision": ({"layers": 2}, RUNNING),
    "AtTheTrainingLength": ({}, RUNNING),
    "AtTheTrainingBatch": ({}, RUNNING),
    "WithGradients": ({}, {"causality_in_training"}),
    "UnderAutocast": ({"precision": "bf16"}, RUNNING),
    "OnText": ({"batch": alike}, RUNNING),
    "OnceTheWeightsHaveMoved": ({}, RUNNING),
    "ThroughTheElapsedTimes": ({"batch": timed}, RUNNING),
    "ThroughWhatLayersShare": ({"layers": 2}, RUNNING),
    "BatchStatisticsInTraining": ({}, {"causality_in_training", "batch_independence_in_training"}),
    "RowsInTraining": ({}, {"batch_independence_in_training"}),
    "RandomInTraining": ({}, {"repeatability"}),
    "HonestCopy": ({}, {"copies"}),
    "OwnTolerance": ({}, {"prefill_and_step", "scan", "long_generation"}),
    "OwnReason": ({}, {"prefill_and_step", "scan", "long_generation"}),
    "NoSuchReason": ({}, {"contract"}),
    "ZeroAfter100": ({}, {"long_generation"}),
    "ZeroAfter1000": ({}, {"long_generation"}),
    "DecoderTiresAfter50": ({}, {"long_generation"}),
    "InTheDecoder": ({}, {"another_copy", "another_process"}),
    "WithACarriedState": ({}, {"long_generation"}),
    "LongPrefill": ({}, {"long_state"}),
    "InPlace": ({}, {"state_purity"}),
    "InTheModule": ({}, {"interleaving", "another_process"}),
    "InTheModuleByContent": ({}, {"another_process"}),
    "InTheMixer": ({}, {"interleaving", "another_copy", "another_process"}),
    "InAnAttribute": ({}, {"state_contents"}),
    "BehindAView": ({}, {"state_growth", "long_state"}),
    "InAnUnlistedCache": ({}, {"state_contents"}),
    "InSpareRoom": ({}, {"another_process"}),
    "InAList": ({}, {"state_contents"}),
    "InAnInteger": ({}, {"state_contents"}),
    "InAKey": ({}, {"state_contents"}),
    "OracleOfItsOwn": ({}, {"oracle"}),
}


DETAILS = {"InAList": ("InAList", "a float")}
"""What is said beside the name of the check: here the mixer, and what it holds."""


@pytest.mark.slow
@pytest.mark.parametrize("plant", PLANTS)
def test_a_plant_is_caught_by_name(plant):
    conditions, expected = PLANTS[plant]
    checks = checked(getattr(faults, plant), **conditions)
    assert expected <= failed(checks), [check for check in checks.results if check.passed is False]
    (name, *_) = expected
    assert all(said in named(checks, name).detail for said in DETAILS.get(plant, ()))


def test_randomness_in_training_is_no_leak():
    checks = checked(faults.RandomInTraining)
    assert failed(checks) == {"repeatability"}
    assert "see repeatability" in named(checks, "causality_in_training").detail


def test_dropout_that_the_seed_decides_passes():
    model = tiny.model(dropout=0.3)
    size = SizeConfig(count(model).total, 2)
    checks = run_checks(model, model.spec, tiny.VOCAB, size)
    assert checks.passed, failed(checks)


def test_what_begins_after_many_calls_is_left_to_the_checks_after_training():
    assert checked(faults.AfterManyCalls).passed


def test_a_missing_method_is_named_and_nothing_else_is_said():
    (only,) = checked(faults.NoStep, params=1).results
    assert (only.name, only.passed, only.detail) == ("contract", False, "mixer NoStep lacks the method `step`")


@pytest.mark.parametrize("length", [1, 2, 8, 24])
def test_short_sequences_are_checked_too(length):
    assert checked(Decay, length=length, batch_size=1).passed


@pytest.mark.parametrize(
    ("plant", "expected"),
    [("WithinFullBlocks", RUNNING), ("RowsInTraining", {"batch_independence_in_training"})],
)
def test_a_leak_is_seen_in_a_batch_of_one_row(plant, expected):
    assert expected <= failed(checked(getattr(faults, plant), batch_size=1))


@pytest.mark.parametrize("length", [2, 16, 100, 128, 512, 640, 1231])
def test_the_places_of_change_lie_in_a_full_block_of_every_size_and_on_an_edge(length):
    places = places_of_change(length)
    assert all(0 < place < length for place in places)
    for block in (2**power for power in range(4, 11) if 2**power <= length):
        full = length // block * block
        assert any(place < full and place % block for place in places)
        assert length == block or any(place % block == 0 for place in places)
    quarter = 2 ** (length.bit_length() - 3) if length > 8 else 0
    assert not quarter or any(place > quarter and place % quarter == 1 for place in places)  # just behind an edge


@contextmanager
def on_trial(model, **conditions):
    """A trial of the model as the checks make it."""
    trial = Trial(model, Conditions(**conditions), torch.Generator().manual_seed(0), seed=0)
    try:
        yield trial
    finally:
        trial.close()


def test_the_long_sequences_are_the_runs_own_batches_and_no_more_of_them_than_are_needed():
    asked = []

    def batch(index):
        asked.append(index)
        numbers = index * 4096 + torch.arange(1024.0).view(4, 256)
        return Batch(torch.stack([numbers, -numbers], -1), None, numbers / 2)

    with on_trial(tiny.model(), length=256, batch_size=4, batch=batch) as trial:
        rows = trial.long
    assert asked == [0, 1, 2]  # 3,072 tokens for 2 x 1,231
    expected = torch.cat([index * 4096 + torch.arange(1024.0) for index in asked])[: LONG_ROWS * LONG]
    assert torch.equal(rows.values[..., 0], expected.view(LONG_ROWS, LONG))
    assert torch.equal(rows.values[..., 1], -rows.values[..., 0])
    assert torch.equal(rows.elapsed, rows.values[..., 0] / 2)


class AtOnePlaceOfLongSequences(faults.Leaking):
    """Lets the token at `place` into the output before it, where sequences are longer than a batch's."""

    place = 0

    def leaks(self, x, call):
        return (torch.arange(x.shape[1]) == self.place - 1) if x.shape[1] == LONG else False


@pytest.mark.parametrize("place", [8, 1016, 1024, LONG - 1], ids=["start", "within a block", "edge", "end"])
def test_long_sequences_are_changed_at_their_start_in_a_block_at_its_edge_and_at_their_end(place):
    model = ModelSpec("tiny", AtOnePlaceOfLongSequences, SwiGLU).build(11, 1, Width(8, 6))
    with on_trial(model) as trial:
        assert trial.at_length == 0
        del trial.at_length
        for mixer in (*trial.model.mixers, *trial.unused.mixers):
            mixer.place = place
        del trial.whole, trial.read
        assert trial.at_length > 0


@pytest.mark.parametrize("rows", [1, 2, 4, 9, 16])
def test_nine_positions_of_a_batch_are_changed_as_far_as_four_calls_hold_them_and_random_ones(rows):
    with on_trial(tiny.model(), length=500, batch_size=rows) as trial:
        seen = []
        trial.model.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        assert trial.in_training == Moves(0, 0, 0)
    base, again, *changed = (call for call in seen if len(call) == rows)
    assert torch.equal(base, again)
    assert 1 <= len(changed) <= 5
    places = [int((row != kept).int().argmax()) for call in changed for row, kept in zip(call, base, strict=True)]
    alike = sum(torch.equal(row, kept) for call in changed for row, kept in zip(call, base, strict=True))
    assert alike == (len(changed) if rows > 1 else 0)  # a row that stays, to see whether the others move it
    assert len(places) - alike >= min(9, 4 * max(1, rows - 1))
    chosen = places_of_change(500)
    assert set(chosen[: 4 * max(1, rows - 1)]) <= set(places)
    assert set(places) - {0} - set(chosen)
    pairs = [call for call in seen if len(call) == 2 != rows]
    assert len(pairs) == (4 if rows == 1 else 0)  # twice the same, and each row changed beside the other


def test_outputs_are_in_the_runs_precision_unless_another_is_asked_for():
    with on_trial(tiny.model(), precision="bf16") as rounded, on_trial(tiny.model()) as exact:
        inputs = exact.batch
        assert torch.equal(rounded.outputs(inputs, False, precision="fp32"), exact.outputs(inputs, False))
        error = (rounded.outputs(inputs, False) - exact.outputs(inputs, False)).abs().max()
        assert 0 < error < 0.1


def verdicts(**moves):
    """What the checks at the run's shape say of moves that were found."""
    still = {"in_training": Moves(0.0, 0.0, 0.0), "in_evaluation": Moves(0.0, 0.0, 0.0), "at_length": 0.0}
    model = SimpleNamespace(mixers=[SimpleNamespace(inexact=None)])
    run = SimpleNamespace(**still | moves, model=model, repeatable=0.0, rows=4, conditions=Conditions())
    case = SimpleNamespace(run=run)
    shown = ("causality_in_training", "causality_in_evaluation")
    shown += ("batch_independence_in_training", "batch_independence_in_evaluation")
    return [getattr(running, name)(case).value for name in shown]


def test_each_check_judges_the_moves_of_its_own_mode():
    assert verdicts() == [0, 0, 0, 0]
    assert verdicts(in_training=Moves(0.0, 0.1, 0.2)) == [0.1, 0, 0.2, 0]
    assert verdicts(in_evaluation=Moves(0.0, 0.1, 0.2)) == [0, 0.1, 0, 0.2]
    assert verdicts(at_length=0.3) == [0, 0.3, 0, 0]
    assert verdicts(in_training=Moves(1e-9, 0.1, 0.2)) == [None, 0, None, 0]
    assert verdicts(in_evaluation=Moves(math.nan, 0.1, 0.2)) == [0, None, 0, None]


def test_a_leak_behind_a_zero_projection_is_found():
    assert {"causality", "causality_by_perturbation"} <= failed(checked(ZeroStart))


def test_a_value_that_is_not_finite_fails_and_is_valid_json():
    checks = checked(NotANumber)
    check = named(checks, "scan")
    assert check.passed is False
    assert check.value is None
    assert check.detail.startswith("not finite")
    json.dumps(checks.to_dict(), allow_nan=False)


def test_an_exception_is_told_in_the_gate_it_broke():
    assert named(checked(Raises), "scan").detail == "RuntimeError: the kernel fell over"


def test_a_missing_third_party_is_skipped_by_name():
    checks = checked(NotInstalled)
    check = named(checks, "oracle")
    assert check.passed is None
    assert "a_package_that_nobody_has" in check.detail
    assert checks.passed


def test_no_third_party_known_is_no_verdict_and_says_so():
    check = named(checked(Decay), "oracle")
    assert check.passed is None
    assert "Decay: no third-party implementation known" in check.detail


@pytest.mark.parametrize(("factor", "passes"), [(1.019, True), (0.985, True), (1.03, False), (0.97, False)])
def test_the_budget_holds_within_two_percent(factor, passes):
    model = ModelSpec("tiny", Decay, SwiGLU).build(11, 1, Width(32, 64))
    size = SizeConfig(math.floor(count(model).total * factor), 1)
    outcome = CHECKS["parameters"](Case(model, model.spec, 11, size, torch.Generator(), None))
    assert (outcome.value <= outcome.tolerance) is passes


def test_a_wider_budget_is_the_one_that_the_size_states_and_is_told():
    model = ModelSpec("tiny", Decay, SwiGLU).build(11, 1, Width(32, 64))
    size = SizeConfig(math.floor(count(model).total * 1.05), 1, tolerance=0.1)
    outcome = CHECKS["parameters"](Case(model, model.spec, 11, size, torch.Generator(), None))
    assert outcome.value <= outcome.tolerance == 0.1
    assert outcome.detail.endswith("to 10.0% as size.tolerance says where the protocol has 2%")


def test_a_check_says_what_it_took():
    def slow():
        time.sleep(0.05)
        return Outcome(0.0, 0.0, "")

    assert 0.05 <= tried("slow", slow).seconds < 5


def test_an_unreachable_budget_fails_its_gate_alone():
    assert failed(checked(Decay, params=10)) == {"parameters"}


def test_the_model_and_the_random_generators_are_left_alone():
    spec = ModelSpec("tiny", LSTM, SwiGLU)
    model = spec.build(11, 2, Width(8, 6))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    first = run_checks(model, spec, 11, SizeConfig(count(model).total, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    torch.manual_seed(99)
    assert run_checks(model, spec, 11, SizeConfig(count(model).total, 2)) == first


def test_gates_see_what_the_seed_draws():
    spec = ModelSpec("tiny", LSTM, SwiGLU)
    model = spec.build(11, 1, Width(8, 6))
    size = SizeConfig(count(model).total, 1)
    values = [named(run_checks(model, spec, 11, size, seed), "scan_gradients").value for seed in range(2)]
    assert values[0] != values[1]


def test_the_summary_says_what_could_not_be_tried():
    results = [{"name": name, "passed": passed} for name, passed in (("scan", True), ("flops", True), ("oracle", None))]
    assert checks_line(results) == "2 of 2 passed, no oracle"
    assert checks_line([*results, {"name": "copies", "passed": None}]) == "2 of 2 passed, no oracle, copies not tried"
    assert checks_line([{"name": "scan", "passed": False}, *results[1:2]]) == "1 of 2 passed"


def test_the_other_process_tells_what_failed_and_ends():
    model = tiny.model()
    other = Elsewhere(model, model, Conditions())
    with pytest.raises(RuntimeError, match="in another process: TypeError"):
        other.ask("continued", 1)
    other.close()
    assert not other._process.is_alive()
