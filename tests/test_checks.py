"""The checks pass an honest architecture, and fail each planted fault, by name."""

import json
import math
import time
from functools import partial

import pytest
import torch

import faults
import tiny
from baselines.recurrent.mixer import LSTM
from faults import Agrees, Decay, Mean, NotANumber, NotInstalled, Raises, ZeroStart
from harness.checks.case import CHECKS, Case, Outcome
from harness.checks.conditions import Conditions
from harness.checks.elsewhere import Elsewhere
from harness.checks.runner import CheckResult, run_checks, tried
from harness.checks.trial import LONG, LONG_ROWS, Trial, places_of_change
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
    "OracleOfItsOwn": ({}, {"oracle"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("plant", PLANTS)
def test_a_plant_is_caught_by_name(plant):
    conditions, expected = PLANTS[plant]
    checks = checked(getattr(faults, plant), **conditions)
    assert expected <= failed(checks), [check for check in checks.results if check.passed is False]


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


def test_a_state_that_holds_something_else_is_named_with_its_mixer():
    detail = named(checked(faults.InAList), "state_contents").detail
    assert "InAList" in detail
    assert "a float" in detail


@pytest.mark.parametrize("length", [1, 2, 8, 24])
def test_short_sequences_are_checked_too(length):
    assert checked(Decay, length=length, batch_size=1).passed


def test_a_leak_is_seen_in_a_batch_of_one_row():
    assert "causality_in_training" in failed(checked(faults.WithinFullBlocks, batch_size=1))


@pytest.mark.parametrize("length", [2, 16, 100, 128, 512, 640, 1231])
def test_the_places_of_change_lie_in_a_full_block_of_every_size_and_on_an_edge(length):
    places = places_of_change(length)
    assert all(0 < place < length for place in places)
    for block in (2**power for power in range(4, 11) if 2**power <= length):
        full = length // block * block
        assert any(place < full and place % block for place in places)
        assert length == block or any(place % block == 0 for place in places)


def test_the_long_sequences_are_the_runs_own_batches_and_no_more_of_them_than_are_needed():
    asked = []

    def batch(index):
        asked.append(index)
        return Batch(index * 4096 + torch.arange(1024).view(4, 256), None)

    trial = Trial(tiny.model(), Conditions(length=256, batch_size=4, batch=batch), torch.Generator(), seed=0)
    try:
        rows = trial.long.values
    finally:
        trial.close()
    assert asked == [0, 1, 2]  # 3,072 tokens for 2 x 1,231
    expected = torch.cat([index * 4096 + torch.arange(1024) for index in asked])[: LONG_ROWS * LONG]
    assert torch.equal(rows, expected.view(LONG_ROWS, LONG))


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
