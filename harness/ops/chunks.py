"""Chunks of tokens, within which a recurrence with a scalar decay is a few matrix products.

For S_t = exp(g_t) S_{t-1} + w_t, the part of S_t that w_s left is exp(g_{s+1} + .. + g_t) w_s: from the sums of g in a
chunk follow the decays between its tokens, from its start and to its end (Dao and Gu 2024, arXiv:2405.21060).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Decays(NamedTuple):
    """Decays within a chunk of L tokens. between: (.., L, L), [t, s] from the write of s to t >= s, zero above.

    grown: (.., L), from the chunk's start to each token, that token's own included. left: (.., L), from the write of
    each token to the chunk's end.
    """

    between: Tensor
    grown: Tensor
    left: Tensor


def chunked(length: int, *tensors: Tensor) -> list[Tensor]:
    """Each (B, T, ...) -> (B, chunks, length, ...), the last chunk filled up with zeros: no decay and no write."""
    missing = -tensors[0].shape[1] % length
    if missing:
        tensors = tuple(F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing)) for x in tensors)
    return [x.unflatten(1, (-1, length)) for x in tensors]


def decays(g: Tensor) -> Decays:
    """The decays of chunks of logarithms g (.., L), each at most 0.

    Sums are taken in float64: in float32 the difference of two large ones would keep few digits. What does not decay, a
    token's own write, is 1 by construction: a difference with itself would leave rounding errors in the gradient of g.
    """
    total, dtype, length = g.double().cumsum(-1), g.dtype, g.shape[-1]
    own = torch.eye(length, dtype=dtype, device=g.device)
    later = torch.full_like(own, -torch.inf).triu()
    between = (total.unsqueeze(-1) - total.unsqueeze(-2)).to(dtype).add_(later).exp_() + own
    left = (total[..., -1:] - total[..., :-1]).to(dtype).exp()
    return Decays(between, total.to(dtype).exp(), F.pad(left, (0, 1), value=1.0))
