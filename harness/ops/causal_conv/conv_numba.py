"""Fused CPU kernels of the causal depthwise convolution: forward, backward and one token.

A task is a block of channels of one sequence, walked once over time, so that no two tasks write to one place and sums
over batch are taken task by task, in a fixed order. The rows of x may lie apart (one half of a projection's output):
the kernels take the span of memory that x covers and the distances between its sequences and its tokens.
"""

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.ops.shapes import expect
from harness.ops.toolbox.jit import helper, kernel
from harness.ops.toolbox.numba_math import one, sigmoid
from harness.ops.toolbox.threads import spread

WIDTH = np.int64(256)  # channels of one task


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, silu: bool) -> tuple[Tensor, Tensor]:
    """Operation `causal_conv`: x (B, T, D), weight (K, D), bias (D), state (B, K - 1, D) -> y (B, T, D), new state.

    Computes in float32 at least; both results have the type of x.
    """
    (B, _, D), taps = x.shape, len(weight)
    expect("causal_conv", ("weight", weight, (taps, D)), ("bias", bias, (D,)), ("state", state, (B, taps - 1, D)))
    wide = torch.promote_types(x.dtype, torch.float32)
    inputs = (x.to(wide), *(t.to(wide) for t in (weight, bias, state.to(x.dtype))))
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        y, last = _CausalConv.apply(silu, *inputs)
    else:
        y, last = _forward(silu, *(t.detach() for t in inputs))
    return y.to(x.dtype), last.to(x.dtype)


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, silu: bool, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        ctx.silu = silu
        ctx.save_for_backward(*inputs)
        return _forward(silu, *(t.detach() for t in inputs))

    @staticmethod
    @once_differentiable
    def backward(ctx, gy: Tensor, g_last: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, state = ctx.saved_tensors
        B, _, D = x.shape
        gx, g_state = x.new_empty(x.shape), x.new_empty(state.shape)
        g_taps = x.new_zeros(B, len(weight) + 1, D)  # of the weight and, in the last row, of the bias
        given = [t.contiguous() for t in (weight, bias, state, gy, g_last)]
        arrays = [t.numpy() for t in (*given, gx, g_state, g_taps)]
        flat, *strides = _spanned(x)
        spread(_vjp, B * _blocks(D), x.numel() * len(weight), ctx.silu, flat, *strides, *arrays)
        total = g_taps.sum(0)
        return None, gx, total[:-1], total[-1], g_state


def _forward(silu: bool, x: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    y, last = x.new_empty(x.shape), x.new_empty(state.shape)
    arrays = [t.numpy() for t in (*(t.contiguous() for t in (weight, bias, state)), y, last)]
    flat, *strides = _spanned(x)
    spread(_values, x.shape[0] * _blocks(x.shape[2]), x.numel() * len(weight), silu, flat, *strides, *arrays)
    return y, last


def _blocks(channels: int) -> int:
    return -(-channels // int(WIDTH))


def _spanned(x: Tensor) -> tuple[np.ndarray, int, int]:
    """The memory from the first to the last number of x (B, T, D) in one row, and x's strides in it."""
    if x.numel() == 0:
        return np.empty(0, x.new_empty(0).numpy().dtype), 0, 0
    if x.stride(2) != 1 or min(x.stride()) < 0:
        x = x.contiguous()
    B, T, D = x.shape
    across, along, _ = x.stride()
    span = (B - 1) * across + (T - 1) * along + D
    return x.detach().as_strided((span,), (1,)).numpy(), across, along


@helper
def _input(j, flat, start, along, state, low, size):
    """The input of token j in one block of channels; before the first token it is one of the state (K - 1, D)."""
    if j < 0:
        return state[len(state) + j, low : low + size]
    place = start + j * along
    return flat[place : place + size]


@helper
def _convolve(t, flat, start, along, weight, bias, state, low, out):
    """The convolution at token t, before the SiLU: fills out (size)."""
    taps, size = len(weight), len(out)
    for c in range(size):
        out[c] = bias[low + c]
    for k in range(taps):
        row = _input(t - taps + 1 + k, flat, start, along, state, low, size)
        w = weight[k, low : low + size]
        for c in range(size):
            out[c] += w[c] * row[c]


@helper
def _silu(row):
    for c in range(len(row)):
        row[c] = row[c] * sigmoid(row[c])


@kernel
def _values(first, last, silu, flat, across, along, weight, bias, state, y, kept):
    """The tasks first..last - 1 of y (B, T, D) and of the inputs kept (B, K - 1, D)."""
    _, T, D = y.shape
    blocks = (D + WIDTH - 1) // WIDTH
    for task in range(first, last):
        b, low = task // blocks, task % blocks * WIDTH
        size, start = min(WIDTH, D - low), b * across + low
        for t in range(T):
            row = y[b, t, low : low + size]
            _convolve(t, flat, start, along, weight, bias, state[b], low, row)
            if silu:
                _silu(row)
        for i in range(kept.shape[1]):
            row = _input(T - kept.shape[1] + i, flat, start, along, state[b], low, size)
            for c in range(size):
                kept[b, i, low + c] = row[c]


@kernel
def _vjp(first, last, silu, flat, across, along, weight, bias, state, gy, g_kept, gx, g_state, g_taps):
    """The tasks first..last - 1 of gx (B, T, D), g_state (B, K - 1, D) and g_taps (B, K + 1, D), zero before."""
    _, T, D = gy.shape
    blocks, taps = (D + WIDTH - 1) // WIDTH, len(weight)
    g = np.empty(WIDTH, gy.dtype)
    for task in range(first, last):
        b, low = task // blocks, task % blocks * WIDTH
        size, start = min(WIDTH, D - low), b * across + low
        gx_flat = gx[b].reshape(T * D)
        for j in range(1 - taps, T):  # what reaches an input by being kept
            row, i = _input(j, gx_flat, low, D, g_state[b], low, size), j - T + taps - 1
            for c in range(size):
                row[c] = g_kept[b, i, low + c] if i >= 0 else 0
        for t in range(T):
            _token_gradient(t, silu, flat, start, along, weight, bias, state[b], low, gy[b, t, low : low + size], g)
            for c in range(size):
                g_taps[b, taps, low + c] += g[c]
            for k in range(taps):
                j = t - taps + 1 + k
                row = _input(j, flat, start, along, state[b], low, size)
                g_row = _input(j, gx_flat, low, D, g_state[b], low, size)
                w, g_w = weight[k, low : low + size], g_taps[b, k, low : low + size]
                for c in range(size):
                    g_w[c] += g[c] * row[c]
                for c in range(size):
                    g_row[c] += g[c] * w[c]


@helper
def _token_gradient(t, silu, flat, start, along, weight, bias, state, low, gy, g):
    """The gradient g of token t's convolution: the slope of silu(p) is s + p s (1 - s), s = sigmoid(p)."""
    if silu:
        _convolve(t, flat, start, along, weight, bias, state, low, g[: len(gy)])
        for c in range(len(gy)):
            s = sigmoid(g[c])
            g[c] = gy[c] * (s + g[c] * s * (one(s) - s))
    else:
        for c in range(len(gy)):
            g[c] = gy[c]


@helper
def convolve_token(x, weight, bias, state, y, kept, silu):
    """One token of one sequence: x, y (D), weight (K, D), state and kept (K - 1, D)."""
    older = len(state)
    for c in range(len(x)):
        y[c] = bias[c] + weight[older, c] * x[c]
    for k in range(older):
        row, w = state[k], weight[k]
        for c in range(len(x)):
            y[c] += w[c] * row[c]
    for k in range(older - 1):
        kept[k] = state[k + 1]
    if older > 0:
        kept[older - 1] = x
    if silu:
        _silu(y)
