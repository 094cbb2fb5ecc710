"""The CfC scan on the CPU: a whole sequence in one fused kernel each way, with the weights' gradients as one product.

Layout: (batch, time, channel), weights in panels (harness/ops/toolbox/numba_linear.py). A task is a group of sequences
(harness/ops/toolbox/numba_walk.py). The forward keeps the pre-activations z (layer, batch, time, units) and g (batch,
time, heads) for the backward, which computes the activations again and leaves them, with the gradients by every
pre-activation, to products over all tokens outside. The kernels compile at first use (some seconds for each of forward
and backward, float32 and float64) and are then kept on disk by numba.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from arch.cfc.cell_numba import ACTIVATIONS, MODES, activate, activate_vjp, combine, combine_vjp
from arch.cfc.scan import Cell
from harness.ops.shapes import expect, expect_tokens, expect_type
from harness.ops.toolbox.jit import helper, kernel
from harness.ops.toolbox.numba_linear import group, padded, panels, product
from harness.ops.toolbox.numba_walk import takes, walk, walk_back
from harness.ops.toolbox.threads import spread


def cfc_scan(cell: Cell, u: Tensor, h: Tensor, time: Tensor | None) -> Tensor:
    """Runs the cell over u (T, B, units) from h (B, d_inner) with time (T, B, 1), or None for 1: h (T, B, d_inner).

    All of one type, float32 or float64.
    """
    _check(cell, u, h, time)
    inputs = u.transpose(0, 1), h, None if time is None else time.squeeze(-1).t()  # the kernels' batch comes first
    if torch.is_grad_enabled():
        return _CfCScan.apply(cell.mode, cell.activation, *inputs, *cell.flat()).transpose(0, 1)
    return _forward(cell, *inputs, keep=False)[-1].transpose(0, 1)


def _check(cell: Cell, u: Tensor, h: Tensor, time: Tensor | None) -> None:
    """Raises ValueError or TypeError where the kernels would read past a tensor's end or take it for another type."""
    (T, batch, _), (units, width) = u.shape, cell.recurrent.shape
    expect_tokens("cfc_scan", T)
    rows = width * (1 if cell.mode == "pure" else 3 if time is None else 4)
    shapes = [("heads", cell.heads[0], (rows, units)), ("heads' bias", cell.heads[1], (rows,))]
    for number, (weight, bias) in enumerate(cell.layers):
        shapes += [(f"layer {number}", weight, (units, units)), (f"layer {number}'s bias", bias, (units,))]
    shapes += [("w_tau", cell.w_tau, (width,)), ("amplitude", cell.amplitude, (width,))]
    given = ("u", u, (T, batch, units)), ("h", h, (batch, width)), ("time", time, (T, batch, 1))
    expect("cfc_scan", *given, *shapes)
    expect_type("cfc_scan", u.dtype, h=h, time=time, **{name: tensor for name, tensor, _ in shapes})


class _CfCScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, mode, activation, u, h0, time, *flat):
        z, g, h = _forward(Cell.from_flat(mode, activation, flat), u, h0, time, keep=True)
        ctx.kind = mode, activation
        ctx.save_for_backward(h0, time, z, g, h, *flat)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx, gh):
        h0, time, z, g, h, *flat = ctx.saved_tensors
        cell = Cell.from_flat(*ctx.kind, flat)
        (a, gz, gg, g_time, g_w, g_amplitude), g_h0 = _backward(cell, time, z, g, gh)
        with torch.autocast(gh.device.type, enabled=False):  # a backward keeps the precision of its forward
            before = torch.cat([h0[:, None], h[:, :-1]], dim=1)  # the state that each token sees
            g_flat = [_outer(gz[0], before)]
            for below, above in zip(a, (*gz[1:], gg), strict=True):
                g_flat += [_outer(above, below), above.sum((0, 1))]
        g_extras = (g_w.sum(0), g_amplitude.sum(0)) if cell.mode == "pure" else (None, None)
        return None, None, gz[0], g_h0, None if time is None else g_time, *g_flat, *g_extras


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """Sum over batch and time of left x right: (B, T, m), (B, T, n) -> (m, n)."""
    return left.flatten(0, 1).t() @ right.flatten(0, 1)


def _forward(cell: Cell, u: Tensor, h0: Tensor, time: Tensor | None, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """z (depth, B, T, units), g (B, T, heads), h (B, T, d_inner); z and g of one token only where they are not kept."""
    batch, length, units = u.shape
    kept = length if keep else 1
    z = u.new_empty(1 + len(cell.layers), batch, kept, units)
    g, h = u.new_empty(batch, kept, len(cell.heads[1])), u.new_empty(batch, length, h0.shape[1])
    time = u.new_ones(batch, length) if time is None else time
    layer_biases = torch.stack([bias for _, bias in cell.layers]) if cell.layers else u.new_empty(0, units)
    weights, biases = _panels(cell, lambda weight: weight.t()), (layer_biases, cell.heads[1])
    _spread(forward, cell, h.shape, u, h0, time, weights, biases, _extras(cell), z, g, h)
    return z, g, h


def _backward(cell: Cell, time: Tensor | None, z: Tensor, g: Tensor, gh: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """The activations and the gradients by z, g, time (B, T), w_tau and amplitude (B, d_inner); then the one by h0."""
    batch, length, width = gh.shape
    times = gh.new_ones(batch, length) if time is None else time
    extras = gh.new_zeros(2, batch, width)
    grads = torch.empty_like(z), torch.empty_like(z), torch.empty_like(g), gh.new_empty(batch, length), *extras
    g_h0 = gh.new_empty(batch, width)
    _spread(backward, cell, gh.shape, times, _panels(cell, lambda weight: weight), _extras(cell), z, g, gh, grads, g_h0)
    return grads, g_h0


def _panels(cell: Cell, of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """R, the further layers stacked and the heads, as the kernels' products take `of` each."""
    layers = [panels(of(weight)) for weight, _ in cell.layers]
    return (
        panels(of(cell.recurrent)),
        torch.stack(layers) if layers else cell.recurrent.new_empty(0, 0, 0, 0),
        panels(of(cell.heads[0])),
    )


def _extras(cell: Cell) -> tuple[Tensor, Tensor]:
    nothing = cell.recurrent.new_empty(0)
    return (cell.w_tau, cell.amplitude) if cell.mode == "pure" else (nothing, nothing)


def _spread(kernel, cell: Cell, shape: torch.Size, *arguments) -> None:
    batch, length, width = shape
    size = group(batch)
    kinds = MODES.index(cell.mode), ACTIVATIONS.index(cell.activation)
    work = batch * length * width * cell.recurrent.shape[0]
    spread(kernel, -(-batch // size), work, size, *kinds, *map(_arrays, arguments))


def _arrays(tensors):
    if isinstance(tensors, Tensor):
        return tensors.detach().contiguous().numpy()
    return tuple(map(_arrays, tensors))


@helper
def _plus(x, y, total):
    for c in range(len(total)):
        total[c] = x[c] + y[c]


class _Forward(NamedTuple):
    kinds: tuple[int, int]
    u: np.ndarray
    time: np.ndarray
    weights: tuple
    biases: tuple
    extras: tuple
    z: np.ndarray
    g: np.ndarray
    h: np.ndarray


def _scratch(given, state):
    """a: what the products read; y: what they write; gate."""
    rows, units, heads = len(state), given.z.shape[3], given.g.shape[2]
    y = np.empty((rows, padded(state, max(units, heads))), state.dtype)
    return np.empty((rows, units), state.dtype), y, np.empty(state.shape[1], state.dtype)


def _token(given, t, low, state, room):
    (mode, activation), (recurrent, layers, heads), z, g = given.kinds, given.weights, given.z, given.g
    a, y, gate = room
    rows, slot = len(state), min(t, z.shape[2] - 1)
    product(state, recurrent, y)
    for r in range(rows):
        _plus(given.u[low + r, t], y[r], z[0, low + r, slot])
        activate(activation, z[0, low + r, slot], a[r])
    for layer in range(len(layers)):
        product(a, layers[layer], y)
        for r in range(rows):
            _plus(given.biases[0][layer], y[r], z[layer + 1, low + r, slot])
            activate(activation, z[layer + 1, low + r, slot], a[r])
    product(a, heads, y)
    for r in range(rows):
        _plus(given.biases[1], y[r], g[low + r, slot])
        w_tau, amplitude = given.extras
        combine(mode, g[low + r, slot], given.time[low + r, t], w_tau, amplitude, gate, state[r])
        given.h[low + r, t] = state[r]


takes(_Forward, _scratch, _token)


@kernel
def forward(first, last, size, mode, activation, u, h0, time, weights, biases, extras, z, g, h):
    """Fills h (B, T, d_inner), and z and g where they have a place for each token.

    size: sequences of a task. u (B, T, units); h0 (B, d_inner); time (B, T). weights: panels of R^T, of the further
    layers (depth - 1, ...) and of the heads. biases: (depth - 1, units), (heads). extras: w_tau, amplitude.
    """
    given = _Forward((mode, activation), u, time, weights, biases, extras, z, g, h)
    walk(first, last, size, u.shape[1], h0, given)


class _Backward(NamedTuple):
    kinds: tuple[int, int]
    time: np.ndarray
    weights: tuple
    extras: tuple
    z: np.ndarray
    g: np.ndarray
    gh: np.ndarray
    grads: tuple


def _scratch_back(given, state):
    """wide and narrow, what the products read, and gate."""
    (rows, width), units = state.shape, given.z.shape[3]
    wide, narrow = np.empty((rows, given.g.shape[2]), state.dtype), np.empty((rows, units), state.dtype)
    return (wide, narrow, np.empty(width, state.dtype)), padded(state, max(width, units))


def _token_back(given, t, low, state, room):
    (mode, activation), (recurrent, layers, heads), z, g = given.kinds, given.weights, given.z, given.g
    a, gz, gg, g_time, g_w, g_amplitude = given.grads
    wide, narrow, gate = room
    rows = len(state)
    for r in range(rows):
        b = low + r
        total = state[r, : given.gh.shape[2]]
        _plus(given.gh[b, t], state[r], total)
        w_tau, amplitude = given.extras
        g_time[b, t] = combine_vjp(
            mode, g[b, t], given.time[b, t], w_tau, amplitude, gate, total, wide[r], g_w[b], g_amplitude[b]
        )
        gg[b, t] = wide[r]
    product(wide, heads, state)
    for layer in range(len(z) - 1, -1, -1):
        for r in range(rows):
            activate_vjp(activation, z[layer, low + r, t], state[r], a[layer, low + r, t], narrow[r])
            gz[layer, low + r, t] = narrow[r]
        product(narrow, layers[layer - 1] if layer else recurrent, state)


takes(_Backward, _scratch_back, _token_back)


@kernel
def backward(first, last, size, mode, activation, time, weights, extras, z, g, gh, grads, g_h0):
    """From gh (B, T, d_inner), the gradient by h, fills grads and g_h0 (B, d_inner).

    grads: the activations a and the gradients by z, by g, by time (B, T), and by w_tau and amplitude (B, d_inner),
    the last two zeroed before. weights: panels of R, the further layers and the heads.
    """
    given = _Backward((mode, activation), time, weights, extras, z, g, gh, grads)
    walk_back(first, last, size, gh.shape[1], g_h0, given)
