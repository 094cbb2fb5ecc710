"""The GRU over a sequence on the CPU: one fused kernel each way, for which torch has only a loop of its operators.

A task is a group of sequences (harness/ops/toolbox/numba_walk.py). The forward keeps r, z, n and U_n h + b of each
token; the backward leaves the weights' gradients to one product over all tokens.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.ops.shapes import expect, expect_tokens, expect_type
from harness.ops.toolbox.jit import helper, kernel
from harness.ops.toolbox.numba_linear import group, padded, panels, product
from harness.ops.toolbox.numba_math import one, sigmoid, tanh
from harness.ops.toolbox.numba_walk import takes, walk, walk_back
from harness.ops.toolbox.threads import spread


def gru_scan(x: Tensor, h: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor) -> Tensor:
    """The GRU over x (B, T, D) from h (B, d_inner), weights as nn.GRU holds them: h (B, T, d_inner)."""
    (batch, T, inputs), width = x.shape, weight_hh.shape[1]
    expect_tokens("gru_scan", T)
    weights = ("weight_ih", weight_ih, (3 * width, inputs)), ("weight_hh", weight_hh, (3 * width, width))
    biases = ("bias_ih", bias_ih, (3 * width,)), ("bias_hh", bias_hh, (3 * width,))
    expect("gru_scan", ("h", h, (batch, width)), *weights, *biases)
    expect_type("gru_scan", x.dtype, h=h, weight_ih=weight_ih, weight_hh=weight_hh, bias_ih=bias_ih, bias_hh=bias_hh)
    if torch.is_grad_enabled():
        return _GRUScan.apply(x, h, weight_ih, weight_hh, bias_ih, bias_hh)
    return _forward(F.linear(x, weight_ih, bias_ih), h, weight_hh, bias_hh, keep=False)[0]


def _forward(u: Tensor, h0: Tensor, weight: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    """h (B, T, d_inner) and r, z, n, U_n h + b (B, T, 4 d_inner), of one token only where they are not kept."""
    batch, length, width = *u.shape[:2], h0.shape[1]
    h, kept = u.new_empty(batch, length, width), u.new_empty(batch, length if keep else 1, 4 * width)
    _spread(forward, h, u.contiguous(), h0.contiguous(), panels(weight.t()), bias.contiguous(), kept, h)
    return h, kept


def _spread(kernel, h: Tensor, *tensors: Tensor) -> None:
    size = group(len(h))
    spread(kernel, -(-len(h) // size), h.numel() * h.shape[2], size, *(x.detach().numpy() for x in tensors))


class _GRUScan(torch.autograd.Function):
    """The input's product too: autograd's own would follow the autocast that the backward is called under."""

    @staticmethod
    def forward(ctx, x, h0, weight_ih, weight, bias_ih, bias):
        h, kept = _forward(F.linear(x, weight_ih, bias_ih), h0, weight, bias, keep=True)
        ctx.save_for_backward(x, h0, weight_ih, weight, h, kept)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx, gh):
        x, h0, weight_ih, weight, h, kept = ctx.saved_tensors
        width = h.shape[2]
        before = torch.cat([h0[:, None], h[:, :-1]], dim=1)  # the state that each token sees
        gu, g_n = h.new_empty(*h.shape[:2], 3 * width), torch.empty_like(h)
        g_h0 = torch.empty_like(h0, memory_format=torch.contiguous_format)
        _spread(backward, h, before, panels(weight), kept, gh.contiguous(), gu, g_n, g_h0)
        g_weight, rows, by_u = torch.empty_like(weight), before.flatten(0, 1), gu.flatten(0, 1)
        parts = by_u[:, : 2 * width], g_n.flatten(0, 1)  # by U h + b: for r and z as by u
        with torch.autocast(gh.device.type, enabled=False):
            for part, out in zip(parts, g_weight.split([2 * width, width]), strict=True):
                torch.mm(part.t(), rows, out=out)
            g_x = (by_u @ weight_ih).view(x.shape) if ctx.needs_input_grad[0] else None
            g_weight_ih = by_u.t() @ x.flatten(0, 1)
        return g_x, g_h0, g_weight_ih, g_weight, by_u.sum(0), torch.cat([part.sum(0) for part in parts])


@helper
def _cell(u, y, bias, kept, h):
    """One token of one sequence, from u (3 d), U h in y (3 d), and h (d), which becomes the new one."""
    width = len(h)
    r, z, n, inner = kept[:width], kept[width : 2 * width], kept[2 * width : 3 * width], kept[3 * width :]
    for c in range(2 * width):
        kept[c] = sigmoid(u[c] + (y[c] + bias[c]))
    u_n, y_n, b_n = u[2 * width :], y[2 * width :], bias[2 * width :]
    for c in range(width):
        inner[c] = y_n[c] + b_n[c]
        n[c] = tanh(u_n[c] + r[c] * inner[c])
        h[c] = n[c] + z[c] * (h[c] - n[c])


@helper
def _cell_vjp(g, before, kept, gu, g_n, by_y, direct):
    """From g (d), the gradient by the new h: gu (3 d) by u, g_n (d) and by_y (3 d) by U h + b, direct (d) by h."""
    width = len(g)
    r, z, n, inner = kept[:width], kept[width : 2 * width], kept[2 * width : 3 * width], kept[3 * width :]
    g_r, g_z, g_new = gu[:width], gu[width : 2 * width], gu[2 * width :]
    for c in range(width):
        new = g[c] * (one(g[c]) - z[c]) * (one(g[c]) - n[c] * n[c])
        g_new[c] = new
        g_z[c] = g[c] * (before[c] - n[c]) * z[c] * (one(g[c]) - z[c])
        g_r[c] = new * inner[c] * r[c] * (one(g[c]) - r[c])
        g_n[c] = new * r[c]
        direct[c] = g[c] * z[c]
    by_y[: 2 * width] = gu[: 2 * width]
    by_y[2 * width :] = g_n


class _Forward(NamedTuple):
    u: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    kept: np.ndarray
    h: np.ndarray


def _scratch(given, state):
    return np.empty((len(state), padded(state, 3 * state.shape[1])), state.dtype)


def _token(given, t, low, state, room):
    product(state, given.weight, room)
    slot = min(t, given.kept.shape[1] - 1)
    for r in range(len(state)):
        _cell(given.u[low + r, t], room[r], given.bias, given.kept[low + r, slot], state[r])
        given.h[low + r, t] = state[r]


takes(_Forward, _scratch, _token)


@kernel
def forward(first, last, size, u, h0, weight, bias, kept, h):
    """Fills h (B, T, d), and kept where it has a place for each token. size: sequences of a task."""
    walk(first, last, size, h.shape[1], h0, _Forward(u, weight, bias, kept, h))


class _Backward(NamedTuple):
    before: np.ndarray
    weight: np.ndarray
    kept: np.ndarray
    gh: np.ndarray
    gu: np.ndarray
    g_n: np.ndarray


def _scratch_back(given, state):
    rows, width = state.shape
    y = np.empty((rows, padded(state, width)), state.dtype)
    return (np.empty((rows, 3 * width), state.dtype), y), width


def _token_back(given, t, low, state, room):
    by_y, y = room
    for r in range(len(state)):
        b, line = low + r, state[r]
        upstream = given.gh[b, t]
        for c in range(len(line)):
            line[c] += upstream[c]
        _cell_vjp(line, given.before[b, t], given.kept[b, t], given.gu[b, t], given.g_n[b, t], by_y[r], line)
    product(by_y, given.weight, y)
    for r in range(len(state)):
        for c in range(state.shape[1]):
            state[r, c] += y[r, c]


takes(_Backward, _scratch_back, _token_back)


@kernel
def backward(first, last, size, before, weight, kept, gh, gu, g_n, g_h0):
    """Fills the gradients by u, by U_n h + b and by the first state from gh, the one by h."""
    walk_back(first, last, size, gh.shape[1], g_h0, _Backward(before, weight, kept, gh, gu, g_n))
