"""The operations `lrc_scan` and `lrc_step`: liquid-resistance liquid-capacitance neurons, each its own recurrence.

Farsang et al. 2025 (arXiv:2505.21717) and MoniFarsang/LrcSSM, `LRC_diagmat.py` (real states, asymmetric elastance).
With p, q from the token, y = sigmoid(sigma (h - mu)) and dt the token's time,

    a = sigmoid(p + w y),  b = vleak tanh(q + u y),  e = sigmoid(k h + k0),  h' = h + dt e (b - a h).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from harness.ops.registry import Kernel, Operation
from harness.ops.samples import Draw, Sample, Samples


class Neurons(NamedTuple):
    """What a neuron has of its own, (D) each: the synapse to itself, the leak's potential, the elastance's line."""

    mu: Tensor
    sigma: Tensor
    w: Tensor
    u: Tensor
    vleak: Tensor
    k: Tensor
    k0: Tensor

    def step(self, p: Tensor, q: Tensor, h: Tensor, dt: Tensor | None) -> Tensor:
        """The map of a token: h' of the shape of p, q and h, whose last axis is D; dt to go with them, None for 1."""
        y = torch.sigmoid(self.sigma * (h - self.mu))
        a, b = torch.sigmoid(p + self.w * y), self.vleak * torch.tanh(q + self.u * y)
        e = torch.sigmoid(self.k * h + self.k0)
        return h + (e if dt is None else dt * e) * (b - a * h)

    def linearised(self, p: Tensor, q: Tensor, h: Tensor, dt: Tensor | None) -> tuple[Tensor, Tensor]:
        """`step` and its derivative by h, which is diagonal."""
        y = torch.sigmoid(self.sigma * (h - self.mu))
        a, shown, e = torch.sigmoid(p + self.w * y), torch.tanh(q + self.u * y), torch.sigmoid(self.k * h + self.k0)
        by_y = self.sigma * y * (1 - y)
        v = self.vleak * shown - a * h
        by_v = self.vleak * self.u * by_y * (1 - shown**2) - self.w * by_y * a * (1 - a) * h - a
        slope = e * (1 - e) * self.k * v + e * by_v
        if dt is not None:
            e, slope = dt * e, dt * slope
        return h + e * v, 1 + slope


def reference(neurons: Neurons, p: Tensor, q: Tensor, h: Tensor, elapsed: Tensor | None) -> Tensor:
    """The states (B, T, D) after each token, from h (B, D). p, q: (B, T, D). elapsed: (B, T), None for 1."""
    states = []
    for t, (p_t, q_t) in enumerate(zip(p.unbind(1), q.unbind(1), strict=True)):
        h = neurons.step(p_t, q_t, h, None if elapsed is None else elapsed[:, t, None])
        states.append(h)
    return torch.stack(states, dim=1)


def step_reference(neurons: Neurons) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """One token of unit time for these weights: p, q and h (B, D) -> the new h."""
    return lambda p, q, h: neurons.step(p, q, h, None)


def sample(draw: Draw, batch=2, length=3, width=5, timed=False) -> Sample:
    """One call from a state that an earlier one left."""
    neurons = Neurons(*(draw.weight(width) for _ in Neurons._fields))
    elapsed = draw.unit(batch, length) if timed else None
    p, q = draw.normal(batch, length, width), draw.normal(batch, length, width)
    return Sample((neurons, p, q, draw.normal(batch, width), elapsed))


def step_sample(draw: Draw, batch=2, width=5) -> Sample:
    """Weights, and one token with its state."""
    token = tuple(draw.normal(batch, width) for _ in range(3))
    return Sample((Neurons(*(draw.weight(width) for _ in Neurons._fields)),), token=token)


_SIZES = {"batch": (1, 3), "width": (1, 5, 64, 70)}
LRC_SCAN = Operation(
    "lrc_scan",
    reference,
    (
        Kernel("numba", "cpu", "arch.lrc.scan_numba:lrc_scan", (torch.float32, torch.float64)),
        Kernel("triton", "cuda", "arch.lrc.scan_triton:lrc_scan", (torch.float32, torch.float64), needs=("triton",)),
    ),
    samples=Samples(
        sample, {"length": (1, 2, 5), **_SIZES}, ({}, {"timed": True}), ({"batch": 3, "length": 60, "width": 130},)
    ),
)
LRC_STEP = Operation(
    "lrc_step",
    step_reference,
    (Kernel("numba", "cpu", "arch.lrc.scan_numba:lrc_step", (torch.float32,)),),
    optional=True,
    samples=Samples(step_sample, _SIZES),
)
