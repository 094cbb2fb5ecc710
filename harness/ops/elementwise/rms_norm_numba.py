"""Fused CPU kernels of RMSNorm, forward, backward and for one token: each walks the rows once."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.ops.elementwise.rows_numba import ROWS, as_rows, tasks
from harness.ops.shapes import expect
from harness.ops.toolbox.jit import kernel
from harness.ops.toolbox.numba_linear import at, owned
from harness.ops.toolbox.numba_math import one, zero
from harness.ops.toolbox.threads import spread


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang & Sennrich 2019): (..., D), in the type of x."""
    expect("rms_norm", ("weight", weight, x.shape[-1:]))
    return _RMSNorm.apply(x, weight, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = as_rows(x)
        scale = weight.detach().to(rows.dtype).contiguous()
        y, inverse = torch.empty_like(rows), rows.new_empty(len(rows))
        arrays = [t.numpy() for t in (rows.detach(), scale, y, inverse)]
        spread(_rms_norm, tasks(len(rows)), rows.numel(), arrays[1].dtype.type(eps), *arrays)
        ctx.save_for_backward(rows, scale, inverse)
        ctx.dtypes = x.dtype, weight.dtype
        return y.view(x.shape).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gy: Tensor) -> tuple[Tensor | None, ...]:
        rows, scale, inverse = ctx.saved_tensors
        count = tasks(len(rows))
        gx, parts = torch.empty_like(rows), rows.new_zeros(count, rows.shape[1])
        arrays = [t.numpy() for t in (rows, scale, inverse, as_rows(gy), gx, parts)]
        spread(_rms_norm_vjp, count, rows.numel(), *arrays)
        return gx.view(gy.shape).to(ctx.dtypes[0]), parts.sum(0).to(ctx.dtypes[1]), None


def rms_norm_step(weight: Tensor, eps: float) -> Callable[[Tensor], Tensor]:
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
def _rms_norm_step(x_at, weight_at, y_at, batch, width, eps):
    """Addresses of x, y (batch, width) and weight (width)."""
    x, y, weight = at(x_at, (batch, width)), at(y_at, (batch, width)), at(weight_at, (width,))
    _rms_norm(0, (batch + ROWS - 1) // ROWS, eps, x, weight, y, np.empty(batch, np.float32))
