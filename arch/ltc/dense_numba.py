"""The liquid scan's walks over time on CPU where the gate sees all channels, f = gate(a + W y).

No block of channels can go ahead of another: all of a sequence take a stage together, around one product with W, and a
few sequences walk together, to share each load of it (harness/ops/toolbox/numba_linear.py). What a block does in a
stage is what it does without the coupling (stage_numba.py). A task is such a group of sequences. The backward goes back
over a window of tokens and leaves the gradient by W, a sum over all stages of it, to one product outside.
"""

from typing import NamedTuple

import numpy as np
from numba import carray

from arch.ltc.stage_numba import (
    ARGUMENT,
    COUPLING,
    G_ARGUMENT,
    G_H,
    G_INV_TAU,
    G_OMEGA,
    G_READ,
    G_X,
    GATE,
    PRE,
    SHARED,
    SLOT_READ,
    STATE,
    WIDTH,
    X,
    advance,
    end_vjp,
    gate,
    keep_gradient,
    load,
    maps_vjp,
    place,
    pointer,
    read_out,
    read_out_vjp,
    shares_vjp,
    start_vjp,
    store,
)
from arch.ltc.walk_numba import (
    NO_END,
    ROWS,
    begin_pull,
    end_pull,
    finish,
    gradients_of,
    load_mark,
    load_states,
    load_token,
    row_of,
    start,
    store_read_out,
    store_states,
    token_of,
)
from harness.ops.toolbox.jit import inlined, kernel
from harness.ops.toolbox.numba_linear import padded, product


class Group(NamedTuple):
    """Sequences that walk together, and the memory they work in, by address."""

    first: int  # the first sequence
    rows: int  # sequences
    width: int  # channels of a sequence
    blocks: int  # blocks of channels of a sequence
    scratch: int  # of the blocks, one sequence after another
    span: int  # elements of a block's scratch
    read: int  # what a product reads (rows, width)
    made: int  # what it makes (rows, columns)
    columns: int


@inlined
def block_of(g, like, i):
    """Block i of a group: its scratch, its sequence in the group, its number there, its first channel and its size."""
    r, k = i // g.blocks, i % g.blocks
    s = pointer(g.scratch + i * g.span * like.itemsize, like)
    return s, r, k, k * WIDTH, min(WIDTH, g.width - k * WIDTH)


@inlined
def read_row(g, like, r, low):
    """The pointer to what a product reads of a sequence of the group, from channel `low` on."""
    return pointer(g.read + (r * g.width + low) * like.itemsize, like)


@inlined
def made_row(g, like, r, low):
    """The pointer to what it makes of it."""
    return pointer(g.made + (r * g.columns + low) * like.itemsize, like)


@inlined
def weight_of(table, like, width, columns, turned):
    """The panels of W^T, which the forward multiplies by, or of W, for the backward."""
    tile = padded(like, 1)
    return carray(row_of(table, like, ROWS.w, 0, turned, 0), (columns // tile, width, tile))


@inlined
def seen(p, slot):
    """The row of a slot that the coupling reads: the state itself where it is alone."""
    return slot + SLOT_READ if p.projected else slot + X


@inlined
def group_token(g, p, tableau, table, weight, read, made, t, slot, end):
    """Crosses one token, loaded before, as `token` of stage_numba.py does; returns the slot of its last states."""
    for _ in range(p.substeps):
        first = slot
        for j in range(p.stages):
            after = place(slot, 1, p, end)
            for i in range(g.rows * g.blocks):
                s, r, _, low, size = block_of(g, tableau, i)
                if p.projected:
                    read_out(s, p, seen(p, slot), slot, token_of(table, tableau, g.first + r, t)[1])
                store(read_row(g, tableau, r, low), s, seen(p, slot), size)
            product(read, weight, made)
            for i in range(g.rows * g.blocks):
                s, r, _, low, size = block_of(g, tableau, i)
                by_state = made_row(g, tableau, r, low)
                for c in range(size):
                    s[ARGUMENT + c] = s[PRE + c] + by_state[c]
                gate(s, p, slot, ARGUMENT, COUPLING)  # its w is zero: any finite row serves
                B, _, dt = token_of(table, tableau, g.first + r, t)
                advance(s, p, tableau, dt, B, slot + GATE, first, slot, after, j, end)
            slot = after
    return slot


@kernel
def forward(first, last, group, p, tableau, table, batch, length, width, keep):
    """Runs the groups first..last - 1, of `group` sequences each; as the forward of walk_numba.py."""
    blocks, columns = (width + WIDTH - 1) // WIDTH, padded(tableau, width)
    weight = weight_of(table, tableau, width, columns, 0)
    end = p.slots + p.ring * p.slot
    for task in range(first, last):
        low_row = task * group
        rows = min(group, batch - low_row)
        buffer = np.zeros(rows * blocks * end, tableau.dtype)
        read, made = np.empty((rows, width), tableau.dtype), np.empty((rows, columns), tableau.dtype)
        places = np.int64(buffer.ctypes.data), np.int64(read.ctypes.data), np.int64(made.ctypes.data)
        g = Group(low_row, rows, width, blocks, places[0], end, places[1], places[2], columns)
        slot = np.int64(p.slots)
        for i in range(rows * blocks):
            s, r, _, low, size = block_of(g, tableau, i)
            start(s, p, table, tableau, low, size, False)
            load_states(s, p, table, tableau, ROWS.h0, low_row + r, 0, low, size, slot)
        for t in range(length):
            for i in range(rows * blocks):
                s, r, _, low, size = block_of(g, tableau, i)
                b = low_row + r
                if keep and t % p.chunk == 0 and t > 0:
                    mark = (t // p.chunk - 1) * p.n_states
                    store_states(s, p, table, tableau, ROWS.marks, b, mark, low, size, slot)
                load_token(s, table, tableau, b, t, low, size)
            slot = group_token(g, p, tableau, table, weight, read, made, t, slot, end)
            for i in range(rows * blocks):
                s, r, _, low, size = block_of(g, tableau, i)
                C = token_of(table, tableau, low_row + r, t)[1]
                store_read_out(s, p, table, tableau, C, low_row + r, t, low, size, slot)
        for i in range(rows * blocks):
            s, r, _, low, size = block_of(g, tableau, i)
            store_states(s, p, table, tableau, ROWS.last, low_row + r, 0, low, size, slot)
        buffer[0] = 0  # the pointers do not keep it alive


@inlined
def group_recompute(g, p, tableau, table, weight, read, made, begin, end):
    """Runs the tokens begin..end - 1 from the states kept before them, their stages one slot after another."""
    slot = np.int64(p.slots)
    for i in range(g.rows * g.blocks):
        s, r, _, low, size = block_of(g, tableau, i)
        load_mark(s, p, table, tableau, g.first + r, begin, low, size, slot)
    for t in range(begin, end):
        for i in range(g.rows * g.blocks):
            s, r, _, low, size = block_of(g, tableau, i)
            load_token(s, table, tableau, g.first + r, t, low, size)
        slot = group_token(g, p, tableau, table, weight, read, made, t, slot, NO_END)
    return slot


@inlined
def group_stage_vjp(g, p, tableau, table, weight, read, made, t, row, slot, after, j):
    """Pulls stage j's gradients back to the states it started from; row: of the token's stage in the window's."""
    for i in range(g.rows * g.blocks):
        s, r, k, low, size = block_of(g, tableau, i)
        B, _, dt = token_of(table, tableau, g.first + r, t)
        gB, _ = gradients_of(table, tableau, p, g.first + r, k, t)
        ahead, share = shares_vjp(s, p, tableau, dt, slot, j)
        maps_vjp(s, p, dt, B, gB, slot + GATE, slot, after, ahead, share)
        store(read_row(g, tableau, r, low), s, G_ARGUMENT, size)
        store(row_of(table, tableau, ROWS.g_arguments, g.first + r, row, low), s, G_ARGUMENT, size)
        store(row_of(table, tableau, ROWS.reads, g.first + r, row, low), s, seen(p, slot), size)
    product(read, weight, made)
    for i in range(g.rows * g.blocks):
        s, r, k, low, size = block_of(g, tableau, i)
        load(s, G_READ, made_row(g, tableau, r, low), size)
        _, C, _ = token_of(table, tableau, g.first + r, t)
        _, gC = gradients_of(table, tableau, p, g.first + r, k, t)
        read_out_vjp(s, p, slot, G_X, C, gC)
        start_vjp(s, p)
        keep_gradient(s, p, slot, G_X)


@inlined
def group_pull(g, p, tableau, table, weight, read, made, t, row, slot):
    """Pulls the gradients back over one token, whose last states are in `slot`; returns the slot of its first ones.

    row: of the token's first stage in the window's.
    """
    for i in range(g.rows * g.blocks):
        s, r, k, low, size = block_of(g, tableau, i)
        _, C, dt = token_of(table, tableau, g.first + r, t)
        gB, gC = gradients_of(table, tableau, p, g.first + r, k, t)
        begin_pull(s, p, table, tableau, dt, C, gB, gC, g.first + r, low, size, t, slot)
    for step in range(p.substeps - 1, -1, -1):
        for i in range(g.rows * g.blocks):
            end_vjp(block_of(g, tableau, i)[0], p, slot)
        for j in range(p.stages - 1, -1, -1):
            at = row + step * p.stages + j
            group_stage_vjp(g, p, tableau, table, weight, read, made, t, at, slot - p.slot, slot, j)
            slot -= p.slot
    for i in range(g.rows * g.blocks):
        s, r, _, low, size = block_of(g, tableau, i)
        end_pull(s, table, tableau, g.first + r, low, size, t)
    return slot


@kernel
def backward(first, last, group, p, tableau, table, batch, begin, end, width):
    """Takes the groups first..last - 1 back over the tokens end - 1 .. begin, a multiple of p.chunk.

    Adds to g_inv_tau and g_omega, and leaves in g_h0 the gradient by the states before `begin`; `last` is the one by
    those after `end`. Fills what is the window's of the table's other gradients, reads and g_arguments.
    """
    blocks, columns, stages = (width + WIDTH - 1) // WIDTH, padded(tableau, width), p.substeps * p.stages
    forth, back = weight_of(table, tableau, width, columns, 0), weight_of(table, tableau, width, columns, 1)
    span = p.slots + (min(p.chunk, end - begin) * stages + 1) * p.slot
    for task in range(first, last):
        low_row = task * group
        rows = min(group, batch - low_row)
        buffer = np.zeros(rows * blocks * span, tableau.dtype)
        read, made = np.empty((rows, width), tableau.dtype), np.empty((rows, columns), tableau.dtype)
        places = np.int64(buffer.ctypes.data), np.int64(read.ctypes.data), np.int64(made.ctypes.data)
        g = Group(low_row, rows, width, blocks, places[0], span, places[1], places[2], columns)
        for i in range(rows * blocks):
            s, r, _, low, size = block_of(g, tableau, i)
            start(s, p, table, tableau, low, size, False)
            for n in range(p.n_states):
                state, b = SHARED + n * STATE, low_row + r
                load(s, state + G_H, row_of(table, tableau, ROWS.last, b, n, low), size)
                load(s, state + G_INV_TAU, row_of(table, tableau, ROWS.g_inv_tau, b, n, low), size)
                load(s, state + G_OMEGA, row_of(table, tableau, ROWS.g_omega, b, n, low), size)
        for low_token in range((end - 1) // p.chunk * p.chunk, begin - 1, -p.chunk):
            high_token = min(low_token + p.chunk, end)
            slot = group_recompute(g, p, tableau, table, forth, read, made, low_token, high_token)
            for t in range(high_token - 1, low_token - 1, -1):
                slot = group_pull(g, p, tableau, table, back, read, made, t, (t - begin) * stages, slot)
        for i in range(rows * blocks):
            s, r, _, low, size = block_of(g, tableau, i)
            finish(s, p, table, tableau, low_row + r, low, size)
        buffer[0] = 0  # the pointers do not keep it alive
