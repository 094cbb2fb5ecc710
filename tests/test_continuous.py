"""CT-RNN, the Neural ODE and CT-GRU: numpy loops from their equations, and the state that is carried."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from baselines.continuous import CTGRU, CTRNN, NeuralODE
from harness.model.mixer import Call
from oracles import step_loop

MIXERS = pytest.mark.parametrize("kind", [CTRNN, NeuralODE, CTGRU])


def made(kind, **options):
    """Biases and weights away from where they start."""
    torch.manual_seed(1)
    mixer = kind(4, expand=2, **options).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer


def by_equations(mixer, x, elapsed):
    """y (B, T, D) in numpy, a row, a token and a step at a time."""
    W, b, U, out = (
        p.detach().numpy() for p in (mixer.input.weight, mixer.input.bias, mixer.recurrent, mixer.out.weight)
    )
    batch, length, _ = x.shape
    y = np.empty((batch, length, len(out)))
    for row in range(batch):
        h = np.zeros((W.shape[1] * 2, 8)) if isinstance(mixer, CTGRU) else np.zeros(W.shape[1] * 2)
        for t in range(length):
            h = TOKEN[type(mixer)](mixer, W @ x[row, t] + b, U, h, elapsed[row, t])
            y[row, t] = out @ (h.sum(1) if h.ndim == 2 else h)
    return y


def euler(mixer, u, U, h, elapsed):
    for _ in range(6):
        h = h + 0.1 * elapsed * (np.tanh(u + U @ h) - h / mixer.tau)
    return h


def runge_kutta(mixer, u, U, h, elapsed):
    dt = 0.1 * elapsed
    for _ in range(6):
        k1 = dt * np.tanh(u + U @ h)
        k2 = dt * np.tanh(u + U @ (h + k1 / 2))
        k3 = dt * np.tanh(u + U @ (h + k2 / 2))
        k4 = dt * np.tanh(u + U @ (h + k3))
        h = h + (k1 + 2 * k2 + 2 * k3 + k4) / 6
    return h


def multiscale(mixer, u, U, h, elapsed):
    tau = np.sqrt(10.0) ** np.arange(8)
    (u_r, u_s, u_q), (U_r, U_s, U_q) = np.split(u, 3), np.split(U, 3)
    traces = h * np.exp(-elapsed / tau)

    def weights(log_tau):
        raw = np.exp(-((log_tau[:, None] - np.log(tau)) ** 2))
        return raw / raw.sum(1, keepdims=True)

    r, s = weights(u_r + U_r @ traces.sum(1)), weights(u_s + U_s @ traces.sum(1))
    q = np.tanh(u_q + U_q @ (r * traces).sum(1))
    return (1 - s) * traces + s * q[:, None]


TOKEN = {CTRNN: euler, NeuralODE: runge_kutta, CTGRU: multiscale}


@MIXERS
@pytest.mark.parametrize("timed", [False, True])
def test_forward_and_steps_are_the_equations(kind, timed):
    mixer = made(kind, **({"tau": 0.7} if kind is CTRNN else {}))
    x, elapsed = torch.randn(3, 5, 4, dtype=torch.float64), 2 * torch.rand(3, 5, dtype=torch.float64)
    elapsed = elapsed if timed else torch.ones_like(elapsed)
    expected = torch.from_numpy(by_equations(mixer, x.numpy(), elapsed.numpy()))
    call = Call(elapsed if timed else None)
    assert_close(mixer(x, None, call)[0], expected, rtol=0, atol=1e-12)
    state = mixer.init_state(3, dtype=torch.float64)
    for t in range(5):
        y, state = mixer.step(x[:, t], state, Call(elapsed[:, t]))
        assert_close(y, expected[:, t], rtol=0, atol=1e-12)


@MIXERS
def test_a_carried_state_continues_and_passes_gradients(kind):
    mixer, x = made(kind), torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True)
    whole, _ = mixer(x)
    assert_close(step_loop(mixer, x)[0], whole, rtol=0, atol=1e-12)
    _, state = mixer(x[:, :2])
    rest, _ = mixer(x[:, 2:], state)
    by_whole, by_rest = (torch.autograd.grad(y[:, -1].sum(), x)[0] for y in (whole, rest))
    assert_close(by_rest, by_whole, rtol=0, atol=1e-12)
    assert by_rest[:, 0].abs().min() > 0


@MIXERS
def test_flops_and_state_are_those_of_a_real_step(kind):
    mixer = kind(12, expand=2)
    with FlopCounterMode(display=False) as counter:
        _, state = mixer.step(torch.randn(1, 12), mixer.init_state(1))
    assert mixer.flops_per_token(7).matmul == counter.get_total_flops()
    assert state["h"].shape == mixer.init_state(1, 1000)["h"].shape


@MIXERS
def test_the_joined_matrix_starts_xavier_uniform_and_biases_do_not_decay(kind):
    mixer = kind(32, expand=2)
    bound = (6 / (32 + 64 + 64)) ** 0.5
    for matrix in (mixer.input.weight, mixer.recurrent):
        assert 0.98 * bound < matrix.abs().max() <= bound
    assert not mixer.input.bias.any()
    assert {name for name, p in mixer.named_parameters() if getattr(p, "_no_weight_decay", False)} == {"input.bias"}
