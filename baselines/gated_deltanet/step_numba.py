"""Gated DeltaNet for one token in one call, float32 on the CPU: projections, convolution, memory, norm and gate."""

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


def gated_deltanet_step(mixer) -> Callable:
    """Operation `gated_deltanet_step`: the `step` of a GatedDeltaNet for its weights as they stand, no gradients."""
    heads = torch.stack([mixer.dt_bias, -torch.exp(mixer.A_log)])
    weights = owned(mixer.in_proj.weight, *mixer.taps(), heads, mixer.norm.weight, mixer.out_proj.weight)
    addresses = [weight.data_ptr() for weight in weights]
    width, taps, H, K, V = mixer.d_model, mixer.d_conv, mixer.n_heads, mixer.head_dim, mixer.value_dim
    channels, eps = mixer.channels, np.float32(mixer.norm.eps)

    def step(x_t: Tensor, state: dict, call=UNTIMED, weights=weights) -> tuple[Tensor, dict]:
        batch, conv, memory = len(x_t), state["conv"], state["memory"]
        states = ("conv", conv, (batch, taps - 1, channels)), ("memory", memory, (batch, H, K, V))
        expect("gated_deltanet_step", ("x", x_t, (batch, width)), *states)
        given = [t.float().contiguous() for t in (x_t, conv, memory)]
        made = [torch.empty_like(t) for t in given]
        places = [t.data_ptr() for t in (*given, *made)]
        _step(*places, *addresses, batch, width, taps, H, K, V, eps)
        return made[0], {"conv": made[1], "memory": made[2]}

    return step


@helper
def _unit(x, scale):
    """x / |x| scale, in place."""
    total = zero(scale)
    for i in range(len(x)):
        total += x[i] * x[i]
    scale /= np.sqrt(total + np.float32(1e-6))
    for i in range(len(x)):
        x[i] *= scale


@helper
def _remember(q, k, v, decay, beta, S, S_new, y):
    """S_new = decay S + k u^T, u = beta (v - decay S^T k), y = S_new^T q; v becomes u."""
    for j in range(len(v)):
        y[j] = zero(decay)
    for i in range(len(k)):
        row, key = S[i], k[i]
        for j in range(len(v)):
            y[j] += key * row[j]
    for j in range(len(v)):
        v[j] = beta * (v[j] - decay * y[j])
        y[j] = zero(decay)
    for i in range(len(k)):
        old, new, key, query = S[i], S_new[i], k[i], q[i]
        for j in range(len(v)):
            value = decay * old[j] + key * v[j]
            new[j] = value
            y[j] += query * value


@helper
def _read(y, z, gain, eps):
    """y / rms(y) gain silu(z), in place."""
    total = zero(eps)
    for j in range(len(y)):
        total += y[j] * y[j]
    scale = one(eps) / np.sqrt(total / np.float32(len(y)) + eps)
    for j in range(len(y)):
        y[j] *= scale * gain[j] * z[j] * sigmoid(z[j])


@kernel
def _step(
    x_at, conv_at, memory_at, y_at, new_conv_at, new_memory_at, in_at, taps_at, tap_bias_at, heads_at, norm_at, out_at,
    batch, width, taps, H, K, V, eps,
):  # fmt: skip
    """Addresses of x, the states, y (batch, width) and the new states, and of the weights; then their sizes."""
    keys, values = H * K, H * V
    channels = 2 * keys + values
    rows = channels + values + 2 * H
    x, y = at(x_at, (batch, width)), at(y_at, (batch, width))
    conv, new_conv = at(conv_at, (batch, taps - 1, channels)), at(new_conv_at, (batch, taps - 1, channels))
    S, S_new = at(memory_at, (batch, H, K, V)), at(new_memory_at, (batch, H, K, V))
    W_in, W_out, gain = at(in_at, (rows, width)), at(out_at, (width, values)), at(norm_at, (V,))
    tap, tap_bias, heads = at(taps_at, (taps, channels)), at(tap_bias_at, (channels,)), at(heads_at, (2, H))
    projected, mixed = np.empty(rows, np.float32), np.empty(channels, np.float32)
    read = np.empty(values, np.float32)
    for b in range(batch):
        matvec(W_in, x[b], projected)
        z, gates = projected[channels : channels + values], projected[channels + values :]
        convolve_token(projected[:channels], tap, tap_bias, conv[b], mixed, new_conv[b], True)
        for h in range(H):
            q, k = mixed[h * K : (h + 1) * K], mixed[keys + h * K : keys + (h + 1) * K]
            v, out = mixed[2 * keys + h * V : 2 * keys + (h + 1) * V], read[h * V : (h + 1) * V]
            _unit(q, one(eps) / np.sqrt(np.float32(K)))
            _unit(k, one(eps))
            decay = exp(heads[1, h] * softplus(gates[H + h] + heads[0, h]))
            _remember(q, k, v, decay, sigmoid(gates[h]), S[b, h], S_new[b, h], out)
            _read(out, z[h * V : (h + 1) * V], gain, eps)
        matvec(W_out, read, y[b])
