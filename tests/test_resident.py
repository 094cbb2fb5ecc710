"""Memory of generation is measured in a process that holds the model alone, and grows with the state alone."""

import pytest
import torch

import configs
from harness.measurement.measure import MeasureConfig, measure
from harness.measurement.resident import Generation, generation_memory
from harness.model.backbone import ModelSpec, Width
from harness.model.context import FULL, ContextPolicy
from harness.model.state import state_bytes
from tiny import LeakySum

MB = 2**20
CONTEXTS = [64, 16_384]


def build(architecture: str, *overrides: str):
    spec = configs.spec(architecture, *overrides)
    return spec.build(256, 2, Width(128, 128))


def increases(model, policy=FULL) -> list[int]:
    found = generation_memory(model, Generation(1, CONTEXTS, policy), seconds=120.0)
    if isinstance(found, str) and "does not let" in found:
        pytest.skip(found)
    assert not isinstance(found, str), found
    return found


@pytest.mark.slow
def test_two_solvers_of_one_state_take_the_same_memory():
    ballast = torch.ones(300 * MB, dtype=torch.uint8)  # what this process holds is nobody's business
    pairs = [increases(build("ltc", f"solver={solver}")) for solver in ("rk4", "semi_implicit")]
    for one, other in zip(*pairs, strict=True):
        assert abs(one - other) < 5 * MB
        assert one < 30 * MB
    assert len(ballast) == 300 * MB


@pytest.mark.slow
def test_a_cache_takes_its_bytes_and_no_more_than_the_policy_lets_it():
    model = build("transformer")
    held = state_bytes(model.init_state(1, CONTEXTS[1]))
    short, whole = increases(model)
    assert held <= whole - short + 4 * MB
    assert whole < 3 * held + 30 * MB
    _, cut = increases(model, ContextPolicy(64))
    assert cut < whole / 2


def test_a_model_that_cannot_be_sent_is_not_measured():
    model = ModelSpec("local", lambda **size: LeakySum(**size)).build(11, 1, Width(8, 0))
    found = generation_memory(model, Generation(1, [4], FULL), seconds=60.0)
    assert found.startswith("the model cannot be sent to another process")
    block = measure(model, MeasureConfig(contexts=[4], decode_tokens=2, repeats=1, memory_seconds=60.0))
    assert block["generation_memory"] == f"not measured: {found}"
    assert block["contexts"][0]["generation_memory_bytes"] is None


def test_a_process_that_takes_too_long_is_given_up():
    found = generation_memory(build("gru"), Generation(1, [4], FULL), seconds=0.01)
    assert found == "it took more than 0.01 s"
