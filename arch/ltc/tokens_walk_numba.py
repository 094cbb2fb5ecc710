"""The kernels of Newton's method over time on CPU: the flow of tokens that depend on nothing of each other.

Each element is a scalar flow, so derivatives are tangents carried along its stages. With one state a channel, f =
gate(u), u = a + w x, rate = 1/tau + omega f and drive = f A, a stage's map y(x, rate, drive) of partial derivatives
(P, Q by drive, R by rate) has

    dy/du = (Q A + R omega) f'(u),    dy/dx = P + w dy/du,

and its direct derivatives by a, A, 1/tau, omega and w are dy/du, Q f, R, R f and x dy/du.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from arch.ltc.maps_numba import EXPONENTIAL, SEMI_IMPLICIT, SLOPE
from harness.ops.toolbox.numba_math import FASTMATH, exp, one, phi1, phi1_grad, sigmoid, softplus, zero

RUN = np.int64(64)  # tokens of a task
DIRECTIONS = np.int64(5)  # of the vjp: a, A, 1/tau, omega, w

# Rows are NumPy integers: numba would compile every helper once more for each Python constant given to it.
PRE, REVERSAL, INV_TAU, OMEGA, COUPLING, H, X, Y, SUM, F, F_SLOPE, P, Q, R, SLOPE_TANGENT = np.arange(15)
NOTHING, BY_U, BY_REVERSAL, BY_INV_TAU, BY_OMEGA, BY_COUPLING, TANGENTS = np.arange(15, 22)
"""BY_U .. BY_COUPLING: a stage's direct derivatives, in the order of the vjp's directions."""
AT, TOTAL, ROWS = np.arange(1, 4)
"""A tangent's rows, from TANGENTS + ROWS * direction: itself, at the stage's start, and at the substep's end so far."""

_compiled = njit(cache=True, fastmath=FASTMATH, error_model="numpy", nogil=True)
_inlined = njit(
    fastmath=FASTMATH, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True
)


class Plan(NamedTuple):
    """What the kernels do, in numbers."""

    kind: int  # SLOPE, SEMI_IMPLICIT or EXPONENTIAL
    softplus: int  # else sigmoid
    coupled: int  # w given
    substeps: int
    width: int  # channels of a block


@_inlined
def load(s, row, values, i, j, low):
    """Copies values[i, j] from channel `low` on into a row; lanes past the last channel stay zero."""
    source = values[i, j, low:]
    for c in range(min(s.shape[1], len(source))):
        s[row, c] = source[c]


@_inlined
def store(values, i, j, low, s, row):
    """Copies a row out to values[i, j] from channel `low` on."""
    target = values[i, j, low:]
    for c in range(min(s.shape[1], len(target))):
        target[c] = s[row, c]


@_inlined
def copy(s, out, row):
    """out = row."""
    for c in range(s.shape[1]):
        s[out, c] = s[row, c]


@_inlined
def add_scaled(s, out, row, scale, other):
    """out = row + scale * other."""
    for c in range(s.shape[1]):
        s[out, c] = s[row, c] + scale * s[other, c]


@_inlined
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


@_inlined
def stage(s, p, dt):
    """From the state X to the map's value Y and its derivatives: P by the state in all, and BY_U."""
    if p.coupled:
        gate(s, p)
    if p.kind == SLOPE:
        for c in range(s.shape[1]):
            rate = s[INV_TAU, c] + s[OMEGA, c] * s[F, c]
            s[Y, c] = s[F, c] * s[REVERSAL, c] - rate * s[X, c]
            s[P, c], s[Q, c], s[R, c] = -rate, one(rate), -s[X, c]
    elif p.kind == SEMI_IMPLICIT:
        for c in range(s.shape[1]):
            inverse = one(dt) / (one(dt) + dt * (s[INV_TAU, c] + s[OMEGA, c] * s[F, c]))
            s[Y, c] = (s[X, c] + dt * s[F, c] * s[REVERSAL, c]) * inverse
            s[P, c], s[Q, c], s[R, c] = inverse, dt * inverse, -dt * inverse * s[Y, c]
    elif p.kind == EXPONENTIAL:
        for c in range(s.shape[1]):
            z, drive = dt * (s[INV_TAU, c] + s[OMEGA, c] * s[F, c]), dt * s[F, c] * s[REVERSAL, c]
            decay, mean = exp(-z), phi1(z)
            s[Y, c] = s[X, c] * decay + drive * mean
            s[P, c], s[Q, c], s[R, c] = decay, dt * mean, dt * (drive * phi1_grad(z) - s[X, c] * decay)
    for c in range(s.shape[1]):
        s[BY_U, c] = (s[Q, c] * s[REVERSAL, c] + s[R, c] * s[OMEGA, c]) * s[F_SLOPE, c]
        s[P, c] += s[COUPLING, c] * s[BY_U, c]


@_inlined
def sources(s):
    """The stage's other direct derivatives."""
    for c in range(s.shape[1]):
        s[BY_REVERSAL, c] = s[Q, c] * s[F, c]
        s[BY_INV_TAU, c] = s[R, c]
        s[BY_OMEGA, c] = s[R, c] * s[F, c]
        s[BY_COUPLING, c] = s[BY_U, c] * s[X, c]


@_inlined
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
        ahead, share = dt * tableau[0, j], dt * tableau[1, j]
        stage(s, p, dt)
        if source != NOTHING:
            sources(s)
        add_scaled(s, X, H, ahead, Y)
        add_scaled(s, SUM, SUM, share, Y)
        for d in range(directions):
            row = TANGENTS + ROWS * d
            for c in range(s.shape[1]):
                s[SLOPE_TANGENT, c] = s[P, c] * s[row + AT, c] + s[source + d, c]
            add_scaled(s, row + AT, row, ahead, SLOPE_TANGENT)
            add_scaled(s, row + TOTAL, row + TOTAL, share, SLOPE_TANGENT)
    copy(s, H, SUM)
    for d in range(directions):
        copy(s, TANGENTS + ROWS * d, TANGENTS + ROWS * d + TOTAL)


@_inlined
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


@_inlined
def scratch(p, inv_tau, omega, w, low):
    """The rows of one task, with its constants."""
    s = np.zeros((TANGENTS + ROWS * DIRECTIONS, p.width), inv_tau.dtype)
    for row, values in ((INV_TAU, inv_tau), (OMEGA, omega), (COUPLING, w)):
        load(s, row, values, 0, 0, low)
    return s


@_compiled
def tokens(first, last, p, tableau, a, A, inv_tau, omega, w, h0, h, dt, residual, J):
    """Tasks first..last - 1, a run of one sequence's tokens and a block of channels each.

    a, A, h, residual, J (batch, T, D); inv_tau, omega, w (1, 1, D); h0 (batch, 1, D); dt (batch, T, 1).
    """
    _, T, D = a.shape
    blocks, runs = (D + p.width - 1) // p.width, (T + RUN - 1) // RUN
    for task in range(first, last):
        b, run, low = task // (blocks * runs), task // blocks % runs, task % blocks * p.width
        s = scratch(p, inv_tau, omega, w, low)
        for t in range(run * RUN, min((run + 1) * RUN, T)):
            for c in range(s.shape[1]):
                s[TANGENTS, c] = one(s[TANGENTS, c])
            token(s, p, tableau, a, A, h0, h, dt, b, t, low, 1, NOTHING)
            load(s, X, h, b, t, low)
            for c in range(s.shape[1]):
                s[H, c] -= s[X, c]
            store(residual, b, t, low, s, H)
            store(J, b, t, low, s, TANGENTS)


@_compiled
def tokens_vjp(first, last, p, tableau, a, A, inv_tau, omega, w, h0, h, dt, g, g_a, g_A, g_inv_tau, g_omega, g_w):
    """As `tokens`, from g to g_a, g_A (batch, T, D) and the parts of the constants' gradients (batch, runs, D)."""
    _, T, D = a.shape
    blocks, runs = (D + p.width - 1) // p.width, (T + RUN - 1) // RUN
    for task in range(first, last):
        b, run, low = task // (blocks * runs), task // blocks % runs, task % blocks * p.width
        s = scratch(p, inv_tau, omega, w, low)
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
