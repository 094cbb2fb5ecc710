"""Every token's flow at once on CUDA, for Newton's method over time: its value with its derivative, and its vjp.

Each element of (batch, T, D) is a scalar flow of its own, so every derivative is a tangent carried along its substeps:
by the state for J, by each of a, A, 1/tau, omega and w for the vjp, in registers, with nothing recomputed or kept.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from arch.field import Field
from arch.ltc.tokens import check
from arch.solvers import Solver
from arch.solvers_triton import (
    REFLECTED,
    SEMI_IMPLICIT,
    SLOPE,
    exponential,
    exponential_vjp,
    method,
    reflected,
    reflected_vjp,
    semi_implicit,
    semi_implicit_vjp,
    slope,
    slope_vjp,
    sum_slopes,
)
from harness.ops.shapes import expect
from harness.ops.toolbox.triton_math import one, sigmoid, softplus

ROWS, CHANNELS = 8, 64  # tokens and channels of a tile
RUN = 64  # tokens whose gradients of the constants one program sums


def tokens(solver: Solver, field: Field, h0: Tensor, elapsed: Tensor | None, h: Tensor) -> tuple[Tensor, Tensor]:
    """As arch.ltc.tokens.tokens."""
    inputs = _prepared(solver, field, h0, elapsed, h)
    residual, J = torch.empty_like(inputs[0]), torch.empty_like(inputs[0])
    rows, T, D = h.shape[0] * h.shape[1], *h.shape[1:]
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(D, CHANNELS))
    rule = (solver.substeps, *method(solver), field.gate == "softplus", ROWS, CHANNELS)
    _tokens[grid](*inputs, residual, J, rows, T, D, *rule)
    return residual, J


def tokens_vjp(
    solver: Solver, field: Field, h0: Tensor, elapsed: Tensor | None, h: Tensor, g: Tensor
) -> tuple[Tensor, ...]:
    """As arch.ltc.tokens.tokens_vjp."""
    inputs = _prepared(solver, field, h0, elapsed, h)
    expect("liquid_tokens", ("g", g, h.shape))
    rows, T, D = h.shape[0] * h.shape[1], *h.shape[1:]
    runs = triton.cdiv(rows, RUN)
    g_a, g_A = torch.empty_like(inputs[0]), torch.empty_like(inputs[0])
    parts = torch.empty(3, runs, D, dtype=h.dtype, device=h.device)
    grid = (runs, triton.cdiv(D, CHANNELS))
    rule = (solver.substeps, *method(solver), field.gate == "softplus", ROWS, CHANNELS, RUN)
    _tokens_vjp[grid](*inputs, g.contiguous(), g_a, g_A, *parts, rows, T, D, *rule)
    g_inv_tau, g_omega, g_w = parts.sum(1)
    rates = g_inv_tau.unsqueeze(1), g_omega.unsqueeze(1)
    return (g_a, g_A, *rates) if field.coupling is None else (g_a, g_A, *rates, g_w)


def _prepared(solver: Solver, field: Field, h0: Tensor, elapsed: Tensor | None, h: Tensor) -> list[Tensor]:
    check("triton", solver, field, h0, elapsed, h)
    dt = (h.new_ones(h.shape[:2]) if elapsed is None else elapsed) / solver.substeps
    w = torch.zeros_like(field.inv_tau) if field.coupling is None else field.coupling
    tensors = (field.a, field.A, field.inv_tau, field.omega, w, h0, h, dt)
    return [x.contiguous() for x in tensors]


@triton.jit
def _rates(x, dx, p, d, SOFTPLUS: tl.constexpr):
    """The rate and the drive at the state x, and their tangents along dx and the parameters' directions d."""
    a, A, inv_tau, omega, w = p
    da, dA, dinv_tau, domega, dw = d
    u = a + w * x
    slope = sigmoid(u)
    if SOFTPLUS:
        f = softplus(u)
    else:
        f = slope
        slope = f * (1.0 - f)
    df = slope * (w * dx + dw * x + da)
    return inv_tau + omega * f, f * A, dinv_tau + domega * f + omega * df, df * A + dA * f


@triton.jit
def _slope(x, dx, p, d, SOFTPLUS: tl.constexpr):
    """dh/dt at x and its tangent."""
    rate, drive, drate, ddrive = _rates(x, dx, p, d, SOFTPLUS)
    by_x, by_rate, by_drive = slope_vjp(x, rate, one(rate))
    return slope(x, rate, drive), by_drive * ddrive + by_rate * drate + by_x * dx


@triton.jit
def _substep(
    h, dh, dt, p, d, KIND: tl.constexpr, STAGES: tl.constexpr, TABLEAU: tl.constexpr, SOFTPLUS: tl.constexpr
):  # fmt: skip
    """One step of the solver and its tangent; the arithmetic that two directions share is the compiler's to merge."""
    if KIND == SLOPE:
        slopes, tangents = (), ()
        for j in tl.static_range(STAGES):
            x = sum_slopes(h, dt, slopes, TABLEAU, STAGES, j)
            dx = sum_slopes(dh, dt, tangents, TABLEAU, STAGES, j)
            k, dk = _slope(x, dx, p, d, SOFTPLUS)
            slopes = slopes + (k,)  # noqa: RUF005, Triton unpacks no tuples
            tangents = tangents + (dk,)  # noqa: RUF005
        end = sum_slopes(h, dt, slopes, TABLEAU, STAGES, STAGES)
        dend = sum_slopes(dh, dt, tangents, TABLEAU, STAGES, STAGES)
    else:
        rate, drive, drate, ddrive = _rates(h, dh, p, d, SOFTPLUS)
        if KIND == SEMI_IMPLICIT:
            end, inverse = semi_implicit(h, rate, drive, dt)
            by_h, by_rate, by_drive = semi_implicit_vjp(end, inverse, dt, one(dt))
        elif KIND == REFLECTED:
            end, decay, mean = reflected(h, rate, drive, dt)
            by_h, by_rate, by_drive = reflected_vjp(h, rate, drive, dt, decay, mean, one(dt))
        else:
            end, decay, mean = exponential(h, rate, drive, dt)
            by_h, by_rate, by_drive = exponential_vjp(h, rate, drive, dt, decay, mean, one(dt))
        dend = by_h * dh + by_rate * drate + by_drive * ddrive
    return end, dend


@triton.jit
def _load(a, A, inv_tau, omega, w, h0, h, dt, row, rows, T, D, CHANNELS: tl.constexpr):
    """Of a tile from token `row` on: offsets, mask, the states before its tokens, its steps and its parameters."""
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    there, inside = channel < D, (row < rows) & (channel < D)
    at = row.to(tl.int64) * D + channel
    first = row % T == 0
    before = tl.load(h + at - D, mask=inside & ~first, other=0.0)
    before += tl.load(h0 + (row // T).to(tl.int64) * D + channel, mask=inside & first, other=0.0)
    step = tl.load(dt + row, mask=row < rows, other=0.0)
    token = (tl.load(a + at, mask=inside, other=0.0), tl.load(A + at, mask=inside, other=0.0))
    rates = (tl.load(inv_tau + channel, mask=there, other=0.0), tl.load(omega + channel, mask=there, other=0.0))
    weight = tl.load(w + channel, mask=there, other=0.0)
    return at, inside, before, step, (token[0], token[1], rates[0], rates[1], weight)


@triton.jit
def _tokens(
    a, A, inv_tau, omega, w, h0, h, dt, residual, J, rows, T, D, substeps,
    KIND: tl.constexpr, STAGES: tl.constexpr, TABLEAU: tl.constexpr, SOFTPLUS: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    at, inside, x, step, p = _load(a, A, inv_tau, omega, w, h0, h, dt, row, rows, T, D, CHANNELS)
    dx = tl.full((ROWS, CHANNELS), 1.0, x.dtype)
    k = 0
    while k < substeps:
        x, dx = _substep(x, dx, step, p, (0.0, 0.0, 0.0, 0.0, 0.0), KIND, STAGES, TABLEAU, SOFTPLUS)
        k += 1
    tl.store(residual + at, x - tl.load(h + at, mask=inside, other=0.0), mask=inside)
    tl.store(J + at, dx, mask=inside)


@triton.jit
def _tokens_vjp(
    a, A, inv_tau, omega, w, h0, h, dt, g, g_a, g_A, g_inv_tau, g_omega, g_w, rows, T, D, substeps,
    KIND: tl.constexpr, STAGES: tl.constexpr, TABLEAU: tl.constexpr, SOFTPLUS: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    nothing = tl.zeros((ROWS, CHANNELS), a.dtype.element_ty)
    sum_inv_tau, sum_omega, sum_w = nothing, nothing, nothing
    start = 0
    while start < RUN:
        row = tl.program_id(0) * RUN + start + tl.arange(0, ROWS)[:, None]
        at, inside, x, step, p = _load(a, A, inv_tau, omega, w, h0, h, dt, row, rows, T, D, CHANNELS)
        by_a, by_A, by_inv_tau, by_omega, by_w = nothing, nothing, nothing, nothing, nothing
        k = 0
        while k < substeps:
            end, by_a = _substep(x, by_a, step, p, (1.0, 0.0, 0.0, 0.0, 0.0), KIND, STAGES, TABLEAU, SOFTPLUS)
            _, by_A = _substep(x, by_A, step, p, (0.0, 1.0, 0.0, 0.0, 0.0), KIND, STAGES, TABLEAU, SOFTPLUS)
            _, by_inv_tau = _substep(x, by_inv_tau, step, p, (0.0, 0.0, 1.0, 0.0, 0.0), KIND, STAGES, TABLEAU, SOFTPLUS)
            _, by_omega = _substep(x, by_omega, step, p, (0.0, 0.0, 0.0, 1.0, 0.0), KIND, STAGES, TABLEAU, SOFTPLUS)
            _, by_w = _substep(x, by_w, step, p, (0.0, 0.0, 0.0, 0.0, 1.0), KIND, STAGES, TABLEAU, SOFTPLUS)
            x = end
            k += 1
        cotangent = tl.load(g + at, mask=inside, other=0.0)
        tl.store(g_a + at, cotangent * by_a, mask=inside)
        tl.store(g_A + at, cotangent * by_A, mask=inside)
        sum_inv_tau += cotangent * by_inv_tau
        sum_omega += cotangent * by_omega
        sum_w += cotangent * by_w
        start += ROWS
    at = tl.program_id(0) * D + channel
    tl.store(g_inv_tau + at, tl.sum(sum_inv_tau, axis=0), mask=channel < D)
    tl.store(g_omega + at, tl.sum(sum_omega, axis=0), mask=channel < D)
    tl.store(g_w + at, tl.sum(sum_w, axis=0), mask=channel < D)
