"""The liquid scan's walks over time on CPU: a block of channels walks the time axis once, its state in L1.

The backward walks in reverse and computes the tokens a few at a time again. A task is one sequence and one block; where
the gate sees all channels, blocks cannot go alone, and dense_numba.py has the walks.
"""

from typing import NamedTuple

import numpy as np

from arch.ltc.stage_numba import (
    COUPLING,
    DENSE,
    DIAGONAL,
    G_COUPLING,
    G_H,
    G_INV_TAU,
    G_OMEGA,
    G_PRE,
    G_READ,
    G_REVERSAL,
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
    fill_zero,
    load,
    pointer,
    read_out,
    read_out_vjp,
    store,
    token,
    token_vjp,
)
from harness.ops.toolbox.jit import inlined, kernel
from harness.ops.toolbox.numba_math import zero

NO_END = np.int64(2**62)
"""Of a ring of slots that is never used again: every stage keeps its own."""


class Rows(NamedTuple):
    """The rows of a kernel's table of tensors, which have contiguous channels and one type.

    A row is the tensor's address, the bytes between two sequences and those between two tokens, states or lanes. g_B,
    g_C: the parts of the blocks side by side.
    """

    a: int  # by (batch, token), as A, B, C, dt, y and their gradients; B, C: N together
    A: int
    B: int
    C: int
    inv_tau: int  # by state, as omega
    omega: int
    w: int  # one row, or a head's rows by lane, or the panels of W^T and of W
    h0: int  # by (batch, state), as last
    dt: int  # one number a token
    y: int  # of the backward, the gradient given, as of last
    last: int
    marks: int  # the states before the tokens chunk, 2 chunk, ..., by (batch, state of a token)
    g_a: int
    g_A: int  # noqa: N815
    g_B: int  # noqa: N815
    g_C: int  # noqa: N815
    g_inv_tau: int  # by (batch, state), as g_omega and g_h0
    g_omega: int
    g_w: int  # by (batch, a head's lane)
    g_h0: int
    reads: int  # of the dense coupling, what W multiplies and the gradient by the product, by (batch, stage of a token)
    g_arguments: int


ROWS = Rows(*range(len(Rows._fields)))


def table_of(**places: tuple[int, int, int]) -> np.ndarray:
    """A kernel's table, from the rows by name; those that are not given are zero."""
    return np.array([places.get(name, (0, 0, 0)) for name in Rows._fields], np.int64)


@inlined
def row_of(table, like, tensor, b, t, low):
    """The pointer to element `low` of row t of sequence b."""
    place = table[tensor, 0] + b * table[tensor, 1] + t * table[tensor, 2] + low * like.itemsize
    return pointer(place, like)


@inlined
def start(s, p, table, like, low, size, both):
    """Loads what a block of channels keeps for its whole walk; both: the heads' weights for the backward too."""
    if p.coupling == DIAGONAL:
        load(s, COUPLING, row_of(table, like, ROWS.w, 0, 0, low), size)
    elif p.coupling == HEADS:
        for i in range(2 * p.head if both else p.head):
            load(s, p.blocks + i * WIDTH, row_of(table, like, ROWS.w, 0, i, low), size)
    for n in range(p.n_states):
        load(s, SHARED + n * STATE + INV_TAU, row_of(table, like, ROWS.inv_tau, 0, n, low), size)
        load(s, SHARED + n * STATE + OMEGA, row_of(table, like, ROWS.omega, 0, n, low), size)


@inlined
def token_of(table, like, b, t):
    """What all channels share of one token: the pointers to its B and C, and its dt."""
    B, C = row_of(table, like, ROWS.B, b, t, 0), row_of(table, like, ROWS.C, b, t, 0)
    return B, C, row_of(table, like, ROWS.dt, b, t, 0)[0]


@inlined
def load_token(s, table, like, b, t, low, size):
    """Loads what a block is given of one token."""
    load(s, PRE, row_of(table, like, ROWS.a, b, t, low), size)
    load(s, REVERSAL, row_of(table, like, ROWS.A, b, t, low), size)


@inlined
def load_states(s, p, table, like, tensor, b, first, low, size, slot):
    """Loads a block's states from the rows of a tensor that begin at `first` into a slot."""
    for n in range(p.n_states):
        load(s, slot + X + n * p.state, row_of(table, like, tensor, b, first + n, low), size)


@inlined
def store_states(s, p, table, like, tensor, b, first, low, size, slot):
    """The other way round."""
    for n in range(p.n_states):
        store(row_of(table, like, tensor, b, first + n, low), s, slot + X + n * p.state, size)


@inlined
def load_mark(s, p, table, like, b, begin, low, size, slot):
    """Loads the states before the token `begin`, the first of a chunk."""
    if begin == 0:
        load_states(s, p, table, like, ROWS.h0, b, 0, low, size, slot)
    else:
        load_states(s, p, table, like, ROWS.marks, b, (begin // p.chunk - 1) * p.n_states, low, size, slot)


@inlined
def store_read_out(s, p, table, like, C, b, t, low, size, slot):
    """Stores y of a token, whose last states are in a slot."""
    y = slot + X
    if p.projected:
        y = READ
        read_out(s, p, READ, slot, C)
    store(row_of(table, like, ROWS.y, b, t, low), s, y, size)


@kernel
def forward(first, last, p, tableau, table, length, width, keep):
    """Runs the tasks first..last - 1, one sequence and block of channels each.

    table: int64, of the rows up to `marks`, of tensors in the type of `tableau`. keep: whether to fill marks.
    """
    blocks = (width + WIDTH - 1) // WIDTH
    end = p.slots + p.ring * p.slot
    buffer = np.zeros(end, tableau.dtype)
    s = pointer(buffer.ctypes.data, tableau)
    for task in range(first, last):
        b, low = task // blocks, (task % blocks) * WIDTH
        size = min(WIDTH, width - low)
        buffer[:] = 0
        start(s, p, table, tableau, low, size, False)
        slot = np.int64(p.slots)
        load_states(s, p, table, tableau, ROWS.h0, b, 0, low, size, slot)
        for t in range(length):
            if keep and t % p.chunk == 0 and t > 0:
                store_states(s, p, table, tableau, ROWS.marks, b, (t // p.chunk - 1) * p.n_states, low, size, slot)
            load_token(s, table, tableau, b, t, low, size)
            B, C, dt = token_of(table, tableau, b, t)
            slot = token(s, p, tableau, dt, B, C, slot, end)
            store_read_out(s, p, table, tableau, C, b, t, low, size, slot)
        store_states(s, p, table, tableau, ROWS.last, b, 0, low, size, slot)
    buffer[0] = 0  # the pointer does not keep it alive


@inlined
def recompute(s, p, tableau, table, like, b, low, size, begin, end):
    """Runs the tokens begin..end - 1 from the state kept before them, their stages one slot after another."""
    slot = np.int64(p.slots)
    load_mark(s, p, table, like, b, begin, low, size, slot)
    for t in range(begin, end):
        load_token(s, table, like, b, t, low, size)
        B, C, dt = token_of(table, like, b, t)
        slot = token(s, p, tableau, dt, B, C, slot, NO_END)
    return slot


@inlined
def gradients_of(table, like, p, b, block, t):
    """The pointers to a block's part of the gradients by a token's B and C."""
    part = block * p.n_states
    return row_of(table, like, ROWS.g_B, b, t, part), row_of(table, like, ROWS.g_C, b, t, part)


@inlined
def begin_pull(s, p, table, like, dt, C, gB, gC, b, low, size, t, slot):
    """Begins a block's way back over one token, whose last states are in `slot`."""
    load(s, REVERSAL, row_of(table, like, ROWS.A, b, t, low), size)
    load(s, G_READ, row_of(table, like, ROWS.y, b, t, low), size)
    fill_zero(s, G_PRE)
    fill_zero(s, G_REVERSAL)
    for n in range(p.n_states):
        if p.projected:
            gB[n] = zero(dt)
            gC[n] = zero(dt)
    read_out_vjp(s, p, slot, G_H, C, gC)


@inlined
def end_pull(s, table, like, b, low, size, t):
    """Stores the gradients that a block found over one token."""
    store(row_of(table, like, ROWS.g_a, b, t, low), s, G_PRE, size)
    store(row_of(table, like, ROWS.g_A, b, t, low), s, G_REVERSAL, size)


@inlined
def finish(s, p, table, like, b, low, size):
    """Stores what a block of channels sums over its whole walk."""
    if p.coupling == HEADS:
        for i in range(p.head):
            row = p.blocks + (2 * p.head + i) * WIDTH
            store(row_of(table, like, ROWS.g_w, b, i, low), s, row, size)
    elif p.coupling != DENSE:
        store(row_of(table, like, ROWS.g_w, b, 0, low), s, G_COUPLING, size)
    for n in range(p.n_states):
        state = SHARED + n * STATE
        store(row_of(table, like, ROWS.g_inv_tau, b, n, low), s, state + G_INV_TAU, size)
        store(row_of(table, like, ROWS.g_omega, b, n, low), s, state + G_OMEGA, size)
        store(row_of(table, like, ROWS.g_h0, b, n, low), s, state + G_H, size)


@kernel
def backward(first, last, p, tableau, table, length, width):
    """Runs the tasks first..last - 1 of the forward; fills the gradients of the table, all of whose rows are given."""
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
            load(s, SHARED + n * STATE + G_H, row_of(table, tableau, ROWS.last, b, n, low), size)
        for begin in range((length - 1) // p.chunk * p.chunk, -1, -p.chunk):
            end = min(begin + p.chunk, length)
            slot = recompute(s, p, tableau, table, tableau, b, low, size, begin, end)
            for t in range(end - 1, begin - 1, -1):
                B, C, dt = token_of(table, tableau, b, t)
                gB, gC = gradients_of(table, tableau, p, b, block, t)
                begin_pull(s, p, table, tableau, dt, C, gB, gC, b, low, size, t, slot)
                slot = token_vjp(s, p, tableau, dt, B, C, gB, gC, slot)
                end_pull(s, table, tableau, b, low, size, t)
        finish(s, p, table, tableau, b, low, size)
    buffer[0] = 0  # the pointer does not keep it alive
