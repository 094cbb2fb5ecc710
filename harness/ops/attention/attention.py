"""The operation `attention`: softmax(Q K^T / sqrt(head_dim)) V, causal, behind any number of earlier tokens.

Shapes: queries (B, n_heads, T, head_dim); keys, values (B, n_kv_heads, past + T, head_dim), where each key-value head
serves a group of n_heads / n_kv_heads query heads. Query t sees the keys 0 .. past + t.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.ops.registry import Kernel, Operation
from harness.ops.samples import Draw, Sample, Samples

MASK_ELEMENTS = 2**22  # queries of a later chunk are taken in groups whose mask is no larger than this


def reference(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Spelt out: the matrix of scores, masked; returns (B, n_heads, T, head_dim)."""
    return weigh(queries, keys, values, ~_seen(queries.shape[2], keys.shape[2], queries.device))


def weigh(queries: Tensor, keys: Tensor, values: Tensor, unseen: Tensor | None = None) -> Tensor:
    """Attention to all the keys but those `unseen` (T, tokens); every group of heads reads one set of keys."""
    batch, n_heads, length, head_dim = queries.shape
    grouped = queries.reshape(batch, keys.shape[1], -1, head_dim)  # (B, kv_heads, group T, head_dim)
    scores = (grouped * head_dim**-0.5) @ keys.transpose(2, 3)  # (B, kv_heads, group T, tokens)
    if unseen is not None:
        scores = scores.masked_fill(unseen.repeat(grouped.shape[2] // length, 1), -math.inf)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(values.dtype)
    return (weights @ values).reshape(batch, n_heads, length, head_dim)


def sdpa(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """torch's fused attention."""
    length, total = queries.shape[2], keys.shape[2]
    if length == total:
        return _sdpa(queries, keys, values, is_causal=True)
    group = max(1, MASK_ELEMENTS // total)
    parts = []
    for start in range(0, length, group):
        stop = min(start + group, length)
        last = total - length + stop
        mask = _seen(stop - start, last, queries.device)
        parts.append(_sdpa(queries[:, :, start:stop], keys[:, :, :last], values[:, :, :last], mask))
    return torch.cat(parts, dim=2)


def _sdpa(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
    grouped = queries.shape[1] != keys.shape[1]
    return F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=is_causal, enable_gqa=grouped
    )


def _seen(length: int, total: int, device: torch.device) -> Tensor:
    """Which of `total` tokens the last `length` see: (length, total) of bool."""
    return torch.ones(length, total, dtype=torch.bool, device=device).tril(total - length)


def sample(draw: Draw, batch=2, length=5, past=3, kv_heads=2, group=2, head_dim=4) -> Sample:
    """One call: `length` queries behind `past` tokens, each key-value head for `group` query heads."""
    cached = (batch, kv_heads, past + length, head_dim)
    return Sample((draw.normal(batch, kv_heads * group, length, head_dim), draw.normal(*cached), draw.normal(*cached)))


ATTENTION = Operation(
    "attention",
    reference,
    tuple(Kernel("sdpa", device, "harness.ops.attention.attention:sdpa") for device in ("cpu", "cuda")),
    samples=Samples(
        sample,
        {"batch": (1, 3), "length": (1, 2, 17, 33), "past": (0, 1, 7), "kv_heads": (1, 2), "group": (1, 3)},
        ({}, {"past": 0}),
        ({"length": 70, "past": 61, "head_dim": 32},),
    ),
)
