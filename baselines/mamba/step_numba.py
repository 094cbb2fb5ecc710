"""Mamba's whole block for one token in one call, float32 on the CPU: projections, convolution, scan and gate.

At small widths a token is little work in many small operations, and calling each by itself costs more than the work.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from harness.model.mixer import UNTIMED
from harness.ops.causal_conv.conv_numba import convolve_token
from harness.ops.shapes import expect
from harness.ops.toolbox.jit import helper, kernel
from harness.ops.toolbox.numba_linear import at, matvec, owned
from harness.ops.toolbox.numba_math import exp, sigmoid, softplus, zero


def mamba_step(block) -> Callable:
    """Operation `mamba_step`: the `step` of a gated block around S6, weights as they stand, no gradients."""
    core = block.core
    weights = (block.in_proj.weight, *block.taps(), core.x_proj.weight, core.dt_proj.weight)
    weights += (core.dt_proj.bias, -torch.exp(core.A_log), core.D, core.out_proj.weight)
    weights = owned(*weights)  # the function keeps them alive
    addresses = [weight.data_ptr() for weight in weights]
    sizes = width, inner, taps, _, n_states = block.d_model, block.d_inner, block.d_conv, core.dt_rank, core.d_state

    def step(x_t: Tensor, state: dict, call=UNTIMED, weights=weights) -> tuple[Tensor, dict]:
        batch, conv, ssm = len(x_t), state["conv"], state["core"]["ssm"]
        states = ("conv", conv, (batch, taps - 1, inner)), ("ssm", ssm, (batch, inner, n_states))
        expect("mamba_step", ("x", x_t, (batch, width)), *states)
        given = [t.float().contiguous() for t in (x_t, conv, ssm)]
        made = [torch.empty_like(t) for t in given]
        places = [t.data_ptr() for t in (*given, *made)]
        _step(*places, *addresses, len(x_t), *sizes)
        return made[0], {"conv": made[1], "core": {"ssm": made[2]}}

    return step


@helper
def _recur(dt, x, A, B, C, h, h_new, y):
    """y_c = sum_n C_n h_cn after h_cn = exp(dt_c A_cn) h_cn + dt_c B_n x_c."""
    for c in range(len(x)):
        drive, total = dt[c] * x[c], zero(x[0])
        rate, old, new = A[c], h[c], h_new[c]
        for n in range(len(B)):
            value = exp(dt[c] * rate[n]) * old[n] + drive * B[n]
            new[n] = value
            total += C[n] * value
        y[c] = total


@kernel
def _step(
    x_at, conv_at, ssm_at, y_at, new_conv_at, new_ssm_at,
    in_at, taps_at, tap_bias_at, select_at, dt_at, dt_bias_at, A_at, D_at, out_at,
    batch, width, inner, taps, rank, states,
):  # fmt: skip
    """Addresses of x, y (batch, width), the states before and after, and of the weights; then their sizes."""
    x, y = at(x_at, (batch, width)), at(y_at, (batch, width))
    conv, new_conv = at(conv_at, (batch, taps - 1, inner)), at(new_conv_at, (batch, taps - 1, inner))
    h, h_new = at(ssm_at, (batch, inner, states)), at(new_ssm_at, (batch, inner, states))
    W_in, W_out = at(in_at, (2 * inner, width)), at(out_at, (width, inner))
    tap, tap_bias = at(taps_at, (taps, inner)), at(tap_bias_at, (inner,))
    W_select, W_dt = at(select_at, (rank + 2 * states, inner)), at(dt_at, (inner, rank))
    dt_bias, A, D = at(dt_bias_at, (inner,)), at(A_at, (inner, states)), at(D_at, (inner,))
    xz, rows = np.empty(2 * inner, np.float32), np.empty((3, inner), np.float32)
    u, dt, read = rows[0], rows[1], rows[2]
    chosen = np.empty(rank + 2 * states, np.float32)
    for b in range(batch):
        matvec(W_in, x[b], xz)
        convolve_token(xz[:inner], tap, tap_bias, conv[b], u, new_conv[b], True)
        matvec(W_select, u, chosen)
        matvec(W_dt, chosen[:rank], dt)
        for c in range(inner):
            dt[c] = softplus(dt[c] + dt_bias[c])
        _recur(dt, u, A, chosen[rank : rank + states], chosen[rank + states :], h[b], h_new[b], read)
        for c in range(inner):
            z = xz[inner + c]
            read[c] = (read[c] + D[c] * u[c]) * z * sigmoid(z)
        matvec(W_out, read, y[b])
