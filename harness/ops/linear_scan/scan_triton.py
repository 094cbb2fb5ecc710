"""The linear scan on CUDA: tiles of tokens by associative scan, the state carried from tile to tile.

Each program walks one piece of one sequence for one block of channels. A batch too small to fill the device has its
time cut into pieces: first the composed map of each, then a scan of those maps, then the states within the pieces.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from harness.ops.linear_scan.scan import differentiable

TOKENS, CHANNELS = 32, 32  # of a tile
MANY = 1024  # programs that fill a device
PIECE = 4 * TOKENS  # tokens, the shortest piece worth its second reading


def linear_scan(J: Tensor, b: Tensor, h0: Tensor, reverse: bool = False) -> Tensor:
    """As harness.ops.linear_scan.scan.reference, with gradients."""
    return differentiable(run, J, b, h0, reverse)


def run(J: Tensor, b: Tensor, h0: Tensor, reverse: bool) -> Tensor:
    """The states h (batch, T, D); contiguous tensors of one type, no gradient."""
    batch, T, D = J.shape
    blocks = triton.cdiv(D, CHANNELS)
    pieces = max(min(triton.cdiv(MANY, batch * blocks), T // PIECE), 1)
    length = triton.cdiv(T, pieces)
    pieces = triton.cdiv(T, length)  # none of them empty
    grid, starts = (batch, pieces, blocks), h0
    if pieces > 1:
        P, E = torch.empty(2, batch, pieces, D, dtype=J.dtype, device=J.device)
        _compose[grid](J, b, P, E, T, D, length, pieces, reverse, TOKENS, CHANNELS)
        ends = run(P, E, h0, False)
        starts = torch.cat([h0.unsqueeze(1), ends[:, :-1]], dim=1)
    h = torch.empty_like(b)
    _walk[grid](J, b, starts.contiguous(), h, T, D, length, pieces, reverse, TOKENS, CHANNELS)
    return h


@triton.jit
def _after(J, b, J_next, b_next):
    """The map (J, b) and then (J_next, b_next), as one."""
    return J_next * J, J_next * b + b_next


@triton.jit
def _last(tile, TOKENS: tl.constexpr):
    """The last row of a tile."""
    rows = tl.arange(0, TOKENS)[:, None]
    return tl.sum(tl.where(rows == TOKENS - 1, tile, 0.0), axis=0)


@triton.jit
def _tile(J, b, s, T, D, length, reverse: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr):
    """The offsets and the mask of the tile at token s of this program's piece, and its maps composed from its start.

    Tokens past the piece are the identity, so that a tile's last row is always the whole tile.
    """
    piece = tl.program_id(1)
    token = piece * length + s + tl.arange(0, TOKENS)[:, None]
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    inside = (token < tl.minimum((piece + 1) * length, T)) & (channel < D)
    t = T - 1 - token if reverse else token
    at = (tl.program_id(0).to(tl.int64) * T + t) * D + channel
    J_tile = tl.load(J + at, mask=inside, other=1.0)
    b_tile = tl.load(b + at, mask=inside, other=0.0)
    J_tile, b_tile = tl.associative_scan((J_tile, b_tile), 0, _after)
    return at, inside, J_tile, b_tile


@triton.jit
def _row(D, pieces, CHANNELS: tl.constexpr):
    """Where this program's channels lie in (batch, pieces, D), and which of them there are."""
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    return (tl.program_id(0) * pieces + tl.program_id(1)) * D + channel, channel < D


@triton.jit
def _compose(J, b, P, E, T, D, length, pieces, reverse: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr):
    at, there = _row(D, pieces, CHANNELS)
    product = tl.full((CHANNELS,), 1.0, J.dtype.element_ty)
    state = tl.zeros((CHANNELS,), J.dtype.element_ty)
    s = 0
    while s < length:
        _, _, J_tile, b_tile = _tile(J, b, s, T, D, length, reverse, TOKENS, CHANNELS)
        J_all = _last(J_tile, TOKENS)
        product *= J_all
        state = J_all * state + _last(b_tile, TOKENS)
        s += TOKENS
    tl.store(P + at, product, mask=there)
    tl.store(E + at, state, mask=there)


@triton.jit
def _walk(J, b, starts, h, T, D, length, pieces, reverse: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr):
    at, there = _row(D, pieces, CHANNELS)
    state = tl.load(starts + at, mask=there, other=0.0)
    s = 0
    while s < length:
        place, inside, J_tile, b_tile = _tile(J, b, s, T, D, length, reverse, TOKENS, CHANNELS)
        h_tile = J_tile * state[None, :] + b_tile
        tl.store(h + place, h_tile, mask=inside)
        state = _last(h_tile, TOKENS)
        s += TOKENS
