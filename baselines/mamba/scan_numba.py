"""Fused CPU kernels of the selective scan: one walk over time for a block of channels whose state stays in L1.

Layout: x, dt, y (batch, T, channels); B, C (batch, T, N); A (N, channels), h (batch, N, channels): channels last, so
that the inner loops vectorise. Rows of a block are padded with zeros to its width, so that those loops have no rest; a
zero row (dt = 0, A = 0) has h = 0 throughout. The forward keeps h before every CHUNK-th token; the backward recomputes
the tokens between. Sums over channels and batch come as partial sums, one per task, for the caller
to add in a fixed order, so that the gradients do not depend on the number of threads.
"""

from functools import reduce

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.ops.shapes import expect, expect_tokens
from harness.ops.toolbox.jit import helper, kernel
from harness.ops.toolbox.numba_math import exp
from harness.ops.toolbox.threads import spread

WIDTHS = 256, 128, 64  # channels of one task: long loops cost less, but every thread should have a task
TASKS = 8
CHUNK = 16  # tokens recomputed at a time by the backward: 2 x CHUNK x N x width numbers of scratch, within L2


def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, h0: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Operation `selective_scan`: x, dt (batch, T, channels), A (channels, N), B, C (batch, T, N), D (channels).

    Returns y (batch, T, channels) in the type of x, and the last h (batch, channels, N). Computes in the widest of the
    inputs' types, float32 at least, which is the state's; h0 (batch, channels, N) is zero where None.
    """
    h0 = A.new_zeros(x.shape[0], *A.shape) if h0 is None else h0
    (batch, T, channels), N = x.shape, A.shape[1]
    expect_tokens("selective_scan", T)
    by_token = ("dt", dt, x.shape), ("B", B, (batch, T, N)), ("C", C, (batch, T, N))
    constants = ("A", A, (channels, N)), ("D", D, (channels,))
    expect("selective_scan", *by_token, *constants, ("h0", h0, (batch, channels, N)))
    inputs = (x, dt, A.t(), B, C, D, h0.transpose(1, 2))  # channels innermost
    wide = reduce(torch.promote_types, (t.dtype for t in inputs), torch.float32)
    inputs = [t.to(wide).contiguous() for t in inputs]
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        y, last = _SelectiveScan.apply(*inputs)
    else:
        y, last, _ = _forward(inputs, 0)
    return y.to(x.dtype), last.transpose(1, 2).contiguous()


def _forward(inputs: list[Tensor], kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state (batch, N, channels) and `kept` states for the backward (batch, blocks, kept, N, width)."""
    x, A, h0 = inputs[0], inputs[2], inputs[6]
    batch, _, channels = x.shape
    width = _width(batch, channels)
    tasks = -(-channels // width)
    y, last = torch.empty_like(x), torch.empty_like(h0)
    marks = x.new_empty(batch, tasks, kept, A.shape[0], width)
    arrays = [t.detach().numpy() for t in (*inputs, marks, y, last)]
    spread(_values, batch * tasks, x.numel() * A.shape[0], *arrays)
    return y, last, marks


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        y, last, marks = _forward(inputs, -(-inputs[0].shape[1] // CHUNK))
        ctx.save_for_backward(*inputs[:6], marks)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, gy: Tensor, g_last: Tensor) -> tuple[Tensor, ...]:
        *inputs, marks = ctx.saved_tensors
        x, _, A, B, _, D = inputs
        batch, tasks = marks.shape[:2]
        gx, gdt, g_h0 = torch.empty_like(x), torch.empty_like(x), x.new_empty(batch, *A.shape)
        gA, gD = x.new_empty(batch, *A.shape), x.new_empty(batch, *D.shape)
        gB, gC = x.new_empty(2, tasks, *B.shape)
        upstream = [gy.contiguous(), g_last.contiguous()]
        arrays = [t.numpy() for t in (*inputs, marks, *upstream, gx, gdt, gA, gB, gC, gD, g_h0)]
        spread(_vjp, batch * tasks, x.numel() * len(A), *arrays)
        return gx, gdt, gA.sum(0), gB.sum(0), gC.sum(0), gD.sum(0), g_h0


def _width(batch: int, channels: int) -> int:
    """The widest that gives TASKS tasks; a function of the shape alone, so that sums do not depend on the threads."""
    return next((width for width in WIDTHS if batch * -(-channels // width) >= TASKS), WIDTHS[-1])


@helper
def _load(source, low, width):
    """The block of `source` (N, channels) that begins at `low`, padded with zeros to (N, width)."""
    block = np.zeros((source.shape[0], width), source.dtype)
    for n in range(source.shape[0]):
        for c in range(min(width, source.shape[1] - low)):
            block[n, c] = source[n, low + c]
    return block


@helper
def _store(block, low, target):
    """Copies a block back to where it begins in `target` (N, channels), without its padding."""
    for n in range(target.shape[0]):
        for c in range(min(block.shape[1], target.shape[1] - low)):
            target[n, low + c] = block[n, c]


@helper
def _forward_block(low, x, dt, A, B, C, D, h0, marks, y, hT):
    """One sequence, one block of channels. x, dt, y (T, channels), B, C (T, N), marks (chunks or 0, N, width)."""
    length, channels = x.shape
    states, width = marks.shape[1:]
    size = min(width, channels - low)
    a = _load(A, low, width)
    h = _load(h0, low, width)
    step = np.zeros(width, x.dtype)
    drive = np.zeros(width, x.dtype)
    read = np.zeros(width, x.dtype)
    for t in range(length):
        if marks.shape[0] > 0 and t % CHUNK == 0:
            _store(h, 0, marks[t // CHUNK])
        for c in range(size):
            step[c] = dt[t, low + c]
            drive[c] = step[c] * x[t, low + c]
            read[c] = D[low + c] * x[t, low + c]
        for n in range(states):
            b_n, c_n = B[t, n], C[t, n]
            for c in range(width):
                h[n, c] = exp(step[c] * a[n, c]) * h[n, c] + drive[c] * b_n
                read[c] += c_n * h[n, c]
        for c in range(size):
            y[t, low + c] = read[c]
    _store(h, low, hT)


@kernel
def _values(first, last, x, dt, A, B, C, D, h0, marks, y, hT):
    """The tasks first..last - 1 of y, the last state hT and `marks`, the states kept for the backward."""
    tasks, width = marks.shape[1], marks.shape[4]
    for task in range(first, last):
        i, block = task // tasks, task % tasks
        _forward_block(block * width, x[i], dt[i], A, B[i], C[i], D, h0[i], marks[i, block], y[i], hT[i])


@helper
def _recompute(start, stop, low, x, dt, a, B, mark, decay, h):
    """Fills the decays of tokens start..stop and their states: h[k] before token start + k, h[k + 1] after it."""
    width = mark.shape[1]
    size = min(width, x.shape[1] - low)
    step = np.zeros(width, x.dtype)
    drive = np.zeros(width, x.dtype)
    _store(mark, 0, h[0])
    for t in range(start, stop):
        k = t - start
        for c in range(size):
            step[c] = dt[t, low + c]
            drive[c] = step[c] * x[t, low + c]
        for n in range(a.shape[0]):
            b_n = B[t, n]
            for c in range(width):
                e = exp(step[c] * a[n, c])
                decay[k, n, c] = e
                h[k + 1, n, c] = e * h[k, n, c] + drive[c] * b_n


@helper
def _backward_token(a, b, c_t, step, drive, gy, decay, before, after, gh, ga, gdrive, gstep, gb, gc):
    """Gradients of one token. gh, ga (N, width): carried to earlier tokens, summed over tokens; the rest are filled."""
    zero = gy[0] * 0
    width = a.shape[1]
    for c in range(width):
        gdrive[c] = 0
        gstep[c] = 0
    for n in range(a.shape[0]):
        b_n, c_n = b[n], c_t[n]
        sum_b = zero
        sum_c = zero
        for c in range(width):
            g = gh[n, c] + gy[c] * c_n
            sum_c += gy[c] * after[n, c]
            sum_b += g * drive[c]
            gdrive[c] += g * b_n
            g *= decay[n, c]
            gh[n, c] = g
            g *= before[n, c]  # gradient of the exponent step * a
            gstep[c] += g * a[n, c]
            ga[n, c] += g * step[c]
        gb[n] = sum_b
        gc[n] = sum_c


@helper
def _backward_block(low, x, dt, A, B, C, D, marks, gy, ghT, gx, gdt, gA, gB, gC, gD, gh0):
    """One sequence, one block of channels; gA, gh0 (N, channels), gB, gC (T, N) and gD (channels) are its own sums."""
    length, channels = x.shape
    states, width = marks.shape[1:]
    size = min(width, channels - low)
    a = _load(A, low, width)
    gh = _load(ghT, low, width)
    ga = np.zeros((states, width), x.dtype)
    decay = np.empty((CHUNK, states, width), x.dtype)
    h = np.empty((CHUNK + 1, states, width), x.dtype)
    rows = np.zeros((5, width), x.dtype)
    step, drive, out, gdrive, gstep = rows[0], rows[1], rows[2], rows[3], rows[4]
    for c in range(size):
        gD[low + c] = 0
    for mark in range(marks.shape[0] - 1, -1, -1):
        start, stop = mark * CHUNK, min((mark + 1) * CHUNK, length)
        _recompute(start, stop, low, x, dt, a, B, marks[mark], decay, h)
        for t in range(stop - 1, start - 1, -1):
            k = t - start
            for c in range(size):
                step[c] = dt[t, low + c]
                drive[c] = step[c] * x[t, low + c]
                out[c] = gy[t, low + c]
            _backward_token(
                a, B[t], C[t], step, drive, out, decay[k], h[k], h[k + 1], gh, ga, gdrive, gstep, gB[t], gC[t]
            )
            for c in range(size):
                gx[t, low + c] = gdrive[c] * step[c] + D[low + c] * out[c]
                gdt[t, low + c] = gdrive[c] * x[t, low + c] + gstep[c]
                gD[low + c] += out[c] * x[t, low + c]
    _store(ga, low, gA)
    _store(gh, low, gh0)


@kernel
def _vjp(first, last, x, dt, A, B, C, D, marks, gy, ghT, gx, gdt, gA, gB, gC, gD, gh0):
    """The tasks first..last - 1 of gA (batch, N, channels), gD (batch, channels), gB, gC (blocks, ..)."""
    tasks, width = marks.shape[1], marks.shape[4]
    for task in range(first, last):
        i, block = task // tasks, task % tasks
        _backward_block(
            block * width, x[i], dt[i], A, B[i], C[i], D, marks[i, block], gy[i], ghT[i],
            gx[i], gdt[i], gA[i], gB[block, i], gC[block, i], gD[i], gh0[i],
        )  # fmt: skip
