"""The liquid mixer for one token in one call, float32 on the CPU: convolution, projections and the flow.

At small widths a token is little work in many small operations, and calling each by itself costs more than the work.
The flow itself is the scan's kernel over one token.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from arch.ltc.dense_numba import forward as forward_dense
from arch.ltc.scan_numba import place, weight_rows
from arch.ltc.stage_numba import DENSE, WIDTH, plan
from arch.ltc.walk_numba import ROWS, forward, table_of
from harness.model.mixer import UNTIMED
from harness.ops.causal_conv.conv_numba import convolve_token
from harness.ops.shapes import expect
from harness.ops.toolbox.jit import helper, kernel
from harness.ops.toolbox.numba_linear import at, matvec, owned

BYTES = np.int64(4)  # of a float32


def liquid_step(mixer) -> Callable:
    """Operation `liquid_step`: the `step` of an LTC for its weights as they stand, without gradients."""
    like = mixer.in_proj.weight
    field = mixer.field(like.new_zeros(1, mixer.d_model))
    p, tableau = plan(mixer.solver, field, mixer.d_state)
    filters = (mixer.conv_weight, mixer.conv_bias) if mixer.d_conv else (like.new_empty(0), like.new_empty(0))
    reversal = like.new_empty(0) if mixer.reversal is None else mixer.reversal
    weights = (*filters, mixer.in_proj.weight, mixer.gate_bias, reversal, mixer.out_proj.weight)
    weights = owned(*weights)  # the function keeps them alive, and the constants
    rates = {"inv_tau": field.inv_tau.t(), "omega": field.omega.expand_as(field.inv_tau).t()}
    rates |= {} if field.coupling is None else {"w": weight_rows(field.coupling)}
    rates = {name: owned(x)[0] for name, x in rates.items()}
    addresses = [weight.data_ptr() for weight in weights]
    one, dt = owned(like.new_ones(1), like.new_full((1,), mixer.horizon / mixer.solver.substeps))
    places = {name: place(x, None, 0 if x.dim() > 1 else None) for name, x in rates.items()}
    places |= {name: place(x, None, None) for name, x in {"B": one, "C": one, "dt": dt}.items()}
    table = table_of(**places)  # the rows of the token are still empty
    sizes = width, inner, taps, n_states = mixer.d_model, mixer.d_inner, mixer.d_conv, mixer.d_state
    what, kept = (p, tableau.astype(np.float32), table), (weights, rates, one, dt)

    def step(x_t: Tensor, state: dict, call=UNTIMED, kept=kept) -> tuple[Tensor, dict]:
        if call.elapsed is not None:
            return mixer.step(x_t, state, call)
        batch, h, conv = len(x_t), state["h"], state["conv"] if taps else None
        expect(
            "liquid_step",
            ("x", x_t, (batch, width)),
            ("h", h, (batch, inner, n_states)),
            ("conv", conv, (batch, taps - 1, width)),
        )
        given = [t.float().contiguous() for t in (x_t, h)]
        made = [torch.empty_like(t) for t in given]
        conv = conv.float().contiguous() if taps else one
        new_conv = torch.empty_like(conv)
        places = [t.data_ptr() for t in (*given, conv, *made, new_conv)]
        _step(*places, *addresses, len(x_t), *sizes, *what)
        new = {"h": made[1]}
        return made[0], new | {"conv": new_conv} if taps else new

    return step


@helper
def _place(table, row, address, width):
    """Where a row's tensor lies, and the elements from one sequence to the next."""
    table[row, 0], table[row, 1] = address, width * BYTES


@helper
def _flow(row, reversal_at, h, h_new, y, width, states, p, tableau, table):
    """The flow over one token from row (parts of in_proj's output, biased): h, h_new (width, states), y (width)."""
    scratch = np.empty((2 * states, width), np.float32)
    for n in range(states):
        for c in range(width):
            scratch[n, c] = h[c, n]
    rows = table.copy()
    start, last = np.int64(row.ctypes.data), np.int64(scratch.ctypes.data)
    _place(rows, ROWS.a, start, 0)
    after = 1 if reversal_at != 0 else 2
    _place(rows, ROWS.A, np.int64(reversal_at) if reversal_at != 0 else start + width * BYTES, 0)
    if p.projected:
        _place(rows, ROWS.B, start + after * width * BYTES, 0)
        _place(rows, ROWS.C, start + (after * width + states) * BYTES, 0)
    for own, address in ((ROWS.h0, last), (ROWS.last, last + states * width * BYTES)):
        rows[own, 0], rows[own, 2] = address, width * BYTES
    _place(rows, ROWS.y, np.int64(y.ctypes.data), 0)
    if p.coupling == DENSE:
        forward_dense(0, 1, 1, p, tableau, rows, 1, 1, width, False)
    else:
        forward(0, (width + WIDTH - 1) // WIDTH, p, tableau, rows, 1, width, False)
    for n in range(states):
        for c in range(width):
            h_new[c, n] = scratch[states + n, c]


@kernel
def _step(
    x_at, h_at, conv_at, y_at, new_h_at, new_conv_at, taps_at, tap_bias_at, in_at, bias_at, reversal_at, out_at,
    batch, d_model, width, taps, states, p, tableau, table,
):  # fmt: skip
    """Addresses of x, y (batch, d_model), the states before and after, and of the weights; then sizes and the plan."""
    x, y = at(x_at, (batch, d_model)), at(y_at, (batch, d_model))
    h, h_new = at(h_at, (batch, width, states)), at(new_h_at, (batch, width, states))
    total = width * (1 if reversal_at != 0 else 2) + (2 * states if p.projected else 0)
    W_in, W_out, bias = at(in_at, (total, d_model)), at(out_at, (d_model, width)), at(bias_at, (width,))
    u, row, read = np.empty(d_model, np.float32), np.empty(total, np.float32), np.empty(width, np.float32)
    for b in range(batch):
        if taps > 0:
            conv, new_conv = at(conv_at, (batch, taps - 1, d_model)), at(new_conv_at, (batch, taps - 1, d_model))
            weight, tap_bias = at(taps_at, (taps, d_model)), at(tap_bias_at, (d_model,))
            convolve_token(x[b], weight, tap_bias, conv[b], u, new_conv[b], False)
        else:
            u[:] = x[b]
        matvec(W_in, u, row)
        for c in range(width):
            row[c] += bias[c]
        _flow(row, reversal_at, h[b], h_new[b], read, width, states, p, tableau, table)
        matvec(W_out, read, y[b])
