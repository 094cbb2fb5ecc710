"""LrcSSM against the published equations, its fused scan and Newton's method against the step loop, and time."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from arch.lrc.mixer import LRC
from arch.newton import Newton, Sequential
from harness.model.mixer import Call
from oracles import step_loop

WAYS = pytest.mark.parametrize("parallel", [Sequential(), Newton(tolerance=1e-8)], ids=["sequential", "newton"])


def lrc(**options) -> LRC:
    """With weights large enough that gates leave their middle."""
    mixer = LRC(6, **{"expand": 2} | options).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.mul_(3)
    return mixer


def tokens(batch=3, length=9):
    return torch.randn(batch, length, 6, dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@WAYS
@pytest.mark.parametrize("timed", [False, True])
def test_it_follows_the_published_equations(parallel, timed):
    """Farsang et al. 2025 and the authors' LRC_diagmat.py, in numpy: a step of Euler along elastance times A h + B."""
    mixer, x = lrc(parallel=parallel), tokens(1)
    elapsed = torch.rand(1, 9, dtype=torch.float64) * 1.5 if timed else None
    weights = {name: value.detach().numpy() for name, value in mixer.named_parameters()}
    n = {name.removeprefix("neurons."): value for name, value in weights.items()}
    sensory_w, sensory_h = np.split(weights["sensory"], 2)
    h, outputs = np.zeros(12), []
    for t, x_t in enumerate(x[0].numpy()):
        dt = 1.0 if elapsed is None else elapsed[0, t].item()
        sensory = sigmoid(n["sensory_sigma"] * (x_t - n["sensory_mu"]))
        own = sigmoid(n["sigma"] * (h - n["mu"]))
        A = -sigmoid(n["gleak"] + sensory_w @ sensory + n["w"] * own)
        B = n["vleak"] * np.tanh(n["gleak"] + sensory_h @ sensory + n["u"] * own)
        h = h + dt * sigmoid(n["k"] * h + n["k0"]) * (A * h + B)
        outputs.append(weights["out_proj.weight"] @ h)
    y = mixer(x, call=Call(elapsed))[0]
    torch.testing.assert_close(y, torch.tensor(np.array(outputs))[None], rtol=0, atol=1e-12)


@WAYS
@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 9), (2, 70)])
def test_forward_equals_the_step_loop_in_values_and_gradients(parallel, timed, batch, length):
    mixer, x = lrc(parallel=parallel), tokens(batch, length).requires_grad_()
    elapsed = torch.rand(batch, length, dtype=torch.float64) if timed else None
    state = {"h": torch.randn(batch, 12, dtype=torch.float64)}
    (y, last), (stepped, stepped_last) = mixer(x, state, Call(elapsed)), step_loop(mixer, x, state, elapsed)
    torch.testing.assert_close(y, stepped, rtol=0, atol=1e-12)
    torch.testing.assert_close(last["h"], stepped_last["h"], rtol=0, atol=1e-12)
    wanted = [x, *mixer.parameters()]
    for a, b in zip(*(torch.autograd.grad(out.sin().sum(), wanted) for out in (y, stepped)), strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_newtons_method_needs_no_gradients():
    x, mixer = tokens(), lrc(parallel=Newton(tolerance=1e-8))
    expected = mixer(x)[0].detach()
    with torch.inference_mode():
        torch.testing.assert_close(mixer(x)[0], expected, rtol=0, atol=1e-14)


def test_newtons_method_counts_its_iterations():
    mixer = lrc(parallel=Newton())
    mixer(tokens())
    counts = mixer.counts()
    assert counts["newton_calls"] == 1
    assert counts["newton_fallbacks"] == 0
    assert 2 <= counts["newton_iterations"] <= 10


def test_a_call_that_newton_gives_up_is_solved_token_by_token():
    x, mixer = tokens(), lrc(parallel=Newton(max_iterations=1, tolerance=1e-8))
    torch.testing.assert_close(mixer(x)[0], step_loop(mixer, x)[0], rtol=0, atol=1e-12)
    assert mixer.counts()["newton_fallbacks"] == 3


def test_flops_are_those_of_a_real_step():
    mixer = lrc().float()
    with FlopCounterMode(display=False) as counter:
        mixer.step(torch.randn(1, 6), mixer.init_state(1))
    assert mixer.flops_per_token(7).matmul == counter.get_total_flops()
