"""One token of a CfC mixer on the CPU, the projections about it too, in one call of a kernel (float32)."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from arch.cfc.cell_numba import ACTIVATIONS, MODES, activate, combine
from arch.cfc.scan import Cell
from harness.ops.shapes import expect
from harness.ops.toolbox.jit import helper, kernel
from harness.ops.toolbox.numba_linear import at, padded, panels, panels_at, product


def cfc_step(entry: tuple[Tensor, Tensor], cell: Cell, out: Tensor) -> Callable[[Tensor, Tensor], tuple]:
    """x (B, D), h (B, d_inner) -> y (B, D), the new h, for these weights; see arch/cfc/scan.py."""
    width, hidden = out.shape
    depth, units, heads = len(cell.layers), *reversed(cell.heads[0].shape)
    joined = torch.cat([entry[0], cell.recurrent], dim=1)
    weights = [joined, *(weight for weight, _ in cell.layers), cell.heads[0], out]
    biases = [entry[1], *(bias for _, bias in cell.layers), cell.heads[1]]
    extras = [e for e in (cell.w_tau, cell.amplitude) if e is not None]
    flat = torch.cat(
        [part.detach().flatten() for part in (*(panels(w.detach().t()) for w in weights), *biases, *extras)]
    )
    sizes = width, hidden, units, heads, depth, MODES.index(cell.mode), ACTIVATIONS.index(cell.activation)
    address = flat.data_ptr()

    def run(x: Tensor, h: Tensor, flat=flat) -> tuple[Tensor, Tensor]:  # holds the weights
        expect("cfc_step", ("x", x, (len(x), width)), ("h", h, (len(x), hidden)))
        x, h = x.float().contiguous(), h.float().contiguous()
        y, new = torch.empty_like(x), torch.empty_like(h)
        _step(len(x), *sizes, address, x.data_ptr(), h.data_ptr(), y.data_ptr(), new.data_ptr())
        return y, new

    return run


@helper
def _backbone(rows, biases, activation, z, a):
    """One layer's activation, from its products."""
    for b in range(len(a)):
        for c in range(a.shape[1]):
            z[c] = rows[b, c] + biases[c]
        activate(activation, z, a[b])


@kernel
def _step(batch, width, hidden, units, heads, depth, mode, activation, weights_at, x_at, h_at, y_at, new_at):
    """weights_at: panels of [W, R], the further layers, the heads, the projection; biases; w_tau, amplitude."""
    x, y = at(x_at, (batch, width)), at(y_at, (batch, width))
    h, new = at(h_at, (batch, hidden)), at(new_at, (batch, hidden))
    place = weights_at
    both = np.empty((batch, width + hidden), np.float32)
    both[:, :width] = x
    both[:, width:] = h
    rows = np.empty((batch, padded(x, max(width, units, heads))), np.float32)
    a, z, gate = np.empty((batch, units), np.float32), np.empty(units, np.float32), np.empty(hidden, np.float32)
    first = panels_at(place, width + hidden, units)
    layer_size = units * padded(x, units)
    layers = place + 4 * first.size
    heads_at = layers + 4 * depth * layer_size
    out_at = heads_at + 4 * units * padded(x, heads)
    biases_at = out_at + 4 * hidden * padded(x, width)
    product(both, first, rows)
    _backbone(rows, at(biases_at, (units,)), activation, z, a)
    for layer in range(depth):
        product(a, panels_at(layers + 4 * layer * layer_size, units, units), rows)
        _backbone(rows, at(biases_at + 4 * (layer + 1) * units, (units,)), activation, z, a)
    product(a, panels_at(heads_at, units, heads), rows)
    bias = at(biases_at + 4 * (depth + 1) * units, (heads + 2 * hidden,))  # w_tau and amplitude follow in mode pure
    time = x.dtype.type(1)
    for b in range(batch):
        g = rows[b, :heads]
        for c in range(heads):
            g[c] += bias[c]
        combine(mode, g, time, bias[heads : heads + hidden], bias[heads + hidden :], gate, new[b])
    product(new, panels_at(out_at, hidden, width), rows)
    y[:] = rows[:, :width]
