"""RWKV-7's two mixers for one token in one call each, float32 on the CPU.

At small widths a token is little work in many small operations, and calling each by itself costs more than the work.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from harness.model.mixer import UNTIMED
from harness.ops.shapes import expect
from harness.ops.toolbox.jit import helper, kernel
from harness.ops.toolbox.numba_linear import at, matvec
from harness.ops.toolbox.numba_math import exp, one, sigmoid, tanh, zero

SMALLEST_NORM = np.float32(1e-12)  # of torch's F.normalize
DECAY_SCALE = np.float32(np.exp(-0.5))
BYTES = np.int64(4)  # of a float32
NOTHING, TANH, SIGMOID = np.int64(0), np.int64(1), np.int64(2)


def time_mix_step(mixer) -> Callable:
    """Operation `time_mix_step`: the `step` of a TimeMix for its weights as they stand, without gradients."""
    p = dict(mixer.named_parameters())
    mix = torch.stack([p[f"x_{name}"] for name in "rwkvag"])
    full = [p[f"{name}.weight"] for name in ("receptance", "key", "value", "output")]
    low = [p[f"{name}{i}"].t() for name in "wavg" if f"{name}1" in p for i in (1, 2)]  # rows for a product each
    bias = torch.stack([p.get(f"{name}0", torch.zeros_like(p["w0"])) for name in "wav"])
    gains = torch.stack([p["k_k"], p["k_a"], p["r_k"].flatten(), p["ln_x.weight"], p["ln_x.bias"]])
    packed = _packed([mix, bias, gains, *full, *low])
    ranks = [mixer.ranks.get(name, 0) for name in "wavg"]
    heads, N, blended = mixer.n_heads, mixer.head_dim, mixer.layer > 0
    eps, removal = np.float32(mixer.ln_x.eps), np.float32(mixer.removal)

    def step(x_t: Tensor, state: dict, call=UNTIMED, packed=packed) -> tuple[Tensor, dict]:
        batch, shift, wkv = len(x_t), state["shift"], state["wkv"]
        first = mixer.first_value(call.shared) if blended else None
        rows = [(name, t, (batch, heads * N)) for name, t in (("x", x_t), ("shift", shift), ("v_first", first))]
        expect("time_mix_step", *rows, ("wkv", wkv, (batch, heads, N, N)))
        given = [t.float().contiguous() for t in (x_t, shift, wkv)]
        v = first.float().contiguous() if blended else torch.empty_like(given[0])
        y, wkv = torch.empty_like(given[0]), torch.empty_like(given[2])
        places = [t.data_ptr() for t in (*given, v, y, wkv, packed)]
        _time_mix(*places, blended, len(x_t), heads, N, *ranks, eps, removal)
        if not blended and call.shared is not None:
            call.shared["v_first"] = v
        return y, {"shift": x_t, "wkv": wkv}

    return step


def channel_mix_step(mixer) -> Callable:
    """Operation `channel_mix_step`: the `step` of a ChannelMix for its weights as they stand, without gradients."""
    packed = _packed([mixer.x_k, mixer.key.weight, mixer.value.weight])
    width, hidden = mixer.d_model, mixer.d_ff

    def step(x_t: Tensor, state: dict, call=UNTIMED, packed=packed) -> tuple[Tensor, dict]:
        shift = state["shift"]
        expect("channel_mix_step", ("x", x_t, (len(x_t), width)), ("shift", shift, (len(x_t), width)))
        given = [t.float().contiguous() for t in (x_t, shift)]
        y = torch.empty_like(given[0])
        _channel_mix(*(t.data_ptr() for t in (*given, y, packed)), len(x_t), width, hidden)
        return y, {"shift": x_t}

    return step


def _packed(weights: Sequence[Tensor]) -> Tensor:
    """One row of all numbers, so that a kernel is handed one address."""
    return torch.cat([weight.detach().reshape(-1) for weight in weights])


@helper
def _next(address, rows, columns):
    """The array (rows, columns) that begins at an address, and the address behind it."""
    return at(address, (rows, columns)), address + rows * columns * BYTES


@helper
def _mixed(x, previous, mix, out):
    for c in range(len(x)):
        out[c] = x[c] + (previous[c] - x[c]) * mix[c]


@helper
def _head(vectors, gains, S, S_new, eps, removal, y):
    """One head: S_new = S diag(decay) - removal (S u) (u rate)^T + v k^T and y = S_new r; then y is read. |u| = 1."""
    r, decay, k, v, rate, gate, unit = (
        vectors[0], vectors[1], vectors[2], vectors[3], vectors[4], vectors[5], vectors[6],
    )  # fmt: skip
    N, total = len(y), zero(eps)
    for j in range(N):
        total += unit[j] * unit[j]
    scale = one(eps) / max(np.sqrt(total), SMALLEST_NORM)
    for j in range(N):
        unit[j] *= scale
        rate[j] *= removal * unit[j]
    for i in range(N):
        old, new, vi = S[i], S_new[i], v[i]
        removed = total = zero(eps)
        for j in range(N):
            removed += old[j] * unit[j]
        for j in range(N):
            new[j] = old[j] * decay[j] - removed * rate[j] + vi * k[j]
        for j in range(N):
            total += new[j] * r[j]
        y[i] = total
    _read(y, r, k, v, gate, gains[0], gains[1], gains[2], eps)


@helper
def _read(y, r, k, v, gate, r_k, weight, bias, eps):
    """Normalises one head of y in place, adds the token's own bonus and gates."""
    size = np.float32(len(y))
    mean = spread = bonus = zero(eps)
    for j in range(len(y)):
        mean += y[j]
        bonus += r[j] * k[j] * r_k[j]
    mean /= size
    for j in range(len(y)):
        spread += (y[j] - mean) * (y[j] - mean)
    scale = one(eps) / np.sqrt(spread / size + eps)
    for j in range(len(y)):
        y[j] = ((y[j] - mean) * scale * weight[j] + bias[j] + bonus * v[j]) * gate[j]


@helper
def _low_rank(first, second, row, activation, out):
    """second @ f(first @ row), f the identity, tanh or sigmoid."""
    low = np.empty(len(first), np.float32)
    matvec(first, row, low)
    if activation == TANH:
        for i in range(len(low)):
            low[i] = tanh(low[i])
    elif activation == SIGMOID:
        for i in range(len(low)):
            low[i] = sigmoid(low[i])
    matvec(second, low, out)


@helper
def _vectors(x, previous, mix, bias, gains, full, low, value, blended, row, vectors):
    """Fills `vectors` (7, C): r, decay, k, v, rate, gate and k k_k; and layer 0's value in that layer."""
    r, decay, k, v, rate, gate, unit = (
        vectors[0], vectors[1], vectors[2], vectors[3], vectors[4], vectors[5], vectors[6],
    )  # fmt: skip
    _mixed(x, previous, mix[0], row)
    matvec(full[0], row, r)
    _mixed(x, previous, mix[1], row)
    _low_rank(low[0], low[1], row, TANH, decay)
    _mixed(x, previous, mix[2], row)
    matvec(full[1], row, k)
    _mixed(x, previous, mix[3], row)
    matvec(full[2], row, v)
    if blended:
        _low_rank(low[4], low[5], row, NOTHING, unit)
        for c in range(len(x)):
            v[c] += (value[c] - v[c]) * sigmoid(bias[2, c] + unit[c])
    else:
        for c in range(len(x)):
            value[c] = v[c]
    _mixed(x, previous, mix[4], row)
    _low_rank(low[2], low[3], row, NOTHING, rate)
    _mixed(x, previous, mix[5], row)
    _low_rank(low[6], low[7], row, SIGMOID, gate)
    for c in range(len(x)):
        decay[c] = exp(-DECAY_SCALE * sigmoid(bias[0, c] + decay[c]))
        rate[c] = sigmoid(bias[1, c] + rate[c])
        unit[c] = k[c] * gains[0, c]
        k[c] *= one(k[c]) + (rate[c] - one(k[c])) * gains[1, c]


@kernel
def _time_mix(
    x_at, shift_at, wkv_at, v_at, y_at, new_at, packed_at, blended, batch, H, N, rank_w, rank_a, rank_v, rank_g,
    eps, removal,
):  # fmt: skip
    """Addresses of x, shift, v, y (batch, C), the states (batch, H, N, N) and the weights in `time_mix_step`'s order.

    v: the value of layer 0, filled in that layer and read in those above (blended).
    """
    C, place = H * N, packed_at
    x, shift, y, value = at(x_at, (batch, C)), at(shift_at, (batch, C)), at(y_at, (batch, C)), at(v_at, (batch, C))
    S, S_new = at(wkv_at, (batch, H, N, N)), at(new_at, (batch, H, N, N))
    mix, place = _next(place, 6, C)
    bias, place = _next(place, 3, C)
    gains, place = _next(place, 5, C)
    W_r, place = _next(place, C, C)
    W_k, place = _next(place, C, C)
    W_v, place = _next(place, C, C)
    W_o, place = _next(place, C, C)
    w1, place = _next(place, rank_w, C)
    w2, place = _next(place, C, rank_w)
    a1, place = _next(place, rank_a, C)
    a2, place = _next(place, C, rank_a)
    v1, place = _next(place, rank_v, C)
    v2, place = _next(place, C, rank_v)
    g1, place = _next(place, rank_g, C)
    g2, place = _next(place, C, rank_g)
    full, low = (W_r, W_k, W_v), (w1, w2, a1, a2, v1, v2, g1, g2)
    vectors, rows = np.empty((7, C), np.float32), np.empty((2, C), np.float32)
    row, out = rows[0], rows[1]
    for n in range(batch):
        _vectors(x[n], shift[n], mix, bias, gains, full, low, value[n], blended, row, vectors)
        for h in range(H):
            head = vectors[:, h * N : (h + 1) * N]
            _head(head, gains[2:, h * N : (h + 1) * N], S[n, h], S_new[n, h], eps, removal, out[h * N : (h + 1) * N])
        matvec(W_o, out, y[n])


@kernel
def _channel_mix(x_at, shift_at, y_at, packed_at, batch, width, hidden):
    """Addresses of x, shift, y (batch, width) and of the weights x_k, key and value, one behind the other."""
    x, shift, y = at(x_at, (batch, width)), at(shift_at, (batch, width)), at(y_at, (batch, width))
    mix, place = _next(packed_at, 1, width)
    key, place = _next(place, hidden, width)
    value, place = _next(place, width, hidden)
    row, inner = np.empty(width, np.float32), np.empty(hidden, np.float32)
    for n in range(batch):
        _mixed(x[n], shift[n], mix[0], row)
        matvec(key, row, inner)
        for c in range(hidden):
            positive = max(inner[c], zero(inner[c]))
            inner[c] = positive * positive
        matvec(value, inner, y[n])
