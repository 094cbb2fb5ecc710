"""The stages of the liquid scan on CPU, each a few loops over the channels of a block, which LLVM vectorises.

Loops over states, stages and substeps stand outside. A stage finds the states it starts from in its slot and leaves
those of the next stage in the next slot; the rows are those of liquid_numba_rows.
"""

from arch.ltc.layout_numba import (
    ARGUMENT,
    BASE,
    COUPLING,
    GATE,
    GATE_SLOPE,
    HEADS,
    INV_TAU,
    NONE,
    OMEGA,
    PRE,
    REVERSAL,
    SHARED,
    SLOT_READ,
    STATE,
    SUM,
    WIDTH,
    K,
    X,
    add_scaled,
    copy,
    multiply_heads,
)
from arch.ltc.maps_numba import EXPONENTIAL, SEMI_IMPLICIT, exponential, inlined, semi_implicit, slope
from harness.ops.toolbox.numba_math import sigmoid, softplus


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
    """The solver's scalar map of one state: from the row x to the row `after`, the gate's row f given.

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
def stage(s, p, tableau, dt, B, C, token, slot, after, j):
    """Stage j of a substep, from `slot` to the slot `after`; `token`: the slot of the token's first stage."""
    f = token + GATE
    if p.coupling != NONE:
        coupled_gate(s, p, slot, C)
        f = slot + GATE
    for n in range(p.n_states):
        state, x = SHARED + n * STATE, slot + X + n * p.state
        ahead, share = dt * tableau[0, j], dt * tableau[1, j]
        apply_map(s, p, f, x, after + X + n * p.state, state, B[n], dt, ahead, share, j == 0, j == p.stages - 1)


@inlined
def token(s, p, tableau, dt, B, C, slot, step):
    """Crosses one token from the states in `slot`; the slots of its stages lie `step` apart, or take turns (step 0).

    Returns the slot that the token's last states are in.
    """
    first = slot
    if p.coupling == NONE:
        gate(s, p, slot, PRE, COUPLING)  # its w is zero: any finite row serves
    other = p.slots + p.slots + p.slot
    for _ in range(p.substeps):
        for j in range(p.stages):
            after = slot + step if step > 0 else other - slot
            stage(s, p, tableau, dt, B, C, first, slot, after, j)
            slot = after
    return slot
