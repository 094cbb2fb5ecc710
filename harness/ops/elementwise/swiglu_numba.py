"""Fused CPU kernels of a gated MLP's gate, forward and backward, and of the whole channel mixer for one token.

Both activations are z sigmoid(z (linear + cubic z^2)): silu, and the approximation of gelu by tanh, as
(1 + tanh(x)) / 2 = sigmoid(2 x) (Hendrycks and Gimpel 2016, arXiv:1606.08415).
Each walks the rows once, where torch's own composition walks them once an operation and lays a new tensor down each
time; the backward computes again what it can from the inputs. Half precision is computed in float32, a row at a time.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.ops.elementwise.rows_numba import ROWS, as_rows, tasks
from harness.ops.shapes import expect
from harness.ops.toolbox.jit import kernel
from harness.ops.toolbox.numba_linear import at, matvec, owned
from harness.ops.toolbox.numba_math import one, sigmoid
from harness.ops.toolbox.threads import spread

SILU = 1.0, 0.0
GELU = 2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of the halves of the last axis: (..., 2 F) -> (..., F), in the type given."""
    return _gated("swiglu", gate_up, SILU)


def geglu(gate_up: Tensor) -> Tensor:
    """gelu(gate) * up, likewise."""
    return _gated("geglu", gate_up, GELU)


def _gated(name: str, gate_up: Tensor, activation: tuple[float, float]) -> Tensor:
    if gate_up.shape[-1] % 2:
        raise ValueError(f"{name}: {tuple(gate_up.shape)} has no halves along its last axis.")
    return _GLU.apply(gate_up, activation)


def _scalars(activation: tuple[float, float], rows: Tensor) -> list[np.floating]:
    """The activation's constants in the type of the rows."""
    return [rows.detach().numpy().dtype.type(constant) for constant in activation]


class _GLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up: Tensor, activation: tuple[float, float]) -> Tensor:
        rows = as_rows(gate_up)
        ctx.save_for_backward(rows)
        ctx.activation = _scalars(activation, rows)
        y = rows.new_empty(rows.shape[0], rows.shape[1] // 2)
        spread(_glu, tasks(len(rows)), rows.numel(), *ctx.activation, rows.detach().numpy(), y.numpy())
        return y.view(*gate_up.shape[:-1], y.shape[1]).to(gate_up.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gy: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        g = torch.empty_like(rows)
        given = rows.numpy(), as_rows(gy).numpy(), g.numpy()
        spread(_glu_vjp, tasks(len(rows)), rows.numel(), *ctx.activation, *given)
        return g.view(*gy.shape[:-1], g.shape[1]).to(gy.dtype), None


def swiglu_step(gate_up: Tensor, down: Tensor) -> Callable[[Tensor], Tensor]:
    """W_down(silu(W_gate x) * W_up x) for these weights (2 F, D), (D, F), as a function of x (B, D), float32."""
    return _step("swiglu_step", gate_up, down, SILU)


def geglu_step(gate_up: Tensor, down: Tensor) -> Callable[[Tensor], Tensor]:
    """The same with gelu."""
    return _step("geglu_step", gate_up, down, GELU)


def _step(name: str, gate_up: Tensor, down: Tensor, activation: tuple[float, float]) -> Callable[[Tensor], Tensor]:
    weights = owned(gate_up, down)  # the function keeps them alive
    width, hidden = weights[1].shape
    addresses, constants = [w.data_ptr() for w in weights], _scalars(activation, weights[0])

    def run(x: Tensor, weights=weights) -> Tensor:
        expect(name, ("x", x, (len(x), width)))
        rows = x.float().contiguous()
        y = torch.empty_like(rows)
        _glu_step(*constants, rows.data_ptr(), *addresses, y.data_ptr(), len(rows), width, hidden)
        return y.to(x.dtype)

    return run


@kernel
def _glu(first, last, linear, cubic, x, y):
    """The tasks first..last - 1 of y (R, F) from x (R, 2 F)."""
    width = y.shape[1]
    for row in range(first * ROWS, min(last * ROWS, len(x))):
        gate, up, out = x[row, :width], x[row, width:], y[row]
        for c in range(width):
            z = gate[c]
            out[c] = z * sigmoid(z * (linear + cubic * z * z)) * up[c]


@kernel
def _glu_vjp(first, last, linear, cubic, x, gy, gx):
    """Fills gx (R, 2 F): the slope of z s is s + z s (1 - s) (linear + 3 cubic z^2), s being the sigmoid."""
    width = gy.shape[1]
    for row in range(first * ROWS, min(last * ROWS, len(x))):
        gate, up, g = x[row, :width], x[row, width:], gy[row]
        g_gate, g_up = gx[row, :width], gx[row, width:]
        for c in range(width):
            z = gate[c]
            s = sigmoid(z * (linear + cubic * z * z))
            value = z * s
            g_up[c] = g[c] * value
            slope = linear + (cubic + cubic + cubic) * z * z
            g_gate[c] = g[c] * up[c] * (s + value * (one(s) - s) * slope)


@kernel
def _glu_step(linear, cubic, x_at, gate_up_at, down_at, y_at, batch, width, hidden):
    """Addresses of x, y (batch, width), gate_up (2 hidden, width) and down (width, hidden)."""
    x, y = at(x_at, (batch, width)), at(y_at, (batch, width))
    gate_up, down = at(gate_up_at, (2 * hidden, width)), at(down_at, (width, hidden))
    row = np.empty(2 * hidden, np.float32)
    for b in range(batch):
        matvec(gate_up, x[b], row)
        for c in range(hidden):
            z = row[c]
            row[c] = z * sigmoid(z * (linear + cubic * z * z)) * row[hidden + c]
        matvec(down, row[:hidden], y[b])
