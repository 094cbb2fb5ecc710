"""The fused forward of the liquid scan on CPU: a block of channels walks the time axis once, its state in L1."""

import numpy as np
from numba import njit

from arch.ltc.layout_numba import (
    COUPLING,
    DIAGONAL,
    HEADS,
    INV_TAU,
    OMEGA,
    PRE,
    READ,
    REVERSAL,
    SHARED,
    STATE,
    WIDTH,
    X,
    load,
    pointer,
    store,
)
from arch.ltc.maps_numba import inlined
from arch.ltc.stage_numba import read_out, token
from harness.ops.toolbox.numba_math import FASTMATH

KERNEL = njit(cache=True, fastmath=FASTMATH, error_model="numpy", nogil=True)

IN_A, IN_REVERSAL, IN_B, IN_C, IN_INV_TAU, IN_OMEGA, IN_W, IN_H0, IN_DT, OUT_Y, OUT_LAST, MARKS = np.arange(12)
"""Rows of the table of tensors: the address, the bytes between two sequences, those between two tokens or states."""


@inlined
def row_of(table, like, tensor, b, t, low):
    """The pointer to element `low` of row t of sequence b."""
    place = table[tensor, 0] + b * table[tensor, 1] + t * table[tensor, 2] + low * like.itemsize
    return pointer(place, like)


@inlined
def start(s, p, table, like, low, size, both):
    """Loads what a block of channels keeps for its whole walk; both: the heads' weights for the backward too."""
    if p.coupling == DIAGONAL:
        load(s, COUPLING, row_of(table, like, IN_W, 0, 0, low), size)
    elif p.coupling == HEADS:
        for i in range(2 * p.head if both else p.head):
            load(s, p.blocks + i * WIDTH, row_of(table, like, IN_W, 0, i, low), size)
    for n in range(p.n_states):
        load(s, SHARED + n * STATE + INV_TAU, row_of(table, like, IN_INV_TAU, 0, n, low), size)
        load(s, SHARED + n * STATE + OMEGA, row_of(table, like, IN_OMEGA, 0, n, low), size)


@KERNEL
def forward(first, last, p, tableau, table, length, width, keep):
    """Runs the tasks first..last - 1, one sequence and block of channels each.

    table: int64, the rows IN_A .. MARKS, of tensors with contiguous channels in the type of `tableau`. a, A, y by
    (batch, token); B, C by (batch, token), N together; inv_tau, omega by (state); w one row, or a head's rows by lane;
    h0, last by (batch, state); dt by (batch, token), one number. keep: whether to leave in MARKS the state before the
    tokens chunk, 2 chunk, ..., by (batch, state of a token).
    """
    blocks = (width + WIDTH - 1) // WIDTH
    buffer = np.zeros(p.slots + 2 * p.slot, tableau.dtype)
    s = pointer(buffer.ctypes.data, tableau)
    for task in range(first, last):
        b, low = task // blocks, (task % blocks) * WIDTH
        size = min(WIDTH, width - low)
        buffer[:] = 0
        start(s, p, table, tableau, low, size, False)
        slot = np.int64(p.slots)
        for n in range(p.n_states):
            load(s, slot + X + n * p.state, row_of(table, tableau, IN_H0, b, n, low), size)
        for t in range(length):
            if keep and t % p.chunk == 0 and t > 0:
                mark = (t // p.chunk - 1) * p.n_states
                for n in range(p.n_states):
                    store(row_of(table, tableau, MARKS, b, mark + n, low), s, slot + X + n * p.state, size)
            load(s, PRE, row_of(table, tableau, IN_A, b, t, low), size)
            load(s, REVERSAL, row_of(table, tableau, IN_REVERSAL, b, t, low), size)
            B, C = row_of(table, tableau, IN_B, b, t, 0), row_of(table, tableau, IN_C, b, t, 0)
            dt = row_of(table, tableau, IN_DT, b, t, 0)[0]
            slot = token(s, p, tableau, dt, B, C, slot, 0)
            y = slot + X
            if p.projected:
                y = READ
                read_out(s, p, READ, slot, C)
            store(row_of(table, tableau, OUT_Y, b, t, low), s, y, size)
        for n in range(p.n_states):
            store(row_of(table, tableau, OUT_LAST, b, n, low), s, slot + X + n * p.state, size)
    buffer[0] = 0  # the pointer does not keep it alive
