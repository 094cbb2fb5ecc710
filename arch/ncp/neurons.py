"""The operations `neuron_scan` and `neuron_step`: wired neurons with conductance synapses, the LTC cell of ncps.

Neuron u with capacity c, leak g and resting potential E obeys, the sum being over the synapses that reach it,

    c dv_u/dt = g (E - v_u) + sum_s w_s sigmoid(sigma_s (v_source - mu_s)) (e_s - v_u),

the sources being sensory inputs, constant during a token, or neurons. Lechner and Hasani (ncps, `LTCCell`), after
Lechner et al. 2020; a token is crossed in `unfolds` fused semi-implicit steps (Hasani et al. 2021, algorithm 1).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.ops.registry import Kernel, Operation
from harness.ops.samples import Draw, Sample, Samples
from harness.ops.shapes import expect, expect_tokens, expect_type

EPSILON = 1e-8  # ncps adds it to what it divides by


@dataclass(frozen=True)
class Synapses:
    """Synapses (S) of neurons: from `source` to `target` (int64), with mu, sigma, w, and the current w e at v = 0."""

    source: Tensor
    target: Tensor
    mu: Tensor
    sigma: Tensor
    w: Tensor
    current: Tensor

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """mu, sigma, w and current, as kernels take them."""
        return self.mu, self.sigma, self.w, self.current

    def conduct(self, v: Tensor, units: int) -> tuple[Tensor, Tensor]:
        """From the sources' v (..., sources): the currents and the conductances that reach each neuron (..., units)."""
        s = torch.sigmoid(self.sigma * (v[..., self.source] - self.mu))
        nothing = s.new_zeros(*s.shape[:-1], units)
        return nothing.index_add(-1, self.target, s * self.current), nothing.index_add(-1, self.target, s * self.w)


@dataclass(frozen=True)
class Neurons:
    """capacity, leak g, rest g E: (U). unfolds: steps a token."""

    unfolds: int
    capacity: Tensor
    leak: Tensor
    rest: Tensor
    sensory: Synapses
    recurrent: Synapses

    def sense(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The currents and conductances of a token (..., U) that its steps share. x: (..., inputs)."""
        current, conductance = self.sensory.conduct(x, len(self.capacity))
        return current + self.rest, conductance + self.leak + EPSILON

    def step(self, sensed: tuple[Tensor, Tensor], v: Tensor, elapsed: Tensor | None) -> Tensor:
        """Carries v (B, U) across a token of the time `elapsed` (B, 1), or None for 1."""
        dt = 1 / self.unfolds if elapsed is None else elapsed / self.unfolds
        for _ in range(self.unfolds):
            current, conductance = self.recurrent.conduct(v, len(self.capacity))
            current, conductance = current + sensed[0], conductance + sensed[1]
            v = (self.capacity * v + dt * current) / (self.capacity + dt * conductance)
        return v


def reference(neurons: Neurons, x: Tensor, v: Tensor, elapsed: Tensor | None) -> Tensor:
    """The potentials (B, T, U) after each token, from v (B, U). x: (B, T, inputs). elapsed: (B, T), None for 1."""
    states = []
    for t, sensed in enumerate(zip(*(part.unbind(1) for part in neurons.sense(x)), strict=True)):
        v = neurons.step(sensed, v, None if elapsed is None else elapsed[:, t, None])
        states.append(v)
    return torch.stack(states, dim=1)


def step_reference(neurons: Neurons) -> Callable[[Tensor, Tensor], Tensor]:
    """One token of unit time for these weights: x (B, inputs), v (B, U) -> the new v."""
    return lambda x, v: neurons.step(neurons.sense(x), v, None)


def check(neurons: Neurons, x: Tensor, v: Tensor, elapsed: Tensor | None) -> None:
    """Raises ValueError or TypeError where the kernels would read past a tensor's end or take it for another type."""
    (batch, T, inputs), units = x.shape, len(neurons.capacity)
    expect_tokens("neuron_scan", T)
    expect("neuron_scan", ("v", v, (batch, units)), ("elapsed", elapsed, (batch, T)))
    cells = {"leak": neurons.leak, "rest": neurons.rest}
    expect("neuron_scan", *((name, tensor, (units,)) for name, tensor in cells.items()))
    expect_type("neuron_scan", x.dtype, v=v, elapsed=elapsed, capacity=neurons.capacity, **cells)
    for sources, synapses in ((inputs, neurons.sensory), (units, neurons.recurrent)):
        _check_synapses(synapses, sources, units, x.dtype)


def _check_synapses(synapses: Synapses, sources: int, units: int, dtype: torch.dtype) -> None:
    size = (len(synapses.source),)
    weights = {"mu": synapses.mu, "sigma": synapses.sigma, "w": synapses.w, "current": synapses.current}
    expect("neuron_scan", ("target", synapses.target, size), *((name, w, size) for name, w in weights.items()))
    expect_type("neuron_scan", torch.int64, source=synapses.source, target=synapses.target)
    expect_type("neuron_scan", dtype, **weights)
    for ends, count in ((synapses.source, sources), (synapses.target, units)):
        if size[0] and (int(ends.min()) < 0 or int(ends.max()) >= count):
            raise ValueError(f"neuron_scan: a synapse ends at none of the {count} there are.")


def _sampled(draw: Draw, inputs: int, units: int, unfolds: int) -> Neurons:
    """Neurons of which every second pair has a synapse; conductances, leaks and capacities are positive."""

    def synapses(sources: int) -> Synapses:
        source, target = torch.cartesian_prod(torch.arange(sources), torch.arange(units))[::2].T.to(draw.device)
        size = len(source)
        return Synapses(source, target, draw.unit(size), draw.weight(size), draw.unit(size), draw.weight(size))

    leak, rest, capacity = draw.unit(units), draw.weight(units), draw.unit(units)
    capacity = (capacity.detach() + 0.5).requires_grad_()
    return Neurons(unfolds, capacity, leak, rest, synapses(inputs), synapses(units))


def sample(draw: Draw, batch=2, length=3, inputs=4, units=5, unfolds=3, timed=False) -> Sample:
    """One call from a state that an earlier one left. timed: with a time for each token."""
    neurons = _sampled(draw, inputs, units, unfolds)
    elapsed = draw.unit(batch, length) if timed else None
    return Sample((neurons, draw.normal(batch, length, inputs), draw.unit(batch, units), elapsed))


def step_sample(draw: Draw, batch=2, inputs=4, units=5, unfolds=3) -> Sample:
    """Weights, and one token with its state."""
    token = draw.normal(batch, inputs), draw.unit(batch, units)
    return Sample((_sampled(draw, inputs, units, unfolds),), token=token)


_SIZES = {"batch": (1, 3, 9, 17), "inputs": (1, 4, 7), "units": (1, 5, 12), "unfolds": (1, 3)}
NEURON_SCAN = Operation(
    "neuron_scan",
    reference,
    (
        Kernel("numba", "cpu", "arch.ncp.neurons_numba:neuron_scan", (torch.float32, torch.float64)),
        Kernel(
            "triton", "cuda", "arch.ncp.neurons_triton:neuron_scan", (torch.float32, torch.float64), needs=("triton",)
        ),
    ),
    samples=Samples(
        sample,
        {"length": (1, 2, 5), **_SIZES},
        ({}, {"timed": True}),
        ({"batch": 9, "length": 40, "inputs": 8, "units": 24}, {"batch": 3, "length": 4, "units": 300}),
    ),
)
NEURON_STEP = Operation(
    "neuron_step",
    step_reference,
    (Kernel("numba", "cpu", "arch.ncp.neurons_numba:neuron_step", (torch.float32,)),),
    optional=True,
    samples=Samples(step_sample, _SIZES),
)
