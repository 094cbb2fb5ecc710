"""The fused forward of the liquid scan on CPU: a block of channels walks the time axis once, its state in L1.

Loops over states and solver stages stand outside, the loop over the block's channels inside, where LLVM vectorises it.
All rows of one task lie in one scratch array (rows, width): an index that runs from 0 along the last axis keeps the
loops free of checks for negative indices.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from arch.kernels.liquid_numba_solvers import (
    EXPONENTIAL,
    MAX_STAGES,
    SEMI_IMPLICIT,
    SLOPE,
    exponential,
    jit,
    semi_implicit,
    slope,
)
from harness.numba_math import FASTMATH, sigmoid, softplus

# Rows are NumPy integers: numba would compile every helper once more for each Python constant given to it.
PRE, REVERSAL, COUPLING, GATE, G_PRE, G_REVERSAL, G_COUPLING, G_GATE, G_READ, G_RATE, G_DRIVE, SHARED = np.arange(12)
FIRST = np.int64(0)
# rows of one state, from SHARED + n * STATE
H, INV_TAU, OMEGA, G_H, G_X, G_INV_TAU, G_OMEGA = np.arange(7)
K, G_K, STATE = 7 + MAX_STAGES * np.arange(3)
# rows of one stage, from Plan.slots + stage * Plan.slot: its gate, its read-out and the states it starts from
SLOT_GATE, SLOT_READ, SLOT_X, SLOT_STATE = 0, 1, 2, np.int64(1)


class Plan(NamedTuple):
    """What the kernel does, in numbers: the scalar map, the gate, the terms present and the sizes."""

    kind: int  # SLOPE, SEMI_IMPLICIT or EXPONENTIAL
    softplus: int  # else sigmoid
    coupled: int  # w given
    projected: int  # B and C given
    substeps: int
    stages: int
    n_states: int
    slots: int  # the first stage slot in the scratch
    slot: int  # rows of a slot
    width: int  # channels of a block


def plan(method, gate: str, coupled: bool, projected: bool, substeps: int, shape: tuple[int, int, int]) -> Plan:
    """Lays out the scratch of one task; shape: batch, channels and states of h.

    Wide blocks read memory in order, narrow ones give a small batch tasks to spread over threads. The choice knows
    nothing of the threads there are, so that results do not either.
    """
    batch, D, N = shape
    limit = 256
    while limit > 64 and batch * -(-D // limit) < 4:
        limit //= 2
    width = -(-D // -(-D // limit))  # blocks of equal width ...
    width = -(-width // 32) * 32  # ... in whole rounds of the vectorised loops
    kind, tableau = method
    flags = (kind, int(gate == "softplus"), int(coupled), int(projected))
    return Plan(*flags, substeps, tableau.shape[1], N, int(SHARED + N * STATE), 2 + N, width)


@jit
def load(s, row, values, i, j, low):
    """Copies values[i, j] from channel `low` on into a row; lanes past the last channel stay zero."""
    source = values[i, j, low:]
    for c in range(min(s.shape[1], len(source))):
        s[row, c] = source[c]


@jit
def store(values, i, j, low, s, row):
    """Copies a row out to values[i, j] from channel `low` on."""
    target = values[i, j, low:]
    for c in range(min(s.shape[1], len(target))):
        target[c] = s[row, c]


@jit
def projection(p, values, i, j):
    """The B or C of a token, one value a state; a view."""
    return values[i, j] if p.projected else values[0, 0]


@jit
def add_scaled(s, row, scale, source):
    """row += scale * source."""
    for c in range(s.shape[1]):
        s[row, c] += scale * s[source, c]


@jit
def gate_row(s, p, out, read):
    """f = gate(a + w y); w is zero where there is no coupling."""
    if p.softplus:
        for c in range(s.shape[1]):
            s[out, c] = softplus(s[PRE, c] + s[COUPLING, c] * s[read, c])
    else:
        for c in range(s.shape[1]):
            s[out, c] = sigmoid(s[PRE, c] + s[COUPLING, c] * s[read, c])


@jit
def read_out(s, p, out, rows, stride, weights):
    """y = sum_n C_n h_n over the rows at `rows + n * stride`."""
    for c in range(s.shape[1]):
        s[out, c] = weights[0] * s[rows, c]
    for n in range(1, p.n_states):
        add_scaled(s, out, weights[n], rows + n * stride)


@jit
def apply_map(s, kind, gate, x, state, out, weight, dt):
    """out = the solver's scalar map of one state at the stage state x, its gate given."""
    for c in range(s.shape[1]):
        s[G_RATE, c] = s[state + INV_TAU, c] + s[state + OMEGA, c] * s[gate, c]
        s[G_DRIVE, c] = weight * s[gate, c] * s[REVERSAL, c]
    if kind == SLOPE:
        for c in range(s.shape[1]):
            s[out, c] = slope(s[x, c], s[G_RATE, c], s[G_DRIVE, c])
    elif kind == SEMI_IMPLICIT:
        for c in range(s.shape[1]):
            s[out, c] = semi_implicit(s[x, c], s[G_RATE, c], s[G_DRIVE, c], dt)
    elif kind == EXPONENTIAL:
        for c in range(s.shape[1]):
            s[out, c] = exponential(s[x, c], s[G_RATE, c], s[G_DRIVE, c], dt)


@jit
def substep(s, p, tableau, dt, B, C, slot):
    """Advances every state by dt, leaving the stages in the slots from `slot` on."""
    for j in range(p.stages):
        gate = slot + SLOT_GATE if p.coupled else GATE
        for n in range(p.n_states):
            state, x = SHARED + n * STATE, slot + SLOT_X + n
            for c in range(s.shape[1]):
                s[x, c] = s[state + H, c]
            for i in range(j):
                if tableau[j, i] != 0:
                    add_scaled(s, x, dt * tableau[j, i], state + K + i)
        if p.coupled:
            read_out(s, p, slot + SLOT_READ, slot + SLOT_X, SLOT_STATE, C)
            gate_row(s, p, gate, slot + SLOT_READ)
        for n in range(p.n_states):
            state = SHARED + n * STATE
            out = state + K + j if p.kind == SLOPE else state + H
            apply_map(s, p.kind, gate, slot + SLOT_X + n, state, out, B[n], dt)
        slot += p.slot
    if p.kind == SLOPE:
        for n in range(p.n_states):
            state = SHARED + n * STATE
            for i in range(p.stages):
                if tableau[p.stages, i] != 0:
                    add_scaled(s, state + H, dt * tableau[p.stages, i], state + K + i)


@jit
def start_token(s, p, a, A, b, t, low):
    """Loads one token's gate pre-activation and reversal potential; without coupling its gate is settled here."""
    load(s, PRE, a, b, t, low)
    load(s, REVERSAL, A, b, t, low)
    if not p.coupled:
        gate_row(s, p, GATE, COUPLING)


@jit
def scratch(p, n_slots, inv_tau, omega, w, state, b, low):
    """The rows of one task, with its constants; `state` (batch, N, D) goes into the states' rows H."""
    s = np.zeros((p.slots + n_slots * p.slot, p.width), inv_tau.dtype)
    load(s, COUPLING, w, FIRST, FIRST, low)
    for n in range(p.n_states):
        load(s, SHARED + n * STATE + INV_TAU, inv_tau, FIRST, n, low)
        load(s, SHARED + n * STATE + OMEGA, omega, FIRST, n, low)
        load(s, SHARED + n * STATE + H, state, b, n, low)
    return s


@njit(cache=True, fastmath=FASTMATH, error_model="numpy", nogil=True)
def forward(first, last, p, tableau, a, A, B, C, inv_tau, omega, w, h0, dt, y, states):
    """Runs the tasks first..last - 1, one sequence and block of channels each, into y and states.

    a, A, y (batch, T, D); B, C (batch, T, N), or (1, 1, 1) ones; inv_tau, omega (1, N, D); w (1, 1, D);
    h0 (batch, N, D); dt (batch, T, 1); states (batch, T * N, D), or (batch, N, D) for the last only. Without
    projections y is not written: it equals the states.
    """
    _, T, D = a.shape
    blocks = (D + p.width - 1) // p.width
    for task in range(first, last):
        b, low = task // blocks, (task % blocks) * p.width
        s = scratch(p, p.stages, inv_tau, omega, w, h0, b, low)
        for t in range(T):
            start_token(s, p, a, A, b, t, low)
            weights = projection(p, C, b, t)
            for _ in range(p.substeps):
                substep(s, p, tableau, dt[b, t, 0], projection(p, B, b, t), weights, p.slots)
            if p.projected:
                read_out(s, p, G_READ, SHARED + H, STATE, weights)
                store(y, b, t, low, s, G_READ)
            at = min(t * p.n_states, states.shape[1] - p.n_states)  # a single place is overwritten by every token
            for n in range(p.n_states):
                store(states, b, at + n, low, s, SHARED + n * STATE + H)
