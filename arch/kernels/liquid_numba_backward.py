"""The fused backward of the liquid scan on CPU: walks time in reverse, recomputing each token from its first state.

Names of rows and the layout of the scratch are the forward's. A row G_NAME is the loss's gradient by the row NAME.
"""

from numba import njit

from arch.kernels.liquid_numba_forward import (
    COUPLING,
    G_COUPLING,
    G_DRIVE,
    G_GATE,
    G_H,
    G_INV_TAU,
    G_K,
    G_OMEGA,
    G_PRE,
    G_RATE,
    G_READ,
    G_REVERSAL,
    G_X,
    GATE,
    INV_TAU,
    OMEGA,
    REVERSAL,
    SHARED,
    SLOT_GATE,
    SLOT_READ,
    SLOT_STATE,
    SLOT_X,
    STATE,
    H,
    add_scaled,
    load,
    projection,
    scratch,
    start_token,
    store,
    substep,
)
from arch.kernels.liquid_numba_solvers import (
    EXPONENTIAL,
    SEMI_IMPLICIT,
    SLOPE,
    exponential_vjp,
    jit,
    once,
    semi_implicit_vjp,
    slope_vjp,
)
from harness.numba_math import FASTMATH, expm1, one, zero


@jit
def fill_zero(s, row):
    """row = 0."""
    for c in range(s.shape[1]):
        s[row, c] = zero(s[row, c])


@jit
def gate_vjp(s, p, gate, read):
    """From G_GATE, which it clears, to G_PRE, G_COUPLING and G_READ; the gate's slope follows from its value."""
    for c in range(s.shape[1]):
        f = s[gate, c]
        g = s[G_GATE, c] * (-expm1(-f) if p.softplus else f - f * f)
        s[G_PRE, c] += g
        s[G_COUPLING, c] += g * s[read, c]
        s[G_READ, c] = g * s[COUPLING, c]
        s[G_GATE, c] = zero(f)


@jit
def read_out_vjp(s, p, rows, stride, gradient, weights, g_weights):
    """From G_READ to each state's `gradient` row and to the gradient of C."""
    for n in range(p.n_states):
        add_scaled(s, SHARED + n * STATE + gradient, weights[n], G_READ)
        if p.projected:
            total = zero(weights[n])
            for c in range(s.shape[1]):
                total += s[G_READ, c] * s[rows + n * stride, c]
            g_weights[n] += total


@once
def map_vjp(s, kind, x, state, cotangent, dt):
    """From one state's `cotangent` row to G_X, G_RATE and G_DRIVE; the latter two hold the rate and the drive."""
    if kind == SLOPE:
        for c in range(s.shape[1]):
            g = slope_vjp(s[x, c], s[G_RATE, c], s[G_DRIVE, c], s[cotangent, c])
            s[state + G_X, c], s[G_RATE, c], s[G_DRIVE, c] = g
    elif kind == SEMI_IMPLICIT:
        for c in range(s.shape[1]):
            g = semi_implicit_vjp(s[x, c], s[G_RATE, c], s[G_DRIVE, c], dt, s[cotangent, c])
            s[state + G_X, c], s[G_RATE, c], s[G_DRIVE, c] = g
    elif kind == EXPONENTIAL:
        for c in range(s.shape[1]):
            g = exponential_vjp(s[x, c], s[G_RATE, c], s[G_DRIVE, c], dt, s[cotangent, c])
            s[state + G_X, c], s[G_RATE, c], s[G_DRIVE, c] = g


@jit
def equation_vjp(s, p, gate, x, state, cotangent, weight, dt):
    """Pulls one state's cotangent back through its map, its rate and its drive; returns the gradient of its B."""
    for c in range(s.shape[1]):
        s[G_RATE, c] = s[state + INV_TAU, c] + s[state + OMEGA, c] * s[gate, c]
        s[G_DRIVE, c] = weight * s[gate, c] * s[REVERSAL, c]
    map_vjp(s, p.kind, x, state, cotangent, dt)
    for c in range(s.shape[1]):
        s[state + G_INV_TAU, c] += s[G_RATE, c]
        s[state + G_OMEGA, c] += s[gate, c] * s[G_RATE, c]
    for c in range(s.shape[1]):
        s[G_GATE, c] += s[state + OMEGA, c] * s[G_RATE, c] + weight * s[REVERSAL, c] * s[G_DRIVE, c]
        s[G_REVERSAL, c] += weight * s[gate, c] * s[G_DRIVE, c]
    total = zero(dt)
    for c in range(s.shape[1]):  # apart: LLVM gives up on one loop with all of it
        total += s[gate, c] * s[REVERSAL, c] * s[G_DRIVE, c]
    return total


@once
def stage_vjp(s, p, tableau, dt, B, C, gB, gC, j, slot):
    """Pulls the cotangent of stage j back to the states it started from, and so to G_H and the earlier stages."""
    gate = slot + SLOT_GATE if p.coupled else GATE
    for n in range(p.n_states):
        state = SHARED + n * STATE
        cotangent = state + G_K + j if p.kind == SLOPE else state + G_H
        gB[n] += equation_vjp(s, p, gate, slot + SLOT_X + n, state, cotangent, B[n], dt)
    if p.coupled:
        gate_vjp(s, p, gate, slot + SLOT_READ)
        read_out_vjp(s, p, slot + SLOT_X, SLOT_STATE, G_X, C, gC)
    for n in range(p.n_states):
        state = SHARED + n * STATE
        if p.kind != SLOPE:
            fill_zero(s, state + G_H)
        add_scaled(s, state + G_H, one(dt), state + G_X)
        for i in range(j):
            if tableau[j, i] != 0:
                add_scaled(s, state + G_K + i, dt * tableau[j, i], state + G_X)


@once
def substep_vjp(s, p, tableau, dt, B, C, gB, gC, slot):
    """Pulls G_H back from the end of a substep to its start; its stages lie from `slot` on."""
    if p.kind == SLOPE:
        for n in range(p.n_states):
            state = SHARED + n * STATE
            for j in range(p.stages):
                fill_zero(s, state + G_K + j)
                add_scaled(s, state + G_K + j, dt * tableau[p.stages, j], state + G_H)
    for j in range(p.stages - 1, -1, -1):
        stage_vjp(s, p, tableau, dt, B, C, gB, gC, j, slot + j * p.slot)


@once
def token_vjp(s, p, tableau, dt, B, C, gB, gC):
    """Recomputes one token's substeps from the row H, then pulls G_READ and G_H back to its start."""
    size = p.stages * p.slot
    for k in range(p.substeps):
        substep(s, p, tableau, dt, B, C, p.slots + k * size)
    read_out_vjp(s, p, SHARED + H, STATE, G_H, C, gC)
    fill_zero(s, G_PRE)
    fill_zero(s, G_REVERSAL)
    for k in range(p.substeps - 1, -1, -1):
        substep_vjp(s, p, tableau, dt, B, C, gB, gC, p.slots + k * size)
    if not p.coupled:
        gate_vjp(s, p, GATE, COUPLING)  # no read-out in this gate: any finite row serves


@njit(cache=True, fastmath=FASTMATH, error_model="numpy", nogil=True)
def backward(first, last, p, tableau, inputs, states, gy, g_last, gradients):
    """Runs the tasks first..last - 1 into `gradients`.

    inputs: a, A, B, C, inv_tau, omega, w, h0, dt, and states (batch, T * N, D), as the forward has them;
    gy (batch, T, D); g_last (batch, N, D). gradients: of a and A (batch, T, D); of B and C, one part a block, zeroed,
    (batch, blocks * T, N), or (batch, blocks, 1) unused; of inv_tau and omega, one part a sequence, (batch, N, D); of
    w (batch, 1, D); of h0 (batch, N, D).
    """
    a, A, B, C, inv_tau, omega, w, h0, dt = inputs
    g_a, g_A, g_B, g_C, g_inv_tau, g_omega, g_w, g_h0 = gradients
    _, T, D = a.shape
    N = p.n_states
    blocks = (D + p.width - 1) // p.width
    for task in range(first, last):
        b, block = task // blocks, task % blocks
        low = block * p.width
        s = scratch(p, p.substeps * p.stages, inv_tau, omega, w, h0, b, low)
        for n in range(N):
            load(s, SHARED + n * STATE + G_H, g_last, b, n, low)
        for t in range(T - 1, -1, -1):
            start_token(s, p, a, A, b, t, low)
            for n in range(N):
                row = SHARED + n * STATE + H
                load(s, row, states if t > 0 else h0, b, (t - 1) * N + n if t > 0 else n, low)
            load(s, G_READ, gy, b, t, low)
            part = block * T + t if p.projected else block
            B_t, C_t = projection(p, B, b, t), projection(p, C, b, t)
            token_vjp(s, p, tableau, dt[b, t, 0], B_t, C_t, g_B[b, part], g_C[b, part])
            store(g_a, b, t, low, s, G_PRE)
            store(g_A, b, t, low, s, G_REVERSAL)
        store(g_w, b, 0, low, s, G_COUPLING)
        for n in range(N):
            store(g_inv_tau, b, n, low, s, SHARED + n * STATE + G_INV_TAU)
            store(g_omega, b, n, low, s, SHARED + n * STATE + G_OMEGA)
            store(g_h0, b, n, low, s, SHARED + n * STATE + G_H)
