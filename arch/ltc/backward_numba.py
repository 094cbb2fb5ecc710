"""The fused backward of the liquid scan on CPU: walks time in reverse, recomputing the tokens a few at a time.

Names of rows and the layout of the scratch are the forward's. A row G_NAME is the loss's gradient by the row NAME.
"""

import numpy as np

from arch.ltc.forward_numba import (
    IN_A,
    IN_B,
    IN_C,
    IN_DT,
    IN_H0,
    IN_REVERSAL,
    KERNEL,
    MARKS,
    OUT_LAST,
    OUT_Y,
    row_of,
    start,
)
from arch.ltc.layout_numba import (
    G_COUPLING,
    G_H,
    G_INV_TAU,
    G_OMEGA,
    G_PRE,
    G_READ,
    G_REVERSAL,
    HEADS,
    PRE,
    REVERSAL,
    SHARED,
    STATE,
    WIDTH,
    X,
    fill_zero,
    load,
    pointer,
    store,
)
from arch.ltc.maps_numba import inlined
from arch.ltc.stage_numba import token
from arch.ltc.vjp_numba import read_out_vjp, token_vjp
from harness.ops.toolbox.numba_math import zero

G_A, G_A_REVERSAL, G_B, G_C, OUT_INV_TAU, OUT_OMEGA, OUT_W, OUT_H0 = MARKS + 1 + np.arange(8)
"""Rows of the table after the forward's, whose OUT_Y and OUT_LAST hold the gradients given."""


@inlined
def recompute(s, p, tableau, table, like, b, low, size, begin, end):
    """Runs the tokens begin..end - 1 from the state kept before them, their stages one slot after another."""
    slot = np.int64(p.slots)
    mark = (begin // p.chunk - 1) * p.n_states
    for n in range(p.n_states):
        row = row_of(table, like, IN_H0, b, n, low) if begin == 0 else row_of(table, like, MARKS, b, mark + n, low)
        load(s, slot + X + n * p.state, row, size)
    for t in range(begin, end):
        load(s, PRE, row_of(table, like, IN_A, b, t, low), size)
        load(s, REVERSAL, row_of(table, like, IN_REVERSAL, b, t, low), size)
        B, C = row_of(table, like, IN_B, b, t, 0), row_of(table, like, IN_C, b, t, 0)
        slot = token(s, p, tableau, row_of(table, like, IN_DT, b, t, 0)[0], B, C, slot, p.slot)
    return slot


@inlined
def pull_token(s, p, tableau, table, like, b, block, low, size, t, slot):
    """Pulls the gradients back over one token, whose last states are in `slot`; returns the slot of its first ones."""
    load(s, REVERSAL, row_of(table, like, IN_REVERSAL, b, t, low), size)
    load(s, G_READ, row_of(table, like, OUT_Y, b, t, low), size)
    fill_zero(s, G_PRE)
    fill_zero(s, G_REVERSAL)
    B, C = row_of(table, like, IN_B, b, t, 0), row_of(table, like, IN_C, b, t, 0)
    part = block * p.n_states
    gB, gC = row_of(table, like, G_B, b, t, part), row_of(table, like, G_C, b, t, part)
    dt = row_of(table, like, IN_DT, b, t, 0)[0]
    for n in range(p.n_states):
        if p.projected:
            gB[n] = zero(dt)
            gC[n] = zero(dt)
    read_out_vjp(s, p, slot, G_H, C, gC)
    slot = token_vjp(s, p, tableau, dt, B, C, gB, gC, slot)
    store(row_of(table, like, G_A, b, t, low), s, G_PRE, size)
    store(row_of(table, like, G_A_REVERSAL, b, t, low), s, G_REVERSAL, size)
    return slot


@inlined
def finish(s, p, table, like, b, low, size):
    """Stores what a block of channels sums over its whole walk."""
    if p.coupling == HEADS:
        for i in range(p.head):
            row = p.blocks + (2 * p.head + i) * WIDTH
            store(row_of(table, like, OUT_W, b, i, low), s, row, size)
    else:
        store(row_of(table, like, OUT_W, b, 0, low), s, G_COUPLING, size)
    for n in range(p.n_states):
        state = SHARED + n * STATE
        store(row_of(table, like, OUT_INV_TAU, b, n, low), s, state + G_INV_TAU, size)
        store(row_of(table, like, OUT_OMEGA, b, n, low), s, state + G_OMEGA, size)
        store(row_of(table, like, OUT_H0, b, n, low), s, state + G_H, size)


@KERNEL
def backward(first, last, p, tableau, table, length, width):
    """Runs the tasks first..last - 1 of the forward's `table`, which goes on with the gradients to fill.

    Those of a and A by (batch, token); of B and C by (batch, token), the parts of the blocks side by side; of
    inv_tau, omega and h0 by (batch, state); of w by (batch, a head's lane).
    """
    blocks = (width + WIDTH - 1) // WIDTH
    kept = min(p.chunk, length) * p.substeps * p.stages + 1
    buffer = np.zeros(p.slots + kept * p.slot, tableau.dtype)
    s = pointer(buffer.ctypes.data, tableau)
    for task in range(first, last):
        b, block = task // blocks, task % blocks
        low = block * WIDTH
        size = min(WIDTH, width - low)
        buffer[:] = 0
        start(s, p, table, tableau, low, size, True)
        for n in range(p.n_states):
            load(s, SHARED + n * STATE + G_H, row_of(table, tableau, OUT_LAST, b, n, low), size)
        for begin in range((length - 1) // p.chunk * p.chunk, -1, -p.chunk):
            end = min(begin + p.chunk, length)
            slot = recompute(s, p, tableau, table, tableau, b, low, size, begin, end)
            for t in range(end - 1, begin - 1, -1):
                slot = pull_token(s, p, tableau, table, tableau, b, block, low, size, t, slot)
        finish(s, p, table, tableau, b, low, size)
    buffer[0] = 0  # the pointer does not keep it alive
