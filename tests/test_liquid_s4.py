"""Liquid-S4 against the published recurrence written out, its convolution against the recurrence, and its state."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from arch import liquid_s4
from arch.liquid_s4 import LiquidS4
from harness.config.errors import ConfigError
from oracles import step_loop

KINDS = pytest.mark.parametrize(("liquid", "degree"), [("pb", 2), ("kb", 2), ("pb", 3), ("kb", 4), ("pb", 1)])


def mixer(**options) -> LiquidS4:
    """With larger steps than at the start, so that few tokens see every term."""
    made = LiquidS4(5, **{"d_state": 6, "dt_min": 0.1, "dt_max": 1.0} | options).double()
    with torch.no_grad():
        made.B.add_(torch.randn_like(made.B) * 0.3)
    return made


def tokens(batch=2, length=7):
    return torch.randn(batch, length, 5, dtype=torch.float64)


def systems(model):
    """A, B, C of each channel in numpy, every state of a conjugate pair its own: the bilinear rule of the paper."""
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}
    A = -np.exp(weights["log_decay"]) + 1j * weights["frequency"]
    B = weights["B"] @ [1, 1j]
    for dt, C in zip(np.exp(weights["log_dt"]), weights["C"] @ [1, 1j], strict=True):
        pairs = [np.concatenate([part, part.conj()]) for part in (A, B, C)]
        inverse = np.linalg.inv(np.eye(6) - dt / 2 * np.diag(pairs[0]))
        yield inverse @ (np.eye(6) + dt / 2 * np.diag(pairs[0])), inverse @ pairs[1] * dt, pairs[2]


def unrolled(A, B, C, u, keep):
    """y of x_t = (A + u_t B 1^T) x_{t-1} + B u_t, of whose words of factors only those that `keep` takes.

    A word: for each token after the input that it begins with, whether its factor is u_t B 1^T (True) or A.
    """
    y = np.zeros(len(u), complex)
    for t, start in itertools.product(range(len(u)), repeat=2):
        for word in itertools.product([True, False], repeat=t - start) if start <= t else ():
            if keep(word):
                x = B * u[start]
                for offset, liquid in enumerate(word, start=1):
                    x = np.outer(B, np.ones(6)) @ x * u[start + offset] if liquid else A @ x
                y[t] += C @ x
    assert np.abs(y.imag).max() < 1e-12
    return y.real


KEPT = {
    "kb": lambda word, degree: not any(word[sum(word) :]) and sum(word) < degree,
    "pb": lambda word, degree: not any(word) or (all(word) and len(word) < degree),
}


@KINDS
def test_it_is_the_published_recurrence_with_the_terms_it_keeps(liquid, degree):
    model, x = mixer(liquid=liquid, degree=degree), tokens(1)
    parts = [
        unrolled(*system, u, lambda word: KEPT[liquid](word, degree)) + feedthrough * u
        for system, u, feedthrough in zip(systems(model), x[0].T.numpy(), model.D.detach().numpy(), strict=True)
    ]
    expected = torch.nn.functional.glu(model.out(torch.nn.functional.gelu(torch.tensor(np.array(parts)).T)))
    torch.testing.assert_close(model(x)[0][0], expected, rtol=0, atol=1e-12)


def test_of_two_tokens_kb_keeps_the_whole_recurrence():
    model, x = mixer(liquid="kb", degree=2), tokens(1, 2)
    for channel, (system, u) in enumerate(zip(systems(model), x[0].T.numpy(), strict=True)):
        (A, B, _), state = system, np.zeros(6, complex)
        for u_t in u:
            state = (A + u_t * np.outer(B, np.ones(6))) @ state + B * u_t
        held = torch.view_as_complex(model(x)[1]["x"])[0, channel].detach().numpy()
        np.testing.assert_allclose(held, state[:3], rtol=0, atol=1e-13)


@KINDS
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 3), (3, 8), (2, 21)])
def test_forward_equals_the_step_loop_in_values_and_gradients(monkeypatch, liquid, degree, batch, length):
    monkeypatch.setattr(liquid_s4, "CHUNK", 4)
    model, x = mixer(liquid=liquid, degree=degree), tokens(batch, length).requires_grad_()
    state = {key: torch.randn_like(value) for key, value in model.init_state(batch, dtype=torch.float64).items()}
    (y, last), (stepped, stepped_last) = model(x, state), step_loop(model, x, state)
    torch.testing.assert_close(y, stepped, rtol=0, atol=1e-12)
    for key, value in last.items():
        torch.testing.assert_close(value, stepped_last[key], rtol=0, atol=1e-12)
    outputs = [out + held["x"].sum() for out, held in ((y, last), (stepped, stepped_last))]
    wanted = [x, *model.parameters()]
    for a, b in zip(*(torch.autograd.grad(out.sin().sum(), wanted) for out in outputs), strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def test_a_long_sequence_in_single_precision_keeps_to_the_recurrence():
    model = LiquidS4(5, liquid="kb", degree=3)
    x = tokens(1, 1000).float()
    with torch.no_grad():
        torch.testing.assert_close(model(x)[0], step_loop(model, x)[0], rtol=0, atol=1e-4)


def test_half_a_pair_of_states_is_refused():
    with pytest.raises(ConfigError, match="conjugate pairs"):
        LiquidS4(5, d_state=7)


def test_a_token_never_sees_a_later_one():
    model, x = mixer(degree=3), tokens(1, 9)
    changed = x.clone()
    changed[:, 6:] += 1e6
    assert torch.equal(model(x)[0][:, :6], model(changed)[0][:, :6])


def test_the_state_holds_no_more_memory_than_it_counts():
    state = mixer(degree=3)(tokens())[1]
    assert all(part.untyped_storage().nbytes() == part.numel() * part.element_size() for part in state.values())


def test_flops_are_those_of_a_real_step():
    model = mixer().float()
    with FlopCounterMode(display=False) as counter:
        model.step(torch.randn(1, 5), model.init_state(1))
    assert model.flops_per_token(7).matmul == counter.get_total_flops()
