"""The stages of the liquid scan on CPU and their vector-Jacobian products, and the scratch they work in.

A block is WIDTH channels of one sequence. All its rows lie in one buffer, reached through a pointer `s` by offsets in
elements; WIDTH is a constant, so that the compiler sees how far apart two rows are. A stage is a few loops
over the channels of a block, which LLVM vectorises; loops over states, stages and substeps stand outside. A stage finds
the states it starts from in its slot and leaves those of the next stage in the next slot. A row G_NAME is the loss's
gradient by the row NAME.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic

from arch.field import Field
from arch.solvers import Solver
from arch.solvers_numba import (
    EXPONENTIAL,
    KEPT,
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
from harness.ops.toolbox.jit import inlined
from harness.ops.toolbox.numba_math import one, sigmoid, softplus, zero

WIDTH = np.int64(64)
NONE, DIAGONAL, HEADS, DENSE = 0, 1, 2, 3
COUPLINGS = {"none": NONE, "diagonal": DIAGONAL, "heads": HEADS, "dense": DENSE}
CHUNK = {NONE: 4, DIAGONAL: 4, HEADS: 4, DENSE: 1}
"""Tokens that the backward computes again at a time where every state is kept: many blocks at once fill the cache."""

# Rows are NumPy integers: numba would compile every helper once more for each Python constant given to it.
(
    PRE, REVERSAL, COUPLING, ARGUMENT, READ, K,
    G_PRE, G_REVERSAL, G_COUPLING, G_ARGUMENT, G_GATE, G_READ, SHARED,
) = WIDTH * np.arange(13)  # fmt: skip
INV_TAU, OMEGA, BASE, SUM, G_H, G_X, G_END, G_INV_TAU, G_OMEGA, STATE = WIDTH * np.arange(10)
"""Rows of one state, from SHARED + n * STATE. BASE, SUM: a Runge-Kutta substep's start, and its end so far."""
GATE, GATE_SLOPE, SLOT_READ, X = WIDTH * np.arange(4)
"""Rows of one stage: f, df by its argument, the read-out and the states it starts from, each before the rows that its
map keeps, or before KEPT_SLOPE: its slope where a later stage looks back, and in the backward the gradient by X."""
KEPT_SLOPE = WIDTH


class Plan(NamedTuple):
    """What the kernels do, in numbers: the solver's map, the gate, the terms present, the sizes and the layout."""

    kind: int  # SLOPE, SEMI_IMPLICIT, EXPONENTIAL or REFLECTED
    softplus: int  # else sigmoid
    coupling: int  # NONE, DIAGONAL, HEADS or DENSE
    projected: int  # B and C given
    head: int  # channels of a head, 1 where there are none
    substeps: int
    stages: int
    looks_back: int  # a stage starts from other slopes than the last: slots keep theirs
    n_states: int
    chunk: int  # tokens that the backward computes again at a time
    blocks: int  # where the rows of the heads' weights begin
    slots: int  # where the stages' slots begin
    slot: int  # elements of a stage's slot
    ring: int  # slots that the forward reuses
    state: int  # elements between two states of a slot


def plan(solver: Solver, field: Field, n_states: int) -> tuple[Plan, np.ndarray]:
    """Lays out the scratch; also the solver's tableau, in float64. The field's a, A, B and C may be any token's.

    The states kept for the backward, one in `chunk` tokens, take no more than `a` does.
    """
    coupling = COUPLINGS[field.coupled]
    head = field.coupling.shape[-1] if coupling == HEADS else 1
    return _plan(solver, field.gate, coupling, head, field.B is not None, n_states)


@cache
def _plan(
    solver: Solver, gate: str, coupling: int, head: int, projected: bool, n_states: int
) -> tuple[Plan, np.ndarray]:
    kind, tableau = method(solver)
    stages, back = tableau.shape[1], looks_back(tableau)
    blocks = int(SHARED + n_states * STATE)
    slots = blocks + (3 * head * int(WIDTH) if coupling == HEADS else 0)
    state = (1 + KEPT[kind] + back) * int(WIDTH)
    layout = {"blocks": blocks, "slots": slots, "slot": int(X) + n_states * state, "state": state}
    layout |= {"ring": stages + 1 if back else 2, "chunk": max(16, n_states) if projected else CHUNK[coupling]}
    terms = {"softplus": int(gate == "softplus"), "coupling": coupling, "projected": int(projected)}
    sizes = {"head": head, "substeps": solver.substeps, "stages": stages, "n_states": n_states}
    return Plan(kind=kind, looks_back=int(back), **terms, **sizes, **layout), tableau


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


@inlined
def gate(s, p, slot, argument, read):
    """f = gate(argument + w read) and its slope; w is zero but for the diagonal coupling."""
    if p.softplus:
        for c in range(WIDTH):
            z = s[argument + c] + s[COUPLING + c] * s[read + c]
            s[slot + GATE + c] = softplus(z)
            s[slot + GATE_SLOPE + c] = sigmoid(z)
    else:
        for c in range(WIDTH):
            f = sigmoid(s[argument + c] + s[COUPLING + c] * s[read + c])
            s[slot + GATE + c] = f
            s[slot + GATE_SLOPE + c] = f - f * f


@inlined
def read_out(s, p, out, slot, weights):
    """y = sum_n C_n h_n of the states in a slot."""
    for c in range(WIDTH):
        s[out + c] = weights[0] * s[slot + X + c]
    for n in range(1, p.n_states):
        add_scaled(s, out, weights[n], slot + X + n * p.state)


@inlined
def coupled_gate(s, p, slot, C):
    """The gate of a stage that sees the state."""
    read = slot + X
    if p.projected:
        read = slot + SLOT_READ
        read_out(s, p, read, slot, C)
    argument = PRE
    if p.coupling == HEADS:
        argument = ARGUMENT
        copy(s, ARGUMENT, PRE)
        multiply_heads(s, p.head, ARGUMENT, p.blocks, read)
    gate(s, p, slot, argument, read)


@inlined
def apply_map(s, p, f, x, after, state, weight, dt, ahead, share, first, last):
    """The solver's map of one state: from the row x to the row `after`, the gate's row f given.

    ahead, share: of this stage's slope, what the next stage starts from and what the substep ends with.
    """
    if p.kind == SEMI_IMPLICIT:
        for c in range(WIDTH):
            rate = s[state + INV_TAU + c] + s[state + OMEGA + c] * s[f + c]
            drive = weight * s[f + c] * s[REVERSAL + c]
            s[after + c], s[x + WIDTH + c] = semi_implicit(s[x + c], rate, drive, dt)
    elif p.kind == EXPONENTIAL:
        for c in range(WIDTH):
            rate = s[state + INV_TAU + c] + s[state + OMEGA + c] * s[f + c]
            drive = weight * s[f + c] * s[REVERSAL + c]
            values = exponential(s[x + c], rate, drive, dt)
            s[after + c], s[x + WIDTH + c], s[x + 2 * WIDTH + c] = values
    elif p.kind == REFLECTED:
        for c in range(WIDTH):
            rate = s[state + INV_TAU + c] + s[state + OMEGA + c] * s[f + c]
            drive = weight * s[f + c] * s[REVERSAL + c]
            values = reflected(s[x + c], rate, drive, dt)
            s[after + c], s[x + WIDTH + c], s[x + 2 * WIDTH + c] = values
    else:
        start = x if first else state + BASE
        so_far = x if first else state + SUM
        for c in range(WIDTH):
            rate = s[state + INV_TAU + c] + s[state + OMEGA + c] * s[f + c]
            s[K + c] = slope(s[x + c], rate, weight * s[f + c] * s[REVERSAL + c])
        if last:
            for c in range(WIDTH):
                s[after + c] = s[so_far + c] + share * s[K + c]
        else:
            for c in range(WIDTH):
                s[state + SUM + c] = s[so_far + c] + share * s[K + c]
            for c in range(WIDTH):
                s[after + c] = s[start + c] + ahead * s[K + c]
            if first:
                copy(s, state + BASE, x)


@inlined
def place(slot, stages, p, end):
    """The slot so many stages after a slot, fewer than p.ring, in the ring of slots before `end`."""
    slot += stages * p.slot
    return slot - p.ring * p.slot if slot >= end else slot


@inlined
def look_back(s, p, tableau, dt, first, slot, after, x, j, end):
    """Keeps the slope of stage j in its slot; adds the earlier slopes' part of the next start to the slot `after`.

    first: the slot of the substep's first stage. x: where the state's rows begin in a slot.
    """
    copy(s, slot + x + KEPT_SLOPE, K)
    if j < p.stages - 1:
        for i in range(j):
            if tableau[j + 1, i] != 0:
                add_scaled(s, after + x, dt * tableau[j + 1, i], place(first, i, p, end) + x + KEPT_SLOPE)


@inlined
def slope_shares(p, tableau, dt, j):
    """What of stage j's slope the next stage starts from, and what the substep ends with."""
    ahead = zero(dt)
    if j < p.stages - 1:
        ahead = dt * tableau[j + 1, j]
    return ahead, dt * tableau[p.stages, j]


@inlined
def advance(s, p, tableau, dt, B, f, first, slot, after, j, end):
    """Stage j of a substep, from `slot` to `after`, its gate's row f given; first: the slot of the substep's first."""
    ahead, share = slope_shares(p, tableau, dt, j)
    for n in range(p.n_states):
        state, x = SHARED + n * STATE, X + n * p.state
        apply_map(s, p, f, slot + x, after + x, state, B[n], dt, ahead, share, j == 0, j == p.stages - 1)
        if p.looks_back:
            look_back(s, p, tableau, dt, first, slot, after, x, j, end)


@inlined
def stage(s, p, tableau, dt, B, C, token, first, slot, after, j, end):
    """Stage j of a substep and its gate; token, first: the slots of the token's and the substep's first stage."""
    f = token + GATE
    if p.coupling != NONE:
        coupled_gate(s, p, slot, C)
        f = slot + GATE
    advance(s, p, tableau, dt, B, f, first, slot, after, j, end)


@inlined
def token(s, p, tableau, dt, B, C, slot, end):
    """Crosses one token from the states in `slot`, its stages' slots one after another, in a ring that ends at `end`.

    Returns the slot that the token's last states are in.
    """
    start = slot
    if p.coupling == NONE:
        gate(s, p, slot, PRE, COUPLING)  # its w is zero: any finite row serves
    for _ in range(p.substeps):
        first = slot
        for j in range(p.stages):
            after = place(slot, 1, p, end)
            stage(s, p, tableau, dt, B, C, start, first, slot, after, j, end)
            slot = after
    return slot


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
            g = exponential_vjp(s[x + c], rate, drive, dt, kept[0], kept[1], s[state + G_H + c])
            s[G_GATE + c] += pull(s, f, state, g[0], g[1], g[2], weight, c)
            total += s[f + c] * s[REVERSAL + c] * g[2]
    elif p.kind == REFLECTED:
        for c in range(WIDTH):
            rate = s[state + INV_TAU + c] + s[state + OMEGA + c] * s[f + c]
            drive = weight * s[f + c] * s[REVERSAL + c]
            kept = s[x + WIDTH + c], s[x + 2 * WIDTH + c]
            g = reflected_vjp(s[x + c], rate, drive, dt, kept[0], kept[1], s[state + G_H + c])
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
def gate_vjp(s, f):
    """From G_GATE, which it clears, to the gate's argument."""
    for c in range(WIDTH):
        g = s[G_GATE + c] * s[f + GATE_SLOPE - GATE + c]
        s[G_ARGUMENT + c] = g
        s[G_PRE + c] += g
        s[G_GATE + c] = zero(g)


@inlined
def coupling_vjp(s, p, slot, C, gC):
    """From the gate's argument to G_X, through the state inside the gate."""
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
def lone_stage_vjp(s, p, tableau, slot, dt, j):
    """What stage_vjp does, in one pass over rows of a slot and of the next that lie a constant apart.

    Without looking back: the mere test for it costs rk4 and semi_implicit 5 % of their backward.
    """
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
            g = exponential_vjp(z[X + c], rate, drive, dt, kept[0], kept[1], s[SHARED + G_H + c])
            pull_lone(s, z, g[0], g[1], g[2], SHARED + G_H, c)
    elif p.kind == REFLECTED:
        for c in range(WIDTH):
            rate = s[SHARED + INV_TAU + c] + s[SHARED + OMEGA + c] * z[GATE + c]
            drive = z[GATE + c] * s[REVERSAL + c]
            kept = z[X + WIDTH + c], z[X + 2 * WIDTH + c]
            g = reflected_vjp(z[X + c], rate, drive, dt, kept[0], kept[1], s[SHARED + G_H + c])
            pull_lone(s, z, g[0], g[1], g[2], SHARED + G_H, c)
    else:
        ahead, share = slope_shares(p, tableau, dt, j)
        for c in range(WIDTH):
            rate = s[SHARED + INV_TAU + c] + s[SHARED + OMEGA + c] * z[GATE + c]
            g = share * s[SHARED + G_END + c] + ahead * s[SHARED + G_X + c]
            g = slope_vjp(z[X + c], rate, g)
            pull_lone(s, z, g[0], g[1], g[2], SHARED + G_X, c)
        add_scaled(s, SHARED + G_H, one(dt), SHARED + G_X)


@inlined
def gather_back(s, p, tableau, dt, slot, j):
    """Fills G_END with what stage j's slope gets from all that starts from it but the next stage.

    slot: of stage j; the slots of the stages after it keep the gradients by their X, and the last that by the end.
    """
    for n in range(p.n_states):
        row, x = SHARED + n * STATE + G_END, X + n * p.state + KEPT_SLOPE
        fill_zero(s, row)
        for i in range(j + 1, p.stages + 1):
            if tableau[i, j] != 0 and (i > j + 1 or i == p.stages):
                add_scaled(s, row, dt * tableau[i, j], slot + (i - j) * p.slot + x)


@inlined
def shares_vjp(s, p, tableau, dt, slot, j):
    """What of G_X and of G_END stage j's slope, in `slot`, gets; all of G_END where that gathers other stages' too."""
    ahead, share = slope_shares(p, tableau, dt, j)
    if p.looks_back:
        gather_back(s, p, tableau, dt, slot, j)
        share = one(dt)
    return ahead, share


@inlined
def maps_vjp(s, p, dt, B, gB, f, slot, after, ahead, share):
    """Pulls all states' gradients back through a stage's map and its gate, whose row is f."""
    for n in range(p.n_states):
        x = X + n * p.state
        g = map_vjp(s, p, f, slot + x, after + x, SHARED + n * STATE, B[n], dt, ahead, share)
        if p.projected:
            gB[n] += g
    gate_vjp(s, f)


@inlined
def start_vjp(s, p):
    """Adds G_X, by what a stage starts from, to the gradient by the substep's start, or puts it there."""
    for n in range(p.n_states):
        state = SHARED + n * STATE
        if p.kind == SLOPE:
            add_scaled(s, state + G_H, one(s[state + G_H]), state + G_X)
        else:
            copy(s, state + G_H, state + G_X)


@inlined
def keep_gradient(s, p, slot, gradient):
    """Keeps a gradient by the states in a slot there, where earlier stages look back at it."""
    if p.looks_back:
        for n in range(p.n_states):
            copy(s, slot + X + n * p.state + KEPT_SLOPE, SHARED + n * STATE + gradient)


@inlined
def end_vjp(s, p, slot):
    """Begins the way back over a substep, whose last states are in `slot`."""
    if p.kind == SLOPE:
        for n in range(p.n_states):
            copy(s, SHARED + n * STATE + G_END, SHARED + n * STATE + G_H)
        keep_gradient(s, p, slot, G_H)


@inlined
def stage_vjp(s, p, tableau, dt, B, C, gB, gC, first, slot, after, j):
    """Pulls stage j's gradient back to the states it started from; `first`: the slot of the token's first stage."""
    f = first + GATE if p.coupling == NONE else slot + GATE
    if not p.projected and p.coupling == DIAGONAL and not p.looks_back:
        lone_stage_vjp(s, p, tableau, slot, dt, j)
    else:
        ahead, share = shares_vjp(s, p, tableau, dt, slot, j)
        maps_vjp(s, p, dt, B, gB, f, slot, after, ahead, share)
        if p.coupling != NONE:
            coupling_vjp(s, p, slot, C, gC)
        start_vjp(s, p)
        keep_gradient(s, p, slot, G_X)


@inlined
def token_vjp(s, p, tableau, dt, B, C, gB, gC, slot):
    """Pulls G_H back over one token's substeps, whose last states are in `slot`; returns the slot of its first."""
    first = slot - p.substeps * p.stages * p.slot
    for _ in range(p.substeps):
        end_vjp(s, p, slot)
        for j in range(p.stages - 1, -1, -1):
            stage_vjp(s, p, tableau, dt, B, C, gB, gC, first, slot - p.slot, slot, j)
            slot -= p.slot
    return slot
