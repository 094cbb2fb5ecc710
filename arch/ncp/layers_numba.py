"""The wired CfC on the CPU: a whole sequence in one kernel each way, with the weights' gradients as products outside.

A task is a group of sequences that share each load of a weight (harness/ops/toolbox/numba_walk.py); weights are in
panels (harness/ops/toolbox/numba_linear.py). The forward keeps the pre-activations of the memory and of the layers, and
c, for the backward.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from arch.cfc.cell_numba import MODES, combine, combine_vjp
from arch.ncp.layers import Layers
from arch.ncp.layers_torch import Walks, room, scan_by
from harness.ops.shapes import expect
from harness.ops.toolbox.jit import kernel
from harness.ops.toolbox.numba_linear import group, padded, panels, product
from harness.ops.toolbox.numba_math import one, sigmoid, tanh, zero
from harness.ops.toolbox.numba_walk import takes, walk, walk_back
from harness.ops.toolbox.threads import spread


def wired_cfc_scan(
    layers: Layers, seen: tuple[Tensor | None, Tensor], h: Tensor, c: Tensor | None, time: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The states h (B, T, U) and the last c; see `reference` of arch/ncp/layers.py. All float32 or all float64."""
    return scan_by(Walks(walk_forward, walk_backward), layers, seen, h, c, time)


def wired_cfc_step(entry, layers: Layers) -> Callable[[Tensor, Tensor, Tensor | None], tuple]:
    """One token of unit time for these weights, float32; see `step_reference` of arch/ncp/layers.py."""
    pairs = [pair for pair in entry if pair is not None]
    weight, bias = (torch.cat([pair[part].detach().float() for pair in pairs]) for part in (0, 1))
    layers = Layers.from_flat(layers.mode, [None if t is None else t.detach().float() for t in layers.flat()])
    inputs, units, split = _inputs(layers, lambda w: w.t()), sum(layers.sizes), len(weight) - len(pairs[-1][1])

    def run(x: Tensor, h: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
        expect("wired_cfc_step", ("h", h, (len(x), units)), ("c", c, (len(x), units)))
        seen = F.linear(x.float(), weight, bias).unsqueeze(1)
        state = h.float() if c is None else torch.cat([h, c], dim=1).float()
        made = room(layers, len(x), 1, 1, seen)
        time = np.ones((len(x), 1), np.float32)
        forward(0, 1, max(1, len(x)), *inputs, *_arrays((seen[..., :split], seen[..., split:], state)), time,
                *_arrays(made))  # fmt: skip
        return made[3][:, 0], None if c is None else made[2][:, 0]

    return run


def _arrays(tensors):
    if isinstance(tensors, Tensor):
        return tensors.detach().contiguous().numpy()
    return tuple(map(_arrays, tensors))


def _inputs(layers: Layers, of: Callable[[Tensor], Tensor]) -> tuple:
    """mode, sizes, weights as the products take `of` each, biases and extras, as the kernels take them."""
    like = layers.weights[0]
    nothing = like.new_empty(0)
    memory = like.new_empty(0, 0, 0) if layers.memory is None else panels(of(layers.memory))
    weights = _arrays((tuple(panels(of(weight)) for weight in layers.weights), memory))
    extras = (nothing, nothing) if layers.mode != "pure" else (layers.w_tau, layers.amplitude)
    biases = (torch.zeros_like(layers.weights[0][:, 0]), *layers.biases)  # the inter layer's is in what the token shows
    return MODES.index(layers.mode), tuple(layers.sizes), *weights, _arrays(biases), _arrays(extras)


def walk_forward(layers: Layers, time: Tensor | None, seen: tuple, state: Tensor, made: tuple[Tensor, ...]) -> None:
    """As Walks.forward of arch/ncp/layers_torch.py."""
    by_memory, by_inter = seen
    by_memory = by_inter[..., :0] if by_memory is None else by_memory
    time = by_inter.new_ones(by_inter.shape[:2]) if time is None else time
    _spread(forward, made[3], *_inputs(layers, lambda w: w.t()), *_arrays((by_memory, by_inter, state, time, *made)))


def walk_backward(layers: Layers, time: Tensor | None, kept: tuple, grads: tuple, made: tuple[Tensor, ...]) -> None:
    """As Walks.back of arch/ncp/layers_torch.py."""
    gh = grads[0]
    time = gh.new_ones(gh.shape[:2]) if time is None else time
    _spread(backward, gh, *_inputs(layers, lambda w: w), *_arrays((*kept, *grads, time, *made)))


def _spread(run, h: Tensor, *arguments) -> None:
    size = group(len(h))
    spread(run, -(-len(h) // size), h.numel() * h.shape[2] * 4, size, *arguments)


class _Forward(NamedTuple):
    mode: int
    sizes: tuple[int, int, int]
    weights: tuple
    memory: np.ndarray
    biases: tuple
    extras: tuple
    by_memory: np.ndarray
    by_inter: np.ndarray
    time: np.ndarray
    z: np.ndarray
    g: np.ndarray
    c: np.ndarray
    h: np.ndarray


def _scratch(given, state):
    """x: what the layers' products read; y: what products write; gate."""
    rows, units = len(state), given.h.shape[2]
    y = np.empty((rows, padded(state, 4 * units)), state.dtype)
    return np.empty((rows, units), state.dtype), y, np.empty(units, state.dtype)


def _token(given, t, low, state, room):
    x, y, gate = room
    rows, units, slot = len(state), given.h.shape[2], min(t, given.g.shape[1] - 1)
    if given.memory.size:
        product(state, given.memory, y)
        for r in range(rows):
            z, c = given.z[low + r, slot], state[r, units:]
            for k in range(4 * units):
                z[k] = given.by_memory[low + r, t, k] + y[r, k]
            for k in range(units):
                i, i_gate, f_gate, o_gate = z[k], z[units + k], z[2 * units + k], z[3 * units + k]
                c[k] = c[k] * sigmoid(f_gate + one(i)) + tanh(i) * sigmoid(i_gate)
                state[r, k] = tanh(c[k]) * sigmoid(o_gate)
                given.c[low + r, slot, k] = c[k]
    start, row = 0, 0
    for layer in range(3):
        n, bias, high = given.sizes[layer], given.biases[layer], row + len(given.biases[layer])
        below = given.sizes[layer - 1] if layer else 0
        for r in range(rows):
            for k in range(below + n):
                x[r, k] = state[r, start - below + k]
        product(x, given.weights[layer], y)
        for r in range(rows):
            g = given.g[low + r, slot, row:high]
            for k in range(len(bias)):
                g[k] = y[r, k] + bias[k]
            if layer == 0:
                for k in range(len(bias)):
                    g[k] += given.by_inter[low + r, t, k]
            w_tau, amplitude = given.extras[0][start : start + n], given.extras[1][start : start + n]
            combine(given.mode, g, given.time[low + r, t], w_tau, amplitude, gate[:n], state[r, start : start + n])
        start += n
        row = high
    for r in range(rows):
        for k in range(units):
            given.h[low + r, t, k] = state[r, k]


takes(_Forward, _scratch, _token)


@kernel
def forward(
    first, last, size, mode, sizes, weights, memory, biases, extras, by_memory, by_inter, state, time, z, g, c, h
):  # fmt: skip
    """Fills h (B, T, U), and z, g and c where they have a place for each token; see `room`.

    size: sequences of a task. weights: panels of the layers' transposed weights; memory: of the LSTM's. biases: of each
    layer, the inter layer's zeros. extras: w_tau, amplitude (U). state: h and c side by side. time: (B, T).
    """
    given = _Forward(mode, sizes, weights, memory, biases, extras, by_memory, by_inter, time, z, g, c, h)
    walk(first, last, size, h.shape[1], state, given)


class _Backward(NamedTuple):
    mode: int
    sizes: tuple[int, int, int]
    weights: tuple
    memory: np.ndarray
    biases: tuple
    extras: tuple
    z: np.ndarray
    g: np.ndarray
    c: np.ndarray
    c_before: np.ndarray
    gh: np.ndarray
    gc: np.ndarray
    time: np.ndarray
    gz: np.ndarray
    gg: np.ndarray
    g_time: np.ndarray
    g_w: np.ndarray
    g_amplitude: np.ndarray


def _scratch_back(given, state):
    """x: what products read; y: what they write; the gradients by h that the layers see, and gate."""
    (rows, _), units = state.shape, given.gh.shape[2]
    x = np.empty((rows, 4 * units), state.dtype)
    y = np.empty((rows, padded(state, 2 * units)), state.dtype)
    return (x, y, np.empty((rows, units), state.dtype), np.empty(units, state.dtype)), state.shape[1]


def _token_back(given, t, low, state, room):
    x, y, own, gate = room
    rows, units, length = len(state), given.gh.shape[2], given.gh.shape[1]
    high, row = units, given.gg.shape[2]
    for r in range(rows):
        given.g_time[low + r, t] = zero(gate[0])
        for k in range(units):
            state[r, k] += given.gh[low + r, t, k]
    for layer in range(2, -1, -1):
        n, width = given.sizes[layer], len(given.biases[layer])
        below, start, row = given.sizes[layer - 1] if layer else 0, high - n, row - width
        for r in range(rows):
            b, gg = low + r, given.gg[low + r, t, row : row + width]
            w_tau, amplitude = given.extras[0][start:high], given.extras[1][start:high]
            given.g_time[b, t] += combine_vjp(
                given.mode, given.g[b, t, row : row + width], given.time[b, t], w_tau, amplitude, gate[:n],
                state[r, start:high], gg, given.g_w[b, start:high], given.g_amplitude[b, start:high],
            )  # fmt: skip
            for k in range(width):
                x[r, k] = gg[k]
        product(x, given.weights[layer], y)
        for r in range(rows):
            for k in range(below):
                state[r, start - below + k] += y[r, k]
            for k in range(n):
                own[r, start + k] = y[r, below + k]
        high = start
    if not given.memory.size:
        for r in range(rows):
            for k in range(units):
                state[r, k] = own[r, k]
        return
    for r in range(rows):
        z, gz, b, carry = given.z[low + r, t], given.gz[low + r, t], low + r, state[r, units:]
        for k in range(units):
            if t == length - 1:
                carry[k] += given.gc[b, k]
            i, i_gate = tanh(z[k]), sigmoid(z[units + k])
            f_gate, o_gate = sigmoid(z[2 * units + k] + one(gate[k])), sigmoid(z[3 * units + k])
            shown = tanh(given.c[b, t, k])
            by_c = carry[k] + own[r, k] * o_gate * (one(i) - shown * shown)
            gz[k] = by_c * i_gate * (one(i) - i * i)
            gz[units + k] = by_c * i * i_gate * (one(i) - i_gate)
            gz[2 * units + k] = by_c * given.c_before[b, t, k] * f_gate * (one(i) - f_gate)
            gz[3 * units + k] = own[r, k] * shown * o_gate * (one(i) - o_gate)
            carry[k] = by_c * f_gate
        for k in range(4 * units):
            x[r, k] = gz[k]
    product(x, given.memory, y)
    for r in range(rows):
        for k in range(units):
            state[r, k] = y[r, k]


takes(_Backward, _scratch_back, _token_back)


@kernel
def backward(
    first, last, size, mode, sizes, weights, memory, biases, extras, z, g, c, c_before, gh, gc, time, gz, gg, g_time,
    g_w, g_amplitude, g_state,
):  # fmt: skip
    """From gh (B, T, U) and gc (B, U), of the last c, fills gz, gg, g_time and g_state (h and c side by side).

    Adds to g_w and g_amplitude (B, U), zeroed before. weights, memory: panels of the weights as they are.
    """
    given = _Backward(
        mode, sizes, weights, memory, biases, extras, z, g, c, c_before, gh, gc, time, gz, gg, g_time, g_w, g_amplitude
    )
    walk_back(first, last, size, gh.shape[1], g_state, given)
