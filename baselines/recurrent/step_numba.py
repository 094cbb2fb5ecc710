"""One token of the LSTM and of the GRU on the CPU, the projection after it too, in one call of a kernel (float32)."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from harness.ops.shapes import expect
from harness.ops.toolbox.jit import helper, kernel
from harness.ops.toolbox.numba_linear import at, owned, padded, panels, panels_at, product
from harness.ops.toolbox.numba_math import sigmoid, tanh


def lstm_step(out: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor) -> Callable:
    """x (B, D), h, c (B, d_inner) -> y (B, D), new h, new c, for these weights and the projection `out`."""
    width, hidden = out.shape
    joined = torch.cat([weight_ih, weight_hh], dim=1).detach().t()
    weights = [panels(joined), (bias_ih + bias_hh).detach(), panels(out.detach().t())]  # kept alive by the function
    addresses = [w.data_ptr() for w in weights]

    def run(x: Tensor, h: Tensor, c: Tensor, weights=weights) -> tuple[Tensor, Tensor, Tensor]:
        batch = len(x)
        expect("lstm_step", ("x", x, (batch, width)), ("h", h, (batch, hidden)), ("c", c, (batch, hidden)))
        x, h, c = x.float().contiguous(), h.float().contiguous(), c.float().contiguous()
        y, new_h, new_c = torch.empty_like(x), torch.empty_like(h), torch.empty_like(c)
        places = [t.data_ptr() for t in (x, h, c, y, new_h, new_c)]
        _lstm_step(len(x), width, hidden, *addresses, *places)
        return y, new_h, new_c

    return run


def gru_step(out: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor) -> Callable:
    """x (B, D), h (B, d_inner) -> y (B, D), new h, for these weights and the projection `out`."""
    width, hidden = out.shape
    weights = [
        *(panels(w.detach().t()) for w in (weight_ih, weight_hh, out)),
        *owned(bias_ih, bias_hh),
    ]
    addresses = [w.data_ptr() for w in weights]

    def run(x: Tensor, h: Tensor, weights=weights) -> tuple[Tensor, Tensor]:
        expect("gru_step", ("x", x, (len(x), width)), ("h", h, (len(x), hidden)))
        x, h = x.float().contiguous(), h.float().contiguous()
        y, new_h = torch.empty_like(x), torch.empty_like(h)
        _gru_step(len(x), width, hidden, *addresses, x.data_ptr(), h.data_ptr(), y.data_ptr(), new_h.data_ptr())
        return y, new_h

    return run


@helper
def _project(h, out_at, y):
    """y (B, width) = the projection of h (B, hidden)."""
    rows = np.empty((len(y), padded(h, y.shape[1])), np.float32)
    product(h, panels_at(out_at, h.shape[1], y.shape[1]), rows)
    y[:] = rows[:, : y.shape[1]]


@helper
def _lstm_row(gates, bias, c, new_h, new_c):
    d = len(c)
    for k in range(4 * d):
        gates[k] += bias[k]
    i, f, g, o = gates[:d], gates[d : 2 * d], gates[2 * d : 3 * d], gates[3 * d : 4 * d]
    for k in range(d):
        new_c[k] = sigmoid(f[k]) * c[k] + sigmoid(i[k]) * tanh(g[k])
    for k in range(d):
        new_h[k] = sigmoid(o[k]) * tanh(new_c[k])


@kernel
def _lstm_step(batch, width, hidden, weight_at, bias_at, out_at, x_at, h_at, c_at, y_at, new_h_at, new_c_at):
    """Addresses of the joined weights' panels, the summed biases, the projection's panels, and the six tensors."""
    x, y = at(x_at, (batch, width)), at(y_at, (batch, width))
    h, c = at(h_at, (batch, hidden)), at(c_at, (batch, hidden))
    new_h, new_c = at(new_h_at, (batch, hidden)), at(new_c_at, (batch, hidden))
    both = np.empty((batch, width + hidden), np.float32)
    both[:, :width] = x
    both[:, width:] = h
    gates = np.empty((batch, padded(x, 4 * hidden)), np.float32)
    product(both, panels_at(weight_at, width + hidden, 4 * hidden), gates)
    bias = at(bias_at, (4 * hidden,))
    for b in range(batch):
        _lstm_row(gates[b], bias, c[b], new_h[b], new_c[b])
    _project(new_h, out_at, y)


@helper
def _gru_row(by_x, by_h, bias_x, bias_h, h, new_h):
    d = len(h)
    for k in range(2 * d):
        by_x[k] = sigmoid((by_x[k] + bias_x[k]) + (by_h[k] + bias_h[k]))
    r, z, n = by_x[:d], by_x[d : 2 * d], by_x[2 * d : 3 * d]
    inner, b_x, b_h = by_h[2 * d : 3 * d], bias_x[2 * d :], bias_h[2 * d :]
    for k in range(d):
        new = tanh((n[k] + b_x[k]) + r[k] * (inner[k] + b_h[k]))
        new_h[k] = new + z[k] * (h[k] - new)


@kernel
def _gru_step(batch, width, hidden, ih_at, hh_at, out_at, bias_ih_at, bias_hh_at, x_at, h_at, y_at, new_h_at):
    """Addresses of the panels of the three weights, of the two biases, and of the four tensors."""
    x, y = at(x_at, (batch, width)), at(y_at, (batch, width))
    h, new_h = at(h_at, (batch, hidden)), at(new_h_at, (batch, hidden))
    by_x, by_h = np.empty((2, batch, padded(x, 3 * hidden)), np.float32)
    product(x, panels_at(ih_at, width, 3 * hidden), by_x)
    product(h, panels_at(hh_at, hidden, 3 * hidden), by_h)
    bias_x, bias_h = at(bias_ih_at, (3 * hidden,)), at(bias_hh_at, (3 * hidden,))
    for b in range(batch):
        _gru_row(by_x[b], by_h[b], bias_x, bias_h, h[b], new_h[b])
    _project(new_h, out_at, y)
