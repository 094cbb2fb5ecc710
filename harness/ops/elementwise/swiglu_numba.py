"""Fused CPU kernels of SwiGLU's gate, forward and backward, and of the whole channel mixer for one token.

Each walks the rows once, where torch's own composition walks them once an operation and lays a new tensor down each
time; the backward computes again what it can from the inputs. Half precision is computed in float32, a row at a time.
"""

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


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of the halves of the last axis: (..., 2 F) -> (..., F), in the type given."""
    if gate_up.shape[-1] % 2:
        raise ValueError(f"swiglu: {tuple(gate_up.shape)} has no halves along its last axis.")
    return _SwiGLU.apply(gate_up)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up: Tensor) -> Tensor:
        rows = as_rows(gate_up)
        ctx.save_for_backward(rows)
        y = rows.new_empty(rows.shape[0], rows.shape[1] // 2)
        spread(_swiglu, tasks(len(rows)), rows.numel(), rows.detach().numpy(), y.numpy())
        return y.view(*gate_up.shape[:-1], y.shape[1]).to(gate_up.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gy: Tensor) -> Tensor:
        (rows,) = ctx.saved_tensors
        g = torch.empty_like(rows)
        spread(_swiglu_vjp, tasks(len(rows)), rows.numel(), rows.numpy(), as_rows(gy).numpy(), g.numpy())
        return g.view(*gy.shape[:-1], g.shape[1]).to(gy.dtype)


def swiglu_step(gate_up: Tensor, down: Tensor) -> Callable[[Tensor], Tensor]:
    """W_down(silu(W_gate x) * W_up x) for these weights (2 F, D), (D, F), as a function of x (B, D), float32."""
    weights = owned(gate_up, down)  # the function keeps them alive
    width, hidden = weights[1].shape
    addresses = [w.data_ptr() for w in weights]

    def run(x: Tensor, weights=weights) -> Tensor:
        expect("swiglu_step", ("x", x, (len(x), width)))
        rows = x.float().contiguous()
        y = torch.empty_like(rows)
        _swiglu_step(rows.data_ptr(), *addresses, y.data_ptr(), len(rows), width, hidden)
        return y.to(x.dtype)

    return run


@kernel
def _swiglu(first, last, x, y):
    """The tasks first..last - 1 of y (R, F) from x (R, 2 F)."""
    width = y.shape[1]
    for row in range(first * ROWS, min(last * ROWS, len(x))):
        gate, up, out = x[row, :width], x[row, width:], y[row]
        for c in range(width):
            out[c] = gate[c] * sigmoid(gate[c]) * up[c]


@kernel
def _swiglu_vjp(first, last, x, gy, gx):
    """Fills gx (R, 2 F): the slope of silu(z) is s + z s (1 - s), s = sigmoid(z)."""
    width = gy.shape[1]
    for row in range(first * ROWS, min(last * ROWS, len(x))):
        gate, up, g = x[row, :width], x[row, width:], gy[row]
        g_gate, g_up = gx[row, :width], gx[row, width:]
        for c in range(width):
            s = sigmoid(gate[c])
            silu = gate[c] * s
            g_up[c] = g[c] * silu
            g_gate[c] = g[c] * up[c] * (s + silu * (one(s) - s))


@kernel
def _swiglu_step(x_at, gate_up_at, down_at, y_at, batch, width, hidden):
    """Addresses of x, y (batch, width), gate_up (2 hidden, width) and down (width, hidden)."""
    x, y = at(x_at, (batch, width)), at(y_at, (batch, width))
    gate_up, down = at(gate_up_at, (2 * hidden, width)), at(down_at, (width, hidden))
    row = np.empty(2 * hidden, np.float32)
    for b in range(batch):
        matvec(gate_up, x[b], row)
        for c in range(hidden):
            row[c] = row[c] * sigmoid(row[c]) * row[hidden + c]
        matvec(down, row[:hidden], y[b])
