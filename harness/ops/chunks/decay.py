"""The operation `decayed_scores`, and the decays of a chunk of tokens from its start and to its end.

For S_t = exp(g_t) S_{t-1} + w_t, the part of S_t that w_s left is exp(g_{s+1} + .. + g_t) w_s. So a chunk of L tokens
is a few matrix products (Dao and Gu 2024, arXiv:2405.21060; Yang et al. 2024, arXiv:2412.06464): among its tokens with
scores times these decays, and through the state at its start.

    y[h, t, s] = exp(g[h, s + 1] + .. + g[h, t]) scores[h, t, s] for s <= t, or s < t where strict, and 0 for others

Shapes: scores (R, 1 or H, L, L), one for each head h or one for all; g (R, H, L), at most 0; y (R, H, L, L). Sums of g
are taken in float64: in float32 the difference of two large ones would keep few digits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.ops.registry import Kernel, Operation
from harness.ops.samples import Draw, Sample, Samples


def reference(scores: Tensor, g: Tensor, strict: bool = False) -> Tensor:
    """In the widest type of both. A token's own write decays by 1 exactly, and takes no part in the gradient of g."""
    total, dtype = g.double().cumsum(-1), torch.promote_types(scores.dtype, g.dtype)
    own = torch.eye(g.shape[-1], dtype=dtype, device=g.device)
    later = torch.full_like(own, -torch.inf).triu()
    decays = (total.unsqueeze(-1) - total.unsqueeze(-2)).to(dtype).add_(later).exp_() + own
    return (decays * scores).tril(-1 if strict else 0)


def edges(g: Tensor) -> tuple[Tensor, Tensor]:
    """Of logarithms g (.., L) the decays from the chunk's start to each token, and from its write to the end."""
    total, dtype = g.double().cumsum(-1), g.dtype
    left = (total[..., -1:] - total[..., :-1]).to(dtype).exp()
    return total.to(dtype).exp(), F.pad(left, (0, 1), value=1.0)


def chunked(length: int, *tensors: Tensor) -> list[Tensor]:
    """Each (B, T, ...) -> (B, chunks, length, ...), the last chunk filled up with zeros: no decay and no write."""
    missing = -tensors[0].shape[1] % length
    if missing:
        tensors = tuple(F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing)) for x in tensors)
    return [x.unflatten(1, (-1, length)) for x in tensors]


def sample(draw: Draw, rows=3, heads=2, length=5, shared=True, strict=False) -> Sample:
    """One call; shared: whether all heads have the same scores."""
    g = -F.softplus(draw.normal(rows, heads, length))
    return Sample((draw.normal(rows, 1 if shared else heads, length, length), g, strict))


DECAYED_SCORES = Operation(
    "decayed_scores",
    reference,
    (Kernel("numba", "cpu", "harness.ops.chunks.decay_numba:decayed_scores"),),
    optional=True,
    samples=Samples(
        sample,
        {"rows": (1, 3), "heads": (1, 3), "length": (1, 2, 15, 17, 64)},
        ({}, {"shared": False, "strict": True}),
        ({"rows": 70, "heads": 3, "length": 64},),
    ),
)
