"""Certification passes an honest architecture, and each planted fault fails its own gate."""

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
from harness.checks.case import GATES, Case
from harness.checks.certify import Gate, certify
from harness.model.backbone import ModelSpec, Width
from harness.model.mlp import SwiGLU
from harness.model.sizing import SizeConfig, count


def certified(mixer, params=None, vocab_size=11):
    spec = ModelSpec("tiny", mixer, partial(SwiGLU))
    model = spec.build(vocab_size, 1, Width(8, 6))
    return certify(model, spec, vocab_size, SizeConfig(params or count(model).total, 1))


def failed(certificates):
    return {gate.name for gate in certificates.gates if gate.passed is False}


def named(certificates, name) -> Gate:
    return next(gate for gate in certificates.gates if gate.name == name)


PATHS = {"prefill_and_step", "chunks", "scan"}


@pytest.mark.parametrize("mixer", [Decay, Mean, LSTM, Agrees])
def test_an_honest_architecture_passes_every_gate(mixer):
    certificates = certified(mixer)
    assert certificates.passed
    assert [gate.name for gate in certificates.gates] == list(GATES)
    assert all(gate.passed is True for gate in certificates.gates)


@pytest.mark.parametrize(
    ("mixer", "gates"),
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
def test_a_planted_fault_fails_its_gates_and_no_other(mixer, gates):
    certificates = certified(mixer)
    assert failed(certificates) == gates
    assert not certificates.passed


def test_a_leak_behind_a_zero_projection_is_found():
    assert {"causality", "causality_by_perturbation"} <= failed(certified(ZeroStart))


def test_a_value_that_is_not_finite_fails_and_is_valid_json():
    certificates = certified(NotANumber)
    gate = named(certificates, "scan")
    assert gate.passed is False
    assert gate.value is None
    assert gate.detail.startswith("not finite")
    json.dumps(certificates.to_dict(), allow_nan=False)


def test_an_exception_is_told_in_the_gate_it_broke():
    assert named(certified(Raises), "scan").detail == "RuntimeError: the kernel fell over"


def test_a_missing_third_party_is_skipped_by_name():
    certificates = certified(NotInstalled)
    gate = named(certificates, "oracle")
    assert gate.passed is None
    assert "a_package_that_nobody_has" in gate.detail
    assert certificates.passed


def test_no_third_party_known_passes_and_says_so():
    assert "Decay: no third-party implementation known" in named(certified(Decay), "oracle").detail


@pytest.mark.parametrize(("factor", "passes"), [(1.019, True), (0.985, True), (1.03, False), (0.97, False)])
def test_the_budget_holds_within_two_percent(factor, passes):
    model = ModelSpec("tiny", Decay, SwiGLU).build(11, 1, Width(32, 64))
    size = SizeConfig(math.floor(count(model).total * factor), 1)
    outcome = GATES["parameters"](Case(model, model.spec, 11, size, torch.Generator()))
    assert (outcome.value <= outcome.tolerance) is passes


def test_an_unreachable_budget_fails_its_gate_alone():
    assert failed(certified(Decay, params=10)) == {"parameters"}


def test_the_model_and_the_random_generators_are_left_alone():
    spec = ModelSpec("tiny", LSTM, SwiGLU)
    model = spec.build(11, 2, Width(8, 6))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    first = certify(model, spec, 11, SizeConfig(count(model).total, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    torch.manual_seed(99)
    assert certify(model, spec, 11, SizeConfig(count(model).total, 2)) == first


def test_gates_see_what_the_seed_draws():
    spec = ModelSpec("tiny", LSTM, SwiGLU)
    model = spec.build(11, 1, Width(8, 6))
    size = SizeConfig(count(model).total, 1)
    values = [named(certify(model, spec, 11, size, seed), "scan_gradients").value for seed in range(2)]
    assert values[0] != values[1]
