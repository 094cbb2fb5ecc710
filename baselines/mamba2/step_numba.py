"""Mamba-2's block for one token in one call, float32 on the CPU: projections, convolution, states, gate and norm."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from harness.model.mixer import UNTIMED
from harness.ops.causal_conv.conv_numba import convolve_token
from harness.ops.shapes import expect
from harness.ops.toolbox.jit import helper, kernel
from harness.ops.toolbox.numba_linear import at, matvec, owned
from harness.ops.toolbox.numba_math import exp, one, sigmoid, softplus, zero


def mamba2_step(mixer) -> Callable:
    """Operation `mamba2_step`: the `step` of a Mamba2 for its weights as they stand, without gradients."""
    heads = torch.stack([mixer.dt_bias, -torch.exp(mixer.A_log), mixer.D])
    weights = owned(mixer.in_proj.weight, *mixer.taps(), heads, mixer.norm.weight, mixer.out_proj.weight)
    addresses = [weight.data_ptr() for weight in weights]
    width, taps, N, H, P = mixer.d_model, mixer.d_conv, mixer.d_state, mixer.n_heads, mixer.head_dim
    channels, out, eps = mixer.channels, mixer.d_out, np.float32(mixer.norm.eps)

    def step(x_t: Tensor, state: dict, call=UNTIMED, weights=weights) -> tuple[Tensor, dict]:
        batch, conv, ssm = len(x_t), state["conv"], state["ssm"]
        states = ("conv", conv, (batch, taps - 1, channels)), ("ssm", ssm, (batch, N, H, P))
        expect("mamba2_step", ("x", x_t, (batch, width)), *states)
        given = [t.float().contiguous() for t in (x_t, conv, ssm)]
        made = [given[0].new_empty(batch, out), torch.empty_like(given[1]), torch.empty_like(given[2])]
        places = [t.data_ptr() for t in (*given, *made)]
        _step(*places, *addresses, batch, width, out, taps, N, H, P, eps)
        return made[0], {"conv": made[1], "ssm": made[2]}

    return step


@helper
def _recur(decay, drive, B, C, h, h_new, y):
    """y = sum_n C_n h_n after h_n = decay h_n + B_n drive: decay, drive and y (H P), h (N, H P)."""
    for c in range(len(y)):
        y[c] = zero(y[c])
    for n in range(len(B)):
        old, new, write, read = h[n], h_new[n], B[n], C[n]
        for c in range(len(y)):
            value = decay[c] * old[c] + write * drive[c]
            new[c] = value
            y[c] += read * value


@kernel
def _step(
    x_at, conv_at, ssm_at, y_at, new_conv_at, new_ssm_at, in_at, taps_at, tap_bias_at, heads_at, norm_at, out_at,
    batch, width, d_out, taps, N, H, P, eps,
):  # fmt: skip
    """Addresses of x, the states, y (batch, d_out) and the new states, and of the weights; then their sizes."""
    inner = H * P
    channels = inner + 2 * N
    rows = inner + channels + H
    x, y = at(x_at, (batch, width)), at(y_at, (batch, d_out))
    conv, new_conv = at(conv_at, (batch, taps - 1, channels)), at(new_conv_at, (batch, taps - 1, channels))
    h, h_new = at(ssm_at, (batch, N, inner)), at(new_ssm_at, (batch, N, inner))
    W_in, W_out, gain = at(in_at, (rows, width)), at(out_at, (d_out, inner)), at(norm_at, (inner,))
    tap, tap_bias, heads = at(taps_at, (taps, channels)), at(tap_bias_at, (channels,)), at(heads_at, (3, H))
    projected, mixed = np.empty(rows, np.float32), np.empty(channels, np.float32)
    vectors = np.empty((3, inner), np.float32)
    decay, drive, read = vectors[0], vectors[1], vectors[2]
    for b in range(batch):
        matvec(W_in, x[b], projected)
        z, dts = projected[:inner], projected[inner + channels :]
        convolve_token(projected[inner : inner + channels], tap, tap_bias, conv[b], mixed, new_conv[b], True)
        for k in range(H):
            dt = softplus(dts[k] + heads[0, k])
            kept = exp(dt * heads[1, k])
            for c in range(k * P, (k + 1) * P):
                decay[c] = kept
                drive[c] = dt * mixed[c]
        _recur(decay, drive, mixed[inner : inner + N], mixed[inner + N :], h[b], h_new[b], read)
        total = zero(eps)
        for k in range(H):
            for c in range(k * P, (k + 1) * P):
                value = (read[c] + heads[2, k] * mixed[c]) * z[c] * sigmoid(z[c])
                read[c] = value
                total += value * value
        scale = one(eps) / np.sqrt(total / np.float32(inner) + eps)
        for c in range(inner):
            read[c] *= scale * gain[c]
        matvec(W_out, read, y[b])
