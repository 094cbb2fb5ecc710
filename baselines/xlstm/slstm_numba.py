"""The sLSTM over a sequence on the CPU: one fused kernel each way.

Heads do not see one another, so a task is a group of sequences (harness/ops/toolbox/numba_walk.py) of one head. The
forward keeps seven numbers of each token and channel; the backward leaves the weights' gradient to one product over all
tokens.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.ops.shapes import expect, expect_tokens, expect_type
from harness.ops.toolbox.jit import helper, kernel
from harness.ops.toolbox.numba_linear import group, padded, panels, product
from harness.ops.toolbox.numba_math import exp, one, sigmoid, softplus, tanh, zero
from harness.ops.toolbox.numba_walk import takes, walk, walk_back
from harness.ops.toolbox.threads import spread

KEPT = 7  # write, keep, tanh(z), sigmoid(o), 1 - sigmoid(f), and the new c and n


def slstm_scan(
    u: Tensor, R: Tensor, y: Tensor, c: Tensor, n: Tensor, m: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sLSTM over u (B, H, T, 4 D), from y, c, n, m (B, H, D): y (B, H, T, D) and the last c, n and m."""
    B, H, T, width = u.shape
    D = width // 4
    expect_tokens("slstm_scan", T)
    states = (("y", y), ("c", c), ("n", n), ("m", m))
    expect("slstm_scan", ("R", R, (H, D, 4 * D)), *((name, t, (B, H, D)) for name, t in states))
    expect_type("slstm_scan", u.dtype, R=R, y=y, c=c, n=n, m=m)
    if torch.is_grad_enabled():
        return _SLSTMScan.apply(u, R, y, c, n, m)
    out, last, _ = _forward(u, R, torch.cat([y, c, n, m], dim=-1), keep=False)
    return out.transpose(0, 1), *_split(last)


def _forward(u: Tensor, R: Tensor, state: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y (H, B, T, D), the last states (H, B, 4 D) and what is kept, of one token only where it need not be."""
    u, state = (t.detach().transpose(0, 1).contiguous() for t in (u, state))
    H, B, T, width = u.shape
    y, kept = u.new_empty(H, B, T, width // 4), u.new_empty(H, B, T if keep else 1, KEPT * width // 4)
    last = torch.empty_like(state)
    _spread(forward, u, _panels(R), state, kept, y, last)
    return y, last, kept


def _split(last: Tensor) -> list[Tensor]:
    """The last c, n and m (B, H, D), each a tensor of its own."""
    return [t.transpose(0, 1).contiguous() for t in last.chunk(4, dim=-1)[1:]]


def _panels(weights: Tensor) -> Tensor:
    """The panels of each head's matrix (H, I, O)."""
    return torch.stack([panels(weight.detach()) for weight in weights])


def _spread(kernel, first: Tensor, *tensors: Tensor) -> None:
    H, B = first.shape[:2]
    size = group(B)
    groups = -(-B // size)
    spread(kernel, H * groups, first.numel() * first.shape[3], groups, size, *(t.numpy() for t in (first, *tensors)))


class _SLSTMScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, R, y, c, n, m):
        state = torch.cat([y, c, n, m], dim=-1)
        out, last, kept = _forward(u, R, state, keep=True)
        ctx.save_for_backward(R, state.transpose(0, 1).contiguous(), out, kept)
        c, n, m = _split(last)
        ctx.mark_non_differentiable(m)
        return out.transpose(0, 1), c, n, m

    @staticmethod
    @once_differentiable
    def backward(ctx, g, g_c, g_n, _):
        R, state, y, kept = ctx.saved_tensors
        H, B, T, D = y.shape
        g = g.transpose(0, 1).contiguous()
        g_last = torch.cat([g_c, g_n], dim=-1).transpose(0, 1).contiguous()
        g_u, g_state = y.new_empty(H, B, T, 4 * D), y.new_empty(H, B, 3 * D)
        _spread(backward, g, _panels(R.mT), state, kept, g_last, g_u, g_state)
        before = torch.cat([state[:, :, None, :D], y[:, :, :-1]], dim=2)  # the output that each token sees
        with torch.autocast(g.device.type, enabled=False):
            g_R = torch.bmm(before.flatten(1, 2).mT, g_u.flatten(1, 2))
        g_y, g_c, g_n = g_state.transpose(0, 1).chunk(3, dim=-1)
        return g_u.transpose(0, 1), g_R, g_y, g_c, g_n, None


@helper
def cell(u, by_y, kept, state):
    """One token of one sequence, from u and R y (4 d each); state (4 d) becomes the new y, c, n, m."""
    d = len(state) // 4
    y, c, n, m = state[:d], state[d : 2 * d], state[2 * d : 3 * d], state[3 * d :]
    for j in range(d):
        i, f, z, o = (
            u[j] + by_y[j], u[d + j] + by_y[d + j], u[2 * d + j] + by_y[2 * d + j], u[3 * d + j] + by_y[3 * d + j],
        )  # fmt: skip
        held = m[j] - softplus(-f)
        fresh = n[j] == zero(i)
        most = i if fresh or i > held else held
        most = i + held if i != i or held != held else most  # NaN stays visible
        write, keep = exp(i - most), zero(i) if fresh else exp(held - most)
        value, gate = tanh(z), sigmoid(o)
        c[j] = keep * c[j] + write * value
        n[j] = keep * n[j] + write
        m[j] = most
        y[j] = gate * c[j] / n[j]
        kept[j], kept[d + j], kept[2 * d + j], kept[3 * d + j] = write, keep, value, gate
        kept[4 * d + j], kept[5 * d + j], kept[6 * d + j] = sigmoid(-f), c[j], n[j]


@helper
def _cell_vjp(carry, c_before, n_before, kept, g_u):
    """From carry (y, c, n: 3 d), the gradient by the new states: g_u (4 d) by the gates; carry's c and n by the old."""
    d = len(c_before)
    g_y, g_c, g_n = carry[:d], carry[d : 2 * d], carry[2 * d : 3 * d]
    for j in range(d):
        write, keep, value, gate = kept[j], kept[d + j], kept[2 * d + j], kept[3 * d + j]
        closing, c, n = kept[4 * d + j], kept[5 * d + j], kept[6 * d + j]
        ratio = c / n
        by_ratio = g_y[j] * gate / n
        by_c, by_n = g_c[j] + by_ratio, g_n[j] - by_ratio * ratio
        g_u[j] = (by_c * value + by_n) * write
        g_u[d + j] = (by_c * c_before[j] + by_n * n_before[j]) * keep * closing
        g_u[2 * d + j] = by_c * write * (one(value) - value * value)
        g_u[3 * d + j] = g_y[j] * ratio * gate * (one(gate) - gate)
        g_c[j] = by_c * keep
        g_n[j] = by_n * keep


class _Forward(NamedTuple):
    u: np.ndarray
    weight: np.ndarray
    kept: np.ndarray
    y: np.ndarray
    last: np.ndarray


def _scratch(given, state):
    return np.empty((len(state), padded(state, state.shape[1])), state.dtype)


def _token(given, t, low, state, room):
    product(state, given.weight, room)
    slot, d = min(t, given.kept.shape[1] - 1), given.y.shape[2]
    for r in range(len(state)):
        cell(given.u[low + r, t], room[r], given.kept[low + r, slot], state[r])
        given.y[low + r, t] = state[r, :d]
        if t == given.y.shape[1] - 1:
            given.last[low + r] = state[r]


takes(_Forward, _scratch, _token)


@kernel
def forward(first, last, groups, size, u, weight, state, kept, y, final):
    """Fills y (H, B, T, d), the last states, and kept where it has room for each token. size: sequences of a group."""
    for task in range(first, last):
        h, g = task // groups, task % groups
        walk(g, g + 1, size, y.shape[2], state[h], _Forward(u[h], weight[h], kept[h], y[h], final[h]))


class _Backward(NamedTuple):
    g: np.ndarray
    weight: np.ndarray
    state: np.ndarray
    kept: np.ndarray
    g_last: np.ndarray
    g_u: np.ndarray


def _scratch_back(given, state):
    rows, width = state.shape
    d = width // 3
    by_gates = np.empty((rows, 4 * d), state.dtype)
    return (by_gates, np.empty((rows, padded(state, d)), state.dtype)), width


def _token_back(given, t, low, state, room):
    by_gates, by_y = room
    d = given.g.shape[2]
    for r in range(len(state)):
        b, line = low + r, state[r]
        upstream, before = given.g[b, t], given.kept[b, max(t - 1, 0)]
        for j in range(d):
            line[j] += upstream[j]
        if t == given.g.shape[1] - 1:
            for j in range(2 * d):
                line[d + j] += given.g_last[b, j]
        old = given.state[b, d : 3 * d] if t == 0 else before[5 * d : 7 * d]
        _cell_vjp(line, old[:d], old[d:], given.kept[b, t], given.g_u[b, t])
        by_gates[r] = given.g_u[b, t]
    product(by_gates, given.weight, by_y)
    for r in range(len(state)):
        for j in range(d):
            state[r, j] = by_y[r, j]


takes(_Backward, _scratch_back, _token_back)


@kernel
def backward(first, last, groups, size, g, weight, state, kept, g_last, g_u, g_state):
    """Fills the gradients by u and by the first y, c and n, from those by y (H, B, T, d) and by the last c and n."""
    for task in range(first, last):
        h, b = task // groups, task % groups
        given = _Backward(g[h], weight[h], state[h], kept[h], g_last[h], g_u[h])
        walk_back(b, b + 1, size, g.shape[2], g_state[h], given)
