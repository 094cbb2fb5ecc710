"""Fused CUDA kernels of WKV-7 (arXiv:2503.14456, eq. 15-18), forward and backward, in Triton.

    S_t = S_{t-1} diag(w_t) + (S_{t-1} a_t) b_t^T + v_t k_t^T        y_t = S_t r_t

The rows of S (values) do not meet in the recurrence, so one program walks over time with a block of rows of one head in
registers. The forward keeps the state before every CHUNK-th token; the backward computes the states of a chunk again
into scratch memory of its own, which stays in the second-level cache, and walks back over them: the step is not
inverted, since a decay may be zero. The gradients of r, w, k, a and b are sums over rows, which come as one partial sum
for each block of rows, added by torch in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 16  # tokens between two states that are kept
ROWS = 16  # of one program: many programs, because a batch has few heads; and their sums stay within a warp
MAX_SIZE = 256
STAGES = 4  # tokens in flight: a step is shorter than the latency of a load


def refuses(head_dim: int = 1, **options) -> str | None:
    """Why the kernels cannot serve heads of `head_dim` channels, or None."""
    return f"heads of more than {MAX_SIZE} channels ({head_dim})" if head_dim > MAX_SIZE else None


def rwkv_scan(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors (B, T, H, N), state (B, H, N, N) -> y (B, T, H, N) in the type of r, and the state after the last token.

    Computed in float32, in float64 where any input is; so is the state that is returned. Differentiable once, in every
    input.
    """
    inputs = (r, w, k, v, a, b, state)
    wide = torch.float32
    for tensor in inputs:
        wide = torch.promote_types(wide, tensor.dtype)
    return _Scan.apply(torch.is_grad_enabled() and any(t.requires_grad for t in inputs), wide, *inputs)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, differentiable: bool, wide: torch.dtype, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        *vectors, state = (t.detach().contiguous() for t in inputs)
        r = vectors[0]
        batch, length, heads, size = r.shape
        chunks = triton.cdiv(length, CHUNK) if differentiable else 0
        kept = r.new_empty(batch * heads, chunks, size, size, dtype=wide)
        y, last = torch.empty_like(r), torch.empty_like(state, dtype=wide)
        grid, sizes = _launch(batch * heads, size, wide)
        _forward[grid](*vectors, state, y, last, kept, length, heads, size, KEEP=differentiable, **sizes)
        ctx.save_for_backward(*vectors, kept)
        ctx.state_dtype = state.dtype
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        *vectors, kept = ctx.saved_tensors
        batch, length, heads, size = vectors[0].shape
        grid, sizes = _launch(batch * heads, size, kept.dtype)
        dv, dstate = torch.empty_like(vectors[3]), torch.empty_like(dlast, memory_format=torch.contiguous_format)
        dr, dw, dk, da, db = (kept.new_empty(grid[1], *dv.shape) for _ in range(5))
        scratch = kept.new_empty(grid[0], CHUNK, size, size)
        upstream, gradients = (dy.contiguous(), dlast.contiguous()), (dr, dw, dk, dv, da, db, dstate)
        _backward[grid](*vectors, kept, scratch, *upstream, *gradients, length, heads, size, **sizes)
        parts = zip((dr, dw, dk, dv, da, db), vectors, strict=True)
        sums = [part if part is dv else part.sum(0).to(vector.dtype) for part, vector in parts]
        return None, None, *sums, dstate.to(ctx.state_dtype)


def _launch(heads: int, size: int, wide: torch.dtype) -> tuple[tuple[int, int], dict[str, int]]:
    """The grid and the block of one program, for `heads` heads of `size` channels; a thread holds up to 32 numbers."""
    block_n = triton.next_power_of_2(size)
    block_v = min(ROWS, block_n)
    stages = STAGES if block_n * wide.itemsize <= 1024 else 2  # shared memory holds a block of the state for each
    sizes = {"CHUNK": CHUNK, "STAGES": stages, "BLOCK_V": block_v, "BLOCK_N": block_n}
    sizes["num_warps"] = max(block_v * block_n // 1024, 1)
    return (heads, triton.cdiv(size, block_v)), sizes


@triton.jit
def _rows(size, BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr):
    """This program's head, its rows and columns, and the place of these in a state (N, N), with a mask."""
    i = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    j = tl.arange(0, BLOCK_N)
    inside = (i < size)[:, None] & (j < size)[None, :]
    return tl.program_id(0).to(tl.int64), i, j, i[:, None] * size + j[None, :], inside


@triton.jit
def _load(pointer, at, inside, WIDE: tl.constexpr):
    return tl.load(pointer + at, mask=inside, other=0.0).to(WIDE)


@triton.jit
def _vectors(w_ptr, k_ptr, v_ptr, a_ptr, b_ptr, at, i, j, size, WIDE: tl.constexpr):
    """The vectors of the token at `at`: along the rows v, along the columns the others."""
    w = _load(w_ptr + at, j, j < size, WIDE)
    k = _load(k_ptr + at, j, j < size, WIDE)
    v = _load(v_ptr + at, i, i < size, WIDE)
    a = _load(a_ptr + at, j, j < size, WIDE)
    b = _load(b_ptr + at, j, j < size, WIDE)
    return w, k, v, a, b


@triton.jit
def _advance(S, w, k, v, a, b):
    """The rows S (BLOCK_V, BLOCK_N) after one token."""
    removed = tl.sum(S * a[None, :], 1)
    return S * w[None, :] + removed[:, None] * b[None, :] + v[:, None] * k[None, :]


@triton.jit
def _forward(
    r_ptr, w_ptr, k_ptr, v_ptr, a_ptr, b_ptr, state_ptr, y_ptr, last_ptr, kept_ptr, length, heads, size,
    KEEP: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    WIDE: tl.constexpr = last_ptr.dtype.element_ty
    head, i, j, at_S, is_S = _rows(size, BLOCK_V, BLOCK_N)
    S = _load(state_ptr + head * size * size, at_S, is_S, WIDE)
    chunks = tl.cdiv(length, CHUNK)
    at = (head // heads * length * heads + head % heads) * size
    for t in tl.range(0, length, num_stages=STAGES):
        if KEEP:
            kept = kept_ptr + (head * chunks + t // CHUNK) * size * size
            tl.store(kept + at_S, S, mask=is_S & (t % CHUNK == 0))
        r = _load(r_ptr + at, j, j < size, WIDE)
        w, k, v, a, b = _vectors(w_ptr, k_ptr, v_ptr, a_ptr, b_ptr, at, i, j, size, WIDE)
        S = _advance(S, w, k, v, a, b)
        y = tl.sum(S * r[None, :], 1)
        tl.store(y_ptr + at + i, y.to(y_ptr.dtype.element_ty), mask=i < size)
        at += heads * size
    tl.store(last_ptr + head * size * size + at_S, S, mask=is_S)


@triton.jit
def _backward(
    r_ptr, w_ptr, k_ptr, v_ptr, a_ptr, b_ptr, kept_ptr, scratch_ptr, dy_ptr, dlast_ptr,
    dr_ptr, dw_ptr, dk_ptr, dv_ptr, da_ptr, db_ptr, dstate_ptr, length, heads, size,
    CHUNK: tl.constexpr, STAGES: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    WIDE: tl.constexpr = kept_ptr.dtype.element_ty
    head, i, j, at_S, is_S = _rows(size, BLOCK_V, BLOCK_N)
    # The place of this program's own sums over rows: dr, dw, dk, da and db are (blocks, batch, T, heads, N).
    own = tl.program_id(1).to(tl.int64) * tl.num_programs(0) * length * size + j
    first = (head // heads * length * heads + head % heads) * size
    scratch = scratch_ptr + head * CHUNK * size * size + at_S
    G = _load(dlast_ptr + head * size * size, at_S, is_S, WIDE)
    chunks = tl.cdiv(length, CHUNK)
    for back in range(0, chunks):
        chunk = chunks - 1 - back
        tokens = tl.minimum(length - chunk * CHUNK, CHUNK)
        S = _load(kept_ptr + (head * chunks + chunk) * size * size, at_S, is_S, WIDE)
        at = first + chunk * CHUNK * heads * size
        for u in tl.range(0, tokens, num_stages=STAGES):
            tl.store(scratch + u * size * size, S, mask=is_S)
            w, k, v, a, b = _vectors(w_ptr, k_ptr, v_ptr, a_ptr, b_ptr, at, i, j, size, WIDE)
            S = _advance(S, w, k, v, a, b)
            at += heads * size
        tl.debug_barrier()  # a thread may read what another one stored
        for u in tl.range(0, tokens, num_stages=STAGES):
            at -= heads * size
            before = _load(scratch, (tokens - 1 - u) * size * size, is_S, WIDE)
            r = _load(r_ptr + at, j, j < size, WIDE)
            dy = _load(dy_ptr + at, i, i < size, WIDE)
            w, k, v, a, b = _vectors(w_ptr, k_ptr, v_ptr, a_ptr, b_ptr, at, i, j, size, WIDE)
            G += dy[:, None] * r[None, :]  # the gradient of the state after this token
            removed = tl.sum(before * a[None, :], 1)
            dremoved = tl.sum(G * b[None, :], 1)
            dv = tl.sum(G * k[None, :], 1)
            tl.store(dv_ptr + at + i, dv.to(dv_ptr.dtype.element_ty), mask=i < size)
            tl.store(dr_ptr + at + own, tl.sum(S * dy[:, None], 0), mask=j < size)
            tl.store(dw_ptr + at + own, tl.sum(G * before, 0), mask=j < size)
            tl.store(dk_ptr + at + own, tl.sum(G * v[:, None], 0), mask=j < size)
            tl.store(da_ptr + at + own, tl.sum(before * dremoved[:, None], 0), mask=j < size)
            tl.store(db_ptr + at + own, tl.sum(G * removed[:, None], 0), mask=j < size)
            G = G * w[None, :] + dremoved[:, None] * a[None, :]
            S = before
        tl.debug_barrier()  # the next chunk overwrites what a thread may still read
    tl.store(dstate_ptr + head * size * size + at_S, G, mask=is_S)
