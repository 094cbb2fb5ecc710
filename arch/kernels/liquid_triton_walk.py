"""The liquid scan's walks over time on CUDA: one program takes one sequence and a block of channels, its state in
registers.

The forward keeps the states before the tokens CHUNK, 2 CHUNK, ... (`marks`); where a state is its own read-out they are
rows of y. The backward computes the tokens of a chunk again, then each token's substeps, and keeps what they start from
in `scratch`, which is small enough for the caches whatever the length.
"""

import triton
import triton.language as tl

from arch.kernels.liquid_triton_solvers import read_out, substep, substep_vjp


@triton.jit
def _block(D, N, CHANNELS: tl.constexpr, STATES: tl.constexpr):
    """This program's channels, those that exist, the offsets of its states in (D, N), and those that exist."""
    channel, state = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, STATES)
    there = channel < D
    return channel, there, channel[:, None] * N + state[None, :], there[:, None] & (state < N)[None, :]


@triton.jit
def _field(tensors, row, channel, there, rates, N, PROJECTED: tl.constexpr, STATES: tl.constexpr):
    """The field and the substep of the token `row` of (batch, T)."""
    a, A, B, C, dt, D = tensors
    at = row.to(tl.int64) * D + channel
    a_t, A_t = tl.load(a + at, mask=there, other=0.0), tl.load(A + at, mask=there, other=0.0)
    B_t, C_t = tl.full((STATES,), 1.0, a_t.dtype), tl.full((STATES,), 1.0, a_t.dtype)
    if PROJECTED:
        state = tl.arange(0, STATES)
        place = row.to(tl.int64) * N + state
        B_t, C_t = tl.load(B + place, mask=state < N, other=0.0), tl.load(C + place, mask=state < N, other=0.0)
    inv_tau, omega, w = rates
    return (a_t, A_t, B_t, C_t, inv_tau, omega, w), tl.load(dt + row)


@triton.jit
def _rates(inv_tau, omega, w, channel, there, at, inside):
    return (
        tl.load(inv_tau + at, mask=inside, other=0.0),
        tl.load(omega + at, mask=inside, other=0.0),
        tl.load(w + channel, mask=there, other=0.0),
    )


@triton.jit
def _cross(
    field, h, step, substeps,
    KIND: tl.constexpr, AHEAD: tl.constexpr, SHARE: tl.constexpr, COUPLED: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """The states after one token."""
    s = 0
    while s < substeps:
        h = substep(field, h, step, KIND, AHEAD, SHARE, COUPLED, SOFTPLUS)
        s += 1
    return h


@triton.jit
def forward(
    a, A, B, C, inv_tau, omega, w, h0, dt, y, last, marks,
    T, D, N, substeps, chunk, KEEP: tl.constexpr, PROJECTED: tl.constexpr,
    KIND: tl.constexpr, AHEAD: tl.constexpr, SHARE: tl.constexpr, COUPLED: tl.constexpr, SOFTPLUS: tl.constexpr,
    CHANNELS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """Fills y (batch, T, D), last (batch, D, N) and, where KEEP, marks (batch, (T - 1) // chunk, D, N)."""
    b = tl.program_id(0)
    channel, there, at, inside = _block(D, N, CHANNELS, STATES)
    rates = _rates(inv_tau, omega, w, channel, there, at, inside)
    size = D * N
    h = tl.load(h0 + b * size + at, mask=inside, other=0.0)
    t = 0
    while t < T:
        if KEEP:
            mark = b.to(tl.int64) * ((T - 1) // chunk) + t // chunk - 1
            tl.store(marks + mark * size + at, h, mask=inside & (t % chunk == 0) & (t > 0))
        row = b * T + t
        field, step = _field((a, A, B, C, dt, D), row, channel, there, rates, N, PROJECTED, STATES)
        h = _cross(field, h, step, substeps, KIND, AHEAD, SHARE, COUPLED, SOFTPLUS)
        tl.store(y + row.to(tl.int64) * D + channel, read_out(field[3], h), mask=there)
        t += 1
    tl.store(last + b * size + at, h, mask=inside)


@triton.jit
def _cross_vjp(
    field, h, step, g, g_read, substeps, starts, one, inv_tau_omega_w,
    KIND: tl.constexpr, AHEAD: tl.constexpr, SHARE: tl.constexpr, COUPLED: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """From g of the states after a token, and g_read of its y, to that of h, the states before it.

    Returns it and the cotangents of the field, those of its last three added to the ones given. starts: scratch.
    """
    s = 0
    while s < substeps:
        tl.store(starts + s * one, h)
        h = substep(field, h, step, KIND, AHEAD, SHARE, COUPLED, SOFTPLUS)
        s += 1
    tl.debug_barrier()
    g += field[3][None, :] * g_read[:, None]
    sum_inv_tau, sum_omega, sum_w = inv_tau_omega_w
    sum_a, sum_A, sum_B = tl.zeros_like(g_read), tl.zeros_like(g_read), tl.zeros_like(field[3])
    sum_C = tl.sum(g_read[:, None] * h, axis=0)
    s = substeps - 1
    while s >= 0:
        sums = (sum_a, sum_A, sum_B, sum_C, sum_inv_tau, sum_omega, sum_w)
        h = tl.load(starts + s * one)
        g, sums = substep_vjp(field, h, step, g, sums, KIND, AHEAD, SHARE, COUPLED, SOFTPLUS)
        sum_a, sum_A, sum_B, sum_C, sum_inv_tau, sum_omega, sum_w = sums
        s -= 1
    tl.debug_barrier()
    return g, (sum_a, sum_A, sum_B, sum_C, sum_inv_tau, sum_omega, sum_w)


@triton.jit
def _chunk_start(h0, marks, begin, chunk, T, size, at, inside, PROJECTED: tl.constexpr):
    """The states before the token `begin`: h0, what the forward kept, or the row of y before it."""
    b = tl.program_id(0)
    mark = b.to(tl.int64) * ((T - 1) // chunk) + begin // chunk - 1
    if not PROJECTED:
        mark = b.to(tl.int64) * T + begin - 1
    h = tl.load(h0 + b * size + at, mask=inside & (begin == 0), other=0.0)
    return h + tl.load(marks + mark * size + at, mask=inside & (begin > 0), other=0.0)


@triton.jit
def _store_token(by_token, sums, row, channel, there, D, N, PROJECTED: tl.constexpr, STATES: tl.constexpr):
    """Writes the gradients of one token's a, A, B and C."""
    g_a, g_A, g_B, g_C = by_token
    place = row.to(tl.int64) * D + channel
    tl.store(g_a + place, sums[0], mask=there)
    tl.store(g_A + place, sums[1], mask=there)
    if PROJECTED:
        state = tl.arange(0, STATES)
        part = (row.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * N + state
        tl.store(g_B + part, sums[2], mask=state < N)
        tl.store(g_C + part, sums[3], mask=state < N)


@triton.jit
def _keep_tokens(
    tensors, begin, end, start, h, channel, there, rates, N, substeps, tokens, one,
    PROJECTED: tl.constexpr, STATES: tl.constexpr,
    KIND: tl.constexpr, AHEAD: tl.constexpr, SHARE: tl.constexpr, COUPLED: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """Leaves in `tokens` the states before each of the tokens begin .. end - 1, h before the first; row 0 is start."""
    t = begin
    while t < end:
        tl.store(tokens + (t - begin) * one, h)
        if t + 1 < end:
            field, step = _field(tensors, start + t, channel, there, rates, N, PROJECTED, STATES)
            h = _cross(field, h, step, substeps, KIND, AHEAD, SHARE, COUPLED, SOFTPLUS)
        t += 1
    tl.debug_barrier()


@triton.jit
def backward(
    a, A, B, C, inv_tau, omega, w, h0, dt, marks, gy, g_last,
    g_a, g_A, g_B, g_C, g_inv_tau, g_omega, g_w, g_h0, scratch,
    T, D, N, substeps, chunk, PROJECTED: tl.constexpr,
    KIND: tl.constexpr, AHEAD: tl.constexpr, SHARE: tl.constexpr, COUPLED: tl.constexpr, SOFTPLUS: tl.constexpr,
    CHANNELS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """Fills the gradients: of a, A (batch, T, D); of B, C (batch, T, blocks, N); of inv_tau, omega, h0 (batch, D, N);
    of w (batch, D). gy, g_last: those given. scratch: chunk + substeps states of every program."""
    b, program = tl.program_id(0), tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    channel, there, at, inside = _block(D, N, CHANNELS, STATES)
    rates = _rates(inv_tau, omega, w, channel, there, at, inside)
    tensors, size, one = (a, A, B, C, dt, D), D * N, CHANNELS * STATES
    own = tl.arange(0, CHANNELS)[:, None] * STATES + tl.arange(0, STATES)[None, :]
    tokens = scratch + program.to(tl.int64) * (chunk + substeps) * one + own
    g = tl.load(g_last + b * size + at, mask=inside, other=0.0)
    sum_inv_tau, sum_omega, sum_w = tl.zeros_like(g), tl.zeros_like(g), tl.zeros_like(rates[2])
    begin = (T - 1) // chunk * chunk
    while begin >= 0:
        end = tl.minimum(begin + chunk, T)
        h = _chunk_start(h0, marks, begin, chunk, T, size, at, inside, PROJECTED)
        _keep_tokens(
            tensors, begin, end, b * T, h, channel, there, rates, N, substeps, tokens, one,
            PROJECTED, STATES, KIND, AHEAD, SHARE, COUPLED, SOFTPLUS,
        )  # fmt: skip
        t = end - 1
        while t >= begin:
            row = b * T + t
            field, step = _field(tensors, row, channel, there, rates, N, PROJECTED, STATES)
            h = tl.load(tokens + (t - begin) * one)
            g_read = tl.load(gy + row.to(tl.int64) * D + channel, mask=there, other=0.0)
            constants = (sum_inv_tau, sum_omega, sum_w)
            g, sums = _cross_vjp(
                field, h, step, g, g_read, substeps, tokens + chunk * one, one, constants,
                KIND, AHEAD, SHARE, COUPLED, SOFTPLUS,
            )  # fmt: skip
            _store_token((g_a, g_A, g_B, g_C), sums, row, channel, there, D, N, PROJECTED, STATES)
            _, _, _, _, sum_inv_tau, sum_omega, sum_w = sums
            t -= 1
        begin -= chunk
    tl.store(g_inv_tau + b * size + at, sum_inv_tau, mask=inside)
    tl.store(g_omega + b * size + at, sum_omega, mask=inside)
    tl.store(g_h0 + b * size + at, g, mask=inside)
    tl.store(g_w + b * D + channel, sum_w, mask=there)
