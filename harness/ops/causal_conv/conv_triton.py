"""Fused CUDA kernels of the causal depthwise convolution with its SiLU, forward and backward, in Triton.

The window is the K - 1 inputs kept in the state and then x: row e of it meets output t = e - k under tap k. Programs
share nothing: each takes BLOCK_T rows of one sequence and BLOCK_D channels, and reads the few rows around them from the
first-level cache. The backward computes the activation's input again where it needs its slope. The gradients of weight
and bias are sums over batch and time, which come as one partial sum a program, added by torch in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_T, BLOCK_D = 64, 32
THREAD = 8  # numbers of a block that a thread holds: sixteen take all its registers in the backward


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, silu: bool) -> tuple[Tensor, Tensor]:
    """Operation `causal_conv`: x (B, T, D), weight (K, D), bias (D), state (B, K - 1, D) -> y (B, T, D), new state.

    Computes in float32, of float64 in float64; both results have the type of x. The rows of x may lie apart.
    """
    return _CausalConv.apply(x, weight, bias, state, silu)


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, silu: bool) -> tuple[Tensor, Tensor]:
        x = x if x.stride(-1) == 1 else x.contiguous()
        weight, bias, state = (t.contiguous() for t in (weight, bias, state))
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        last = torch.empty_like(state, dtype=x.dtype)
        grid, sizes = _launch(x, len(weight), silu)
        _forward[grid](x, weight, bias, state, y, last, *x.stride()[:2], *x.shape[1:], **sizes)
        ctx.save_for_backward(x, weight, bias, state)
        ctx.silu = silu
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, gy: Tensor, glast: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, state = ctx.saved_tensors
        grid, sizes = _launch(x, len(weight), ctx.silu)
        gx = torch.empty_like(x, memory_format=torch.contiguous_format)
        gstate = torch.empty_like(state)
        wide = torch.promote_types(x.dtype, torch.float32)
        parts = x.new_empty(grid[0], len(weight) + 1, x.shape[2], dtype=wide)  # of the weight, and of the bias
        tensors = (x, weight, bias, state, gy.contiguous(), glast.contiguous(), gx, gstate, parts)
        _backward[grid](*tensors, *x.stride()[:2], *x.shape[1:], **sizes)
        total = parts.sum(0)
        return gx, total[:-1].to(weight.dtype), total[-1].to(bias.dtype), gstate, None


def _launch(x: Tensor, taps: int, silu: bool) -> tuple[tuple[int, int], dict]:
    """The grid, over the rows of every sequence's window and over channels, and the kernels' constants."""
    batch, length, channels = x.shape
    rows = min(BLOCK_T, triton.next_power_of_2(length + taps - 1))
    columns = min(BLOCK_D, triton.next_power_of_2(channels))
    sizes = {"K": taps, "SILU": silu, "BLOCK_T": rows, "BLOCK_D": columns}
    sizes["WIDE"] = tl.float64 if x.dtype == torch.float64 else tl.float32
    sizes["num_warps"] = max(rows * columns // (32 * THREAD), 1)
    return (batch * triton.cdiv(length + taps - 1, rows), triton.cdiv(channels, columns)), sizes


@triton.jit
def _place(length, channels, K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr):
    """This program's sequence, its rows of the window and its channels."""
    blocks = tl.cdiv(length + K - 1, BLOCK_T)
    sequence = (tl.program_id(0) // blocks).to(tl.int64)
    e = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    return sequence, e, tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)


@triton.jit
def _window(x_ptr, state_ptr, e, d, stride_t, length, channels, K: tl.constexpr, WIDE: tl.constexpr):
    """The rows e of one sequence's window, zero outside it: (BLOCK_T, BLOCK_D)."""
    new = ((e >= K - 1) & (e < length + K - 1))[:, None] & (d < channels)[None, :]
    x = tl.load(x_ptr + (e - (K - 1))[:, None] * stride_t + d[None, :], mask=new, other=0.0)
    old = ((e >= 0) & (e < K - 1))[:, None] & (d < channels)[None, :]
    state = tl.load(state_ptr + e[:, None] * channels + d[None, :], mask=old, other=0.0)
    return x.to(WIDE) + state.to(x.dtype).to(WIDE)  # one of them is zero


@triton.jit
def _convolved(
    x_ptr, weight_ptr, bias_ptr, state_ptr, t, d, stride_t, length, channels, K: tl.constexpr, WIDE: tl.constexpr
):
    """The convolution at the tokens t, before the activation."""
    bias = tl.load(bias_ptr + d, mask=d < channels, other=0.0).to(WIDE)
    z = tl.zeros([t.shape[0], d.shape[0]], dtype=WIDE) + bias[None, :]
    for k in tl.static_range(K):
        weight = tl.load(weight_ptr + k * channels + d, mask=d < channels, other=0.0).to(WIDE)
        z += weight[None, :] * _window(x_ptr, state_ptr, t + k, d, stride_t, length, channels, K, WIDE)
    return z


@triton.jit
def _forward(
    x_ptr, weight_ptr, bias_ptr, state_ptr, y_ptr, last_ptr, stride_b, stride_t, length, channels,
    K: tl.constexpr, SILU: tl.constexpr, WIDE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    sequence, e, d = _place(length, channels, K, BLOCK_T, BLOCK_D)
    x_ptr += sequence * stride_b
    state_ptr += sequence * (K - 1) * channels
    y = _convolved(x_ptr, weight_ptr, bias_ptr, state_ptr, e, d, stride_t, length, channels, K, WIDE)
    if SILU:
        y *= tl.sigmoid(y)
    at = (sequence * length + e)[:, None] * channels + d[None, :]
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=(e < length)[:, None] & (d < channels)[None, :])
    if K > 1:
        kept = ((e >= length) & (e < length + K - 1))[:, None] & (d < channels)[None, :]
        window = _window(x_ptr, state_ptr, tl.where(e >= length, e, -1), d, stride_t, length, channels, K, WIDE)
        at = (sequence * (K - 1) + e - length)[:, None] * channels + d[None, :]
        tl.store(last_ptr + at, window.to(last_ptr.dtype.element_ty), mask=kept)


@triton.jit
def _backward(
    x_ptr, weight_ptr, bias_ptr, state_ptr, gy_ptr, glast_ptr, gx_ptr, gstate_ptr, parts_ptr,
    stride_b, stride_t, length, channels,
    K: tl.constexpr, SILU: tl.constexpr, WIDE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    sequence, e, d = _place(length, channels, K, BLOCK_T, BLOCK_D)
    x_ptr += sequence * stride_b
    state_ptr += sequence * (K - 1) * channels
    parts_ptr += tl.program_id(0).to(tl.int64) * (K + 1) * channels + d
    window = _window(x_ptr, state_ptr, e, d, stride_t, length, channels, K, WIDE)
    g = tl.zeros([BLOCK_T, BLOCK_D], dtype=WIDE)
    for k in tl.static_range(K):
        t = e - k
        given = ((t >= 0) & (t < length))[:, None] & (d < channels)[None, :]
        gz = tl.load(gy_ptr + (sequence * length + t)[:, None] * channels + d[None, :], mask=given, other=0.0).to(WIDE)
        if SILU:
            z = _convolved(x_ptr, weight_ptr, bias_ptr, state_ptr, t, d, stride_t, length, channels, K, WIDE)
            s = tl.sigmoid(z)
            gz = tl.where(given, gz * s * (1 + z * (1 - s)), 0.0)
        weight = tl.load(weight_ptr + k * channels + d, mask=d < channels, other=0.0).to(WIDE)
        g += weight[None, :] * gz
        tl.store(parts_ptr + k * channels, tl.sum(gz * window, 0), mask=d < channels)
        if k == 0:
            tl.store(parts_ptr + K * channels, tl.sum(gz, 0), mask=d < channels)
    if K > 1:
        kept = ((e >= length) & (e < length + K - 1))[:, None] & (d < channels)[None, :]
        at = (sequence * (K - 1) + e - length)[:, None] * channels + d[None, :]
        g += tl.load(glast_ptr + at, mask=kept, other=0.0).to(WIDE)
        old = (e < K - 1)[:, None] & (d < channels)[None, :]
        at = (sequence * (K - 1) + e)[:, None] * channels + d[None, :]
        tl.store(gstate_ptr + at, g.to(gstate_ptr.dtype.element_ty), mask=old)
    new = ((e >= K - 1) & (e < length + K - 1))[:, None] & (d < channels)[None, :]
    at = (sequence * length + e - (K - 1))[:, None] * channels + d[None, :]
    tl.store(gx_ptr + at, g.to(gx_ptr.dtype.element_ty), mask=new)
