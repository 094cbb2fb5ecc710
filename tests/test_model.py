"""The backbone: one sequence of parts, one state, whatever the mixers."""

import pytest
import torch

import configs
from harness.model.sizing import SizeConfig, solve
from harness.model.state import map_tensors, state_bytes, tensors


@pytest.fixture
def model(architecture):
    spec = configs.spec(architecture)
    return spec.build(256, 2, solve(spec, 256, SizeConfig(150_000, 2))).double()


def test_prefill_and_step_equal_forward(model):
    tokens = torch.randint(256, (2, 13))
    whole, _ = model(tokens)
    prefilled, state = model(tokens[:, :9])
    stepped = []
    for t in range(9, 13):
        logits, state = model.step(tokens[:, t], state)
        stepped.append(logits)
    torch.testing.assert_close(torch.cat([prefilled, torch.stack(stepped, 1)], 1), whole, rtol=0, atol=1e-10)


def test_step_is_pure(model):
    state = model(torch.randint(256, (2, 5)))[1]
    before = [t.clone() for t in tensors(state)]
    first, _ = model.step(torch.tensor([1, 2]), state)
    model.step(torch.tensor([3, 4]), state)
    again, _ = model.step(torch.tensor([1, 2]), state)
    assert torch.equal(first, again)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(state), strict=True))


def test_an_empty_state_has_the_shapes_of_a_real_one(model):
    real = model(torch.randint(256, (3, 11)))[1]
    empty = model.init_state(3, context=11)
    assert [t.shape for t in tensors(empty)] == [t.shape for t in tensors(real)]
    assert state_bytes(empty) == state_bytes(real)


def test_truncating_keeps_a_constant_state_and_shortens_a_growing_one(model):
    state = model(torch.randint(256, (1, 12)))[1]
    shorter = model.truncate_state(state, 4)
    parts = ([part for block in held for part in block] for held in (state, shorter))  # one for every mixer
    for mixer, before, after in zip(model.mixers, *parts, strict=True):
        assert state_bytes(after) * (1 if mixer.constant_state else 3) == state_bytes(before)


def test_every_parameter_takes_part(model):
    model(torch.randint(256, (2, 9)))[0].square().mean().backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_bfloat16_autocast_runs_forward_and_backward(architecture):
    spec = configs.spec(architecture)
    model = spec.build(64, 2, solve(spec, 64, SizeConfig(150_000, 2)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, _ = model(torch.randint(64, (2, 7)))
        logits.float().square().mean().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_state_helpers_reach_every_tensor():
    state = [{"a": torch.ones(2, 3), "n": 4}, (torch.zeros(5, dtype=torch.float64), None)]
    assert state_bytes(state) == 6 * 4 + 5 * 8 + 8
    doubled = map_tensors(lambda t: t + 1, state)
    assert [float(t.sum()) for t in tensors(doubled)] == [12.0, 5.0]
    assert doubled[0]["n"] == 4
