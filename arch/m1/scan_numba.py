"""The scan over time scales on the CPU: a task walks the tokens of a row, sigmoids first, a few tokens at a time."""

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from arch.m1.scan import widened
from harness.ops.toolbox.jit import helper, kernel
from harness.ops.toolbox.numba_math import one, sigmoid, zero
from harness.ops.toolbox.threads import spread

CHUNK = 16  # tokens whose sigmoids are taken at once: one long loop, as a filament's few channels make none


def scales_scan(x: Tensor, a: Tensor, w: Tensor, h: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """As arch.m1.scan.reference, with gradients."""
    inputs = [tensor.contiguous() for tensor in widened(x, a, w, h)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        return _ScalesScan.apply(signed, *inputs)
    states, m = _forward(signed, inputs, 1)
    return m, states[:, 0]


def _forward(signed: bool, inputs: list[Tensor], kept: int) -> tuple[Tensor, Tensor]:
    """The states (rows, kept, S, D), of every token where T are kept and the last where one is, and m."""
    x = inputs[0]
    states, m = x.new_empty(len(x), kept, *x.shape[2:]), x.new_empty(*x.shape[:2], x.shape[3])
    spread(_values, len(x), x.numel(), signed, *(t.detach().numpy() for t in (*inputs, states, m)))
    return states, m


class _ScalesScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, signed: bool, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        states, m = _forward(signed, list(inputs), inputs[0].shape[1])
        ctx.signed = signed
        ctx.save_for_backward(*inputs, states)
        return m, states[:, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, g_m: Tensor, g_last: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, states = ctx.saved_tensors
        gradients = [torch.empty_like(tensor) for tensor in inputs]
        arrays = [t.numpy() for t in (*inputs, states, g_m.contiguous(), g_last.contiguous(), *gradients)]
        spread(_vjp, len(states), states.numel(), ctx.signed, *arrays)
        return None, *gradients


@helper
def _sigmoids(x, opened):
    """The sigmoids of the numbers of x, (..) of one length."""
    for c in range(len(x)):
        opened[c] = sigmoid(x[c])


@kernel
def _values(first, last, signed, x, a, w, h0, states, m):
    """The rows first..last - 1 of `states` (all, or each over the one before) and m."""
    _, length, scales, width = x.shape
    opened = np.empty((CHUNK, scales, width), x.dtype)
    for i in range(first, last):
        h = np.copy(h0[i])
        for start in range(0, length, CHUNK):
            stop = min(start + CHUNK, length)
            _sigmoids(x[i, start:stop].reshape(-1), opened.reshape(-1))
            for t in range(start, stop):
                m_t, held = m[i, t], states[i, t % states.shape[1]]
                for d in range(width):
                    m_t[d] = zero(m_t[d])
                for s in range(scales):
                    a_s, w_s = a[i, t, s], w[i, t, s]
                    into = one(a_s) - a_s
                    decay = a_s - into if signed else a_s
                    h_s, held_s, opened_s = h[s], held[s], opened[t - start, s]
                    for d in range(width):
                        value = decay * h_s[d] + into * opened_s[d]
                        h_s[d] = value
                        held_s[d] = value
                        m_t[d] += w_s * value


@kernel
def _vjp(first, last, signed, x, a, w, h0, states, gm, g_last, gx, ga, gw, gh):
    """The rows first..last - 1 of the gradients of x, a, w and h0; gh carries what later tokens ask of a state."""
    _, length, scales, width = x.shape
    opened = np.empty((CHUNK, scales, width), x.dtype)
    for i in range(first, last):
        for s in range(scales):
            for d in range(width):
                gh[i, s, d] = g_last[i, s, d]
        for start in range((length - 1) // CHUNK * CHUNK, -1, -CHUNK):
            stop = min(start + CHUNK, length)
            _sigmoids(x[i, start:stop].reshape(-1), opened.reshape(-1))
            for t in range(stop - 1, start - 1, -1):
                gm_t = gm[i, t]
                before = states[i, t - 1] if t else h0[i]
                for s in range(scales):
                    a_s, w_s = a[i, t, s], w[i, t, s]
                    into = one(a_s) - a_s
                    decay = a_s - into if signed else a_s
                    after_s, before_s, opened_s, gh_s, gx_s = (
                        states[i, t, s],
                        before[s],
                        opened[t - start, s],
                        gh[i, s],
                        gx[i, t, s],
                    )
                    to_w, to_decay, to_into = zero(a_s), zero(a_s), zero(a_s)
                    for d in range(width):
                        g = gh_s[d] + w_s * gm_t[d]
                        to_w += gm_t[d] * after_s[d]
                        to_decay += g * before_s[d]
                        to_into += g * opened_s[d]
                        gx_s[d] = g * into * opened_s[d] * (one(a_s) - opened_s[d])
                        gh_s[d] = decay * g
                    gw[i, t, s] = to_w
                    ga[i, t, s] = (to_decay + to_decay if signed else to_decay) - to_into
