"""MT-LNN in numpy, token by token, from its equations: the oracle of both mixers.

Written from a description of the authors' code and not from ours; tests/test_mtlnn.py holds it to what their code
computed, where those vectors are at hand.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from arch.mtlnn.attention import MTAttention
from arch.mtlnn.mixer import MTLNN
from harness.checks.oracles import Oracle, oracle_of
from harness.model.mixer import Mixer

Weights = Mapping[str, np.ndarray]


class Bounds(NamedTuple):
    """What of a layer its weights do not say."""

    tau_min: float
    tau_max: float
    transition: str = "stock"
    recurrence: bool = True


@oracle_of(MTLNN)
def layer_in_numpy(mixer: MTLNN) -> Oracle:
    bank = mixer.resonance
    bounds = Bounds(bank.tau_min, bank.tau_max, bank.transition, mixer.recurrence)
    return Oracle("numpy, from the equations", _on_arrays(mixer, lambda w, x: layer(w, bounds, x)[0]))


@oracle_of(MTAttention)
def attention_in_numpy(mixer: MTAttention) -> Oracle:
    facts = mixer.n_heads, mixer.n_kv_heads, mixer.max_seq_len, mixer.rope_theta
    return Oracle("numpy, from the equations", _on_arrays(mixer, lambda w, x: attention(w, facts, x)))


def _on_arrays(mixer: Mixer, run: Callable[[Weights, np.ndarray], np.ndarray]) -> Callable[[Tensor], Tensor]:
    """`run` of the mixer's weights, in float64."""
    return lambda x: torch.from_numpy(run(arrays(mixer), x.detach().double().cpu().numpy()))


def arrays(mixer: Mixer) -> Weights:
    """The weights by their names."""
    return {name: value.detach().double().cpu().numpy() for name, value in mixer.state_dict().items()}


def layer(
    w: Weights, bounds: Bounds, x: np.ndarray, elapsed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """x (B, T, d) -> y (B, T, d) and the averages h (B, P, S, D) after the last token; elapsed (B, T)."""
    P, S, D = w["resonance.b_in"].shape
    tau = np.clip(softplus(w["resonance.log_tau"]) + bounds.tau_min, bounds.tau_min, bounds.tau_max)  # (P, S)
    outputs, states = np.empty_like(x), np.zeros((len(x), P, S, D))
    for b in range(len(x)):
        h = states[b]
        for t in range(x.shape[1]):
            u = (w["in_proj.weight"] @ x[b, t] + w["in_proj.bias"]).reshape(P, D)
            span = 1.0 if elapsed is None else elapsed[b, t]
            a = np.exp(-span / tau)
            carried = transition(w, bounds.transition, u, span / tau) if bounds.recurrence else np.zeros((P, S))
            for p in range(P):
                for s in range(S):
                    drive = sigmoid(u[p] @ w["resonance.W_in"][p, s] + w["resonance.b_in"][p, s])
                    h[p, s] = carried[p, s] * h[p, s] + (1 - a[p, s]) * drive
            m = np.stack([blend(w, p, u[p]) @ h[p] for p in range(P)])
            if "gtp_gamma" in w:
                strength = np.exp(-max(w["gtp_gamma"], 1e-4) * (t % 256))
                m = (1 - strength) * m + strength * lateral(w, m)
            if "map_gates.fc1_weight" in w:
                m = np.stack([gate(w, p, m[p], u[p]) * m[p] for p in range(P)])
            outputs[b, t] = w["out_proj.weight"] @ m.reshape(-1) + w["out_proj.bias"]
    return outputs, states


def transition(w: Weights, kind: str, u: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """What of every average is carried over, (P, S). u (P, D); rate (P, S): elapsed time by time constant."""
    if kind == "stock":
        return np.exp(-rate)
    if kind == "signed":
        return np.exp(-rate) * np.tanh(w["resonance.decay_sign_raw"])
    seen = np.einsum("pd,psd->ps", u, w["resonance.sel_w"]) + w["resonance.sel_b"]
    return np.exp(-rate) * np.tanh(seen) if kind == "tanh" else 2 * np.exp(-softplus(seen) * rate) - 1


def blend(w: Weights, p: int, u: np.ndarray) -> np.ndarray:
    """The weights (S) of filament p's time scales. u (D)."""
    weights = softmax(w["resonance.blend_weights"][p])
    if "resonance.kappa_gate.weight" in w:
        weights = weights * sigmoid(w["resonance.kappa_gate.weight"] @ u + w["resonance.kappa_gate.bias"])
    return weights / max(weights.sum(), 1e-6)


def lateral(w: Weights, m: np.ndarray) -> np.ndarray:
    """What the coupling makes of the filaments m (P, D)."""
    P, D = m.shape
    q, k, v = (m @ w[f"lateral.{name}_proj.weight"].T for name in "qkv")
    coupled = np.empty_like(m)
    for p in range(P):
        mixed = sum(w["lateral.W_lat"][other, p] * m[other] for other in range(P))
        ring = w["lateral.W_left.weight"] @ m[p - 1] + w["lateral.W_right.weight"] @ m[(p + 1) % P]
        attended = w["lateral.out_proj.weight"] @ (softmax(k @ q[p] / np.sqrt(D)) @ v)
        coupled[p] = mixed + w["lateral.nn_eta"] * np.tanh(ring) + sigmoid(w["lateral.rmc_gate"]) * attended
    return coupled


def gate(w: Weights, p: int, m: np.ndarray, u: np.ndarray) -> np.ndarray:
    """How far filament p is open, (1)."""
    hidden = np.concatenate([m, u]) @ w["map_gates.fc1_weight"][p] + w["map_gates.fc1_bias"][p]
    return sigmoid(np.maximum(hidden, 0) @ w["map_gates.fc2_weight"][p] + w["map_gates.fc2_bias"][p])


def attention(w: Weights, facts: tuple[int, int, int, float], x: np.ndarray) -> np.ndarray:
    """x (B, T, d) -> y (B, T, d). facts: heads, key-value heads, max_seq_len and the base of the rotary frequencies."""
    n_heads, n_kv_heads, max_seq_len, theta = facts
    batch, length, _ = x.shape
    q, k, v = (
        (x @ w[f"{name}_proj.weight"].T).reshape(batch, length, heads, -1)
        for name, heads in (("q", n_heads), ("k", n_kv_heads), ("v", n_kv_heads))
    )
    half = q.shape[3] // 2
    angles = np.arange(length)[:, None] * theta ** (-np.arange(half) / half)  # (T, half)
    turn = np.exp(1j * angles)[:, None]  # a pair of coordinates as one complex number
    q, k = ((heads[..., :half] + 1j * heads[..., half:]) * turn for heads in (q, k))
    fall = np.zeros(n_heads)
    if "gtp_gamma" in w:
        fall += softplus(w["gtp_gamma"])
    if "polarity_direction" in w:
        fall += np.clip(w["polarity_direction"], -1, 1) / max_seq_len
    outputs = np.empty((*v.shape[:2], n_heads, 2 * half))
    for b, t, head in np.ndindex(batch, length, n_heads):
        shared = head * n_kv_heads // n_heads
        products = (k[b, : t + 1, shared] @ q[b, t, head].conj()).real
        scores = products / np.sqrt(2 * half) - fall[head] * (t - np.arange(t + 1))
        outputs[b, t, head] = softmax(scores) @ v[b, : t + 1, shared]
    return outputs.reshape(batch, length, -1) @ w["out_proj.weight"].T


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, x)


def softmax(x: np.ndarray) -> np.ndarray:
    """Along the one axis."""
    weights = np.exp(x - x.max())
    return weights / weights.sum()
