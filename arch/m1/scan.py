"""The operation `scales_scan`: channels that decay at several time scales, and the blend of what the scales hold.

    h_s,t = lambda_s,t h_s,t-1 + (1 - a_s,t) sigmoid(x_s,t),   m_t = sum_s w_s,t h_s,t,   lambda = a, or signed 2 a - 1

Shapes: x (rows, T, S, D); a, w (rows, T, S); h (rows, S, D); m (rows, T, D). A row is a filament of a sequence.
"""

from functools import reduce

import torch
from torch import Tensor

from harness.ops.linear_scan.scan import LINEAR_SCAN
from harness.ops.registry import Kernel, Operation
from harness.ops.samples import Draw, Sample, Samples
from harness.ops.shapes import expect, expect_tokens


def reference(x: Tensor, a: Tensor, w: Tensor, h: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Token by token; returns m and the last h in the widest of the types, float32 at least."""
    x, a, w, h = widened(x, a, w, h)
    blends = []
    for x_t, a_t, w_t in zip(x.sigmoid().unbind(1), a.unsqueeze(3).unbind(1), w.unsqueeze(3).unbind(1), strict=True):
        h = (2 * a_t - 1 if signed else a_t) * h + (1 - a_t) * x_t
        blends.append((w_t * h).sum(1))
    return torch.stack(blends, 1), h


def by_linear_scan(x: Tensor, a: Tensor, w: Tensor, h: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """As `reference`, the states of all tokens by the operation `linear_scan`."""
    x, a, w, h = widened(x, a, w, h)
    decay = (2 * a - 1 if signed else a).unsqueeze(3).expand_as(x)
    drive = (1 - a).unsqueeze(3) * x.sigmoid()
    scan = LINEAR_SCAN.choose("auto", x.device, x.dtype)
    states = scan(decay.flatten(2), drive.flatten(2), h.flatten(1), False).view_as(x)
    return (w.unsqueeze(3) * states).sum(2), states[:, -1].clone()


def widened(*tensors: Tensor) -> list[Tensor]:
    """x, a, w and h of one type, their shapes held to x's."""
    rows, length, scales, width = tensors[0].shape
    expect_tokens("scales_scan", length)
    by_scale = (rows, length, scales)
    expect(
        "scales_scan",
        ("a", tensors[1], by_scale),
        ("w", tensors[2], by_scale),
        ("h", tensors[3], (rows, scales, width)),
    )
    dtype = reduce(torch.promote_types, (x.dtype for x in tensors), torch.float32)
    return [x.to(dtype) for x in tensors]


def sample(draw: Draw, batch=2, length=5, scales=3, width=4, signed=False) -> Sample:
    """One call from a carried state."""
    a, w = (draw.unit(batch, length, scales) for _ in range(2))
    return Sample((draw.normal(batch, length, scales, width), a, w, draw.normal(batch, scales, width), signed))


SCALES_SCAN = Operation(
    "scales_scan",
    reference,
    (
        Kernel("numba", "cpu", "arch.m1.scan_numba:scales_scan"),
        Kernel("torch", "cuda", "arch.m1.scan:by_linear_scan"),
    ),
    samples=Samples(
        sample,
        {"batch": (1, 3), "length": (1, 2, 31, 33), "scales": (1, 5), "width": (1, 7, 16)},
        ({}, {"signed": True}),
        ({"length": 300, "scales": 5, "width": 33},),
    ),
)
