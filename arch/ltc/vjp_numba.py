"""The vector-Jacobian products of the liquid scan's stages on CPU, from the stages that were recomputed."""

from arch.ltc.layout_numba import (
    COUPLING,
    DIAGONAL,
    G_ARGUMENT,
    G_COUPLING,
    G_END,
    G_GATE,
    G_H,
    G_INV_TAU,
    G_OMEGA,
    G_PRE,
    G_READ,
    G_REVERSAL,
    G_X,
    GATE,
    GATE_SLOPE,
    INV_TAU,
    NONE,
    OMEGA,
    REVERSAL,
    SHARED,
    SLOT_READ,
    STATE,
    WIDTH,
    X,
    add_scaled,
    apart,
    copy,
    fill_zero,
    multiply_heads,
)
from arch.ltc.maps_numba import (
    EXPONENTIAL,
    KEPT,
    SEMI_IMPLICIT,
    SLOPE,
    exponential_vjp,
    inlined,
    semi_implicit_vjp,
    slope_vjp,
)
from harness.ops.toolbox.numba_math import one, zero

LONE_SEMI_IMPLICIT = X + (1 + KEPT[SEMI_IMPLICIT]) * WIDTH
"""From one slot to the next where there is one state."""


@inlined
def read_out_vjp(s, p, slot, gradient, weights, g_weights):
    """From G_READ to each state's `gradient` row and to the gradient of C, the states in a slot."""
    for n in range(p.n_states):
        add_scaled(s, SHARED + n * STATE + gradient, weights[n], G_READ)
        if p.projected:
            total = zero(weights[n])
            for c in range(WIDTH):
                total += s[G_READ + c] * s[slot + X + n * p.state + c]
            g_weights[n] += total


@inlined
def pull(s, f, state, g_x, g_rate, g_drive, weight, c):
    """One channel's share of a stage, but for the state inside its gate; returns the gradient by f."""
    s[state + G_INV_TAU + c] += g_rate
    s[state + G_OMEGA + c] += s[f + c] * g_rate
    s[state + G_X + c] = g_x
    s[G_REVERSAL + c] += weight * s[f + c] * g_drive
    return s[state + OMEGA + c] * g_rate + weight * s[REVERSAL + c] * g_drive


@inlined
def map_vjp(s, p, f, x, after, state, weight, dt, ahead, share):
    """Pulls one state's gradient back through its map to G_X and to G_GATE; returns the gradient of its B."""
    total = zero(dt)
    if p.kind == SEMI_IMPLICIT:
        for c in range(WIDTH):
            g = semi_implicit_vjp(s[after + c], s[x + WIDTH + c], dt, s[state + G_H + c])
            s[G_GATE + c] += pull(s, f, state, g[0], g[1], g[2], weight, c)
            total += s[f + c] * s[REVERSAL + c] * g[2]
    elif p.kind == EXPONENTIAL:
        for c in range(WIDTH):
            rate = s[state + INV_TAU + c] + s[state + OMEGA + c] * s[f + c]
            drive = weight * s[f + c] * s[REVERSAL + c]
            kept = s[x + WIDTH + c], s[x + 2 * WIDTH + c]
            g = exponential_vjp(s[x + c], rate, drive, kept[0], kept[1], dt, s[state + G_H + c])
            s[G_GATE + c] += pull(s, f, state, g[0], g[1], g[2], weight, c)
            total += s[f + c] * s[REVERSAL + c] * g[2]
    else:
        for c in range(WIDTH):
            rate = s[state + INV_TAU + c] + s[state + OMEGA + c] * s[f + c]
            g = slope_vjp(s[x + c], rate, share * s[state + G_END + c] + ahead * s[state + G_X + c])
            s[G_GATE + c] += pull(s, f, state, g[0], g[1], g[2], weight, c)
            total += s[f + c] * s[REVERSAL + c] * g[2]
    return total


@inlined
def gate_vjp(s, p, slot, f, C, gC):
    """From G_GATE, which it clears, to G_PRE and through the state inside the gate to G_X."""
    for c in range(WIDTH):
        g = s[G_GATE + c] * s[f + GATE_SLOPE - GATE + c]
        s[G_ARGUMENT + c] = g
        s[G_PRE + c] += g
        s[G_GATE + c] = zero(g)
    if p.coupling == NONE:
        return
    read = slot + SLOT_READ if p.projected else slot + X
    if p.coupling == DIAGONAL:
        for c in range(WIDTH):
            s[G_COUPLING + c] += s[G_ARGUMENT + c] * s[read + c]
            s[G_READ + c] = s[G_ARGUMENT + c] * s[COUPLING + c]
    else:
        rows = p.head * WIDTH
        fill_zero(s, G_READ)
        multiply_heads(s, p.head, G_READ, p.blocks + rows, G_ARGUMENT)
        for low in range(0, WIDTH, p.head):
            for i in range(p.head):
                y, row = s[read + low + i], p.blocks + 2 * rows + i * WIDTH + low
                for q in range(p.head):
                    s[row + q] += y * s[G_ARGUMENT + low + q]
    read_out_vjp(s, p, slot, G_X, C, gC)


@inlined
def pull_lone(s, z, g_x, g_rate, g_drive, out, c):
    """One channel's share of a stage where its only state is inside its gate, alone; fills the row `out`."""
    f = z[GATE + c]
    s[SHARED + G_INV_TAU + c] += g_rate
    s[SHARED + G_OMEGA + c] += f * g_rate
    s[G_REVERSAL + c] += f * g_drive
    g = (s[SHARED + OMEGA + c] * g_rate + s[REVERSAL + c] * g_drive) * z[GATE_SLOPE + c]
    s[G_PRE + c] += g
    s[G_COUPLING + c] += g * z[X + c]
    s[out + c] = g_x + g * s[COUPLING + c]


@inlined
def lone_stage_vjp(s, p, slot, dt, ahead, share):
    """What stage_vjp does, in one pass over rows of a slot and of the next that lie a constant apart."""
    z = apart(s, slot)
    if p.kind == SEMI_IMPLICIT:
        for c in range(WIDTH):
            after = z[LONE_SEMI_IMPLICIT + X + c]
            g = semi_implicit_vjp(after, z[X + WIDTH + c], dt, s[SHARED + G_H + c])
            pull_lone(s, z, g[0], g[1], g[2], SHARED + G_H, c)
    elif p.kind == EXPONENTIAL:
        for c in range(WIDTH):
            rate = s[SHARED + INV_TAU + c] + s[SHARED + OMEGA + c] * z[GATE + c]
            drive = z[GATE + c] * s[REVERSAL + c]
            kept = z[X + WIDTH + c], z[X + 2 * WIDTH + c]
            g = exponential_vjp(z[X + c], rate, drive, kept[0], kept[1], dt, s[SHARED + G_H + c])
            pull_lone(s, z, g[0], g[1], g[2], SHARED + G_H, c)
    else:
        for c in range(WIDTH):
            rate = s[SHARED + INV_TAU + c] + s[SHARED + OMEGA + c] * z[GATE + c]
            g = slope_vjp(z[X + c], rate, share * s[SHARED + G_END + c] + ahead * s[SHARED + G_X + c])
            pull_lone(s, z, g[0], g[1], g[2], SHARED + G_X, c)
        add_scaled(s, SHARED + G_H, one(dt), SHARED + G_X)


@inlined
def stage_vjp(s, p, tableau, dt, B, C, gB, gC, first, slot, after, j):
    """Pulls stage j's gradient back to the states it started from; `first`: the slot of the token's first stage."""
    f = first + GATE if p.coupling == NONE else slot + GATE
    ahead, share = dt * tableau[0, j], dt * tableau[1, j]
    if not p.projected and p.coupling == DIAGONAL:
        lone_stage_vjp(s, p, slot, dt, ahead, share)
        return
    for n in range(p.n_states):
        x = X + n * p.state
        g = map_vjp(s, p, f, slot + x, after + x, SHARED + n * STATE, B[n], dt, ahead, share)
        if p.projected:
            gB[n] += g
    gate_vjp(s, p, slot, f, C, gC)
    for n in range(p.n_states):
        state = SHARED + n * STATE
        if p.kind == SLOPE:
            for c in range(WIDTH):
                s[state + G_H + c] += s[state + G_X + c]
        else:
            copy(s, state + G_H, state + G_X)


@inlined
def token_vjp(s, p, tableau, dt, B, C, gB, gC, slot):
    """Pulls G_H back over one token's substeps, whose last states are in `slot`; returns the slot of its first."""
    first = slot - p.substeps * p.stages * p.slot
    for _ in range(p.substeps):
        if p.kind == SLOPE:
            for n in range(p.n_states):
                state = SHARED + n * STATE
                copy(s, state + G_END, state + G_H)
        for j in range(p.stages - 1, -1, -1):
            stage_vjp(s, p, tableau, dt, B, C, gB, gC, first, slot - p.slot, slot, j)
            slot -= p.slot
    return slot
