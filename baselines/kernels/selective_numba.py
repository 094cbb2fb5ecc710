"""Fused CPU kernels of the selective scan: one walk over time for a block of channels whose state stays in L1.

Layout: x, dt, y (batch, T, channels); B, C (batch, T, N); A (N, channels), h (batch, N, channels): channels last, so
that the inner loops vectorise. Rows of a block are padded with zeros to WIDTH channels, which gives those loops a fixed
trip count; a zero row (dt = 0, A = 0) has h = 0 throughout. The forward keeps h before every CHUNK-th token; the
backward recomputes the tokens between. Sums over channels and batch come as partial sums, one per task, for the caller
to add in a fixed order, so that the gradients do not depend on the number of threads.
"""

import numpy as np
from numba import njit, prange

from harness.numba_math import FASTMATH, exp

WIDTH = 64  # channels of one task
CHUNK = 16  # tokens recomputed at a time by the backward: 2 x CHUNK x N x WIDTH numbers of scratch, within L2
_OPTIONS = {"cache": True, "fastmath": FASTMATH, "error_model": "numpy", "nogil": True}


def blocks(channels: int) -> int:
    """Tasks that the channels of one sequence are split into."""
    return (channels + WIDTH - 1) // WIDTH


def chunks(length: int) -> int:
    """Tokens whose incoming state the forward keeps."""
    return (length + CHUNK - 1) // CHUNK


@njit(**_OPTIONS)
def _load(source, low):
    """The block of `source` (N, channels) that begins at `low`, padded with zeros to (N, WIDTH)."""
    block = np.zeros((source.shape[0], WIDTH), source.dtype)
    for n in range(source.shape[0]):
        for c in range(min(WIDTH, source.shape[1] - low)):
            block[n, c] = source[n, low + c]
    return block


@njit(**_OPTIONS)
def _store(block, low, target):
    """Copies a block back to where it begins in `target` (N, channels), without its padding."""
    for n in range(target.shape[0]):
        for c in range(min(WIDTH, target.shape[1] - low)):
            target[n, low + c] = block[n, c]


@njit(**_OPTIONS)
def _forward_block(low, x, dt, A, B, C, D, h0, marks, y, hT):
    """One sequence, one block of channels. x, dt, y (T, channels), B, C (T, N), marks (chunks or 0, N, WIDTH)."""
    length, channels = x.shape
    states = A.shape[0]
    size = min(WIDTH, channels - low)
    a = _load(A, low)
    h = _load(h0, low)
    step = np.zeros(WIDTH, x.dtype)
    drive = np.zeros(WIDTH, x.dtype)
    read = np.zeros(WIDTH, x.dtype)
    for t in range(length):
        if marks.shape[0] > 0 and t % CHUNK == 0:
            _store(h, 0, marks[t // CHUNK])
        for c in range(size):
            step[c] = dt[t, low + c]
            drive[c] = step[c] * x[t, low + c]
            read[c] = D[low + c] * x[t, low + c]
        for n in range(states):
            b_n, c_n = B[t, n], C[t, n]
            for c in range(WIDTH):
                h[n, c] = exp(step[c] * a[n, c]) * h[n, c] + drive[c] * b_n
                read[c] += c_n * h[n, c]
        for c in range(size):
            y[t, low + c] = read[c]
    _store(h, low, hT)


@njit(parallel=True, **_OPTIONS)
def forward(x, dt, A, B, C, D, h0, marks, y, hT):
    """Fills y, the last state hT and `marks` (batch, blocks, chunks, N, WIDTH), the states kept for the backward."""
    batch, _, channels = x.shape
    tasks = (channels + WIDTH - 1) // WIDTH
    for task in prange(batch * tasks):
        i, block = task // tasks, task % tasks
        _forward_block(block * WIDTH, x[i], dt[i], A, B[i], C[i], D, h0[i], marks[i, block], y[i], hT[i])


@njit(**_OPTIONS)
def _recompute(start, stop, low, x, dt, a, B, mark, decay, h):
    """Fills the decays of tokens start..stop and their states: h[k] before token start + k, h[k + 1] after it."""
    size = min(WIDTH, x.shape[1] - low)
    step = np.zeros(WIDTH, x.dtype)
    drive = np.zeros(WIDTH, x.dtype)
    _store(mark, 0, h[0])
    for t in range(start, stop):
        k = t - start
        for c in range(size):
            step[c] = dt[t, low + c]
            drive[c] = step[c] * x[t, low + c]
        for n in range(a.shape[0]):
            b_n = B[t, n]
            for c in range(WIDTH):
                e = exp(step[c] * a[n, c])
                decay[k, n, c] = e
                h[k + 1, n, c] = e * h[k, n, c] + drive[c] * b_n


@njit(**_OPTIONS)
def _backward_token(a, b, c_t, step, drive, gy, decay, before, after, gh, ga, gdrive, gstep, gb, gc):
    """Gradients of one token. gh, ga (N, WIDTH): carried to earlier tokens, summed over tokens; the rest are filled."""
    zero = gy[0] * 0
    for c in range(WIDTH):
        gdrive[c] = 0
        gstep[c] = 0
    for n in range(a.shape[0]):
        b_n, c_n = b[n], c_t[n]
        sum_b = zero
        sum_c = zero
        for c in range(WIDTH):
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


@njit(**_OPTIONS)
def _backward_block(low, x, dt, A, B, C, D, marks, gy, ghT, gx, gdt, gA, gB, gC, gD, gh0):
    """One sequence, one block of channels; gA, gh0 (N, channels), gB, gC (T, N) and gD (channels) are its own sums."""
    length, channels = x.shape
    states = A.shape[0]
    size = min(WIDTH, channels - low)
    a = _load(A, low)
    gh = _load(ghT, low)
    ga = np.zeros((states, WIDTH), x.dtype)
    decay = np.empty((CHUNK, states, WIDTH), x.dtype)
    h = np.empty((CHUNK + 1, states, WIDTH), x.dtype)
    rows = np.zeros((5, WIDTH), x.dtype)
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


@njit(parallel=True, **_OPTIONS)
def backward(x, dt, A, B, C, D, marks, gy, ghT, gx, gdt, gA, gB, gC, gD, gh0):
    """Fills the gradients: gA (batch, N, channels), gD (batch, channels) and gB, gC (blocks, batch, T, N) in parts."""
    batch, _, channels = x.shape
    tasks = (channels + WIDTH - 1) // WIDTH
    for task in prange(batch * tasks):
        i, block = task // tasks, task % tasks
        _backward_block(
            block * WIDTH, x[i], dt[i], A, B[i], C[i], D, marks[i, block], gy[i], ghT[i],
            gx[i], gdt[i], gA[i], gB[block, i], gC[block, i], gD[i], gh0[i],
        )  # fmt: skip
