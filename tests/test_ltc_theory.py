"""The liquid mixer's limits are the models that theory says they are, written out from their own equations."""

import itertools

import pytest
import torch

from arch.solvers import Exponential, RungeKutta
from harness.model.mixer import Call
from test_ltc import B, D, T, assert_same, inputs, mixer


def test_the_published_cell_is_equation_1_of_hasani_et_al():
    """A dense gate, a constant reversal potential, no convolution; euler shows the equation itself."""
    ltc = mixer(coupling="dense", reversal="constant", d_conv=0, solver=RungeKutta("euler"))
    x, _ = inputs()
    tau = ltc.log_tau[:, 0].exp()
    h, outputs = torch.zeros(B, D, dtype=torch.float64), []
    for t in range(T):
        f = torch.sigmoid(x[:, t] @ ltc.in_proj.weight.T + ltc.gate_bias + h @ ltc.coupling_weight.T)
        h = h - (1 / tau + f) * h + f * ltc.reversal
        outputs.append(h @ ltc.out_proj.weight.T)
    assert_same(ltc(x)[0], torch.stack(outputs, 1), 1e-12)
    assert ltc.in_proj.weight.shape == (D, D)


def selective_scan(ltc, x, zero_order_hold):
    """A selective state-space model on the mixer's own projections: dh/dt = A h + B u with A = -omega, step dt.

    Exact zero-order hold: h <- exp(dt A) h + (exp(dt A) - 1) / A B u. Mamba's code puts dt B u for the last term.
    """
    x = ltc.convolve(x, ltc.init_state(x.shape[0], dtype=x.dtype))[0]
    N = ltc.d_state
    delta, u, b, c = ltc.in_proj(x).split([D, D, N, N], dim=-1)
    delta, A = torch.nn.functional.softplus(delta + ltc.gate_bias), -ltc.log_omega.exp()  # (B, T, D), (D, N)
    h, outputs = torch.zeros(x.shape[0], D, N, dtype=x.dtype), []
    for t in range(x.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * A)
        width = (decay - 1) / A if zero_order_hold else delta[:, t, :, None]
        h = decay * h + width * b[:, t, None, :] * u[:, t, :, None]
        outputs.append((h * c[:, t, None, :]).sum(-1))
    return ltc.out_proj(torch.stack(outputs, 1))


def test_a_gate_blind_to_the_state_is_a_selective_state_space_model():
    """Equal to S6 under exact zero-order hold; to Mamba's simplified input term only as dt falls, at first order.

    Relative differences to the simplified form at gate biases -1, -3, -5, -7 (dt about 0.3, 0.05, 0.007, 0.001) fall by
    e^-2 each time: what Mamba's code drops is dt^2 A B u / 2 and beyond.
    """
    options = {"coupling": "none", "gate": "softplus", "leak": False, "d_state": 4, "solver": Exponential()}
    ltc = mixer(**options)
    x, _ = inputs()
    differences = []
    for bias in (-1.0, -3.0, -5.0, -7.0):
        torch.nn.init.constant_(ltc.gate_bias, bias)
        y = ltc(x)[0]
        torch.testing.assert_close(y, selective_scan(ltc, x, zero_order_hold=True), rtol=1e-10, atol=1e-14)
        simplified = selective_scan(ltc, x, zero_order_hold=False)
        differences.append(((y - simplified).norm() / y.norm()).item())
    ratios = [later / earlier for earlier, later in itertools.pairwise(differences)]
    assert differences[0] > 0.1
    assert differences[-1] < 5e-3
    assert ratios[-1] == pytest.approx(torch.tensor(-2.0).exp().item(), rel=0.05)


def test_twice_the_elapsed_time_is_two_tokens_alike():
    ltc = mixer(solver=Exponential(), coupling="none", d_conv=0)
    x, _ = inputs()
    twice = ltc(x, call=Call(torch.full((B, T), 2.0, dtype=torch.float64)))[0]
    again = ltc(x.repeat_interleave(2, dim=1))[0][:, 1::2]
    assert_same(twice, again, 1e-12)
