"""Every token's flow at once on CPU, for Newton's method over time: its value with its derivative, and its vjp.

Each element is a scalar flow, so derivatives are tangents carried along its stages. With one state a channel, f =
gate(u), u = a + w x, rate = 1/tau + omega f and drive = f A, a stage's map y(x, rate, drive) of partial derivatives
(P, Q by drive, R by rate) has

    dy/du = (Q A + R omega) f'(u),    dy/dx = P + w dy/du,

and its direct derivatives by a, A, 1/tau, omega and w are dy/du, Q f, R, R f and x dy/du.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from arch.field import Field
from arch.ltc.tokens import check
from arch.solvers import Solver
from arch.solvers_numba import (
    EXPONENTIAL,
    REFLECTED,
    SEMI_IMPLICIT,
    SLOPE,
    exponential,
    exponential_vjp,
    looks_back,
    method,
    reflected,
    reflected_vjp,
    semi_implicit,
    semi_implicit_vjp,
    slope,
    slope_vjp,
)
from harness.ops.shapes import expect
from harness.ops.toolbox.jit import inlined, kernel
from harness.ops.toolbox.numba_math import one, sigmoid, softplus, zero
from harness.ops.toolbox.threads import spread

RUN = np.int64(64)  # tokens of a task
WIDTH = 256  # channels of a block, at most
DIRECTIONS = np.int64(5)  # of the vjp: a, A, 1/tau, omega, w

# Rows are NumPy integers: numba would compile every helper once more for each Python constant given to it.
PRE, REVERSAL, INV_TAU, OMEGA, COUPLING, H, X, Y, SUM, F, F_SLOPE, P, Q, R, SLOPE_TANGENT = np.arange(15)
NOTHING, BY_U, BY_REVERSAL, BY_INV_TAU, BY_OMEGA, BY_COUPLING, TANGENTS = np.arange(15, 22)
"""BY_U .. BY_COUPLING: a stage's direct derivatives, in the order of the vjp's directions."""
AT, TOTAL, ROWS = np.arange(1, 4)
"""A tangent's rows, from TANGENTS + ROWS * direction: itself, at the stage's start, and at the substep's end so far."""
SLOPES = TANGENTS + ROWS * DIRECTIONS
"""Where stages look back, from SLOPES + (1 + DIRECTIONS) * stage: its slope and the tangents of that."""


class Plan(NamedTuple):
    """What the kernels do, in numbers."""

    kind: int  # SLOPE, SEMI_IMPLICIT, EXPONENTIAL or REFLECTED
    softplus: int  # else sigmoid
    coupled: int  # w given
    substeps: int
    looks_back: int  # a stage starts from other slopes than the last: all are kept
    width: int  # channels of a block


@inlined
def load(s, row, values, i, j, low):
    """Copies values[i, j] from channel `low` on into a row; lanes past the last channel stay zero."""
    source = values[i, j, low:]
    for c in range(min(s.shape[1], len(source))):
        s[row, c] = source[c]


@inlined
def store(values, i, j, low, s, row):
    """Copies a row out to values[i, j] from channel `low` on."""
    target = values[i, j, low:]
    for c in range(min(s.shape[1], len(target))):
        target[c] = s[row, c]


@inlined
def copy(s, out, row):
    """out = row."""
    for c in range(s.shape[1]):
        s[out, c] = s[row, c]


@inlined
def add_scaled(s, out, row, scale, other):
    """out = row + scale * other."""
    for c in range(s.shape[1]):
        s[out, c] = s[row, c] + scale * s[other, c]


@inlined
def gate(s, p):
    """f and its slope at the stage's state; w is zero where there is no coupling."""
    if p.softplus:
        for c in range(s.shape[1]):
            u = s[PRE, c] + s[COUPLING, c] * s[X, c]
            s[F, c] = softplus(u)
            s[F_SLOPE, c] = sigmoid(u)
    else:
        for c in range(s.shape[1]):
            f = sigmoid(s[PRE, c] + s[COUPLING, c] * s[X, c])
            s[F, c] = f
            s[F_SLOPE, c] = f - f * f


@inlined
def stage(s, p, dt):
    """From the state X to the map's value Y and its derivatives: P by the state in all, and BY_U."""
    if p.coupled:
        gate(s, p)
    if p.kind == SLOPE:
        for c in range(s.shape[1]):
            rate, drive = s[INV_TAU, c] + s[OMEGA, c] * s[F, c], s[F, c] * s[REVERSAL, c]
            s[Y, c] = slope(s[X, c], rate, drive)
            s[P, c], s[R, c], s[Q, c] = slope_vjp(s[X, c], rate, one(rate))
    elif p.kind == SEMI_IMPLICIT:
        for c in range(s.shape[1]):
            rate, drive = s[INV_TAU, c] + s[OMEGA, c] * s[F, c], s[F, c] * s[REVERSAL, c]
            end, inverse = semi_implicit(s[X, c], rate, drive, dt)
            s[Y, c] = end
            s[P, c], s[R, c], s[Q, c] = semi_implicit_vjp(end, inverse, dt, one(dt))
    elif p.kind == EXPONENTIAL:
        for c in range(s.shape[1]):
            rate, drive = s[INV_TAU, c] + s[OMEGA, c] * s[F, c], s[F, c] * s[REVERSAL, c]
            end, decay, mean = exponential(s[X, c], rate, drive, dt)
            s[Y, c] = end
            s[P, c], s[R, c], s[Q, c] = exponential_vjp(s[X, c], rate, drive, dt, decay, mean, one(dt))
    elif p.kind == REFLECTED:
        for c in range(s.shape[1]):
            rate, drive = s[INV_TAU, c] + s[OMEGA, c] * s[F, c], s[F, c] * s[REVERSAL, c]
            end, decay, mean = reflected(s[X, c], rate, drive, dt)
            s[Y, c] = end
            s[P, c], s[R, c], s[Q, c] = reflected_vjp(s[X, c], rate, drive, dt, decay, mean, one(dt))
    for c in range(s.shape[1]):
        s[BY_U, c] = (s[Q, c] * s[REVERSAL, c] + s[R, c] * s[OMEGA, c]) * s[F_SLOPE, c]
        s[P, c] += s[COUPLING, c] * s[BY_U, c]


@inlined
def sources(s):
    """The stage's other direct derivatives."""
    for c in range(s.shape[1]):
        s[BY_REVERSAL, c] = s[Q, c] * s[F, c]
        s[BY_INV_TAU, c] = s[R, c]
        s[BY_OMEGA, c] = s[R, c] * s[F, c]
        s[BY_COUPLING, c] = s[BY_U, c] * s[X, c]


@inlined
def look_back(s, tableau, dt, start, kept, slope_row, j):
    """Keeps stage j's slope, or a tangent of it, and adds to `start` what the next stage has of those before it."""
    copy(s, kept, slope_row)
    if j < tableau.shape[1] - 1:
        for i in range(j):
            if tableau[j + 1, i] != 0:
                add_scaled(s, start, start, dt * tableau[j + 1, i], kept - (1 + DIRECTIONS) * (j - i))


@inlined
def substep(s, p, tableau, dt, directions, source):
    """Advances H and its tangents; source: NOTHING for the one by the state, BY_U for the DIRECTIONS of the vjp."""
    copy(s, X, H)
    if p.kind != SLOPE:
        stage(s, p, dt)
        if source != NOTHING:
            sources(s)
        copy(s, H, Y)
        for d in range(directions):
            row = TANGENTS + ROWS * d
            for c in range(s.shape[1]):
                s[row, c] = s[P, c] * s[row, c] + s[source + d, c]
        return
    copy(s, SUM, H)
    for d in range(directions):
        row = TANGENTS + ROWS * d
        copy(s, row + AT, row)
        copy(s, row + TOTAL, row)
    for j in range(tableau.shape[1]):
        share, ahead, kept = dt * tableau[-1, j], zero(dt), SLOPES + (1 + DIRECTIONS) * j
        if j < tableau.shape[1] - 1:
            ahead = dt * tableau[j + 1, j]
        stage(s, p, dt)
        if source != NOTHING:
            sources(s)
        add_scaled(s, X, H, ahead, Y)
        add_scaled(s, SUM, SUM, share, Y)
        if p.looks_back:
            look_back(s, tableau, dt, X, kept, Y, j)
        for d in range(directions):
            row = TANGENTS + ROWS * d
            for c in range(s.shape[1]):
                s[SLOPE_TANGENT, c] = s[P, c] * s[row + AT, c] + s[source + d, c]
            add_scaled(s, row + AT, row, ahead, SLOPE_TANGENT)
            add_scaled(s, row + TOTAL, row + TOTAL, share, SLOPE_TANGENT)
            if p.looks_back:
                look_back(s, tableau, dt, row + AT, kept + 1 + d, SLOPE_TANGENT, j)
    copy(s, H, SUM)
    for d in range(directions):
        copy(s, TANGENTS + ROWS * d, TANGENTS + ROWS * d + TOTAL)


@inlined
def token(s, p, tableau, a, A, h0, h, dt, b, t, low, directions, source):
    """Crosses one token from the guessed state before it, with the tangents as its start has them."""
    load(s, PRE, a, b, t, low)
    load(s, REVERSAL, A, b, t, low)
    if t > 0:
        load(s, H, h, b, t - 1, low)
    else:
        load(s, H, h0, b, t, low)
    if not p.coupled:
        gate(s, p)
    for _ in range(p.substeps):
        substep(s, p, tableau, dt[b, t, 0], directions, source)


@inlined
def scratch(p, tableau, inv_tau, omega, w, low):
    """The rows of one task, with its constants."""
    kept = (1 + DIRECTIONS) * tableau.shape[1] if p.looks_back else 0
    s = np.zeros((SLOPES + kept, p.width), inv_tau.dtype)
    for row, values in ((INV_TAU, inv_tau), (OMEGA, omega), (COUPLING, w)):
        load(s, row, values, 0, 0, low)
    return s


@kernel
def _tokens(first, last, p, tableau, a, A, inv_tau, omega, w, h0, h, dt, residual, J):
    """Tasks first..last - 1, a run of one sequence's tokens and a block of channels each.

    a, A, h, residual, J (batch, T, D); inv_tau, omega, w (1, 1, D); h0 (batch, 1, D); dt (batch, T, 1).
    """
    _, T, D = a.shape
    blocks, runs = (D + p.width - 1) // p.width, (T + RUN - 1) // RUN
    for task in range(first, last):
        b, run, low = task // (blocks * runs), task // blocks % runs, task % blocks * p.width
        s = scratch(p, tableau, inv_tau, omega, w, low)
        for t in range(run * RUN, min((run + 1) * RUN, T)):
            for c in range(s.shape[1]):
                s[TANGENTS, c] = one(s[TANGENTS, c])
            token(s, p, tableau, a, A, h0, h, dt, b, t, low, 1, NOTHING)
            load(s, X, h, b, t, low)
            for c in range(s.shape[1]):
                s[H, c] -= s[X, c]
            store(residual, b, t, low, s, H)
            store(J, b, t, low, s, TANGENTS)


@kernel
def _tokens_vjp(first, last, p, tableau, a, A, inv_tau, omega, w, h0, h, dt, g, g_a, g_A, g_inv_tau, g_omega, g_w):
    """As `_tokens`, from g to g_a, g_A (batch, T, D) and the parts of the constants' gradients (batch, runs, D)."""
    _, T, D = a.shape
    blocks, runs = (D + p.width - 1) // p.width, (T + RUN - 1) // RUN
    for task in range(first, last):
        b, run, low = task // (blocks * runs), task // blocks % runs, task % blocks * p.width
        s = scratch(p, tableau, inv_tau, omega, w, low)
        sums = np.zeros((DIRECTIONS, p.width), s.dtype)
        for t in range(run * RUN, min((run + 1) * RUN, T)):
            for d in range(DIRECTIONS):
                for c in range(s.shape[1]):
                    s[TANGENTS + ROWS * d, c] = zero(sums[d, c])
            token(s, p, tableau, a, A, h0, h, dt, b, t, low, DIRECTIONS, BY_U)
            load(s, X, g, b, t, low)
            for d in range(DIRECTIONS):
                for c in range(s.shape[1]):
                    s[TANGENTS + ROWS * d, c] *= s[X, c]
                    sums[d, c] += s[TANGENTS + ROWS * d, c]
            store(g_a, b, t, low, s, TANGENTS)
            store(g_A, b, t, low, s, TANGENTS + ROWS)
        store(g_inv_tau, b, run, low, sums, 2)
        store(g_omega, b, run, low, sums, 3)
        store(g_w, b, run, low, sums, 4)


def tokens(solver: Solver, field: Field, h0: Tensor, elapsed: Tensor | None, h: Tensor) -> tuple[Tensor, Tensor]:
    """As arch.ltc.tokens.tokens."""
    p, tableau, inputs = _prepared(solver, field, h0, elapsed, h)
    residual, J = torch.empty_like(inputs[0]), torch.empty_like(inputs[0])
    _run(_tokens, p, tableau, *inputs, residual, J)
    return residual, J


def tokens_vjp(
    solver: Solver, field: Field, h0: Tensor, elapsed: Tensor | None, h: Tensor, g: Tensor
) -> tuple[Tensor, ...]:
    """As arch.ltc.tokens.tokens_vjp."""
    p, tableau, inputs = _prepared(solver, field, h0, elapsed, h)
    batch, T, D = field.a.shape
    expect("liquid_tokens", ("g", g, field.a.shape))
    g_a, g_A = torch.empty_like(inputs[0]), torch.empty_like(inputs[0])
    parts = g_a.new_empty(3, batch, -(-T // int(RUN)), D)
    _run(_tokens_vjp, p, tableau, *inputs, g.contiguous(), g_a, g_A, *parts)
    g_inv_tau, g_omega, g_w = parts.sum((1, 2))
    rates = g_inv_tau.unsqueeze(1), g_omega.unsqueeze(1)
    return (g_a, g_A, *rates) if field.coupling is None else (g_a, g_A, *rates, g_w)


def _prepared(solver: Solver, field: Field, h0, elapsed, h) -> tuple[Plan, np.ndarray, list[Tensor]]:
    check("numba", solver, field, h0, elapsed, h)
    batch, T, D = field.a.shape
    kind, tableau = method(solver)
    width = -(-D // -(-D // WIDTH))  # blocks of equal width ...
    width = -(-width // 32) * 32  # ... in whole rounds of the vectorised loops
    flags = int(field.gate == "softplus"), int(field.coupling is not None)
    p = Plan(kind, *flags, solver.substeps, int(looks_back(tableau)), width)
    w = torch.zeros_like(field.inv_tau) if field.coupling is None else field.coupling
    dt = (h.new_ones(batch, T) if elapsed is None else elapsed).unsqueeze(2) / solver.substeps
    constants = [x.reshape(1, 1, D) for x in (field.inv_tau, field.omega, w)]
    return p, tableau, [x.contiguous() for x in (field.a, field.A, *constants, h0.mT, h, dt)]


def _run(function, p: Plan, tableau: np.ndarray, *tensors: Tensor) -> None:
    batch, T, D = tensors[0].shape
    tasks = batch * -(-T // int(RUN)) * -(-D // p.width)
    arrays = [x.detach().numpy() for x in tensors]
    work = batch * T * D * p.substeps * tableau.shape[1]
    spread(function, tasks, work, p, tableau.astype(arrays[0].dtype), *arrays)
