"""The LRC neurons on the CPU: each kernel walks the tokens of WIDTH neurons of one sequence at a time.

The forward keeps the states alone; the backward computes the rest of a token again from the state before it.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from arch.lrc.scan import Neurons
from harness.ops.shapes import expect, expect_tokens, expect_type
from harness.ops.toolbox.jit import inlined, kernel
from harness.ops.toolbox.numba_math import one, sigmoid, tanh, zero
from harness.ops.toolbox.threads import spread

WIDTH = 64  # neurons of a task


def lrc_scan(neurons: Neurons, p: Tensor, q: Tensor, h: Tensor, elapsed: Tensor | None) -> Tensor:
    """The states (B, T, D) after each token, from h (B, D). p, q: (B, T, D). elapsed: (B, T), None for 1.

    All of one type, float32 or float64.
    """
    batch, length, width = p.shape
    expect_tokens("lrc_scan", length)
    expect("lrc_scan", ("q", q, p.shape), ("h", h, (batch, width)), ("elapsed", elapsed, (batch, length)))
    expect("lrc_scan", *((name, tensor, (width,)) for name, tensor in neurons._asdict().items()))
    expect_type("lrc_scan", p.dtype, q=q, h=h, elapsed=elapsed, **neurons._asdict())
    return _LrcScan.apply(p, q, h, elapsed, *neurons)


def lrc_step(neurons: Neurons) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """One token of unit time for these weights: p, q and h (B, D) -> the new h, float32."""
    cells = torch.stack([tensor.detach().float() for tensor in neurons]).numpy()

    def run(p: Tensor, q: Tensor, h: Tensor) -> Tensor:
        shape = len(p), cells.shape[1]
        expect("lrc_step", ("p", p, shape), ("q", q, shape), ("h", h, shape))
        new = torch.empty(shape[0], 1, shape[1])
        given = [tensor.float().contiguous().numpy() for tensor in (p.unsqueeze(1), q.unsqueeze(1), h)]
        forward(0, len(p) * _blocks(shape[1]), *given, np.ones((len(p), 1), np.float32), cells, new.numpy())
        return new.squeeze(1)

    return run


def _blocks(width: int) -> int:
    return -(-width // WIDTH)


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


class _LrcScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, p, q, h0, elapsed, *neurons):
        time = p.new_ones(p.shape[:2]) if elapsed is None else elapsed
        h, cells = torch.empty_like(p, memory_format=torch.contiguous_format), torch.stack(neurons)
        spread(forward, len(p) * _blocks(p.shape[2]), p.numel() * 4, *_arrays(p, q, h0, time, cells, h))
        ctx.timed = elapsed is not None
        ctx.save_for_backward(p, q, h0, time, cells, h)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        p, q, h0, time, cells, h = ctx.saved_tensors
        batch, length, width = p.shape
        g_p, g_q, g_h0 = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (p, q, h0))
        g_cells = p.new_empty(batch, len(cells), width)
        g_time = p.new_empty(_blocks(width), batch, length)
        given = _arrays(p, q, h0, time, cells, h, g, g_p, g_q, g_h0, g_cells, g_time)
        spread(backward, batch * _blocks(width), p.numel() * 8, *given)
        return g_p, g_q, g_h0, g_time.sum(0) if ctx.timed else None, *g_cells.sum(0)


@inlined
def _place(task, width):
    """The sequence of a task, its first neuron and the end of its neurons."""
    blocks = (width + WIDTH - 1) // WIDTH
    low = task % blocks * WIDTH
    return task // blocks, low, min(low + WIDTH, width)


@kernel
def forward(first, last, p, q, h0, time, cells, h):
    """Fills h (B, T, D) for the tasks first..last - 1. cells: (7, D), in the order of Neurons. time: (B, T)."""
    for task in range(first, last):
        b, low, high = _place(task, h.shape[2])
        mu, sigma, w, u = cells[0, low:high], cells[1, low:high], cells[2, low:high], cells[3, low:high]
        vleak, k, k0 = cells[4, low:high], cells[5, low:high], cells[6, low:high]
        state = h0[b, low:high].copy()
        for t in range(h.shape[1]):
            p_t, q_t, out, dt = p[b, t, low:high], q[b, t, low:high], h[b, t, low:high], time[b, t]
            for c in range(len(state)):
                x = state[c]
                y = sigmoid(sigma[c] * (x - mu[c]))
                v = vleak[c] * tanh(q_t[c] + u[c] * y) - sigmoid(p_t[c] + w[c] * y) * x
                state[c] = x + dt * sigmoid(k[c] * x + k0[c]) * v
            for c in range(len(state)):
                out[c] = state[c]


# Rows of a task's scratch in the backward, one buffer at fixed offsets, so that the compiler sees that none overlaps
# another and takes its loop in vectors: what a neuron has of its own, what a token has, and the gradients by both.
MU, SIGMA, W, U, VLEAK, K, K0, BEFORE, P, Q, G = (WIDTH * row for row in range(11))
GRADS = WIDTH * 11
CARRY, BY_P, BY_Q, BY_TIME, END = (WIDTH * row for row in range(18, 23))


@inlined
def _load(s, row, source):
    for c in range(len(source)):
        s[row + c] = source[c]


@inlined
def _store(s, row, target):
    for c in range(len(target)):
        target[c] = s[row + c]


@inlined
def _pull(s, dt):
    """Takes the gradients of WIDTH neurons back over a token."""
    for c in range(WIDTH):
        x, by_new = s[BEFORE + c], s[G + c] + s[CARRY + c]
        y = sigmoid(s[SIGMA + c] * (x - s[MU + c]))
        a, shown = sigmoid(s[P + c] + s[W + c] * y), tanh(s[Q + c] + s[U + c] * y)
        e = sigmoid(s[K + c] * x + s[K0 + c])
        v = s[VLEAK + c] * shown - a * x
        by_v = by_new * dt * e
        by_p = -by_v * x * a * (one(a) - a)
        by_q = by_v * s[VLEAK + c] * (one(a) - shown * shown)
        by_z = (by_p * s[W + c] + by_q * s[U + c]) * y * (one(a) - y)
        by_line = by_new * dt * v * e * (one(a) - e)
        s[BY_TIME + c], s[BY_P + c], s[BY_Q + c] = by_new * e * v, by_p, by_q
        s[GRADS + MU + c] -= by_z * s[SIGMA + c]
        s[GRADS + SIGMA + c] += by_z * (x - s[MU + c])
        s[GRADS + W + c] += by_p * y
        s[GRADS + U + c] += by_q * y
        s[GRADS + VLEAK + c] += by_v * shown
        s[GRADS + K + c] += by_line * x
        s[GRADS + K0 + c] += by_line
        s[CARRY + c] = by_new - by_v * a + by_z * s[SIGMA + c] + by_line * s[K + c]


@kernel
def backward(first, last, p, q, h0, time, cells, h, g, g_p, g_q, g_h0, g_cells, g_time):
    """From g (B, T, D) fills g_p, g_q, g_h0, g_cells (B, 7, D) and g_time (blocks, B, T)."""
    for task in range(first, last):
        b, low, high = _place(task, h.shape[2])
        s = np.zeros(END, h.dtype)  # a block's missing neurons stay zero
        for i in range(len(cells)):
            _load(s, i * WIDTH, cells[i, low:high])
        for t in range(h.shape[1] - 1, -1, -1):
            _load(s, BEFORE, h[b, t - 1, low:high] if t else h0[b, low:high])
            _load(s, P, p[b, t, low:high])
            _load(s, Q, q[b, t, low:high])
            _load(s, G, g[b, t, low:high])
            _pull(s, time[b, t])
            _store(s, BY_P, g_p[b, t, low:high])
            _store(s, BY_Q, g_q[b, t, low:high])
            total = zero(s[0])
            for c in range(WIDTH):
                total += s[BY_TIME + c]
            g_time[low // WIDTH, b, t] = total
        _store(s, CARRY, g_h0[b, low:high])
        for i in range(len(cells)):
            _store(s, GRADS + i * WIDTH, g_cells[b, i, low:high])
