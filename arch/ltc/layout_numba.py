"""The scratch of the liquid scan's kernels: the layout of its rows, and how they are filled and emptied.

A task is one sequence and one block of WIDTH channels. All its rows lie in one buffer, reached through a pointer `s` by
offsets in elements; WIDTH is a constant, so that the compiler sees how far apart two rows are.
"""

from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic

from arch.ltc.maps_numba import KEPT, inlined
from harness.ops.toolbox.numba_math import zero

WIDTH = np.int64(64)
NONE, DIAGONAL, HEADS = 0, 1, 2

# Rows are NumPy integers: numba would compile every helper once more for each Python constant given to it.
(
    PRE, REVERSAL, COUPLING, ARGUMENT, READ, K,
    G_PRE, G_REVERSAL, G_COUPLING, G_ARGUMENT, G_GATE, G_READ, SHARED,
) = WIDTH * np.arange(13)  # fmt: skip
INV_TAU, OMEGA, BASE, SUM, G_H, G_X, G_END, G_INV_TAU, G_OMEGA, STATE = WIDTH * np.arange(10)
"""Rows of one state, from SHARED + n * STATE. BASE, SUM: a Runge-Kutta substep's start, and its end so far."""
GATE, GATE_SLOPE, SLOT_READ, X = WIDTH * np.arange(4)
"""Rows of one stage: f, df by its argument, the read-out and the states it starts from, each before KEPT rows."""


class Plan(NamedTuple):
    """What the kernels do, in numbers: the scalar map, the gate, the terms present, the sizes and the layout."""

    kind: int  # SLOPE, SEMI_IMPLICIT or EXPONENTIAL
    softplus: int  # else sigmoid
    coupling: int  # NONE, DIAGONAL or HEADS
    projected: int  # B and C given
    head: int  # channels of a head
    substeps: int
    stages: int
    n_states: int
    chunk: int  # tokens that the backward computes again at a time
    blocks: int  # where the rows of the heads' weights begin
    slots: int  # where the stages' slots begin
    slot: int  # elements of a stage's slot
    state: int  # elements between two states of a slot


def plan(kind: int, stages: int, gate: str, head: int, projected: bool, substeps: int, n_states: int) -> Plan:
    """Lays out the scratch. head: 0 without coupling, 1 for the diagonal one, else the channels of a head.

    The states kept for the backward, one in `chunk` tokens, take no more than `a` does.
    """
    coupling = min(head, HEADS)
    blocks = int(SHARED + n_states * STATE)
    slots = blocks + (3 * head * int(WIDTH) if coupling == HEADS else 0)
    state = (1 + KEPT[kind]) * int(WIDTH)
    flags = (kind, int(gate == "softplus"), coupling, int(projected), head)
    chunk = max(16, n_states) if projected else 4
    return Plan(*flags, substeps, stages, n_states, chunk, blocks, slots, int(X) + n_states * state, state)


@intrinsic
def pointer(_context, address, like):
    """The pointer to elements of the type of the array `like` at an integer address."""
    kind = types.CPointer(like.dtype)

    def codegen(context, builder, _signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(kind))

    return kind(types.int64, like), codegen


@intrinsic
def apart(_context, s, offset):
    """The pointer `offset` elements after `s`, which the compiler takes for one of its own.

    Where two groups of rows lie an unknown distance apart it then checks the groups for overlap, once, and not all the
    pairs of rows, which it has a limit for.
    """

    def codegen(context, builder, signature, arguments):
        size = context.get_abi_sizeof(context.get_value_type(signature.args[0].dtype))
        word = context.get_value_type(types.int64)
        address = builder.add(builder.ptrtoint(arguments[0], word), builder.mul(arguments[1], word(size)))
        return builder.inttoptr(address, context.get_value_type(signature.return_type))

    return s(s, types.int64), codegen


@inlined
def load(s, row, source, size):
    """Copies `size` channels into a row; lanes past them stay as they are, which is zero."""
    for c in range(size):
        s[row + c] = source[c]


@inlined
def store(target, s, row, size):
    """Copies `size` channels of a row out."""
    for c in range(size):
        target[c] = s[row + c]


@inlined
def copy(s, row, source):
    """row = source."""
    for c in range(WIDTH):
        s[row + c] = s[source + c]


@inlined
def fill_zero(s, row):
    """row = 0."""
    for c in range(WIDTH):
        s[row + c] = zero(s[row + c])


@inlined
def add_scaled(s, row, scale, source):
    """row += scale * source."""
    for c in range(WIDTH):
        s[row + c] += scale * s[source + c]


@inlined
def multiply_heads(s, head, out, weights, source):
    """out += W source, head by head: row i of `weights` holds what lane i of each head's source is multiplied by.

    Four rows at a time: the sums then pass through memory a quarter as often.
    """
    for low in range(0, WIDTH, head):
        for i in range(0, head, 4):
            at, row = source + low + i, weights + i * WIDTH + low
            a, b, c, d = s[at], s[at + 1], s[at + 2], s[at + 3]
            for q in range(head):
                s[out + low + q] += (a * s[row + q] + b * s[row + WIDTH + q]) + (
                    c * s[row + 2 * WIDTH + q] + d * s[row + 3 * WIDTH + q]
                )
