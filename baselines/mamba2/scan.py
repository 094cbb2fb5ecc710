"""The operation `ssd_scan`: structured state-space duality, Mamba-2's recurrence (Dao and Gu 2024, arXiv:2405.21060).

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t^T,    y_t = h_t^T C_t

Each head has one A < 0 and the states are shared by its channels: B_t and C_t are every head's. Shapes: x, y (batch, T,
heads, P); dt (batch, T, heads), positive; A (heads); B, C (batch, T, N); h (batch, N, heads, P).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.ops.chunks.decay import DECAYED_SCORES, chunked, edges
from harness.ops.registry import Kernel, Operation
from harness.ops.samples import Draw, Sample, Samples
from harness.ops.shapes import expect, expect_tokens

CHUNK = 64
"""Tokens of a chunk: at N = 128, P = 64 the least time on a CPU; half as many spend it on states, twice on decays."""


def scan_step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """One token: x (batch, heads, P), dt (batch, heads), B, C (batch, N). Returns y (batch, heads, P) and the new h."""
    write = B[:, :, None, None] * (dt.unsqueeze(-1) * x).unsqueeze(1)
    h = torch.addcmul(write, h, torch.exp(dt * A)[:, None, :, None])
    return (C.unsqueeze(1) @ h.flatten(2)).view_as(x), h


def reference(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """A loop of `scan_step` from h: returns y and the last h."""
    ys = []
    for x_t, dt_t, B_t, C_t in zip(*(tensor.unbind(1) for tensor in (x, dt, B, C)), strict=True):
        y, h = scan_step(x_t, dt_t, A, B_t, C_t, h)
        ys.append(y)
    return torch.stack(ys, dim=1), h


def by_chunks(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """As `reference`, by matrix products within chunks and a loop over their states; in float32 at least."""
    (batch, T, heads, P), N = x.shape, B.shape[-1]
    expect_tokens("ssd_scan", T)
    each = ("dt", dt, (batch, T, heads)), ("A", A, (heads,)), ("B", B, (batch, T, N)), ("C", C, B.shape)
    expect("ssd_scan", *each, ("h", h, (batch, N, heads, P)))
    given, wide = x.dtype, torch.promote_types(x.dtype, torch.float32)
    x, dt, A, B, C, h = (tensor.to(wide) for tensor in (x, dt, A, B, C, h))
    u, g, B, C = chunked(min(CHUNK, T), x * dt.unsqueeze(-1), dt * A, B, C)  # (batch, chunks, L, ...)
    g = g.transpose(2, 3)  # (batch, chunks, heads, L)
    grown, left = (decay.transpose(2, 3).unsqueeze(-1) for decay in edges(g))
    writes = (B.mT @ (u * left).flatten(3)).unflatten(-1, (heads, P))  # of each chunk, as they stand at its end
    starts = []
    for write, kept in zip(writes.unbind(1), grown[:, :, -1:].unbind(1), strict=True):
        starts.append(h)
        h = torch.addcmul(write, h, kept)
    carried = (C @ torch.stack(starts, 1).flatten(3)).view_as(u) * grown
    decayed = DECAYED_SCORES.choose("auto", x.device, wide)
    scores = decayed((C @ B.mT).flatten(0, 1).unsqueeze(1), g.flatten(0, 1)).unflatten(0, g.shape[:2])
    within = scores @ u.transpose(2, 3)
    return (carried + within.transpose(2, 3)).flatten(1, 2)[:, :T].to(given), h


def sample(draw: Draw, batch=2, length=5, heads=2, channels=3, states=4) -> Sample:
    """One call, from a state that an earlier scan left."""
    x, B, C = (draw.normal(batch, length, *size) for size in ((heads, channels), (states,), (states,)))
    dt, A = F.softplus(draw.normal(batch, length, heads) - 1), -16 * draw.unit(heads)
    return Sample((x, dt, A, B, C, draw.normal(batch, states, heads, channels)))


_CHUNKS = "baselines.mamba2.scan:by_chunks"
SSD_SCAN = Operation(
    "ssd_scan",
    reference,
    (Kernel("torch", "cpu", _CHUNKS, chunked=True), Kernel("torch", "cuda", _CHUNKS, chunked=True)),
    samples=Samples(
        sample,
        {"batch": (1, 3), "length": (1, 2, 63, 64, 65, 129), "heads": (1, 3), "channels": (1, 5, 16), "states": (1, 7)},
        large=({"length": 200, "heads": 3, "channels": 64, "states": 128},),
    ),
)
