"""Fused CPU kernels of the backbone's elementwise parts: RMSNorm and the gate of SwiGLU, forward and backward.

Each walks the rows once, where torch's own composition walks them once an operation and lays a new tensor down each
time; the backward computes again what it can from the inputs. Half precision is computed in float32, a row at a time.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.ops.shapes import expect
from harness.ops.toolbox.jit import kernel
from harness.ops.toolbox.numba_linear import at, matvec, owned
from harness.ops.toolbox.numba_math import one, sigmoid, zero
from harness.ops.toolbox.threads import spread

ROWS = 128  # of one task: sums over rows are taken task by task, so that they do not depend on the threads


def _tasks(rows: int) -> int:
    return -(-rows // ROWS)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of the halves of the last axis: (..., 2 F) -> (..., F), in the type given."""
    if gate_up.shape[-1] % 2:
        raise ValueError(f"swiglu: {tuple(gate_up.shape)} has no halves along its last axis.")
    return _SwiGLU.apply(gate_up)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up: Tensor) -> Tensor:
        rows = _rows(gate_up)
        ctx.save_for_backward(rows)
        y = rows.new_empty(rows.shape[0], rows.shape[1] // 2)
        spread(_swiglu, _tasks(len(rows)), rows.numel(), rows.detach().numpy(), y.numpy())
        return y.view(*gate_up.shape[:-1], y.shape[1]).to(gate_up.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gy: Tensor) -> Tensor:
        (rows,) = ctx.saved_tensors
        g = torch.empty_like(rows)
        spread(_swiglu_vjp, _tasks(len(rows)), rows.numel(), rows.numpy(), _rows(gy).numpy(), g.numpy())
        return g.view(*gy.shape[:-1], g.shape[1]).to(gy.dtype)


def frozen_swiglu(gate_up: Tensor, down: Tensor) -> Callable[[Tensor], Tensor]:
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


def frozen_rms_norm(weight: Tensor, eps: float) -> Callable[[Tensor], Tensor]:
    """`rms_norm` for this weight (D), as a function of x (B, D), float32."""
    (weight,) = owned(weight)
    width, address, eps = len(weight), weight.data_ptr(), np.float32(eps)

    def run(x: Tensor, weight=weight) -> Tensor:
        expect("rms_norm_step", ("x", x, (len(x), width)))
        rows = x.float().contiguous()
        y = torch.empty_like(rows)
        _rms_norm_step(rows.data_ptr(), address, y.data_ptr(), len(rows), width, eps)
        return y.to(x.dtype)

    return run


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang & Sennrich 2019): (..., D), in the type of x."""
    expect("rms_norm", ("weight", weight, x.shape[-1:]))
    return _RMSNorm.apply(x, weight, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = _rows(x)
        scale = weight.detach().to(rows.dtype).contiguous()
        y, inverse = torch.empty_like(rows), rows.new_empty(len(rows))
        arrays = [t.numpy() for t in (rows.detach(), scale, y, inverse)]
        spread(_rms_norm, _tasks(len(rows)), rows.numel(), arrays[1].dtype.type(eps), *arrays)
        ctx.save_for_backward(rows, scale, inverse)
        ctx.dtypes = x.dtype, weight.dtype
        return y.view(x.shape).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gy: Tensor) -> tuple[Tensor | None, ...]:
        rows, scale, inverse = ctx.saved_tensors
        tasks = _tasks(len(rows))
        gx, parts = torch.empty_like(rows), rows.new_zeros(tasks, rows.shape[1])
        arrays = [t.numpy() for t in (rows, scale, inverse, _rows(gy), gx, parts)]
        spread(_rms_norm_vjp, tasks, rows.numel(), *arrays)
        return gx.view(gy.shape).to(ctx.dtypes[0]), parts.sum(0).to(ctx.dtypes[1]), None


def _rows(x: Tensor) -> Tensor:
    """(..., D) -> contiguous (R, D), float32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.detach().reshape(-1, x.shape[-1]).to(wide).contiguous()


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
def _rms_norm(first, last, eps, x, weight, y, inverse):
    """y (R, D), and inverse (R), one over each row's root mean square."""
    width = x.shape[1]
    for row in range(first * ROWS, min(last * ROWS, len(x))):
        source, out = x[row], y[row]
        total = zero(eps)
        for c in range(width):
            total += source[c] * source[c]
        r = one(eps) / np.sqrt(total / x.dtype.type(width) + eps)
        inverse[row] = r
        for c in range(width):
            out[c] = source[c] * r * weight[c]


@kernel
def _rms_norm_vjp(first, last, x, weight, inverse, gy, gx, parts):
    """gx (R, D) and, a row for each task, parts of the weight's gradient, zeroed before."""
    width = x.shape[1]
    for task in range(first, last):
        part = parts[task]
        for row in range(task * ROWS, min((task + 1) * ROWS, len(x))):
            source, g, out, r = x[row], gy[row], gx[row], inverse[row]
            along = zero(r)
            for c in range(width):
                along += g[c] * weight[c] * source[c]
            along = along * r * r / x.dtype.type(width)
            for c in range(width):
                out[c] = r * (g[c] * weight[c] - source[c] * along)
            for c in range(width):
                part[c] += g[c] * source[c] * r


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


@kernel
def _rms_norm_step(x_at, weight_at, y_at, batch, width, eps):
    """Addresses of x, y (batch, width) and weight (width)."""
    x, y, weight = at(x_at, (batch, width)), at(y_at, (batch, width)), at(weight_at, (width,))
    _rms_norm(0, (batch + ROWS - 1) // ROWS, eps, x, weight, y, np.empty(batch, np.float32))
