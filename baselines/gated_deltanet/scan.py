"""The operation `gated_delta_scan`: the gated delta rule (Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464, eq. 10).

    S_t = exp(g_t) S_{t-1} + k_t u_t^T,    u_t = beta_t (v_t - exp(g_t) S_{t-1}^T k_t),    y_t = S_t^T q_t

Rows of S are keys, columns values. Shapes: q, k (batch, T, heads, K); v, y (batch, T, heads, V); g, beta (batch, T,
heads); S (batch, heads, K, V). g is at most 0, beta in (0, 1), k of unit length.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.ops.chunks.decay import DECAYED_SCORES, chunked, edges
from harness.ops.registry import Kernel, Operation
from harness.ops.samples import Draw, Sample, Samples
from harness.ops.shapes import expect, expect_tokens

CHUNK = 64
"""Tokens of a chunk: as fast as half as many at K = 48, V = 96, with half the turns of the loop over chunks."""


def scan_step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """One token: q, k (batch, heads, K), v (batch, heads, V), g, beta (batch, heads). Returns y and the new S."""
    S = S * g.exp()[..., None, None]
    u = beta.unsqueeze(-1) * (v - (k.unsqueeze(-2) @ S).squeeze(-2))
    S = S + k.unsqueeze(-1) * u.unsqueeze(-2)
    return (q.unsqueeze(-2) @ S).squeeze(-2), S


def reference(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """A loop of `scan_step` from S: returns y and the last S."""
    ys = []
    for token in zip(*(tensor.unbind(1) for tensor in (q, k, v, g, beta)), strict=True):
        y, S = scan_step(*token, S)
        ys.append(y)
    return torch.stack(ys, dim=1), S


def by_chunks(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """As `reference`, by matrix products within chunks and a loop over their states; in float32 at least.

    Within a chunk that starts at S0 the u_t solve the triangular system (I + A) u = beta (v - grown k S0), where A_ts =
    beta_t k_t^T k_s exp(g_{s+1} + .. + g_t) for s < t. Its solutions for the two terms are found for all chunks at once
    (the paper's section 3.3, the extended WY representation); only their sum waits for S0.
    """
    (batch, T, heads, K), V = k.shape, v.shape[-1]
    expect_tokens("gated_delta_scan", T)
    rows = [("g", g, (batch, T, heads)), ("beta", beta, (batch, T, heads))]
    expect("gated_delta_scan", ("q", q, k.shape), ("v", v, (batch, T, heads, V)), *rows, ("S", S, (batch, heads, K, V)))
    given, wide = v.dtype, torch.promote_types(v.dtype, torch.float32)
    each = [tensor.to(wide) for tensor in (q, k, v, g.unsqueeze(-1), beta.unsqueeze(-1))]
    parts = [x.permute(1, 0, 3, 2, 4).flatten(1, 2) for x in chunked(min(CHUNK, T), *each)]
    q, k, v, g, beta = parts  # (chunks, batch x heads, L, ...)
    g = g.squeeze(-1)
    grown, left = (decay.unsqueeze(-1) for decay in edges(g))
    written, ends = beta * k, (k * left).mT
    decayed = DECAYED_SCORES.choose("auto", k.device, wide)
    A = decayed(written @ k.mT, g, True)
    terms = torch.cat([beta * v, written * grown], dim=-1)
    own, seen = torch.linalg.solve_triangular(A, terms, upper=False, unitriangular=True).split([V, K], dim=-1)
    S, starts, us = S.to(wide).flatten(0, 1), [], []
    for own_c, seen_c, ends_c, kept in zip(own, seen, ends, grown[:, :, -1:], strict=True):
        u = torch.baddbmm(own_c, seen_c, S, alpha=-1)
        starts.append(S)
        us.append(u)
        S = torch.baddbmm(kept * S, ends_c, u)
    y = (q * grown) @ torch.stack(starts) + decayed(q @ k.mT, g) @ torch.stack(us)
    y = y.unflatten(1, (batch, heads)).permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :T]
    return y.to(given), S.unflatten(0, (batch, heads))


def sample(draw: Draw, batch=2, length=5, heads=2, keys=3, values=4) -> Sample:
    """One call, from a state that an earlier scan left."""
    q, k = (F.normalize(draw.normal(batch, length, heads, keys), dim=-1) for _ in range(2))
    v, g = draw.normal(batch, length, heads, values), -F.softplus(draw.normal(batch, length, heads) - 2)
    return Sample((q, k, v, g, draw.unit(batch, length, heads), draw.normal(batch, heads, keys, values)))


_CHUNKS = "baselines.gated_deltanet.scan:by_chunks"
GATED_DELTA_SCAN = Operation(
    "gated_delta_scan",
    reference,
    (Kernel("torch", "cpu", _CHUNKS, chunked=True), Kernel("torch", "cuda", _CHUNKS, chunked=True)),
    samples=Samples(
        sample,
        {"batch": (1, 3), "length": (1, 2, 63, 64, 65, 129), "heads": (1, 3), "keys": (1, 5, 16), "values": (1, 7)},
        large=({"length": 200, "heads": 2, "keys": 48, "values": 96},),
    ),
)
