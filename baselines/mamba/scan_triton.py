"""Fused CUDA kernels of the selective scan (Gu and Dao 2023, arXiv:2312.00752), forward and backward, in Triton.

One program takes a block of channels of one sequence and walks over chunks of CHUNK tokens. Within a chunk a token is
the map h -> decay h + drive of each state, and a scan over the composition of these maps gives every state at once, so
that a step of the walk waits for memory once a chunk and not once a token. The forward keeps the state before every
chunk; the backward composes the chunk again, exclusively in both directions: the state before each token, and the
gradient that reaches each token from later ones, the second over rows laid in the opposite order, since Triton's own
reversed scan moves every operand through the lanes of a warp. Sums over channels and batch come as partial sums, one
per program, added by torch in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 16  # tokens composed at a time, and between two states that are kept
STAGES = 2  # the next chunk is on its way from memory while one is computed
TILE = 256  # (channel, state) pairs of one program
WIDEST = 64  # channels of one program, where a channel has few states
MAX_STATES = 256


def refuses(d_state: int = 1, **options) -> str | None:
    """Why the kernels cannot serve `d_state` states a channel, or None."""
    return f"more than {MAX_STATES} states a channel ({d_state})" if d_state > MAX_STATES else None


def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, h0: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x, dt (batch, T, channels), A (channels, N), B, C (batch, T, N), D (channels), h0 (batch, channels, N), zero if
    None -> y (batch, T, channels) in the type of x, and the last state (batch, channels, N).

    Computed in float32, in float64 where any input is; so is the state that is returned. Differentiable once, in every
    input.
    """
    inputs = (x, dt, A, B, C, D)
    wide = torch.float32
    for tensor in inputs if h0 is None else (*inputs, h0):
        wide = torch.promote_types(wide, tensor.dtype)
    h0 = x.new_zeros(x.shape[0], *A.shape, dtype=wide) if h0 is None else h0
    inputs = (*inputs, h0)
    return _SelectiveScan.apply(torch.is_grad_enabled() and any(t.requires_grad for t in inputs), wide, *inputs)


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, differentiable: bool, wide: torch.dtype, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        *inputs, h0 = (t.detach().contiguous() for t in inputs)
        x, A = inputs[0], inputs[2]
        batch, length, channels = x.shape
        sizes = _sizes(*A.shape, wide)
        kept = x.new_empty(batch, triton.cdiv(length, CHUNK) if differentiable else 0, *A.shape, dtype=wide)
        y, last = torch.empty_like(x), torch.empty_like(h0, dtype=wide)
        grid = (batch, triton.cdiv(channels, sizes["BLOCK_C"]))
        _forward[grid](*inputs, h0, y, last, kept, length, *A.shape, KEEP=differentiable, **sizes)
        ctx.save_for_backward(*inputs, kept)
        ctx.h0_dtype = h0.dtype
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, gy: Tensor, glast: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, kept = ctx.saved_tensors
        x, dt, A, B, C, D = inputs
        batch, length, channels = x.shape
        sizes = _sizes(*A.shape, kept.dtype)
        grid = (batch, triton.cdiv(channels, sizes["BLOCK_C"]))
        gx, gdt = torch.empty_like(x), torch.empty_like(dt)
        gA, gh0 = (kept.new_empty(batch, *A.shape) for _ in range(2))
        gB, gC = (kept.new_empty(grid[1], *B.shape) for _ in range(2))
        gD = kept.new_empty(batch, channels)
        upstream = (gy.contiguous(), glast.contiguous())
        gradients = (gx, gdt, gA, gB, gC, gD, gh0)
        _backward[grid](*inputs, kept, *upstream, *gradients, length, *A.shape, **sizes)
        sums = [part.sum(0).to(t.dtype) for part, t in zip((gA, gB, gC, gD), (A, B, C, D), strict=True)]
        return None, None, gx, gdt, *sums, gh0.to(ctx.h0_dtype)


def _sizes(channels: int, states: int, wide: torch.dtype) -> dict[str, int]:
    """The block of one program; a thread holds one (channel, state) pair, for all the tokens of a chunk."""
    block_n = triton.next_power_of_2(states)
    block_c = min(triton.next_power_of_2(channels), max(TILE // block_n, 1), WIDEST)
    stages = STAGES if block_n * wide.itemsize <= 1024 else 1  # shared memory holds a chunk of B and C for each
    sizes = {"CHUNK": CHUNK, "STAGES": stages, "BLOCK_C": block_c, "BLOCK_N": block_n}
    return sizes | {"num_warps": max(block_c * block_n // 32, 1)}


@triton.jit
def _then(decay, drive, next_decay, next_drive):
    """The map h -> decay h + drive, and after it the next one."""
    return decay * next_decay, next_decay * drive + next_drive


@triton.jit
def _then_kept(head_decay, head_drive, decay, drive, next_head_decay, next_head_drive, next_decay, next_drive):
    """The same, and before it the composition of all maps but the last one."""
    return (
        decay * next_head_decay,
        next_head_decay * drive + next_head_drive,
        decay * next_decay,
        next_decay * drive + next_drive,
    )


@triton.jit
def _compose_before(decay, drive, h):
    """The states before the maps of the rows (CHUNK, BLOCK_C, BLOCK_N), from h before the first."""
    one = tl.full(decay.shape, 1.0, dtype=decay.dtype)
    zero = tl.zeros(decay.shape, dtype=decay.dtype)
    decay, drive, _, _ = tl.associative_scan((one, zero, decay, drive), 0, _then_kept)
    return decay * h[None, :, :] + drive


@triton.jit
def _row(tile, row: tl.constexpr):
    """One row of (CHUNK, BLOCK_C, BLOCK_N)."""
    here = tl.arange(0, tile.shape[0]) == row
    return tl.sum(tl.where(here[:, None, None], tile, 0.0), 0)


@triton.jit
def _block(channels, states, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr):
    """This program's sequence, its channels and states, and the place of their pairs in (channels, N), with a mask."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tl.arange(0, BLOCK_N)
    inside = (c < channels)[:, None] & (n < states)[None, :]
    return tl.program_id(0).to(tl.int64), c, n, c[:, None] * states + n[None, :], inside


@triton.jit
def _place(t, index, sequence, length, size):
    """Where the tokens t have the entries `index` in (batch, T, size), with a mask."""
    inside = (t < length)[:, None] & (index < size)[None, :]
    return (sequence * length + t)[:, None] * size + index[None, :], inside


@triton.jit
def _load(pointer, at, inside, WIDE: tl.constexpr):
    """Zero outside, so that tokens past the end have dt = 0 and x = 0: the identity."""
    return tl.load(pointer + at, mask=inside, other=0.0).to(WIDE)


@triton.jit
def _forward(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, h0_ptr, y_ptr, last_ptr, kept_ptr, length, channels, states,
    KEEP: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    WIDE: tl.constexpr = last_ptr.dtype.element_ty
    sequence, c, n, at_h, is_h = _block(channels, states, BLOCK_C, BLOCK_N)
    size = channels * states
    a = _load(A_ptr, at_h, is_h, WIDE)
    d = _load(D_ptr, c, c < channels, WIDE)
    h = _load(h0_ptr + sequence * size, at_h, is_h, WIDE)
    chunks = tl.cdiv(length, CHUNK)
    for chunk in tl.range(0, chunks, num_stages=STAGES):
        if KEEP:
            tl.store(kept_ptr + (sequence * chunks + chunk) * size + at_h, h, mask=is_h)
        t = chunk * CHUNK + tl.arange(0, CHUNK)
        at_c, is_c = _place(t, c, sequence, length, channels)
        at_n, is_n = _place(t, n, sequence, length, states)
        x = _load(x_ptr, at_c, is_c, WIDE)
        dt = _load(dt_ptr, at_c, is_c, WIDE)
        b = _load(B_ptr, at_n, is_n, WIDE)
        read = _load(C_ptr, at_n, is_n, WIDE)
        decay = tl.exp(dt[:, :, None] * a[None, :, :])
        drive = (dt * x)[:, :, None] * b[:, None, :]
        decay, drive = tl.associative_scan((decay, drive), 0, _then)
        after = decay * h[None, :, :] + drive
        y = tl.sum(after * read[:, None, :], 2) + x * d[None, :]
        tl.store(y_ptr + at_c, y.to(y_ptr.dtype.element_ty), mask=is_c)
        h = _row(after, CHUNK - 1)
    tl.store(last_ptr + sequence * size + at_h, h, mask=is_h)


@triton.jit
def _states_before(x_ptr, dt_ptr, B_ptr, a, h, t, c, n, sequence, length, channels, states, WIDE: tl.constexpr):
    """The state before each token t of a chunk, from h before the first, the last token first."""
    at_c, is_c = _place(t, c, sequence, length, channels)
    at_n, is_n = _place(t, n, sequence, length, states)
    dt = _load(dt_ptr, at_c, is_c, WIDE)
    drive = dt * _load(x_ptr, at_c, is_c, WIDE)
    b = _load(B_ptr, at_n, is_n, WIDE)
    decay = tl.exp(dt[:, :, None] * a[None, :, :])
    return tl.flip(_compose_before(decay, drive[:, :, None] * b[:, None, :], h), 0)


@triton.jit
def _backward(
    x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, kept_ptr, gy_ptr, glast_ptr,
    gx_ptr, gdt_ptr, gA_ptr, gB_ptr, gC_ptr, gD_ptr, gh0_ptr, length, channels, states,
    CHUNK: tl.constexpr, STAGES: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The gradient g of the state after each token: g_t = gy_t C_t + decay_{t+1} g_{t+1}, from the end.

    A token is the map q -> decay (q + gy C) of the last term, so that a chunk is composed as the forward's are.
    """
    WIDE: tl.constexpr = kept_ptr.dtype.element_ty
    sequence, c, n, at_h, is_h = _block(channels, states, BLOCK_C, BLOCK_N)
    size = channels * states
    # The place of this program's own sums over channels: gB and gC are (blocks, batch, T, N).
    own = tl.program_id(1).to(tl.int64) * tl.num_programs(0) * length * states
    a = _load(A_ptr, at_h, is_h, WIDE)
    d = _load(D_ptr, c, c < channels, WIDE)
    carried = _load(glast_ptr + sequence * size, at_h, is_h, WIDE)
    ga = tl.zeros([BLOCK_C, BLOCK_N], dtype=WIDE)
    gd = tl.zeros([BLOCK_C], dtype=WIDE)
    chunks = tl.cdiv(length, CHUNK)
    for back in tl.range(0, chunks, num_stages=STAGES):
        chunk = chunks - 1 - back
        t = chunk * CHUNK + tl.arange(0, CHUNK)
        h = _load(kept_ptr + (sequence * chunks + chunk) * size, at_h, is_h, WIDE)
        before = _states_before(x_ptr, dt_ptr, B_ptr, a, h, t, c, n, sequence, length, channels, states, WIDE)
        t = chunk * CHUNK + CHUNK - 1 - tl.arange(0, CHUNK)
        at_c, is_c = _place(t, c, sequence, length, channels)
        at_n, is_n = _place(t, n, sequence, length, states)
        x = _load(x_ptr, at_c, is_c, WIDE)
        dt = _load(dt_ptr, at_c, is_c, WIDE)
        gy = _load(gy_ptr, at_c, is_c, WIDE)
        b = _load(B_ptr, at_n, is_n, WIDE)
        read = _load(C_ptr, at_n, is_n, WIDE)
        decay = tl.exp(dt[:, :, None] * a[None, :, :])
        drive = dt * x
        after = decay * before + drive[:, :, None] * b[:, None, :]
        tl.store(gC_ptr + own + at_n, tl.sum(after * gy[:, :, None], 1), mask=is_n)
        g = gy[:, :, None] * read[:, None, :]
        g += _compose_before(decay, decay * g, carried)
        tl.store(gB_ptr + own + at_n, tl.sum(g * drive[:, :, None], 1), mask=is_n)
        gdrive = tl.sum(g * b[:, None, :], 2)
        g *= decay
        carried = _row(g, CHUNK - 1)
        g *= before  # the gradient of the exponent dt A
        gx = gdrive * dt + gy * d[None, :]
        gdt = gdrive * x + tl.sum(g * a[None, :, :], 2)
        ga += tl.sum(g * dt[:, :, None], 0)
        gd += tl.sum(gy * x, 0)
        tl.store(gx_ptr + at_c, gx.to(gx_ptr.dtype.element_ty), mask=is_c)
        tl.store(gdt_ptr + at_c, gdt.to(gdt_ptr.dtype.element_ty), mask=is_c)
    tl.store(gA_ptr + sequence * size + at_h, ga, mask=is_h)
    tl.store(gh0_ptr + sequence * size + at_h, carried, mask=is_h)
    tl.store(gD_ptr + sequence * channels + c, gd, mask=c < channels)
