"""One token of MT-LNN's two mixers on the CPU, each in few calls of kernels (float32)."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from arch.mtlnn.mixer import LEAST_RATE, PERIOD
from harness.model.mixer import UNTIMED
from harness.ops.attention import step_numba
from harness.ops.shapes import expect
from harness.ops.toolbox.jit import helper, kernel
from harness.ops.toolbox.numba_linear import at, matvec
from harness.ops.toolbox.numba_math import exp, one, sigmoid, softplus, tanh, zero

CONSTANT, TANH, EXP = np.int64(0), np.int64(1), np.int64(2)
TRANSITIONS = {"stock": CONSTANT, "signed": CONSTANT, "tanh": TANH, "exp": EXP}
SQUARES = ("W_left", "W_right", "q_proj", "k_proj", "v_proj", "out_proj")
LEAST_SUM = np.float32(1e-6)  # of the blend's weights
BYTES = np.int64(4)  # of a float32


def mt_attention_step(mixer) -> Callable:
    """Operation `mt_attention_step`: the `step` of an MTAttention for its weights as they stand."""
    qkv = torch.cat([mixer.q_proj.weight, mixer.k_proj.weight, mixer.v_proj.weight])
    sizes = mixer.n_heads, mixer.n_kv_heads, mixer.head_dim
    slopes = mixer.slopes(torch.float32)
    return step_numba.attention_step(mixer.step, qkv, mixer.out_proj.weight, sizes, mixer.rope_theta, slopes=slopes)


@torch.no_grad()
def mtlnn_step(mixer) -> Callable:
    """Operation `mtlnn_step`: the `step` of an MTLNN for its weights as they stand, without gradients."""
    (P, S, D), bank, lateral, gates = mixer.shape, mixer.resonance, mixer.lateral, mixer.map_gates
    gated, kind = bank.kappa_gate is not None, TRANSITIONS[bank.transition]
    products, biases = [bank.W_in.transpose(1, 2).flatten(2)], [bank.b_in.flatten(1)]  # (P, D, S D) and (P, S D)
    if kind != CONSTANT:
        products.append(bank.sel_w.transpose(1, 2))
        biases.append(bank.sel_b)
    if gated:
        products.append(bank.kappa_gate.weight.t().expand(P, D, S))
        biases.append(bank.kappa_gate.bias.expand(P, S))
    tau = bank.taus(torch.float32)
    a = torch.exp(-1 / tau)
    signs = bank.decay_sign_raw.tanh() if bank.transition == "signed" else torch.ones_like(a)
    rates = torch.stack([a, 1 / tau, a * signs, bank.blend_weights.softmax(1)])
    parts = [mixer.in_proj.weight, mixer.in_proj.bias, torch.cat(products, 2), torch.cat(biases, 1), rates]
    if lateral is not None:
        parts += [lateral.W_lat.t(), lateral.nn_eta, lateral.rmc_gate.sigmoid()]
        parts += [getattr(lateral, name).weight.t() for name in SQUARES]
    if gates is not None:
        parts += [gates.fc1_weight, gates.fc1_bias, gates.fc2_weight, gates.fc2_bias]
    packed = torch.cat([part.float().flatten() for part in (*parts, mixer.out_proj.weight, mixer.out_proj.bias)])
    sizes = mixer.d_model, P, S, D, mixer.hidden, kind
    flags = mixer.recurrence, gated, lateral is not None
    fading = 0.0 if lateral is None else -float(mixer.gtp_gamma.clamp(min=LEAST_RATE))

    def step(x_t: Tensor, state: dict, call=UNTIMED, packed=packed) -> tuple[Tensor, dict]:
        if mixer.timed and call.elapsed is not None:
            return mixer.step(x_t, state, call)
        batch, x = len(x_t), x_t.float().contiguous()
        h = state["h"].float().contiguous() if mixer.recurrence else x.new_empty(batch, P, S, D)
        expect("mtlnn_step", ("x", x, (batch, mixer.d_model)), ("h", h, (batch, P, S, D)))
        y, new = torch.empty_like(x), torch.empty_like(h)
        strength = np.float32(math.exp(fading * (int(state["clock"]) % PERIOD))) if flags[2] else np.float32(0)
        places = (t.data_ptr() for t in (x, h, y, new, packed))
        _step(*places, strength, batch, *sizes, *flags)
        return y, mixer.after(new, state, 1)

    return step


@helper
def _add_product(x, weight, y):
    """y += x @ weight: x (I), weight (I, O), y (O)."""
    for i in range(len(x)):
        for o in range(len(y)):
            y[o] += x[i] * weight[i, o]


@helper
def _average(rates, rows, kind, recurrence, gated, h, new, m):
    """One filament's averages new (S, D) after h, and their blend m (D). rows: its products with the input."""
    S, D = h.shape
    total = zero(rates[0, 0])
    m[:] = total
    for s in range(S):
        a, carried, weight = rates[0, s], rates[2, s], rates[3, s]
        if kind == TANH:
            carried *= tanh(rows[S * D + s])
        elif kind == EXP:
            e = exp(-softplus(rows[S * D + s]) * rates[1, s])
            carried = e + e - one(e)
        if not recurrence:
            carried = zero(a)
        if gated:
            weight *= sigmoid(rows[len(rows) - S + s])
        total += weight
        for d in range(D):
            fresh = (one(a) - a) * sigmoid(rows[s * D + d])
            new[s, d] = carried * h[s, d] + fresh if recurrence else fresh
            m[d] += weight * new[s, d]
    for d in range(D):
        m[d] /= max(total, LEAST_SUM)


@helper
def _couple(place, m, coupled):
    """What the filaments m (P, D) make of one another. place: of W_lat's transpose, two factors and the six squares."""
    P, D = m.shape
    lateral, factors = at(place, (P, P)), at(place + P * P * BYTES, (2,))
    squares = at(place + (P * P + 2) * BYTES, (6, D, D))
    qkv, scores, row = np.zeros((3, P, D), np.float32), np.empty(P, np.float32), np.empty((3, D), np.float32)
    for p in range(P):
        for i in range(3):
            _add_product(m[p], squares[2 + i], qkv[i, p])
    for p in range(P):
        row[:] = zero(m[0, 0])
        _add_product(m[p - 1], squares[0], row[0])
        _add_product(m[(p + 1) % P], squares[1], row[0])
        matvec(qkv[1], qkv[0, p], scores)
        for other in range(P):
            scores[other] /= np.float32(np.sqrt(D))
        step_numba.soften(scores)
        _add_product(scores, qkv[2], row[1])
        _add_product(row[1], squares[5], row[2])
        coupled[p] = zero(m[0, 0])
        _add_product(lateral[p], m, coupled[p])
        for d in range(D):
            coupled[p, d] += factors[0] * tanh(row[0, d]) + factors[1] * row[2, d]


@helper
def _open(place, m, u, H):
    """Multiplies each filament of m (P, D) by its gate, which sees its input u (P, D) too, through H hidden units."""
    P, D = m.shape
    first, bias = at(place, (P, 2 * D, H)), at(place + P * 2 * D * H * BYTES, (P, H))
    second, shift = at(place + P * (2 * D + 1) * H * BYTES, (P, H)), at(place + P * (2 * D + 2) * H * BYTES, (P,))
    hidden = np.empty(H, np.float32)
    for p in range(P):
        hidden[:] = bias[p]
        _add_product(m[p], first[p, :D], hidden)
        _add_product(u[p], first[p, D:], hidden)
        total = shift[p]
        for i in range(H):
            total += max(hidden[i], zero(total)) * second[p, i]
        gate = sigmoid(total)
        for d in range(D):
            m[p, d] *= gate


@kernel
def _step(
    x_at, h_at, y_at, new_at, weights_at, strength, batch, width, P, S, D, H, kind, recurrence, gated, lateral
):  # fmt: skip
    """y (batch, width) and the new averages (batch, P, S, D). strength: of the lateral coupling at this token."""
    x, y = at(x_at, (batch, width)), at(y_at, (batch, width))
    h, new = at(h_at, (batch, P, S, D)), at(new_at, (batch, P, S, D))
    count = S * D + (S if kind != CONSTANT else 0) + (S if gated else 0)
    entry, place = at(weights_at, (P * D, width)), weights_at + P * D * width * BYTES
    entry_bias, place = at(place, (P * D,)), place + P * D * BYTES
    weights, place = at(place, (P, D, count)), place + P * D * count * BYTES
    biases, place = at(place, (P, count)), place + P * count * BYTES
    rates, place = at(place, (4, P, S)), place + 4 * P * S * BYTES
    lateral_at, place = place, place + ((P * P + 2 + 6 * D * D) * BYTES if lateral else 0)
    gates_at, place = place, place + (P * (2 * D * H + 2 * H + 1) * BYTES if H else 0)
    out, out_bias = at(place, (width, P * D)), at(place + width * P * D * BYTES, (width,))
    u, m, coupled = np.empty((P, D), np.float32), np.empty((P, D), np.float32), np.empty((P, D), np.float32)
    rows = np.empty(count, np.float32)
    for b in range(batch):
        matvec(entry, x[b], u.reshape(P * D))
        for p in range(P):
            for d in range(D):
                u[p, d] += entry_bias[p * D + d]
            rows[:] = biases[p]
            _add_product(u[p], weights[p], rows)
            _average(rates[:, p], rows, kind, recurrence, gated, h[b, p], new[b, p], m[p])
        if lateral:
            _couple(lateral_at, m, coupled)
            for p in range(P):
                for d in range(D):
                    m[p, d] += strength * (coupled[p, d] - m[p, d])
        if H:
            _open(gates_at, m, u, H)
        matvec(out, m.reshape(P * D), y[b])
        for i in range(width):
            y[b, i] += out_bias[i]
