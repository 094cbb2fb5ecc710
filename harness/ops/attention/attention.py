"""The operation `attention`: softmax(Q K^T / sqrt(head_dim)) V, causal, behind any number of earlier tokens.

Shapes: queries (B, n_heads, T, head_dim); keys, values (B, n_kv_heads, past + T, head_dim), where each key-value head
serves a group of n_heads / n_kv_heads query heads. Query t sees the keys 0 .. past + t, the last `window` of them where
a window is given. slopes (n_heads): what a score loses with every token of distance, None for nothing (ALiBi, Press et
al. 2022, arXiv:2108.12409).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.ops.registry import Kernel, Operation
from harness.ops.samples import Draw, Sample, Samples

MASK_ELEMENTS = 2**22  # queries of a later chunk are taken in groups whose mask is no larger than this
BLOCK = 128  # queries that count positions from one origin, where there are slopes


def reference(
    queries: Tensor, keys: Tensor, values: Tensor, window: int | None = None, slopes: Tensor | None = None
) -> Tensor:
    """Spelt out: the matrix of scores, masked; returns (B, n_heads, T, head_dim)."""
    length, total = queries.shape[2], keys.shape[2]
    bias = None if slopes is None else distance_bias(slopes, length, total)
    return weigh(queries, keys, values, ~_seen(length, total, queries.device, window), bias)


def distance_bias(slopes: Tensor, length: int, total: int | Tensor, places: int | None = None) -> Tensor:
    """-slope x distance (n_heads, length, places) of the last `length` of `total` tokens from the first `places`.

    places: of a cache with more room than tokens; `total` where None.
    """
    queries = total - length + torch.arange(length, device=slopes.device)
    keys = torch.arange(int(total) if places is None else places, device=slopes.device)
    return -slopes[:, None, None] * (queries[:, None] - keys)


def weigh(
    queries: Tensor, keys: Tensor, values: Tensor, unseen: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """Attention to all the keys but those `unseen` (T, tokens); every group of heads reads one set of keys.

    bias (n_heads, T, tokens) is added to the scores.
    """
    batch, n_heads, length, head_dim = queries.shape
    grouped = queries.reshape(batch, keys.shape[1], -1, head_dim)  # (B, kv_heads, group T, head_dim)
    scores = (grouped * head_dim**-0.5) @ keys.transpose(2, 3)  # (B, kv_heads, group T, tokens)
    if bias is not None:
        scores = scores + bias.reshape(1, keys.shape[1], -1, keys.shape[2])
    if unseen is not None:
        scores = scores.masked_fill(unseen.repeat(grouped.shape[2] // length, 1), -math.inf)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(values.dtype)
    return (weights @ values).reshape(batch, n_heads, length, head_dim)


def sdpa(
    queries: Tensor, keys: Tensor, values: Tensor, window: int | None = None, slopes: Tensor | None = None
) -> Tensor:
    """torch's fused attention; with a window in blocks of queries, each with the two blocks of keys that it sees."""
    length, total = queries.shape[2], keys.shape[2]
    if slopes is not None:
        return (
            _sloped(queries, keys, values, slopes)
            if window is None
            else reference(queries, keys, values, window, slopes)
        )
    if window is not None and total > window:
        return _banded(queries, keys, values, window)
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


def _banded(queries: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:
    """Attention to a window at a cost of T x 2 window: the queries in blocks of a window.

    The first block, whose keys may begin within a window, is taken by itself. Then block b sees the keys of its own
    window and of the one before, and the mask of every block is the same. What fills up the last block is cut off.
    """
    length, total, device = queries.shape[2], keys.shape[2], queries.device
    first = min(length, window)
    end = total - length + first
    begin = max(0, end - first - window + 1)
    mask = _seen(first, end - begin, device, window)
    parts = [_sdpa(queries[:, :, :first], keys[:, :, begin:end], values[:, :, begin:end], mask)]
    rest = length - first
    if rest:
        missing = -rest % window
        blocks = [F.pad(queries[:, :, first:], (0, 0, 0, missing)).unflatten(2, (-1, window)).transpose(1, 2)]
        for tensor in (keys, values):
            padded = F.pad(tensor[:, :, end - window :], (0, 0, 0, missing))
            blocks.append(padded.unfold(2, 2 * window, window).permute(0, 2, 1, 4, 3))  # (B, blocks, heads, 2 W, size)
        mask = _seen(window, 2 * window, device, window)
        q, k, v = (block.flatten(0, 1) for block in blocks)
        y = _sdpa(q, k, v, mask).unflatten(0, blocks[0].shape[:2])
        parts.append(y.transpose(1, 2).flatten(2, 3)[:, :, :rest])
    return torch.cat(parts, dim=2)


def _sloped(queries: Tensor, keys: Tensor, values: Tensor, slopes: Tensor) -> Tensor:
    """Attention with slopes, which products give as well: of a further coordinate, the slope by a key's position.

    Softmax forgets what all scores of a query share, so positions may count from anywhere: a block of queries counts
    from its own middle, since what is near must be rounded the least. In float32 at least, which knows every position.
    """
    length, total, head_dim = queries.shape[2], keys.shape[2], queries.shape[3]
    wide = torch.promote_types(queries.dtype, torch.float32)
    positions = torch.arange(total - length, -length, -1, dtype=wide, device=keys.device).neg()  # from the first query
    further = (head_dim**0.5 * slopes.to(wide)).view(-1, 1, 1).expand(*queries.shape[:3], 1)
    parts = []
    with torch.autocast(queries.device.type, enabled=False):
        q, v = torch.cat([queries.to(wide), further], 3), F.pad(values.to(wide), (0, 1))  # the fused kernels' one width
        for start in range(0, length, BLOCK):
            stop = min(start + BLOCK, length)
            last = total - length + stop
            here = (positions[:last] - (start + stop) // 2).view(-1, 1).expand(*keys.shape[:2], -1, 1)
            k = torch.cat([keys[:, :, :last].to(wide), here], 3)
            mask = None if last == stop - start else _seen(stop - start, last, queries.device)
            parts.append(_sdpa(q[:, :, start:stop], k, v[:, :, :last], mask, mask is None, head_dim**-0.5))
    return torch.cat(parts, dim=2)[..., :head_dim].to(values.dtype)


def _sdpa(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:  # fmt: skip
    grouped = queries.shape[1] != keys.shape[1]
    return F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=grouped
    )


def _seen(length: int, total: int, device: torch.device, window: int | None = None) -> Tensor:
    """Which of `total` tokens the last `length` see: (length, total) of bool."""
    seen = torch.ones(length, total, dtype=torch.bool, device=device).tril(total - length)
    return seen if window is None else seen.triu(total - length - window + 1)


def sample(draw: Draw, batch=2, length=5, past=3, kv_heads=2, group=2, head_dim=4, window=0) -> Sample:
    """`length` queries behind `past` tokens, each key-value head for `group` query heads.

    window: 0 for none, -1 for none and slopes.
    """
    cached = (batch, kv_heads, past + length, head_dim)
    tensors = (draw.normal(batch, kv_heads * group, length, head_dim), draw.normal(*cached), draw.normal(*cached))
    slopes = draw.unit(kv_heads * group) if window < 0 else None
    return Sample((*tensors, window if window > 0 else None, slopes))


ATTENTION = Operation(
    "attention",
    reference,
    tuple(Kernel("sdpa", device, "harness.ops.attention.attention:sdpa") for device in ("cpu", "cuda")),
    samples=Samples(
        sample,
        {"batch": (1, 3), "length": (1, 2, 17, 33), "past": (0, 1, 7), "kv_heads": (1, 2), "group": (1, 3)}
        | {"window": (-1, 0, 1, 2, 7, 16, 40)},
        (
            *({}, {"past": 0}, {"window": 2}, {"length": 13, "past": 0, "window": 4}),
            *({"window": -1}, {"length": 13, "past": 0, "kv_heads": 1, "window": -1}),
        ),
        (
            {"length": 70, "past": 61, "head_dim": 32},
            {"length": 150, "past": 31, "head_dim": 32, "window": 32},
            {"length": 600, "past": 31, "kv_heads": 1, "window": -1},
        ),
    ),
)
