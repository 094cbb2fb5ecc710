"""The wired neurons on the CPU: a whole sequence in one kernel each way.

LANES sequences walk together, a number of each side by side (neuron or synapse, lane), so that what a synapse does is
one vector operation and its weights are loaded once for all; the missing lanes of the last group compute zeros. The
forward keeps the potentials after each token; the backward computes the token's steps again from them. Every group
sums its own part of the weights' gradients, so that they do not depend on the threads.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from arch.ncp.neurons import EPSILON, Neurons, check
from harness.ops.shapes import expect
from harness.ops.toolbox.jit import helper, kernel
from harness.ops.toolbox.numba_linear import owned
from harness.ops.toolbox.numba_math import sigmoid, zero
from harness.ops.toolbox.threads import spread

LANES = 8


def neuron_scan(neurons: Neurons, x: Tensor, v: Tensor, elapsed: Tensor | None) -> Tensor:
    """The potentials (B, T, U) after each token, from v (B, U). x: (B, T, inputs). elapsed: (B, T), None for 1.

    All of one type, float32 or float64.
    """
    check(neurons, x, v, elapsed)
    cells = neurons.capacity, neurons.leak, neurons.rest
    ends = [(s.source, s.target) for s in (neurons.sensory, neurons.recurrent)]
    weights = *neurons.sensory.weights, *neurons.recurrent.weights
    return _NeuronScan.apply(neurons.unfolds, ends, x, v, elapsed, *cells, *weights)


def neuron_step(neurons: Neurons) -> Callable[[Tensor, Tensor], Tensor]:
    """One token of unit time for these weights: x (B, inputs), v (B, U) -> the new v, float32."""
    given = _arrays(owned(neurons.capacity, neurons.leak, neurons.rest))
    wired = [_arrays([s.source, s.target, *owned(*s.weights)])
             for s in (neurons.sensory, neurons.recurrent)]  # fmt: skip
    time, unfolds = np.ones((1, 1), np.float32), neurons.unfolds

    def run(x: Tensor, v: Tensor) -> Tensor:
        expect("neuron_step", ("v", v, (len(x), len(given[0]))))
        new = torch.empty(len(x), 1, len(given[0]))
        x, v = x.float().unsqueeze(1).contiguous().numpy(), v.float().contiguous().numpy()
        groups = -(-len(v) // LANES)
        forward(0, groups, unfolds, x, v, np.broadcast_to(time, (len(v), 1)).copy(), given, *wired, new.numpy())
        return new.squeeze(1)

    return run


def _arrays(tensors) -> tuple[np.ndarray, ...]:
    return tuple(tensor.detach().contiguous().numpy() for tensor in tensors)


class _NeuronScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, unfolds, ends, x, v0, elapsed, *weights):
        states = v0.new_empty(*x.shape[:2], v0.shape[1])
        _run(forward, unfolds, ends, x, v0, elapsed, weights, states)
        ctx.unfolds, ctx.ends = unfolds, ends
        ctx.save_for_backward(x, v0, elapsed, *weights, states)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, v0, elapsed, *weights, states = ctx.saved_tensors
        groups = -(-len(x) // LANES)
        parts = [w.new_zeros(groups, len(w), LANES) for w in weights]
        g_x, g_v, g_time = x.new_empty(x.shape), v0.new_empty(v0.shape), x.new_empty(x.shape[:2])
        out = g_x, g_v, g_time, *parts
        grads = _arrays(out[:3]), _arrays(parts[:3]), _arrays(parts[3:7]), _arrays(parts[7:])
        _run(backward, ctx.unfolds, ctx.ends, x, v0, elapsed, weights, states, *_arrays([g]), *grads)
        return None, None, g_x, g_v, None if elapsed is None else g_time, *(part.sum((0, 2)) for part in parts)


def _run(run, unfolds, ends, x, v0, elapsed, weights, states, *rest) -> None:
    time = x.new_ones(x.shape[:2]) if elapsed is None else elapsed
    given = _arrays([x, v0, time]), _arrays(weights[:3])
    wired = [_arrays((*pair, *weights[at : at + 4])) for pair, at in zip(ends, (3, 7), strict=True)]
    work = x[..., 0].numel() * (len(weights[3]) + unfolds * len(weights[7]))
    spread(run, -(-len(x) // LANES), work, unfolds, *given[0], given[1], *wired, states.numpy(), *rest)


@helper
def _copy(source, target):
    """Of contiguous arrays of one shape; an assignment to a slice would run as fast and take long to compile."""
    given, out = source.reshape(-1), target.reshape(-1)
    for i in range(len(given)):
        out[i] = given[i]


@helper
def _clear(target):
    out = target.reshape(-1)
    for i in range(len(out)):
        out[i] = zero(out[i])


@helper
def _conduct(synapses, v, s, current, conductance):
    """Adds what the synapses carry from v (sources, LANES); s (S, LANES) becomes their sigmoids."""
    source, target, mu, sigma, w, at_rest = synapses
    for k in range(len(source)):
        slope, threshold, row, out = sigma[k], mu[k], v[source[k]], s[k]
        for r in range(LANES):
            out[r] = slope * (row[r] - threshold)
    flat = s.reshape(-1)
    for i in range(len(flat)):
        flat[i] = sigmoid(flat[i])
    for k in range(len(source)):
        row, to_current, to_conductance = s[k], current[target[k]], conductance[target[k]]
        for r in range(LANES):
            to_current[r] += at_rest[k] * row[r]
            to_conductance[r] += w[k] * row[r]


@helper
def _conduct_vjp(synapses, v, s, g_current, g_conductance, g_v, grads):
    """Adds to g_v and to grads (by mu, sigma, w and current) from the gradients by what the synapses carried."""
    source, target, mu, sigma, w, at_rest = synapses
    g_mu, g_sigma, g_w, g_at_rest = grads
    real = v.dtype.type
    for k in range(len(source)):
        slope, threshold, conductance, current, row = sigma[k], mu[k], w[k], at_rest[k], v[source[k]]
        by_current, by_conductance, out = g_current[target[k]], g_conductance[target[k]], g_v[source[k]]
        part_mu, part_sigma, part_w, part_current, sigmoids = g_mu[k], g_sigma[k], g_w[k], g_at_rest[k], s[k]
        for r in range(LANES):
            y = sigmoids[r]
            by_argument = (current * by_current[r] + conductance * by_conductance[r]) * y * (real(1) - y)
            part_current[r] += by_current[r] * y
            part_w[r] += by_conductance[r] * y
            part_sigma[r] += by_argument * (row[r] - threshold)
            part_mu[r] -= by_argument * slope
            out[r] += by_argument * slope


@helper
def _sense(cells, sensory, x, low, t, seen, s, current, conductance):
    """The currents and conductances (U, LANES) that a token's steps share; seen (inputs, LANES) becomes its inputs."""
    _, leak, rest = cells
    real = seen.dtype.type
    for r in range(min(LANES, len(x) - low)):
        for i in range(len(seen)):
            seen[i, r] = x[low + r, t, i]
    for u in range(len(leak)):
        for r in range(LANES):
            current[u, r], conductance[u, r] = rest[u], leak[u] + real(EPSILON)
    _conduct(sensory, seen, s, current, conductance)


@helper
def _times(time, low, t, unfolds, dt):
    """The time (LANES) that a step of a token crosses."""
    for r in range(min(LANES, len(time) - low)):
        dt[r] = time[low + r, t] / dt.dtype.type(unfolds)


@helper
def _advance(capacity, current, conductance, dt, v, new):
    for u in range(len(capacity)):
        c = capacity[u]
        for r in range(LANES):
            new[u, r] = (c * v[u, r] + dt[r] * current[u, r]) / (c + dt[r] * conductance[u, r])


@kernel
def forward(first, last, unfolds, x, v0, time, cells, sensory, recurrent, states):
    """Fills states (B, T, U) for the groups first..last - 1.

    x: (B, T, inputs); v0: (B, U); time: (B, T). cells: capacity, leak, rest. sensory, recurrent: source, target, mu,
    sigma, w, current.
    """
    (batch, length, inputs), units, real = x.shape, len(cells[0]), v0.dtype.type
    shared, total = np.empty((2, units, LANES), v0.dtype), np.empty((2, units, LANES), v0.dtype)
    s, s_in = np.empty((len(recurrent[0]), LANES), v0.dtype), np.empty((len(sensory[0]), LANES), v0.dtype)
    for low in range(first * LANES, min(last * LANES, batch), LANES):
        v, seen, dt = np.zeros((units, LANES), v0.dtype), np.zeros((inputs, LANES), v0.dtype), np.full(LANES, real(1))
        rows = min(LANES, batch - low)
        for r in range(rows):
            for u in range(units):
                v[u, r] = v0[low + r, u]
        for t in range(length):
            _times(time, low, t, unfolds, dt)
            _sense(cells, sensory, x, low, t, seen, s_in, shared[0], shared[1])
            for _ in range(unfolds):
                _copy(shared, total)
                _conduct(recurrent, v, s, total[0], total[1])
                _advance(cells[0], total[0], total[1], dt, v, v)
            for r in range(rows):
                for u in range(units):
                    states[low + r, t, u] = v[u, r]


@helper
def _advance_vjp(capacity, total, dt, v, new, g, g_total, g_shared, g_capacity, g_dt):
    """From g, by `new`, the gradients by the totals (so by what the token shares), by v (into g), capacity and dt."""
    for u in range(len(capacity)):
        c = capacity[u]
        for r in range(LANES):
            share = g[u, r] / (c + dt[r] * total[1, u, r])
            g_total[0, u, r] = share * dt[r]
            g_total[1, u, r] = -share * dt[r] * new[u, r]
            g_shared[0, u, r] += g_total[0, u, r]
            g_shared[1, u, r] += g_total[1, u, r]
            g_capacity[u, r] += share * (v[u, r] - new[u, r])
            g_dt[r] += share * (total[0, u, r] - new[u, r] * total[1, u, r])
            g[u, r] = share * c


@kernel
def backward(
    first, last, unfolds, x, v0, time, cells, sensory, recurrent, states, g_states, grads, g_cells, g_sensory,
    g_recurrent,
):  # fmt: skip
    """From g_states (B, T, U) fills grads, by x, v0 and time, and adds to the others (groups, ..., LANES)."""
    (batch, length, inputs), units, real = x.shape, len(cells[0]), v0.dtype.type
    g_x, g_v0, g_time = grads
    shared, total = np.empty((2, units, LANES), v0.dtype), np.empty((unfolds, 2, units, LANES), v0.dtype)
    s_in = np.empty((len(sensory[0]), LANES), v0.dtype)
    s, v = np.empty((unfolds, len(recurrent[0]), LANES), v0.dtype), np.empty((unfolds + 1, units, LANES), v0.dtype)
    for group in range(first, last):
        low, rows = group * LANES, min(LANES, batch - group * LANES)
        of_cells = g_cells[0][group], g_cells[1][group], g_cells[2][group]
        of_sensory = g_sensory[0][group], g_sensory[1][group], g_sensory[2][group], g_sensory[3][group]
        of_recurrent = g_recurrent[0][group], g_recurrent[1][group], g_recurrent[2][group], g_recurrent[3][group]
        g, seen, dt = np.zeros((units, LANES), v0.dtype), np.zeros((inputs, LANES), v0.dtype), np.full(LANES, real(1))
        g_seen, g_dt = np.empty((inputs, LANES), v0.dtype), np.empty(LANES, v0.dtype)
        g_total, g_shared = np.empty((2, units, LANES), v0.dtype), np.empty((2, units, LANES), v0.dtype)
        _clear(v[0])
        for t in range(length - 1, -1, -1):
            for r in range(rows):
                for u in range(units):
                    v[0, u, r] = v0[low + r, u] if t == 0 else states[low + r, t - 1, u]
                    g[u, r] += g_states[low + r, t, u]
            _times(time, low, t, unfolds, dt)
            _sense(cells, sensory, x, low, t, seen, s_in, shared[0], shared[1])
            for step in range(unfolds):
                _copy(shared, total[step])
                _conduct(recurrent, v[step], s[step], total[step, 0], total[step, 1])
                _advance(cells[0], total[step, 0], total[step, 1], dt, v[step], v[step + 1])
            _clear(g_shared)
            _clear(g_dt)
            _clear(g_seen)
            for step in range(unfolds - 1, -1, -1):
                _advance_vjp(cells[0], total[step], dt, v[step], v[step + 1], g, g_total, g_shared, of_cells[0], g_dt)
                _conduct_vjp(recurrent, v[step], s[step], g_total[0], g_total[1], g, of_recurrent)
            _conduct_vjp(sensory, seen, s_in, g_shared[0], g_shared[1], g_seen, of_sensory)
            for u in range(units):
                for r in range(LANES):
                    of_cells[1][u, r] += g_shared[1, u, r]
                    of_cells[2][u, r] += g_shared[0, u, r]
            for r in range(rows):
                g_time[low + r, t] = g_dt[r] / real(unfolds)
                for i in range(inputs):
                    g_x[low + r, t, i] = g_seen[i, r]
        for r in range(rows):
            for u in range(units):
                g_v0[low + r, u] = g[u, r]
