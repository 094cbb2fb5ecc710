"""The mLSTM by chunks: matrix products of torch within each chunk and between them, on any device.

With b_t the sum of log sigmoid(f) up to token t, every token j has the strength s_j = i_j - b_j, and the stabiliser is
m_t = b_t + M_t, where M_t is the largest strength so far, or the m that the sequence began with. Then the weight of
token j at token t is exp(s_j - M_t), without b. Strengths run over a whole sequence, so they are summed in float64,
and a chunk takes them relative to the M before it. The forward keeps the weights and scores of each chunk.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.ops.shapes import expect, expect_tokens, expect_type

CHUNK = 32  # tokens
CHUNKS = 32  # of one span: the products between chunks grow with its square


def mlstm_scan(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, C: Tensor, n: Tensor, m: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The mLSTM over q, k, v (B, H, T, D) and i, f (B, H, T): answers (B, H, T, D + 1), m (B, H, T), last C and n."""
    B, H, T, D = q.shape
    expect_tokens("mlstm_scan", T)
    gates, states = ("i", i, (B, H, T)), ("f", f, (B, H, T))
    expect("mlstm_scan", ("k", k, q.shape), ("v", v, q.shape), gates, states)
    expect("mlstm_scan", ("C", C, (B, H, D, D)), ("n", n, (B, H, D)), ("m", m, (B, H)))
    expect_type("mlstm_scan", q.dtype, k=k, v=v, i=i, f=f, C=C, n=n, m=m)
    q, k, v, i, f, C, n, m = (t.transpose(0, 1).flatten(0, 1) for t in (q, k, v, i, f, C, n, m))  # (H B, ...)
    v = F.pad(v, (0, 1), value=1.0)  # the normaliser is what a value of 1 leaves in the memory
    i, f, memory, m = i.double(), f.double(), torch.cat([C, n.unsqueeze(-1)], dim=-1), m.double()
    answers, stabilisers = [], []
    for start, stop, size in _spans(T):
        decay = F.logsigmoid(f[:, start:stop]).cumsum(1)
        strength = i[:, start:stop] - decay
        most = torch.maximum(strength.cummax(1).values, m.unsqueeze(1))
        span = (t[:, start:stop] for t in (q, k, v))
        answer, memory = _Chunks.apply(size, *span, strength, most, memory, m)
        stabilisers.append(decay + most)
        answers.append(answer)
        m = stabilisers[-1][:, -1]
    joined = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1) for parts in (answers, stabilisers))
    answer, m, memory = (t.to(q.dtype).unflatten(0, (H, B)).transpose(0, 1) for t in (*joined, memory))
    return answer, m, memory[..., :D].clone(), memory[..., D].clone()


def _spans(length: int) -> list[tuple[int, int, int]]:
    """(first, end, tokens of a chunk) of each span: whole chunks as far as they go, then one of the rest."""
    whole = length - length % CHUNK
    starts = range(0, whole, CHUNK * CHUNKS)
    spans = [(start, min(start + CHUNK * CHUNKS, whole), CHUNK) for start in starts]
    return spans + [(whole, length, length - whole)] * (whole < length)


class _Chunks(torch.autograd.Function):
    """What memory and normaliser answer to each token, times exp(-m), and what they hold after the last.

    q, k (Z, T, D), v (Z, T, E), strength s and most M (Z, T), memory (Z, D, E) of exp(-m), m (Z); T is a multiple of
    size. Returns (Z, T, E) and (Z, D, E).
    """

    @staticmethod
    def forward(ctx, size, *given):
        q, k, v, s, M, memory, m = given
        Z, T, D = q.shape
        N, scale = T // size, D**-0.5
        q, k, v = (t.reshape(Z * N, size, t.shape[2]) for t in (q, k, v))
        ends = torch.cat([m.unsqueeze(1), M[:, size - 1 :: size]], dim=1)  # of the chunks, from before the first on
        between = (ends.unsqueeze(1) - ends.unsqueeze(2)).exp().tril().to(q.dtype)  # [z, to, from]
        within = (t.unflatten(1, (N, size)) - ends[:, :-1, None] for t in (s, M))
        s, M = (t.to(q.dtype).flatten(0, 1) for t in within)  # (Z N, size)
        last = ends.diff(dim=1).to(q.dtype).view(Z * N, 1)
        weight = (s.unsqueeze(1) - (M - math.log(scale)).unsqueeze(2)).exp_().tril_()  # (Z N, to, from)
        scored = torch.bmm(q, k.mT).mul_(weight)
        read, write = torch.exp(-M).unsqueeze(-1), (scale * torch.exp(s - last)).unsqueeze(-1)
        added = torch.bmm((k * write).mT, v).flatten(1).unflatten(0, (Z, N))
        held = memory.flatten(1).unsqueeze(1)
        before = torch.baddbmm(between[:, :-1, :1] * held, between[:, :-1, 1:], added).view(Z * N, *memory.shape[1:])
        after = torch.baddbmm(between[:, -1:, :1] * held, between[:, -1:, 1:], added).view_as(memory)
        answer = torch.bmm(scored, v).baddbmm_(q * read, before)
        ctx.save_for_backward(q, k, v, weight, scored, read, write, between, memory, before, after, answer)
        return answer.view(Z, T, answer.shape[2]), after

    @staticmethod
    @once_differentiable
    def backward(ctx, g, g_after):
        with torch.autocast(g.device.type, enabled=False):  # which the backward may be called under
            return None, *_vjp(ctx.saved_tensors, g, g_after)


def _vjp(kept: tuple[Tensor, ...], g: Tensor, g_after: Tensor) -> tuple[Tensor, ...]:
    """The gradients by q, k, v, s, M, memory and m, from what the forward kept and those by its results."""
    q, k, v, weight, scored, read, write, between, memory, before, after, answer = kept
    Z, N = len(memory), between.shape[1] - 1
    g, g_after = g.reshape(answer.shape), g_after.flatten(1).unsqueeze(1)
    by_score = torch.bmm(g, v.mT).mul_(weight)
    asked = torch.bmm((q * read).mT, g).flatten(1).unflatten(0, (Z, N))  # the gradient by what stood before each chunk
    g_added = torch.baddbmm(between[:, -1:, 1:].mT * g_after, between[:, :-1, 1:].mT, asked)
    g_added = g_added.view(Z * N, *memory.shape[1:])
    g_memory = torch.baddbmm(between[:, -1:, :1] * g_after, between[:, :-1, :1].mT, asked).view_as(memory)
    g_q = torch.bmm(by_score, k).addcmul_(read, torch.bmm(g, before.mT))
    g_k = torch.bmm(by_score.mT, q).addcmul_(write, torch.bmm(v, g_added.mT))
    g_v = torch.bmm(scored.mT, g).baddbmm_(k * write, g_added)
    g_s = (k * g_k).sum(-1).double().view(Z, N * q.shape[1])  # k and exp(s) enter as their product,
    g_M = (g * answer).sum(-1).double().view_as(g_s).neg_()  # and exp(-M) multiplies each answer
    g_M[:, -1] -= (g_after.view_as(after) * after).sum((1, 2))
    g_m = (memory * g_memory).sum((1, 2)).double()
    return *(t.view(*g_s.shape, t.shape[2]) for t in (g_q, g_k, g_v)), g_s, g_M, g_memory, g_m
