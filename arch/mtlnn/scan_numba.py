"""The operation `filaments` on the CPU: a row's tokens one after the other, all its averages side by side."""

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from arch.mtlnn.scan import widened
from harness.ops.shapes import expect, expect_tokens
from harness.ops.toolbox.jit import helper, kernel
from harness.ops.toolbox.numba_math import one, sigmoid, zero
from harness.ops.toolbox.threads import spread


def filaments(z: Tensor, carried: Tensor, fresh: Tensor, w: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """As arch.mtlnn.scan.reference, with gradients."""
    rows, T, S, D = z.shape
    expect_tokens("filaments", T)
    tokens = (rows, carried.shape[1] if carried.shape[1] == 1 else T, S)
    expect("filaments", ("lambda", carried, tokens), ("fresh", fresh, tokens))
    expect("filaments", ("w", w, (rows, T, S)), ("h", h, (rows, S, D)))
    return _Filaments.apply(*(x.contiguous() for x in widened(z, carried, fresh, w, h)))


class _Filaments(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *given: Tensor) -> tuple[Tensor, Tensor]:
        z = given[0]
        states, m = torch.empty_like(z), z.new_empty(*z.shape[:2], z.shape[3])
        spread(_forward, len(z), z.numel(), *(x.detach().numpy() for x in (*given, states, m)))
        ctx.save_for_backward(*given, states)
        return m, states[:, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, g_m: Tensor, g_last: Tensor):
        *given, states = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in given]
        arrays = (x.detach().numpy() for x in (*given, states, g_m.contiguous(), g_last.contiguous(), *grads))
        spread(_backward, len(states), states.numel(), *arrays)
        return tuple(grads)


@helper
def _spread_out(values, S, D, out):
    """out (S D): each of values (S) for its D channels."""
    for s in range(S):
        for d in range(D):
            out[s * D + d] = values[s]


@kernel
def _forward(first, last, z, carried, fresh, w, h0, states, m):
    """The states (rows, T, S, D) and m (rows, T, D) of the rows first..last - 1."""
    _, T, S, D = z.shape
    h = np.empty(S * D, z.dtype)
    keep, enter, weight = np.empty(S * D, z.dtype), np.empty(S * D, z.dtype), np.empty(S * D, z.dtype)
    for row in range(first, last):
        h[:] = h0[row].reshape(S * D)
        for t in range(T):
            if t < carried.shape[1]:
                _spread_out(carried[row, t], S, D, keep)
                _spread_out(fresh[row, t], S, D, enter)
            _spread_out(w[row, t], S, D, weight)
            z_t, h_t, m_t = z[row, t].reshape(S * D), states[row, t].reshape(S * D), m[row, t]
            for i in range(S * D):
                h[i] = keep[i] * h[i] + enter[i] * sigmoid(z_t[i])
                h_t[i] = h[i]
            for d in range(D):
                m_t[d] = zero(h[0])
            for s in range(S):
                for d in range(D):
                    m_t[d] += weight[s * D + d] * h[s * D + d]


@kernel
def _backward(first, last, z, carried, fresh, w, h0, states, g_m, g_last, g_z, g_carried, g_fresh, g_w, g_h):
    """The gradients of all that `_forward` is given, of the rows first..last - 1."""
    _, T, S, D = z.shape
    g, upon = np.empty(S * D, z.dtype), np.empty(S * D, z.dtype)  # of h_t, and what of it comes from the tokens after
    before, entered = np.empty(S * D, z.dtype), np.empty(S * D, z.dtype)
    keep, enter, weight = np.empty(S * D, z.dtype), np.empty(S * D, z.dtype), np.empty(S * D, z.dtype)
    constant = carried.shape[1] == 1
    for row in range(first, last):
        upon[:] = g_last[row].reshape(S * D)
        if constant:
            _spread_out(carried[row, 0], S, D, keep)
            _spread_out(fresh[row, 0], S, D, enter)
            g_carried[row, 0] = zero(upon[0])
            g_fresh[row, 0] = zero(upon[0])
        for t in range(T - 1, -1, -1):
            if not constant:
                _spread_out(carried[row, t], S, D, keep)
                _spread_out(fresh[row, t], S, D, enter)
                g_carried[row, t] = zero(upon[0])
                g_fresh[row, t] = zero(upon[0])
            _spread_out(w[row, t], S, D, weight)
            if t:
                before[:] = states[row, t - 1].reshape(S * D)
            else:
                before[:] = h0[row].reshape(S * D)
            z_t, h_t, g_z_t, g_m_t = z[row, t].reshape(S * D), states[row, t], g_z[row, t].reshape(S * D), g_m[row, t]
            for s in range(S):
                for d in range(D):
                    g[s * D + d] = g_m_t[d]
            for i in range(S * D):
                g[i] = weight[i] * g[i] + upon[i]
                upon[i] = keep[i] * g[i]
                A = sigmoid(z_t[i])
                g_z_t[i] = g[i] * enter[i] * A * (one(A) - A)
                entered[i] = g[i] * A
                before[i] *= g[i]
            at = 0 if constant else t
            for s in range(S):
                by_w, by_carried, by_fresh = zero(g[0]), zero(g[0]), zero(g[0])
                for d in range(D):
                    by_w += g_m_t[d] * h_t[s, d]
                    by_carried += before[s * D + d]
                    by_fresh += entered[s * D + d]
                g_w[row, t, s] = by_w
                g_carried[row, at, s] += by_carried
                g_fresh[row, at, s] += by_fresh
        g_h[row] = upon.reshape(S, D)
