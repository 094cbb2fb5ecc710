"""The fused CPU kernel of `decayed_scores`, forward and backward: one pass over the lower triangles."""

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.ops.shapes import expect
from harness.ops.toolbox.jit import helper, kernel
from harness.ops.toolbox.numba_math import exp, zero
from harness.ops.toolbox.threads import spread


def decayed_scores(scores: Tensor, g: Tensor, strict: bool = False) -> Tensor:
    """Operation `decayed_scores`; computes in the widest type of both, float32 at least."""
    rows, heads, length = g.shape
    expect("decayed_scores", ("scores", scores, (rows, scores.shape[1], length, length)))
    if scores.shape[1] not in (1, heads):
        raise ValueError(f"decayed_scores: scores of {scores.shape[1]} heads, where g has {heads}.")
    dtype = torch.promote_types(scores.dtype, g.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    return _DecayedScores.apply(scores.to(wide), g.to(wide), strict).to(dtype)


class _DecayedScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores: Tensor, g: Tensor, strict: bool) -> Tensor:
        scores, total = scores.contiguous(), g.double().cumsum(-1)
        y = scores.new_empty(*g.shape, g.shape[-1])
        spread(_values, len(g), y.numel(), strict, *(t.detach().numpy() for t in (scores, total, y)))
        ctx.save_for_backward(scores, total)
        ctx.strict = strict
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gy: Tensor) -> tuple[Tensor | None, ...]:
        scores, total = ctx.saved_tensors
        g_scores, g_total = torch.zeros_like(scores), torch.zeros_like(total)
        arrays = [t.numpy() for t in (scores, total, gy.contiguous(), g_scores, g_total)]
        spread(_vjp, len(total), gy.numel(), ctx.strict, *arrays)
        return g_scores, g_total.flip(-1).cumsum(-1).flip(-1).to(scores.dtype), None


@helper
def _decay(total, row, out):
    """out_s = exp(total_row - total_s) for s < row."""
    for s in range(row):
        out[s] = total[row] - total[s]
    for s in range(row):
        out[s] = exp(out[s])


@kernel
def _values(first, last, strict, scores, total, y):
    """The rows first..last - 1 of y (R, H, L, L)."""
    _, H, L = total.shape
    shared = scores.shape[1] == 1
    for r in range(first, last):
        for h in range(H):
            given = scores[r, 0 if shared else h]
            for t in range(L):
                out, score = y[r, h, t], given[t]
                _decay(total[r, h], t, out)
                for s in range(t):
                    out[s] *= score[s]
                out[t] = zero(score[t]) if strict else score[t]
                for s in range(t + 1, L):
                    out[s] = zero(out[s])


@kernel
def _vjp(first, last, strict, scores, total, gy, g_scores, g_total):
    """Adds to g_scores and g_total, zeroed before: the gradient of a decay is that of one total less another's.

    What a total is given and what it loses nearly cancel, so that they are summed in float64.
    """
    _, H, L = total.shape
    shared = scores.shape[1] == 1
    for r in range(first, last):
        decay = np.empty(L, scores.dtype)
        for h in range(H):
            slot = 0 if shared else h
            g_row = g_total[r, h]
            for t in range(L):
                score, upstream, out = scores[r, slot, t], gy[r, h, t], g_scores[r, slot, t]
                _decay(total[r, h], t, decay)
                along = 0.0
                for s in range(t):
                    direct = upstream[s] * decay[s]
                    out[s] += direct
                    along += np.float64(direct * score[s])
                    g_row[s] -= np.float64(direct * score[s])
                g_row[t] += along
                if not strict:
                    out[t] += upstream[t]
