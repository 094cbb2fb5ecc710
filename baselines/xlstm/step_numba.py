"""One token of the mLSTM and of the sLSTM in one call each, float32 on the CPU.

At small widths a token is little work in many small operations, and calling each by itself costs more than the work.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from baselines.xlstm import scan
from baselines.xlstm.slstm_numba import cell
from harness.model.mixer import UNTIMED
from harness.ops.causal_conv.conv_numba import convolve_token
from harness.ops.shapes import expect
from harness.ops.toolbox.jit import helper, kernel
from harness.ops.toolbox.numba_linear import at, matvec, owned
from harness.ops.toolbox.numba_math import exp, one, sigmoid, softplus, zero

EPS, NORM_EPS, LARGEST = np.float32(scan.EPS), np.float32(scan.NORM_EPS), np.float32(scan.LARGEST)


def mlstm_step(mixer) -> Callable:
    """Operation `mlstm_step`: the `step` of an MLSTM, weights as they stand, no gradients."""
    conv, inner, H, D = mixer.conv1d, mixer.d_inner, mixer.n_heads, mixer.head_dim
    gates = [torch.cat(pair) for pair in zip(mixer.igate.parameters(), mixer.fgate.parameters(), strict=True)]
    weights = [mixer.proj_up.weight, conv.weight.squeeze(1).t(), conv.bias, torch.stack([mixer.q, mixer.k, mixer.v])]
    weights += [*gates, mixer.gain, mixer.skip, mixer.proj_down.weight]
    kept = conv.kernel_size[0] - 1
    shapes = {"conv": (kept, inner), "C": (H, D, D), "n": (H, D), "m": (H,)}
    return _runner(_mlstm, weights, mixer.d_model, shapes, (inner, kept + 1, H, mixer.qkv_block))


def slstm_step(mixer) -> Callable:
    """Operation `slstm_step`: the `step` of an SLSTM, weights as they stand, no gradients."""
    conv, H, D = mixer.conv1d, mixer.n_heads, mixer.head_dim
    gates = torch.stack([mixer.igate, mixer.fgate, mixer.zgate, mixer.ogate])
    weights = [conv.weight.squeeze(1).t(), conv.bias, gates, mixer.recurrent.mT, mixer.bias, mixer.gain]
    kept = conv.kernel_size[0] - 1
    shapes = {"conv": (kept, mixer.d_model)} | dict.fromkeys(("y", "c", "n", "m"), (H, D))
    return _runner(_slstm, weights, mixer.d_model, shapes, (mixer.d_model, kept + 1, H))


def _runner(kernel: Callable, weights: Sequence[Tensor], width: int, shapes: dict, sizes: tuple[int, ...]) -> Callable:
    """A function like `step` around a kernel. shapes: of each part of the state, without the batch."""
    weights = owned(*weights)  # the function keeps them alive
    addresses = [weight.data_ptr() for weight in weights]

    def step(x_t: Tensor, state: dict, call=UNTIMED, weights=weights) -> tuple[Tensor, dict]:
        batch = len(x_t)
        states = ((name, state[name], (batch, *shape)) for name, shape in shapes.items())
        expect(kernel.__name__, ("x", x_t, (batch, width)), *states)
        given = [t.float().contiguous() for t in (x_t, *(state[name] for name in shapes))]
        y, *made = (torch.empty_like(t) for t in given)
        kernel(*(t.data_ptr() for t in (*given, y, *made)), *addresses, batch, width, *sizes)
        return y, dict(zip(shapes, made, strict=True))

    return step


@helper
def _normed(h, gain):
    """h (D) without its mean and to unit variance, times the gain, in place."""
    size, mean, spread = np.float32(len(h)), zero(h[0]), zero(h[0])
    for j in range(len(h)):
        mean += h[j]
    mean /= size
    for j in range(len(h)):
        spread += (h[j] - mean) * (h[j] - mean)
    scale = one(mean) / np.sqrt(spread / size + NORM_EPS)
    for j in range(len(h)):
        h[j] = (h[j] - mean) * scale * gain[j]


@helper
def _blocks(weight, x, y):
    """y = weight x, block-diagonal: weight (blocks, out, in)."""
    size = weight.shape[1]
    for b in range(len(weight)):
        matvec(weight[b], x[b * size : (b + 1) * size], y[b * size : (b + 1) * size])


@helper
def _remember(q, k, v, i, f, states, made, h):
    """One head: the memory C and normaliser n with this token, from `states` to `made`, and what they answer to q.

    Returns the new m.
    """
    (C, n, m), (new_C, new_n), D = states, made, len(q)
    held = m - softplus(-f)
    most = i if i > held else held
    most = i + held if i != i or held != held else most  # NaN stays visible
    keep, write = exp(held - most), exp(i - most) / np.sqrt(np.float32(D))
    weight = zero(i)
    for b in range(D):
        h[b] = zero(i)
    for a in range(D):
        key, query, old, new = write * k[a], q[a], C[a], new_C[a]
        for b in range(D):
            new[b] = keep * old[b] + key * v[b]
            h[b] += query * new[b]
        new_n[a] = keep * n[a] + key
        weight += query * new_n[a]
    low = LARGEST if -most > LARGEST else -most
    least, weight = exp(low), abs(weight)
    weight = weight if weight > least or weight != weight else least
    for b in range(D):
        h[b] /= weight + EPS
    return most


@kernel
def _mlstm(
    x_at, conv_at, C_at, n_at, m_at, y_at, new_conv_at, new_C_at, new_n_at, new_m_at,
    up_at, taps_at, tap_bias_at, qkv_at, gates_at, gate_bias_at, gain_at, skip_at, down_at,
    batch, width, inner, taps, heads, block,
):  # fmt: skip
    """Addresses of x, the state, y, the new state and the weights; then their sizes."""
    D, blocks = inner // heads, inner // block
    x, y = at(x_at, (batch, width)), at(y_at, (batch, width))
    conv, new_conv = at(conv_at, (batch, taps - 1, inner)), at(new_conv_at, (batch, taps - 1, inner))
    C, new_C = at(C_at, (batch, heads, D, D)), at(new_C_at, (batch, heads, D, D))
    n, new_n = at(n_at, (batch, heads, D)), at(new_n_at, (batch, heads, D))
    m, new_m = at(m_at, (batch, heads)), at(new_m_at, (batch, heads))
    W_up, W_down = at(up_at, (2 * inner, width)), at(down_at, (width, inner))
    tap, tap_bias = at(taps_at, (taps, inner)), at(tap_bias_at, (inner,))
    W_qkv = at(qkv_at, (3, blocks, block, block))
    W_gates, gate_bias = at(gates_at, (2 * heads, 3 * inner)), at(gate_bias_at, (2 * heads,))
    gain, skip = at(gain_at, (inner,)), at(skip_at, (inner,))
    xz, qkv = np.empty(2 * inner, np.float32), np.empty(3 * inner, np.float32)
    u, h, gates = np.empty(inner, np.float32), np.empty(inner, np.float32), np.empty(2 * heads, np.float32)
    q, k, v = qkv[:inner], qkv[inner : 2 * inner], qkv[2 * inner :]
    for r in range(batch):
        matvec(W_up, x[r], xz)
        convolve_token(xz[:inner], tap, tap_bias, conv[r], u, new_conv[r], True)
        _blocks(W_qkv[0], u, q)
        _blocks(W_qkv[1], u, k)
        _blocks(W_qkv[2], xz[:inner], v)
        matvec(W_gates, qkv, gates)
        for d in range(heads):
            low, high = d * D, (d + 1) * D
            i, f = gates[d] + gate_bias[d], gates[heads + d] + gate_bias[heads + d]
            states, made = (C[r, d], n[r, d], m[r, d]), (new_C[r, d], new_n[r, d])
            new_m[r, d] = _remember(q[low:high], k[low:high], v[low:high], i, f, states, made, h[low:high])
            _normed(h[low:high], gain[low:high])
        for j in range(inner):
            z = xz[inner + j]
            h[j] = (h[j] + skip[j] * u[j]) * z * sigmoid(z)
        matvec(W_down, h, y[r])


@kernel
def _slstm(
    x_at, conv_at, y_at, c_at, n_at, m_at, out_at, new_conv_at, new_y_at, new_c_at, new_n_at, new_m_at,
    taps_at, tap_bias_at, gates_at, recurrent_at, bias_at, gain_at,
    batch, width, channels, taps, heads,
):  # fmt: skip
    """Addresses of x, the state, the output, the new state and the weights; then their sizes."""
    D = width // heads
    x, out = at(x_at, (batch, width)), at(out_at, (batch, width))
    conv, new_conv = at(conv_at, (batch, taps - 1, width)), at(new_conv_at, (batch, taps - 1, width))
    y, c, n = at(y_at, (batch, heads, D)), at(c_at, (batch, heads, D)), at(n_at, (batch, heads, D))
    m, new_y = at(m_at, (batch, heads, D)), at(new_y_at, (batch, heads, D))
    new_c, new_n = at(new_c_at, (batch, heads, D)), at(new_n_at, (batch, heads, D))
    new_m = at(new_m_at, (batch, heads, D))
    tap, tap_bias = at(taps_at, (taps, width)), at(tap_bias_at, (width,))
    W_gates, R = at(gates_at, (4, heads, D, D)), at(recurrent_at, (heads, 4 * D, D))
    bias, gain = at(bias_at, (heads, 4 * D)), at(gain_at, (width,))
    u, raw, by_y = np.empty(width, np.float32), np.empty(4 * D, np.float32), np.empty(4 * D, np.float32)
    state, kept = np.empty(4 * D, np.float32), np.empty(7 * D, np.float32)
    for r in range(batch):
        convolve_token(x[r], tap, tap_bias, conv[r], u, new_conv[r], True)
        for d in range(heads):
            low, high = d * D, (d + 1) * D
            for g in range(4):
                matvec(W_gates[g, d], u[low:high] if g < 2 else x[r, low:high], raw[g * D : (g + 1) * D])
            matvec(R[d], y[r, d], by_y)
            for j in range(4 * D):
                raw[j] += bias[d, j]
            state[:D], state[D : 2 * D], state[2 * D : 3 * D], state[3 * D :] = y[r, d], c[r, d], n[r, d], m[r, d]
            cell(raw, by_y, kept, state)
            new_y[r, d], new_c[r, d] = state[:D], state[D : 2 * D]
            new_n[r, d], new_m[r, d] = state[2 * D : 3 * D], state[3 * D :]
            out[r, low:high] = state[:D]
            _normed(out[r, low:high], gain[low:high])
