"""Fused CPU kernels of WKV-7, the recurrence of RWKV-7: one walk over time for each head of each sequence.

Of the states that the backward needs, every CHUNK-th is stored and the others are computed again. Results do not depend
on the number of threads.
"""

from functools import reduce

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.ops.shapes import expect
from harness.ops.toolbox.jit import helper, kernel
from harness.ops.toolbox.threads import spread

CHUNK = 16
"""Tokens between two stored states."""


def rwkv_scan(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Operation `rwkv_scan`: vectors (B, T, H, N), state (B, H, N, N) -> y (B, T, H, N) and the state after it.

    Computes in the widest of the inputs' types, float32 at least, which is the new state's; y has the type of v.
    """
    inputs = (r, w, k, v, a, b, state)
    B, _, H, N = r.shape
    vectors = [(name, vector, r.shape) for name, vector in zip("wkvab", inputs[1:6], strict=True)]
    expect("rwkv_scan", *vectors, ("state", state, (B, H, N, N)))
    wide = reduce(torch.promote_types, (t.dtype for t in inputs), torch.float32)
    inputs = [t.to(wide).contiguous() for t in inputs]
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        y, final = _RwkvScan.apply(*inputs)
    else:
        y, final, _ = _forward(inputs, 0)
    return y.to(v.dtype), final


def _forward(inputs: list[Tensor], kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """y, the final state and `kept` of the states between."""
    v, state = inputs[3], inputs[6]
    B, _, H, N = v.shape
    y, final = torch.empty_like(v), torch.empty_like(state)
    checkpoints = state.new_empty(B, H, kept, N, N)
    spread(_values, B * H, v.numel() * N, *(t.detach().numpy() for t in (*inputs, y, final, checkpoints)))
    return y, final, checkpoints


class _RwkvScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        y, final, checkpoints = _forward(inputs, -(-inputs[0].shape[1] // CHUNK))
        ctx.save_for_backward(*inputs[:-1], checkpoints)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor, dfinal: Tensor) -> tuple[Tensor, ...]:
        *vectors, checkpoints = ctx.saved_tensors
        B, _, H, N = dy.shape
        gradients = [torch.empty_like(x) for x in vectors]
        dstate = dfinal.clone(memory_format=torch.contiguous_format)
        arrays = [x.numpy() for x in (*vectors, checkpoints, dy.contiguous(), *gradients, dstate)]
        spread(_vjp, B * H, dy.numel() * N, *arrays)
        return (*gradients, dstate)


@kernel
def _values(first, last, r, w, k, v, a, b, state, y, final, checkpoints):
    """The tasks first..last - 1, each one head of one sequence."""
    H = r.shape[2]
    for head in range(first, last):
        _head_forward(head // H, head % H, r, w, k, v, a, b, state, y, final, checkpoints)


@kernel
def _vjp(first, last, r, w, k, v, a, b, checkpoints, dy, dr, dw, dk, dv, da, db, dstate):
    """dstate: holds the gradient of the final state, and of the initial one afterwards."""
    H = r.shape[2]
    for head in range(first, last):
        _head_backward(head // H, head % H, r, w, k, v, a, b, checkpoints, dy, dr, dw, dk, dv, da, db, dstate)


@helper
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


@helper
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


@helper
def _copy(source, target):
    for i in range(source.shape[0]):
        for j in range(source.shape[1]):
            target[i, j] = source[i, j]


@helper
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


@helper
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
