"""Rotary positions (Su et al. 2021, arXiv:2104.09864): pairs of a head's coordinates turn with the position."""

from functools import lru_cache

import torch
from torch import Tensor


def turned(heads: Tensor, position: int | Tensor, theta: float) -> Tensor:
    """heads (B, T, heads, head_dim) turned as the tokens from `position` on are, in at least float32.

    position: of the first token, a number or a tensor of one. theta: base of the frequencies.
    """
    wide = torch.promote_types(heads.dtype, torch.float32)
    table = _kept_table if isinstance(position, int) else _table
    cos, sin = table(position, heads.shape[1], heads.shape[3], theta, heads.device, wide)
    return _rotate(heads.to(wide), cos, sin).to(heads.dtype)


@lru_cache(maxsize=1)  # every layer of one call asks for the same
def _kept_table(position: int, length: int, head_dim: int, theta: float, device, dtype) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False), torch.no_grad():
        return _table(position, length, head_dim, theta, device, dtype)


def _table(position: int | Tensor, length: int, head_dim: int, theta: float, device, dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine (length, 1, head_dim / 2) of position x theta^(-2 i / head_dim), rounded once from float64."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device) / head_dim
    positions = position + torch.arange(length, dtype=torch.float64, device=device)
    angles = positions[:, None, None] * theta**-exponents
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the pairs (i, i + head_dim / 2) of heads (B, T, heads, head_dim), Llama's order."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
