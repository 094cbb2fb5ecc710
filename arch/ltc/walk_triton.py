"""The liquid scan's walks over time on CUDA: a warp takes one sequence and a block of channels, its state in registers.

A walk waits for nothing but its own arithmetic: the tensors of the next tokens are on their way while one is crossed,
and the substeps are unrolled, since Triton fetches ahead in innermost loops alone. The states before a token are h0 and
the rows of y where a state is its own read-out. Else the forward keeps those before the tokens CHUNK, 2 CHUNK, ...
(`marks`), and the backward computes the tokens of a chunk again and keeps what they start from in `scratch`.

States are (CHANNELS, N), the rest by channel. A token's field is the tuple (a, A, B, C, inv_tau, omega, w) of shapes
(CHANNELS), (CHANNELS), (N), (N), twice (CHANNELS, N), (CHANNELS).
"""

import triton
import triton.language as tl

from arch.solvers_triton import (
    REFLECTED,
    SEMI_IMPLICIT,
    SLOPE,
    exponential,
    exponential_vjp,
    reflected,
    reflected_vjp,
    semi_implicit,
    semi_implicit_vjp,
    slope,
    slope_vjp,
    sum_slopes,
)
from harness.ops.toolbox.triton_math import sigmoid, softplus


@triton.jit
def read_out(C, h):
    """y = sum_n C_n h_n, by channel."""
    return tl.sum(C[None, :] * h, axis=1)


@triton.jit
def _gate(field, h, COUPLED: tl.constexpr, SOFTPLUS: tl.constexpr):
    """f and its slope by its argument."""
    a, _, _, C, _, _, w = field
    u = a
    if COUPLED:
        u = a + w * read_out(C, h)
    slope = sigmoid(u)
    if SOFTPLUS:
        return softplus(u), slope
    else:
        return slope, slope * (1.0 - slope)


@triton.jit
def _rate_and_drive(field, f):
    """The rate and the drive of every state."""
    _, A, B, _, inv_tau, omega, _ = field
    return inv_tau + omega * f[:, None], (f * A)[:, None] * B[None, :]


@triton.jit
def _slope(field, h, COUPLED: tl.constexpr, SOFTPLUS: tl.constexpr):
    f, _ = _gate(field, h, COUPLED, SOFTPLUS)
    rate, drive = _rate_and_drive(field, f)
    return slope(h, rate, drive)


@triton.jit
def substep(
    field, h, dt, KIND: tl.constexpr, STAGES: tl.constexpr, TABLEAU: tl.constexpr, COUPLED: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """The states after one substep of length dt."""
    if KIND == SLOPE:
        slopes = ()
        for j in tl.static_range(STAGES):
            x = sum_slopes(h, dt, slopes, TABLEAU, STAGES, j)
            slopes = slopes + (_slope(field, x, COUPLED, SOFTPLUS),)  # noqa: RUF005, Triton unpacks no tuples
        return sum_slopes(h, dt, slopes, TABLEAU, STAGES, STAGES)
    else:
        f, _ = _gate(field, h, COUPLED, SOFTPLUS)
        rate, drive = _rate_and_drive(field, f)
        if KIND == SEMI_IMPLICIT:
            end, _ = semi_implicit(h, rate, drive, dt)
            return end
        elif KIND == REFLECTED:
            end, _, _ = reflected(h, rate, drive, dt)
            return end
        else:
            end, _, _ = exponential(h, rate, drive, dt)
            return end


@triton.jit
def _frozen_vjp(h, rate, drive, dt, g, KIND: tl.constexpr):
    """The cotangents of h, rate and drive for that of the states after a substep whose gate is frozen."""
    if KIND == SEMI_IMPLICIT:
        end, inverse = semi_implicit(h, rate, drive, dt)
        return semi_implicit_vjp(end, inverse, dt, g)
    elif KIND == REFLECTED:
        _, decay, mean = reflected(h, rate, drive, dt)
        return reflected_vjp(h, rate, drive, dt, decay, mean, g)
    else:
        _, decay, mean = exponential(h, rate, drive, dt)
        return exponential_vjp(h, rate, drive, dt, decay, mean, g)


@triton.jit
def _field_vjp(field, x, f, slope, g_x, g_rate, g_drive, sums, COUPLED: tl.constexpr):
    """From the cotangents of x, rate and drive to that of x through the gate too; adds the field's to `sums`."""
    _, A, B, C, _, omega, w = field
    g_a, g_A, g_B, g_C, g_inv_tau, g_omega, g_w = sums
    by_drive = tl.sum(B[None, :] * g_drive, axis=1)
    g_u = (tl.sum(omega * g_rate, axis=1) + A * by_drive) * slope
    g_A += f * by_drive
    g_B += tl.sum((f * A)[:, None] * g_drive, axis=0)
    g_inv_tau += g_rate
    g_omega += f[:, None] * g_rate
    g_a += g_u
    if COUPLED:
        g_w += g_u * read_out(C, x)
        g_C += tl.sum((g_u * w)[:, None] * x, axis=0)
        g_x += C[None, :] * (g_u * w)[:, None]
    return g_x, (g_a, g_A, g_B, g_C, g_inv_tau, g_omega, g_w)


@triton.jit
def _starts(
    field, h, dt, STAGES: tl.constexpr, TABLEAU: tl.constexpr, COUPLED: tl.constexpr, SOFTPLUS: tl.constexpr
):  # fmt: skip
    """What the stages of an explicit substep from h start from."""
    slopes, starts = (), ()
    for j in tl.static_range(STAGES):
        x = sum_slopes(h, dt, slopes, TABLEAU, STAGES, j)
        starts = starts + (x,)  # noqa: RUF005
        slopes = slopes + (_slope(field, x, COUPLED, SOFTPLUS),)  # noqa: RUF005
    return starts


@triton.jit
def substep_vjp(
    field, h, dt, g, sums, KIND: tl.constexpr, STAGES: tl.constexpr, TABLEAU: tl.constexpr, COUPLED: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """From g of the states after a substep to that of h, before it; adds the field's cotangents to `sums`."""
    if KIND == SLOPE:
        starts = _starts(field, h, dt, STAGES, TABLEAU, COUPLED, SOFTPLUS)
        total, later = g, ()  # later: the cotangents of what the stages after j start from, the last stage's first
        for j in tl.static_range(STAGES - 1, -1, -1):
            g_k = TABLEAU[STAGES * STAGES + j] * g
            for i in tl.static_range(STAGES - 1, j, -1):
                if TABLEAU[i * STAGES + j] != 0:
                    g_k += TABLEAU[i * STAGES + j] * later[STAGES - 1 - i]
            g_k = dt * g_k
            x = starts[j]
            f, gate_slope = _gate(field, x, COUPLED, SOFTPLUS)
            rate, _ = _rate_and_drive(field, f)
            g_x, g_rate, g_drive = slope_vjp(x, rate, g_k)
            g_x, sums = _field_vjp(field, x, f, gate_slope, g_x, g_rate, g_drive, sums, COUPLED)
            total += g_x
            later = later + (g_x,)  # noqa: RUF005
        return total, sums
    else:
        f, gate_slope = _gate(field, h, COUPLED, SOFTPLUS)
        rate, drive = _rate_and_drive(field, f)
        g_h, g_rate, g_drive = _frozen_vjp(h, rate, drive, dt, g, KIND)
        return _field_vjp(field, h, f, gate_slope, g_h, g_rate, g_drive, sums, COUPLED)


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
    field, h, step, SUBSTEPS: tl.constexpr,
    KIND: tl.constexpr, STAGES: tl.constexpr, TABLEAU: tl.constexpr, COUPLED: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """The states after one token."""
    for _ in tl.static_range(SUBSTEPS):
        h = substep(field, h, step, KIND, STAGES, TABLEAU, COUPLED, SOFTPLUS)
    return h


@triton.jit
def forward(
    a, A, B, C, inv_tau, omega, w, h0, dt, y, last, marks,
    T, D, N, chunk, SUBSTEPS: tl.constexpr, KEEP: tl.constexpr, PROJECTED: tl.constexpr,
    KIND: tl.constexpr, STAGES: tl.constexpr, TABLEAU: tl.constexpr, COUPLED: tl.constexpr, SOFTPLUS: tl.constexpr,
    CHANNELS: tl.constexpr, STATES: tl.constexpr, IN_FLIGHT: tl.constexpr,
):  # fmt: skip
    """Fills y (batch, T, D), last (batch, D, N) and, where KEEP, marks (batch, (T - 1) // chunk, D, N)."""
    b = tl.program_id(0)
    channel, there, at, inside = _block(D, N, CHANNELS, STATES)
    rates = _rates(inv_tau, omega, w, channel, there, at, inside)
    size = D * N
    h = tl.load(h0 + b * size + at, mask=inside, other=0.0)
    for t in tl.range(0, T, num_stages=IN_FLIGHT):
        if KEEP:
            mark = b.to(tl.int64) * ((T - 1) // chunk) + t // chunk - 1
            tl.store(marks + mark * size + at, h, mask=inside & (t % chunk == 0) & (t > 0))
        row = b * T + t
        field, step = _field((a, A, B, C, dt, D), row, channel, there, rates, N, PROJECTED, STATES)
        h = _cross(field, h, step, SUBSTEPS, KIND, STAGES, TABLEAU, COUPLED, SOFTPLUS)
        tl.store(y + row.to(tl.int64) * D + channel, read_out(field[3], h), mask=there)
    tl.store(last + b * size + at, h, mask=inside)


@triton.jit
def _cross_vjp(
    field, h, step, g, g_read, constants, SUBSTEPS: tl.constexpr,
    KIND: tl.constexpr, STAGES: tl.constexpr, TABLEAU: tl.constexpr, COUPLED: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """From g of the states after a token, and g_read of its y, to that of h, the states before it.

    Returns it and the cotangents of the field, those of inv_tau, omega and w added to `constants`.
    """
    starts = (h,)
    for _ in tl.static_range(SUBSTEPS):
        h = substep(field, h, step, KIND, STAGES, TABLEAU, COUPLED, SOFTPLUS)
        starts = starts + (h,)  # noqa: RUF005, Triton unpacks no tuples
    g += field[3][None, :] * g_read[:, None]
    sum_a, sum_A, sum_B = tl.zeros_like(g_read), tl.zeros_like(g_read), tl.zeros_like(field[3])
    sum_C = tl.sum(g_read[:, None] * h, axis=0)
    sums = (sum_a, sum_A, sum_B, sum_C, constants[0], constants[1], constants[2])
    for s in tl.static_range(SUBSTEPS - 1, -1, -1):
        g, sums = substep_vjp(field, starts[s], step, g, sums, KIND, STAGES, TABLEAU, COUPLED, SOFTPLUS)
    return g, sums


@triton.jit
def _token_vjp(
    tensors, gy, by_token, row, h, g, constants, channel, there, rates, N,
    PROJECTED: tl.constexpr, STATES: tl.constexpr, SUBSTEPS: tl.constexpr,
    KIND: tl.constexpr, STAGES: tl.constexpr, TABLEAU: tl.constexpr, COUPLED: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """Pulls g back over the token `row` from the states h before it, and writes the gradients of its a, A, B and C."""
    field, step = _field(tensors, row, channel, there, rates, N, PROJECTED, STATES)
    place = row.to(tl.int64) * tensors[5] + channel
    g_read = tl.load(gy + place, mask=there, other=0.0)
    g, sums = _cross_vjp(
        field, h, step, g, g_read, constants, SUBSTEPS, KIND, STAGES, TABLEAU, COUPLED, SOFTPLUS
    )  # fmt: skip
    g_a, g_A, g_B, g_C = by_token
    tl.store(g_a + place, sums[0], mask=there)
    tl.store(g_A + place, sums[1], mask=there)
    if PROJECTED:
        state = tl.arange(0, STATES)
        part = (row.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * N + state
        tl.store(g_B + part, sums[2], mask=state < N)
        tl.store(g_C + part, sums[3], mask=state < N)
    return g, (sums[4], sums[5], sums[6])


@triton.jit
def _keep_tokens(
    tensors, begin, end, start, h, channel, there, rates, N, tokens, one,
    PROJECTED: tl.constexpr, STATES: tl.constexpr, SUBSTEPS: tl.constexpr,
    KIND: tl.constexpr, STAGES: tl.constexpr, TABLEAU: tl.constexpr, COUPLED: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """Leaves in `tokens` the states before each of the tokens begin .. end - 1, h before the first; row 0 is start."""
    t = begin
    while t < end:
        tl.store(tokens + (t - begin) * one, h)
        if t + 1 < end:
            field, step = _field(tensors, start + t, channel, there, rates, N, PROJECTED, STATES)
            h = _cross(field, h, step, SUBSTEPS, KIND, STAGES, TABLEAU, COUPLED, SOFTPLUS)
        t += 1
    tl.debug_barrier()


@triton.jit
def _chunk_back(
    tensors, gy, by_token, begin, end, start, h, g, constants, channel, there, rates, N, tokens, one,
    PROJECTED: tl.constexpr, STATES: tl.constexpr, SUBSTEPS: tl.constexpr,
    KIND: tl.constexpr, STAGES: tl.constexpr, TABLEAU: tl.constexpr, COUPLED: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """Pulls g back over the tokens begin .. end - 1 from the states h before the first; row 0 is start."""
    _keep_tokens(
        tensors, begin, end, start, h, channel, there, rates, N, tokens, one,
        PROJECTED, STATES, SUBSTEPS, KIND, STAGES, TABLEAU, COUPLED, SOFTPLUS,
    )  # fmt: skip
    t = end - 1
    while t >= begin:
        before = tl.load(tokens + (t - begin) * one)
        g, constants = _token_vjp(
            tensors, gy, by_token, start + t, before, g, constants, channel, there, rates, N,
            PROJECTED, STATES, SUBSTEPS, KIND, STAGES, TABLEAU, COUPLED, SOFTPLUS,
        )  # fmt: skip
        t -= 1
    tl.debug_barrier()  # the next chunk overwrites what a thread may still read
    return g, constants


@triton.jit
def backward(
    a, A, B, C, inv_tau, omega, w, h0, dt, marks, gy, g_last,
    g_a, g_A, g_B, g_C, g_inv_tau, g_omega, g_w, g_h0, scratch,
    T, D, N, chunk, SUBSTEPS: tl.constexpr, PROJECTED: tl.constexpr,
    KIND: tl.constexpr, STAGES: tl.constexpr, TABLEAU: tl.constexpr, COUPLED: tl.constexpr, SOFTPLUS: tl.constexpr,
    CHANNELS: tl.constexpr, STATES: tl.constexpr, IN_FLIGHT: tl.constexpr,
):  # fmt: skip
    """Fills the gradients: of a, A (batch, T, D); of B, C (batch, T, blocks, N); of inv_tau, omega, h0 (batch, D, N);
    of w (batch, D). gy, g_last: those given. marks: the forward's, or its y. scratch: chunk states of every program."""
    b = tl.program_id(0)
    channel, there, at, inside = _block(D, N, CHANNELS, STATES)
    rates = _rates(inv_tau, omega, w, channel, there, at, inside)
    tensors, by_token, size, one = (a, A, B, C, dt, D), (g_a, g_A, g_B, g_C), D * N, CHANNELS * STATES
    first = tl.load(h0 + b * size + at, mask=inside, other=0.0)
    g = tl.load(g_last + b * size + at, mask=inside, other=0.0)
    constants = (tl.zeros_like(g), tl.zeros_like(g), tl.zeros_like(rates[2]))
    own = tl.arange(0, CHANNELS)[:, None] * STATES + tl.arange(0, STATES)[None, :]
    tokens = scratch + (b.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * chunk * one + own
    if not PROJECTED:
        for back in tl.range(0, T, num_stages=IN_FLIGHT):
            row = b * T + T - 1 - back
            before = tl.load(marks + (row.to(tl.int64) - 1) * size + at, mask=inside & (back < T - 1), other=0.0)
            g, constants = _token_vjp(
                tensors, gy, by_token, row, tl.where(back < T - 1, before, first), g, constants,
                channel, there, rates, N, PROJECTED, STATES, SUBSTEPS, KIND, STAGES, TABLEAU, COUPLED, SOFTPLUS,
            )  # fmt: skip
    else:
        begin = (T - 1) // chunk * chunk
        while begin >= 0:
            mark = b.to(tl.int64) * ((T - 1) // chunk) + begin // chunk - 1
            h = tl.load(marks + mark * size + at, mask=inside & (begin > 0), other=0.0)
            g, constants = _chunk_back(
                tensors, gy, by_token, begin, tl.minimum(begin + chunk, T), b * T, tl.where(begin > 0, h, first),
                g, constants, channel, there, rates, N, tokens, one,
                PROJECTED, STATES, SUBSTEPS, KIND, STAGES, TABLEAU, COUPLED, SOFTPLUS,
            )  # fmt: skip
            begin -= chunk
    tl.store(g_inv_tau + b * size + at, constants[0], mask=inside)
    tl.store(g_omega + b * size + at, constants[1], mask=inside)
    tl.store(g_h0 + b * size + at, g, mask=inside)
    tl.store(g_w + b * D + channel, constants[2], mask=there)
