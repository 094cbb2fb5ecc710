"""What leaves an mLSTM, fused on the CPU: the division, the norm of each head, skip and gate in one walk each way."""

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from baselines.xlstm import scan
from harness.ops.elementwise.rows_numba import ROWS, as_rows, tasks
from harness.ops.shapes import expect, expect_type
from harness.ops.toolbox.jit import helper, kernel
from harness.ops.toolbox.numba_math import exp, one, sigmoid, zero
from harness.ops.toolbox.threads import spread

EPS, NORM_EPS, LARGEST = np.float64(scan.EPS), np.float64(scan.NORM_EPS), np.float64(scan.LARGEST)


def mlstm_read(answer: Tensor, m: Tensor, u: Tensor, z: Tensor, gain: Tensor, skip: Tensor) -> Tensor:
    """answer (B, H, T, D + 1), m (B, H, T), u, z (B, T, H D), gain, skip (H D) -> (B, T, H D)."""
    B, H, T, width = answer.shape
    inner = H * (width - 1)
    expect("mlstm_read", ("m", m, (B, H, T)), ("u", u, (B, T, inner)), ("z", z, (B, T, inner)))
    expect("mlstm_read", ("gain", gain, (inner,)), ("skip", skip, (inner,)))
    expect_type("mlstm_read", answer.dtype, m=m, u=u, z=z, gain=gain, skip=skip)
    return _Read.apply(answer, m, u, z, gain, skip)


def _by_heads(x: Tensor) -> Tensor:
    """(B, H, T, ...) -> contiguous (H, B T, ...), of the tensor's own memory where it may."""
    return x.detach().transpose(0, 1).flatten(1, 2).contiguous()


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx, answer, m, u, z, gain, skip):
        given = [*map(_by_heads, (answer, m)), *map(as_rows, (u, z)), *(t.detach().contiguous() for t in (gain, skip))]
        y = torch.empty_like(given[2])
        spread(forward, tasks(len(y)), y.numel(), *(t.numpy() for t in given), y.numpy())
        ctx.save_for_backward(*given)
        ctx.shape = answer.shape
        return y.view(u.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        given = ctx.saved_tensors
        (B, _, T, _), rows = ctx.shape, as_rows(g)
        count = tasks(len(rows))
        made = [torch.empty_like(t) for t in given[:4]] + [g.new_zeros(count, 2, rows.shape[1])]
        spread(backward, count, rows.numel(), *(t.numpy() for t in (*given, rows, *made)))
        by_heads = (t.unflatten(1, (B, T)).transpose(0, 1) for t in made[:2])
        return *by_heads, *(t.view(g.shape) for t in made[2:4]), *made[4].sum(0)


@helper
def _divisor(weight, m):
    """max(|weight|, exp(-m)) + EPS, and exp(-m)."""
    dtype = type(m)
    low = dtype(LARGEST) if -m > dtype(LARGEST) else -m
    least, weight = exp(low), abs(weight)
    larger = weight if weight > least else least
    larger = weight + least if weight != weight or least != least else larger  # NaN stays visible
    return larger + dtype(EPS), least


@helper
def _normalise(answer, m, h):
    """Fills h (D) with the normalised answers; returns what was divided by, exp(-m), and 1 / standard deviation."""
    D, dtype = len(h), type(m)
    divisor, least = _divisor(answer[D], m)
    inverse, mean, variance = one(m) / divisor, zero(m), zero(m)
    for j in range(D):
        h[j] = answer[j] * inverse
        mean += h[j]
    mean /= dtype(D)
    for j in range(D):
        h[j] -= mean
        variance += h[j] * h[j]
    scale = one(m) / np.sqrt(variance / dtype(D) + dtype(NORM_EPS))
    for j in range(D):
        h[j] *= scale
    return divisor, least, scale


@helper
def _combine(h, x, z, gain, skip, y):
    """One row of the result."""
    for c in range(len(y)):
        y[c] = (h[c] * gain[c] + skip[c] * x[c]) * z[c] * sigmoid(z[c])


@kernel
def forward(first, last, answer, m, u, z, gain, skip, y):
    """Fills the tasks first..last - 1 of y (R, H D)."""
    heads, D = len(answer), answer.shape[2] - 1
    h = np.empty(heads * D, y.dtype)
    for row in range(first * ROWS, min(last * ROWS, len(y))):
        for head in range(heads):
            _normalise(answer[head, row], m[head, row], h[head * D : (head + 1) * D])
        _combine(h, u[row], z[row], gain, skip, y[row])


@helper
def _combine_vjp(h, x, z, gain, skip, g, room, g_x, g_z, g_gain, g_skip):
    """From g, the gradient by one row: those by u and z, and, added, by gain and skip; room becomes the one by h.

    One array is written at a time, for loops vectorise only where few arrays might overlap.
    """
    n = len(g)
    for c in range(n):
        room[c] = sigmoid(z[c])
    for c in range(n):
        s = room[c]
        g_z[c] = g[c] * (h[c] * gain[c] + skip[c] * x[c]) * s * (one(s) + z[c] * (one(s) - s))
    for c in range(n):
        room[c] *= g[c] * z[c]
    for c in range(n):
        g_x[c] = room[c] * skip[c]
    for c in range(n):
        g_skip[c] += room[c] * x[c]
    for c in range(n):
        g_gain[c] += room[c] * h[c]
    for c in range(n):
        room[c] *= gain[c]


@helper
def _normalise_vjp(answer, m, h, g, divided, g_answer):
    """From g, the gradient by one head's h (D): fills the one by its answer (D + 1), and returns the one by m."""
    (divisor, least, scale), D, dtype = divided, len(h), type(m)
    plain, along = zero(m), zero(m)
    for j in range(D):
        plain += g[j]
        along += g[j] * h[j]
    # A norm hardly sees what it is divided by: of the sum over g_answer * answer the rest cancels.
    by_divisor, weight = -along * dtype(NORM_EPS) * scale * scale / divisor, answer[D]
    plain, along, scale = plain / dtype(D), along / dtype(D), scale / divisor
    for j in range(D):
        g_answer[j] = (g[j] - plain - h[j] * along) * scale
    if abs(weight) > least:
        g_answer[D] = by_divisor if weight > zero(m) else -by_divisor
        return zero(m)
    g_answer[D] = zero(m)
    return -by_divisor * least if -m <= dtype(LARGEST) else zero(m)


@kernel
def backward(first, last, answer, m, u, z, gain, skip, g, g_answer, g_m, g_u, g_z, parts):
    """Fills the gradients by answer, m, u and z, and, a row for each task, parts of those by gain and skip."""
    heads, D = len(answer), answer.shape[2] - 1
    h, g_h = np.empty(heads * D, g.dtype), np.empty(heads * D, g.dtype)
    divided = np.empty((heads, 3), g.dtype)
    for task in range(first, last):
        for row in range(task * ROWS, min((task + 1) * ROWS, len(g))):
            for d in range(heads):
                divided[d, 0], divided[d, 1], divided[d, 2] = _normalise(
                    answer[d, row], m[d, row], h[d * D : d * D + D]
                )
            _combine_vjp(
                h, u[row], z[row], gain, skip, g[row], g_h, g_u[row], g_z[row], parts[task, 0], parts[task, 1]
            )  # fmt: skip
            for d in range(heads):
                low, high = d * D, (d + 1) * D
                held = divided[d, 0], divided[d, 1], divided[d, 2]
                g_m[d, row] = _normalise_vjp(
                    answer[d, row], m[d, row], h[low:high], g_h[low:high], held, g_answer[d, row]
                )  # fmt: skip
