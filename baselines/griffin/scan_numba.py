"""The RG-LRU on CPU, forward and backward: each task walks the tokens of one sequence for one block of channels.

The backward computes again what it can from the inputs and the states; only the states are kept.
"""

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from baselines.griffin import scan
from harness.ops.elementwise.swiglu_numba import GELU
from harness.ops.shapes import expect, expect_tokens
from harness.ops.toolbox.jit import kernel
from harness.ops.toolbox.numba_math import exp, expm1, one, sigmoid, zero
from harness.ops.toolbox.threads import spread

WIDTH = 64  # channels of a block: whole vectors, and enough blocks for the threads of a small batch
SMALLEST = np.float32(scan.SMALLEST)


def rg_lru(u: Tensor, r: Tensor, i: Tensor, z: Tensor, rate: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    """As baselines.griffin.scan.reference."""
    batch, length, width = u.shape
    expect_tokens("rg_lru", length)
    expect("rg_lru", ("r", r, u.shape), ("i", i, u.shape), ("z", z, u.shape))
    expect("rg_lru", ("rate", rate, (width,)), ("h0", h0, (batch, width)))
    return _RGLRU.apply(*(x.contiguous() for x in (u, r, i, z, rate, h0)))


class _RGLRU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u: Tensor, r: Tensor, i: Tensor, z: Tensor, rate: Tensor, h0: Tensor):
        y, h = torch.empty_like(u), torch.empty_like(u)
        _run(_forward, u, r, i, z, rate, h0, y, h)
        ctx.save_for_backward(u, r, i, z, rate, h0, h)
        return y, h[:, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, g_y: Tensor, g_last: Tensor):
        u, r, i, z, rate, h0, h = ctx.saved_tensors
        g_u, g_r, g_i, g_z = (torch.empty_like(u) for _ in range(4))
        g_h, g_rate = g_last.clone(memory_format=torch.contiguous_format), torch.zeros_like(h0)
        _run(_backward, u, r, i, z, rate, h0, h, g_y.contiguous(), g_u, g_r, g_i, g_z, g_rate, g_h)
        return g_u, g_r, g_i, g_z, g_rate.sum(0), g_h


def _run(walk, u: Tensor, *tensors: Tensor) -> None:
    arrays = [x.detach().numpy() for x in (u, *tensors)]
    gelu = (arrays[0].dtype.type(c) for c in GELU)
    batch, _, width = u.shape
    spread(walk, batch * -(-width // WIDTH), u.numel(), *gelu, *arrays)


@kernel
def _forward(first, last, linear, cubic, u, r, i, z, rate, h0, y, h):
    """Fills y and h (B, T, D) for the tasks first..last - 1. linear, cubic: of gelu's sigmoid."""
    _, T, D = u.shape
    blocks = (D + WIDTH - 1) // WIDTH
    for task in range(first, last):
        b, low = task // blocks, task % blocks * WIDTH
        high = min(low + WIDTH, D)
        state, q = np.copy(h0[b, low:high]), rate[low:high]
        for t in range(T):
            u_t, r_t, i_t, z_t = u[b, t, low:high], r[b, t, low:high], i[b, t, low:high], z[b, t, low:high]
            y_t, h_t = y[b, t, low:high], h[b, t, low:high]
            for c in range(len(state)):
                log_a = -q[c] * sigmoid(r_t[c])
                root = np.sqrt(max(-expm1(log_a + log_a), SMALLEST))
                state[c] = exp(log_a) * state[c] + root * sigmoid(i_t[c]) * u_t[c]
                h_t[c] = state[c]
                y_t[c] = z_t[c] * sigmoid(z_t[c] * (linear + cubic * z_t[c] * z_t[c])) * state[c]


@kernel
def _backward(first, last, linear, cubic, u, r, i, z, rate, h0, h, g_y, g_u, g_r, g_i, g_z, g_rate, g_h):
    """Fills the gradients; g_rate (B, D) starts at zero, g_h (B, D) as that of the last state and ends as h0's."""
    _, T, D = u.shape
    blocks = (D + WIDTH - 1) // WIDTH
    for task in range(first, last):
        b, low = task // blocks, task % blocks * WIDTH
        high = min(low + WIDTH, D)
        carry, by_rate, q = g_h[b, low:high], g_rate[b, low:high], rate[low:high]
        for t in range(T - 1, -1, -1):
            u_t, r_t, i_t, z_t = u[b, t, low:high], r[b, t, low:high], i[b, t, low:high], z[b, t, low:high]
            gu_t, gr_t, gi_t, gz_t = g_u[b, t, low:high], g_r[b, t, low:high], g_i[b, t, low:high], g_z[b, t, low:high]
            h_t, gy_t = h[b, t, low:high], g_y[b, t, low:high]
            before = h[b, t - 1, low:high] if t > 0 else h0[b, low:high]
            for c in range(len(carry)):
                s_r, s_i, unit = sigmoid(r_t[c]), sigmoid(i_t[c]), one(q[c])
                log_a = -q[c] * s_r
                a, square = exp(log_a), -expm1(log_a + log_a)
                root = np.sqrt(max(square, SMALLEST))
                slope = a * a / root if square > SMALLEST else zero(root)  # d root / d log_a = -slope
                x = z_t[c]
                s = sigmoid(x * (linear + cubic * x * x))
                gz_t[c] = gy_t[c] * h_t[c] * (s + x * s * (unit - s) * (linear + (cubic + cubic + cubic) * x * x))
                g = carry[c] + gy_t[c] * x * s
                gu_t[c] = g * root * s_i
                gi_t[c] = g * root * u_t[c] * s_i * (unit - s_i)
                by_log_a = g * (a * before[c] - slope * s_i * u_t[c])
                gr_t[c] = -q[c] * by_log_a * s_r * (unit - s_r)
                by_rate[c] -= by_log_a * s_r
                carry[c] = g * a
