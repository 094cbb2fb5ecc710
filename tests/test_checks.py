"""The checks pass an honest architecture, and fail each planted fault, by name."""

import json
import math
from functools import partial

import pytest
import torch

from baselines.recurrent.mixer import LSTM
from faults import (
    Agrees,
    BatchMean,
    ContextFlops,
    Decay,
    Disagrees,
    Forgetful,
    Future,
    HiddenFuture,
    Mean,
    NotANumber,
    NotGrowing,
    NotInstalled,
    Raises,
    SecretlyGrowing,
    WrongFlops,
    WrongGeneration,
    WrongGradient,
    WrongShape,
    WrongStep,
    ZeroStart,
)
from harness.checks.case import CHECKS, Case
from harness.checks.runner import CheckResult, run_checks
from harness.model.backbone import ModelSpec, Width
from harness.model.mlp import SwiGLU
from harness.model.sizing import SizeConfig, count


def checked(mixer, params=None, vocab_size=11):
    spec = ModelSpec("tiny", mixer, partial(SwiGLU))
    model = spec.build(vocab_size, 1, Width(8, 6))
    return run_checks(model, spec, vocab_size, SizeConfig(params or count(model).total, 1))


def failed(checks):
    return {check.name for check in checks.results if check.passed is False}


def named(checks, name) -> CheckResult:
    return next(check for check in checks.results if check.name == name)


PATHS = {"prefill_and_step", "chunks", "scan"}


@pytest.mark.parametrize("mixer", [Decay, Mean, LSTM, Agrees])
def test_an_honest_architecture_passes_every_gate(mixer):
    checks = checked(mixer)
    assert checks.passed
    assert [check.name for check in checks.results] == list(CHECKS)
    assert all(check.passed is True for check in checks.results)


@pytest.mark.parametrize(
    ("mixer", "expected"),
    [
        (Future, {"causality", "causality_by_perturbation", "scan_gradients", "generation", *PATHS}),
        (HiddenFuture, {"causality_by_perturbation", "scan_gradients", *PATHS}),
        (BatchMean, {"batch_independence", "causality"}),
        (WrongStep, {"prefill_and_step", "scan", "scan_gradients"}),
        (Forgetful, {"chunks"}),
        (WrongGradient, {"scan_gradients"}),
        (WrongGeneration, {"generation"}),
        (SecretlyGrowing, {"state_growth"}),
        (NotGrowing, {"state_growth"}),
        (WrongShape, {"state_shape"}),
        (WrongFlops, {"flops"}),
        (ContextFlops, {"flops"}),
        (Disagrees, {"oracle"}),
        (Raises, {"prefill_and_step", "scan", "scan_gradients", "generation", "flops"}),
    ],
)
def test_a_planted_fault_fails_its_checks_and_no_other(mixer, expected):
    checks = checked(mixer)
    assert failed(checks) == expected
    assert not checks.passed


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


def test_no_third_party_known_passes_and_says_so():
    assert "Decay: no third-party implementation known" in named(checked(Decay), "oracle").detail


@pytest.mark.parametrize(("factor", "passes"), [(1.019, True), (0.985, True), (1.03, False), (0.97, False)])
def test_the_budget_holds_within_two_percent(factor, passes):
    model = ModelSpec("tiny", Decay, SwiGLU).build(11, 1, Width(32, 64))
    size = SizeConfig(math.floor(count(model).total * factor), 1)
    outcome = CHECKS["parameters"](Case(model, model.spec, 11, size, torch.Generator()))
    assert (outcome.value <= outcome.tolerance) is passes


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
