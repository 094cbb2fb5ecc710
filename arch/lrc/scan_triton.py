"""The LRC neurons on CUDA: one program takes CHANNELS neurons of one sequence through all tokens.

The forward keeps the states alone; the backward computes the rest of a token again from the state before it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from arch.lrc.scan import Neurons
from harness.ops.toolbox.triton_math import sigmoid, tanh

CHANNELS = 32


def lrc_scan(neurons: Neurons, p: Tensor, q: Tensor, h: Tensor, elapsed: Tensor | None) -> Tensor:
    """As arch.lrc.scan.reference, with gradients."""
    return _LrcScan.apply(p, q, h, elapsed, *neurons)


class _LrcScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, p, q, h0, elapsed, *neurons):
        batch, T, D = p.shape
        p, q, h0, cells = p.contiguous(), q.contiguous(), h0.contiguous(), torch.stack(neurons)
        time = p.new_ones(batch, T) if elapsed is None else elapsed.contiguous()
        h = torch.empty_like(p)
        _forward[batch, triton.cdiv(D, CHANNELS)](p, q, h0, time, cells, h, T, D, CHANNELS)
        ctx.timed = elapsed is not None
        ctx.save_for_backward(p, q, h0, time, cells, h)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        p, q, h0, time, cells, h = ctx.saved_tensors
        batch, T, D = p.shape
        blocks = triton.cdiv(D, CHANNELS)
        g_p, g_q, g_h0 = torch.empty_like(p), torch.empty_like(q), torch.empty_like(h0)
        g_cells, g_time = p.new_empty(batch, len(cells), D), p.new_empty(blocks, batch, T)
        given = (p, q, h0, time, cells, h, g.contiguous())
        _backward[batch, blocks](*given, g_p, g_q, g_h0, g_cells, g_time, T, D, ctx.timed, CHANNELS)
        return g_p, g_q, g_h0, g_time.sum(0) if ctx.timed else None, *g_cells.sum(0)


@triton.jit
def _neurons(cells, channel, there, D):
    """What the neurons have of their own, in the order of Neurons."""
    mu = tl.load(cells + channel, mask=there, other=0.0)
    sigma = tl.load(cells + D + channel, mask=there, other=0.0)
    w = tl.load(cells + 2 * D + channel, mask=there, other=0.0)
    u = tl.load(cells + 3 * D + channel, mask=there, other=0.0)
    vleak = tl.load(cells + 4 * D + channel, mask=there, other=0.0)
    k = tl.load(cells + 5 * D + channel, mask=there, other=0.0)
    k0 = tl.load(cells + 6 * D + channel, mask=there, other=0.0)
    return mu, sigma, w, u, vleak, k, k0


@triton.jit
def _parts(h, p, q, mu, sigma, w, u, vleak, k, k0):
    """Of h' = h + dt e v with v = vleak shown - a h: y, a, shown, e and v."""
    y = sigmoid(sigma * (h - mu))
    a, shown = sigmoid(p + w * y), tanh(q + u * y)
    return y, a, shown, sigmoid(k * h + k0), vleak * shown - a * h


@triton.jit
def _forward(p, q, h0, time, cells, h, T, D, CHANNELS: tl.constexpr):
    """Fills h (B, T, D). time: (B, T)."""
    b = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    there = channel < D
    mu, sigma, w, u, vleak, k, k0 = _neurons(cells, channel, there, D)
    state = tl.load(h0 + b * D + channel, mask=there, other=0.0)
    t = 0
    while t < T:
        at = (b * T + t) * D + channel
        p_t, q_t = tl.load(p + at, mask=there, other=0.0), tl.load(q + at, mask=there, other=0.0)
        _, _, _, e, v = _parts(state, p_t, q_t, mu, sigma, w, u, vleak, k, k0)
        state += tl.load(time + b * T + t) * e * v
        tl.store(h + at, state, mask=there)
        t += 1


@triton.jit
def _backward(
    p, q, h0, time, cells, h, g, g_p, g_q, g_h0, g_cells, g_time, T, D, TIMED: tl.constexpr, CHANNELS: tl.constexpr
):
    """From g (B, T, D) fills g_p, g_q, g_h0, g_cells (B, 7, D) and, where TIMED, g_time (blocks, B, T)."""
    b = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    there = channel < D
    mu, sigma, w, u, vleak, k, k0 = _neurons(cells, channel, there, D)
    carry = tl.zeros_like(mu)
    by_mu, by_sigma, by_w, by_u = tl.zeros_like(mu), tl.zeros_like(mu), tl.zeros_like(mu), tl.zeros_like(mu)
    by_vleak, by_k, by_k0 = tl.zeros_like(mu), tl.zeros_like(mu), tl.zeros_like(mu)
    t = T - 1
    while t >= 0:
        at = (b * T + t) * D + channel
        before = h + at - D if t > 0 else h0 + b * D + channel
        x = tl.load(before, mask=there, other=0.0)
        p_t, q_t = tl.load(p + at, mask=there, other=0.0), tl.load(q + at, mask=there, other=0.0)
        dt, by_new = tl.load(time + b * T + t), carry + tl.load(g + at, mask=there, other=0.0)
        y, a, shown, e, v = _parts(x, p_t, q_t, mu, sigma, w, u, vleak, k, k0)
        by_v = by_new * dt * e
        by_p = -by_v * x * a * (1.0 - a)
        by_q = by_v * vleak * (1.0 - shown * shown)
        by_z = (by_p * w + by_q * u) * y * (1.0 - y)
        by_line = by_new * dt * v * e * (1.0 - e)
        tl.store(g_p + at, by_p, mask=there)
        tl.store(g_q + at, by_q, mask=there)
        if TIMED:
            place = (tl.program_id(1) * tl.num_programs(0) + b) * T + t
            tl.store(g_time + place, tl.sum(tl.where(there, by_new * e * v, 0.0), axis=0))
        by_mu -= by_z * sigma
        by_sigma += by_z * (x - mu)
        by_w += by_p * y
        by_u += by_q * y
        by_vleak += by_v * shown
        by_k += by_line * x
        by_k0 += by_line
        carry = by_new - by_v * a + by_z * sigma + by_line * k
        t -= 1
    tl.store(g_h0 + b * D + channel, carry, mask=there)
    row = g_cells + b * 7 * D + channel
    tl.store(row, by_mu, mask=there)
    tl.store(row + D, by_sigma, mask=there)
    tl.store(row + 2 * D, by_w, mask=there)
    tl.store(row + 3 * D, by_u, mask=there)
    tl.store(row + 4 * D, by_vleak, mask=there)
    tl.store(row + 5 * D, by_k, mask=there)
    tl.store(row + 6 * D, by_k0, mask=there)
