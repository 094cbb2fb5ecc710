"""The operation `filaments`: S leaky averages of every channel over time, and the one that they are blended into.

h_t = lambda_t h_{t-1} + fresh_t sigmoid(z_t) and m_t = sum_s w_ts h_ts, for each of `rows` rows (a filament of one
sequence). Shapes: z (rows, T, S, D), T >= 1; lambda and fresh (rows, T or 1, S), the same at every token where 1;
w (rows, T, S); h (rows, S, D). Returns m (rows, T, D) and the last h, in float32 at least.
"""

from functools import reduce

import torch
from torch import Tensor

from harness.ops.linear_scan.scan import LINEAR_SCAN
from harness.ops.registry import Kernel, Operation
from harness.ops.samples import Draw, Sample, Samples


def reference(z: Tensor, carried: Tensor, fresh: Tensor, w: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Spelt out, token by token. carried: lambda."""
    z, carried, fresh, w, h = widened(z, carried, fresh, w, h)
    entering = fresh.unsqueeze(3) * z.sigmoid()
    blended = []
    for t in range(z.shape[1]):
        h = carried[:, t if carried.shape[1] > 1 else 0].unsqueeze(2) * h + entering[:, t]
        blended.append((w[:, t].unsqueeze(2) * h).sum(1))
    return torch.stack(blended, 1), h


def over_time(z: Tensor, carried: Tensor, fresh: Tensor, w: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """As `reference`, by the linear scan and operations on whole sequences: for CUDA."""
    z, carried, fresh, w, h = widened(z, carried, fresh, w, h)
    run = LINEAR_SCAN.choose("auto", z.device, z.dtype)
    entering = fresh.unsqueeze(3) * z.sigmoid()
    states = run(carried.unsqueeze(3).expand_as(z).flatten(2), entering.flatten(2), h.flatten(1), False).view(z.shape)
    return (w.unsqueeze(3) * states).sum(2), states[:, -1].clone()


def widened(*tensors: Tensor) -> list[Tensor]:
    """The tensors in the widest of their types, float32 at least."""
    dtype = reduce(torch.promote_types, (x.dtype for x in tensors), torch.float32)
    return [x.to(dtype) for x in tensors]


def sample(draw: Draw, batch=2, length=5, scales=3, width=4, constant=False) -> Sample:
    """One call of `batch` rows. constant: whether every token has the same lambda."""
    tokens = 1 if constant else length
    carried, fresh = 2 * draw.unit(batch, tokens, scales) - 1, draw.unit(batch, tokens, scales)
    w, h = draw.unit(batch, length, scales), draw.normal(batch, scales, width)
    return Sample((draw.normal(batch, length, scales, width), carried, fresh, w, h))


FILAMENTS = Operation(
    "filaments",
    reference,
    (
        Kernel("numba", "cpu", "arch.mtlnn.scan_numba:filaments"),
        Kernel("torch", "cuda", "arch.mtlnn.scan:over_time"),
    ),
    samples=Samples(
        sample,
        {"batch": (1, 3), "length": (1, 2, 17), "scales": (1, 2, 5), "width": (1, 5, 16)},
        ({}, {"constant": True}),
        ({"batch": 26, "length": 300, "scales": 5, "width": 10}, {"batch": 13, "length": 200, "constant": True}),
    ),
)
