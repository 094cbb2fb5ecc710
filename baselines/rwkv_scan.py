"""The recurrence of RWKV-7, WKV-7: a generalised delta rule on one N x N state per head (arXiv:2503.14456, eq. 15-18).

    S_t = S_{t-1} diag(w_t) + (S_{t-1} a_t) b_t^T + v_t k_t^T        y_t = S_t r_t

Rows of S are values, columns are keys. `step` and `scan_reference` say it in torch and are the oracle; `scan` runs the
fused kernels below on CPU. Of the states the backward pass needs, every CHUNK-th is stored and the others recomputed.
"""

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.numba_math import FASTMATH

CHUNK = 16
"""Tokens between two stored states."""
JIT = {"cache": True, "fastmath": FASTMATH, "error_model": "numpy", "nogil": True}


def step(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token: vectors (B, H, N) and state (B, H, N, N) -> y (B, H, N) and the new state; pure."""
    removed = state @ a.unsqueeze(-1)  # (B, H, N, 1): what the state holds under the key that is replaced
    state = state * w.unsqueeze(-2) + removed * b.unsqueeze(-2) + v.unsqueeze(-1) * k.unsqueeze(-2)
    return (state @ r.unsqueeze(-1)).squeeze(-1), state


def scan_reference(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """`scan` as a loop of `step`: vectors (B, T, H, N) -> y (B, T, H, N) and the state after the last token."""
    outputs = []
    for token in zip(*(x.unbind(1) for x in (r, w, k, v, a, b)), strict=True):
        y, state = step(*token, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def scan(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The whole sequence: vectors (B, T, H, N), state (B, H, N, N) -> y (B, T, H, N) and the state after it.

    All float32 or all float64. Differentiable once, in every argument; off the CPU it is the reference.
    """
    if r.device.type != "cpu":
        return scan_reference(r, w, k, v, a, b, state)
    return FusedScan.apply(r, w, k, v, a, b, state)


class FusedScan(torch.autograd.Function):
    """The kernels as one differentiable operation; bit-identical for any number of threads."""

    @staticmethod
    def forward(ctx, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        inputs = [x.contiguous() for x in inputs]
        *vectors, state = inputs
        B, T, H, N = vectors[0].shape
        kept = -(-T // CHUNK) if any(ctx.needs_input_grad) else 0
        y, final = torch.empty_like(vectors[0]), torch.empty_like(state)
        checkpoints = state.new_empty(B, H, kept, N, N)
        _forward_kernel(*(x.detach().numpy() for x in (*inputs, y, final, checkpoints)))
        ctx.save_for_backward(*vectors, checkpoints)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor, dfinal: Tensor) -> tuple[Tensor, ...]:
        *vectors, checkpoints = ctx.saved_tensors
        gradients = [torch.empty_like(x) for x in vectors]
        dstate = dfinal.clone(memory_format=torch.contiguous_format)
        _backward_kernel(*(x.numpy() for x in (*vectors, checkpoints, dy.contiguous(), *gradients, dstate)))
        return (*gradients, dstate)


@njit(parallel=True, **JIT)
def _forward_kernel(r, w, k, v, a, b, state, y, final, checkpoints):
    B, _, H, _ = r.shape
    for head in prange(B * H):
        _head_forward(head // H, head % H, r, w, k, v, a, b, state, y, final, checkpoints)


@njit(parallel=True, **JIT)
def _backward_kernel(r, w, k, v, a, b, checkpoints, dy, dr, dw, dk, dv, da, db, dstate):
    """dstate: holds the gradient of the final state, and of the initial one afterwards."""
    B, _, H, _ = r.shape
    for head in prange(B * H):
        _head_backward(head // H, head % H, r, w, k, v, a, b, checkpoints, dy, dr, dw, dk, dv, da, db, dstate)


@njit(**JIT)
def _head_forward(n, h, r, w, k, v, a, b, state, y, final, checkpoints):
    _, T, _, N = r.shape
    S = final[n, h]
    _copy(state[n, h], S)
    for t in range(T):
        if checkpoints.shape[2] and t % CHUNK == 0:
            _copy(S, checkpoints[n, h, t // CHUNK])
        rt, wt, kt, at, bt = r[n, t, h], w[n, t, h], k[n, t, h], a[n, t, h], b[n, t, h]
        for i in range(N):
            vi = v[n, t, h, i]
            removed = yi = r.dtype.type(0)
            for j in range(N):
                removed += S[i, j] * at[j]
            for j in range(N):
                s = S[i, j] * wt[j] + removed * bt[j] + vi * kt[j]
                S[i, j] = s
                yi += s * rt[j]
            y[n, t, h, i] = yi


@njit(**JIT)
def _head_backward(n, h, r, w, k, v, a, b, checkpoints, dy, dr, dw, dk, dv, da, db, dstate):
    _, T, _, N = r.shape
    states = np.empty((CHUNK + 1, N, N), r.dtype)
    removed = np.empty((CHUNK, N), r.dtype)
    for chunk in range(checkpoints.shape[2] - 1, -1, -1):
        start = chunk * CHUNK
        length = min(CHUNK, T - start)
        _copy(checkpoints[n, h, chunk], states[0])
        for u in range(length):
            x = (n, start + u, h)
            _recompute(w[x], k[x], v[x], a[x], b[x], states[u], states[u + 1], removed[u])
        for u in range(length - 1, -1, -1):
            x = (n, start + u, h)
            inputs = (r[x], w[x], k[x], v[x], a[x], b[x])
            gradients = (dr[x], dw[x], dk[x], dv[x], da[x], db[x])
            _token_backward(inputs, states[u], states[u + 1], removed[u], dy[x], gradients, dstate[n, h])


@njit(**JIT)
def _copy(source, target):
    for i in range(source.shape[0]):
        for j in range(source.shape[1]):
            target[i, j] = source[i, j]


@njit(**JIT)
def _recompute(w, k, v, a, b, before, after, removed):
    """One token forward, keeping S_{t-1} a_t."""
    N = len(w)
    for i in range(N):
        vi = v[i]
        ri = w.dtype.type(0)
        for j in range(N):
            ri += before[i, j] * a[j]
        removed[i] = ri
        for j in range(N):
            after[i, j] = before[i, j] * w[j] + ri * b[j] + vi * k[j]


@njit(**JIT)
def _token_backward(inputs, before, after, removed, dy, gradients, G):
    """One token backward: G (N, N) comes in as the gradient of S_t from the future, goes out as that of S_{t-1}.

    Several short loops rather than one, because LLVM checks for overlap at run time and gives up on many arrays.
    """
    r, w, k, v, a, b = inputs
    dr, dw, dk, dv, da, db = gradients
    N = len(w)
    zero = w.dtype.type(0)
    for j in range(N):
        dr[j] = dw[j] = dk[j] = da[j] = db[j] = zero
    for i in range(N):
        dyi, vi, ri = dy[i], v[i], removed[i]
        dvi = dremoved = zero
        for j in range(N):
            g = G[i, j] + dyi * r[j]
            G[i, j] = g
            dvi += g * k[j]
            dremoved += g * b[j]
        dv[i] = dvi
        for j in range(N):
            dk[j] += G[i, j] * vi
            db[j] += G[i, j] * ri
        for j in range(N):
            dw[j] += G[i, j] * before[i, j]
            da[j] += before[i, j] * dremoved
        for j in range(N):
            dr[j] += after[i, j] * dyi
            G[i, j] = G[i, j] * w[j] + dremoved * a[j]
