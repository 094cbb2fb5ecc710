"""The wired CfC's walks over time on CUDA: one program takes a group of sequences through all tokens.

The memory and each layer are one matrix product that needs whole rows before it, and then elementwise. A program leaves
every row in memory, where it stays in the caches, and meets itself at a barrier. A layer reads the new state of the one
below and its own, which lie side by side in the state. What is differentiated outside the walks is layers_torch's.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from arch.cfc.cell_triton import MODES, beside, combine, combine_vjp
from arch.ncp.layers import Layers
from arch.ncp.layers_torch import Walks, scan_by
from harness.ops.toolbox.triton_linear import COLUMNS, DEPTH, ROWS, WARPS, product
from harness.ops.toolbox.triton_math import sigmoid, tanh


def wired_cfc_scan(
    layers: Layers, seen: tuple[Tensor | None, Tensor], h: Tensor, c: Tensor | None, time: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """As arch.ncp.layers.reference, with gradients. All float32 or all float64."""
    return scan_by(Walks(walk_forward, walk_backward), layers, seen, h, c, time)


def walk_forward(layers: Layers, time: Tensor | None, seen: tuple, state: Tensor, made: tuple[Tensor, ...]) -> None:
    """As Walks.forward of arch/ncp/layers_torch.py."""
    biases = torch.cat([torch.zeros_like(layers.weights[0][:, 0]), *layers.biases])  # the tokens hold the inter layer's
    _launch(_forward, layers, time, (biases, *seen, state, *made), made[3].shape, made[1].shape[1])


def walk_backward(layers: Layers, time: Tensor | None, kept: tuple, grads: tuple, made: tuple[Tensor, ...]) -> None:
    """As Walks.back of arch/ncp/layers_torch.py."""
    gh, gc = grads
    made[-1][:, gh.shape[2] :] = gc
    _launch(_backward, layers, time, (*kept, gh, *made), gh.shape)


def _launch(
    kernel, layers: Layers, time: Tensor | None, tensors: tuple, shape: tuple[int, int, int], *sizes: int
) -> None:
    """Runs a kernel over tokens of this shape (B, T, U); any tensor stands for one that is not there, nor read."""
    weights, timed = torch.cat([weight.flatten() for weight in layers.weights]), time is not None
    tensors = (layers.memory, layers.w_tau, layers.amplitude, time, *tensors)
    tensors = [weights, *(weights if tensor is None else tensor.contiguous() for tensor in tensors)]
    kind = MODES[layers.mode], 1 if layers.mode == "pure" else 3 + timed, timed, layers.memory is not None
    batch, T, _ = shape
    grid = (triton.cdiv(batch, ROWS),)
    kernel[grid](*tensors, batch, T, *layers.sizes, *sizes, *kind, ROWS, COLUMNS, DEPTH, num_warps=WARPS)


@triton.jit
def _place(layer, inter, command, motor, HEADS: tl.constexpr):
    """Of a layer: the neurons of the one below, its own, the first of its own, and where its weight begins."""
    second = HEADS * inter * inter
    third = second + HEADS * command * (inter + command)
    below = tl.where(layer == 0, 0, tl.where(layer == 1, inter, command))
    n = tl.where(layer == 0, inter, tl.where(layer == 1, command, motor))
    start = tl.where(layer == 0, 0, tl.where(layer == 1, inter, inter + command))
    return below, n, start, tl.where(layer == 0, 0, tl.where(layer == 1, second, third))


@triton.jit
def _line(
    x, begin, weight, bias, seen, seen_at, shown, result, at, real, depth, width, BIASED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Some rows of x @ W^T, and what else there is to add: W (width, depth), bias (width), `seen` in rows `shown`.

    begin, seen_at and at: where the rows of x, of what the tokens add and of the result begin.
    """
    low = 0
    while low < width:
        column = low + tl.arange(0, COLUMNS)
        there = column < width
        total = product(x, begin, real, depth, weight, column, width, depth, 1, -1, ROWS, COLUMNS, DEPTH)
        given = seen + seen_at[:, None] + column[None, :]
        total += tl.load(given, mask=shown[:, None] & there[None, :], other=0.0)
        if BIASED:
            total += tl.load(bias + column, mask=there, other=0.0)[None, :]
        tl.store(result + at[:, None] + column[None, :], total, mask=real[:, None] & there[None, :])
        low += COLUMNS


@triton.jit
def _gates(z, at, units, inside):
    """What some of the memory's pre-activations make: the value, and how much is written, kept and shown."""
    value = tanh(tl.load(z + at, mask=inside, other=0.0))
    write = sigmoid(tl.load(z + at + units, mask=inside, other=0.0))
    keep = sigmoid(tl.load(z + at + 2 * units, mask=inside, other=0.0) + 1.0)
    return value, write, keep, sigmoid(tl.load(z + at + 3 * units, mask=inside, other=0.0))


@triton.jit
def _cell(z, kept, state, row, begin, real, units, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The memory after its products: replaces h and c in the state, and leaves c in a row of kept."""
    low = 0
    while low < units:
        column = low + tl.arange(0, COLUMNS)
        inside = real[:, None] & (column < units)[None, :]
        at = (row * (4 * units))[:, None] + column[None, :]
        own = begin[:, None] + column[None, :]
        value, write, keep, show = _gates(z, at, units, inside)
        c = tl.load(state + own + units, mask=inside, other=0.0) * keep + value * write
        tl.store(state + own, tanh(c) * show, mask=inside)
        tl.store(state + own + units, c, mask=inside)
        tl.store(kept + (row * units)[:, None] + column[None, :], c, mask=inside)
        low += COLUMNS


@triton.jit
def _heads(g, at, n, inside, HEADS: tl.constexpr):
    """The heads a, b, t_a, t_b at these places of the first, n neurons apart."""
    a = tl.load(g + at, mask=inside, other=0.0)
    b, t_a, t_b = a, a, a
    if HEADS > 1:
        b = tl.load(g + at + n, mask=inside, other=0.0)
        t_a = tl.load(g + at + 2 * n, mask=inside, other=0.0)
    if HEADS > 3:
        t_b = tl.load(g + at + 3 * n, mask=inside, other=0.0)
    return a, b, t_a, t_b


@triton.jit
def _states(
    g, time, w_tau, amplitude, state, h, token, first, begin, real, n, start, units,
    MODE: tl.constexpr, HEADS: tl.constexpr, TIMED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Fills a layer's part of the state and of a token's h from its heads, which begin at `first`."""
    low = 0
    while low < n:
        column = low + tl.arange(0, COLUMNS)
        there, place = column < n, start + column
        inside = real[:, None] & there[None, :]
        a, b, t_a, t_b = _heads(g, first[:, None] + column[None, :], n, inside, HEADS)
        step, rate, scale = beside(time, w_tau, amplitude, token, place, real, there, a, MODE, TIMED)
        new = combine(a, b, t_a, t_b, step, rate, scale, MODE, TIMED)
        tl.store(state + begin[:, None] + place[None, :], new, mask=inside)
        tl.store(h + (token * units)[:, None] + place[None, :], new, mask=inside)
        low += COLUMNS


@triton.jit
def _forward(
    weights, memory, w_tau, amplitude, time, biases, by_memory, by_inter, state, z, g, kept, h,
    batch, T, inter, command, motor, slots, MODE: tl.constexpr, HEADS: tl.constexpr, TIMED: tl.constexpr,
    MEMORY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Fills h (batch, T, U), and z, g and kept, the c, in `slots` rows of a sequence: of each token, or one for all.

    weights, biases: of the layers, one after another. state: h and c side by side, replaced by those of the last token.
    """
    units = inter + command + motor
    sequence = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    real = sequence < batch
    begin = sequence * ((1 + MEMORY) * units)
    t = 0
    while t < T:
        token, row = sequence * T + t, sequence * slots + tl.minimum(t, slots - 1)
        if MEMORY:
            whole = 4 * units
            _line(
                state, begin, memory, biases, by_memory, token * whole, real, z, row * whole, real, units, whole, False,
                ROWS, COLUMNS, DEPTH,
            )  # fmt: skip
            tl.debug_barrier()
            _cell(z, kept, state, row, begin, real, units, ROWS, COLUMNS)
            tl.debug_barrier()
        layer = 0
        while layer < 3:
            below, n, start, at = _place(layer, inter, command, motor, HEADS)
            first = row * (HEADS * units) + HEADS * start
            _line(
                state, begin + start - below, weights + at, biases + HEADS * start, by_inter, token * (HEADS * inter),
                real & (layer == 0), g, first, real, below + n, HEADS * n, True, ROWS, COLUMNS, DEPTH,
            )  # fmt: skip
            tl.debug_barrier()
            _states(
                g, time, w_tau, amplitude, state, h, token, first, begin, real, n, start, units,
                MODE, HEADS, TIMED, ROWS, COLUMNS,
            )  # fmt: skip
            tl.debug_barrier()
            layer += 1
        t += 1


@triton.jit
def _heads_back(
    g, time, w_tau, amplitude, gh, gg, g_w, g_amplitude, g_state, token, sequence, begin, real, n, start, units,
    MODE: tl.constexpr, HEADS: tl.constexpr, TIMED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Fills one layer's part of a token's gg and adds to g_w and g_amplitude; returns the gradient by time (ROWS)."""
    by_time = tl.zeros((ROWS,), g.dtype.element_ty)
    low = 0
    while low < n:
        column = low + tl.arange(0, COLUMNS)
        there, place = column < n, start + column
        inside = real[:, None] & there[None, :]
        grad = tl.load(gh + (token * units)[:, None] + place[None, :], mask=inside, other=0.0)
        grad += tl.load(g_state + begin[:, None] + place[None, :], mask=inside, other=0.0)
        at = (token * (HEADS * units))[:, None] + (HEADS * start + column)[None, :]
        a, b, t_a, t_b = _heads(g, at, n, inside, HEADS)
        step, rate, scale = beside(time, w_tau, amplitude, token, place, real, there, a, MODE, TIMED)
        by_a, by_b, by_ta, by_tb, by_step, by_w, by_amplitude = combine_vjp(
            a, b, t_a, t_b, step, rate, scale, grad, MODE, TIMED
        )
        tl.store(gg + at, by_a, mask=inside)
        if HEADS > 1:
            tl.store(gg + at + n, by_b, mask=inside)
            tl.store(gg + at + 2 * n, by_ta, mask=inside)
        if HEADS > 3:
            tl.store(gg + at + 3 * n, by_tb, mask=inside)
        if MODE == 2:
            own = (sequence * units)[:, None] + place[None, :]
            tl.store(g_w + own, tl.load(g_w + own, mask=inside, other=0.0) + by_w, mask=inside)
            tl.store(g_amplitude + own, tl.load(g_amplitude + own, mask=inside, other=0.0) + by_amplitude, mask=inside)
        by_time += tl.sum(tl.where(inside, by_step, 0.0), axis=1)
        low += COLUMNS
    return by_time


@triton.jit
def _line_back(
    grad, begin, weight, result, at, real, depth, width, held, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """Some rows of grad @ W, W (depth, width): adds to the first `held` columns of the result, replaces the others.

    begin and at: where the rows of grad and of the result begin.
    """
    low = 0
    while low < width:
        column = low + tl.arange(0, COLUMNS)
        inside = real[:, None] & (column < width)[None, :]
        place = result + at[:, None] + column[None, :]
        total = product(grad, begin, real, depth, weight, column, width, 1, width, -1, ROWS, COLUMNS, DEPTH)
        total += tl.load(place, mask=inside & (column < held)[None, :], other=0.0)
        tl.store(place, total, mask=inside)
        low += COLUMNS


@triton.jit
def _cell_back(
    z, c, c_before, gz, g_state, token, begin, real, units, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Fills a token's gz from the gradients by what the memory shows the layers and by c, which it takes a token back.

    Both stand in g_state.
    """
    low = 0
    while low < units:
        column = low + tl.arange(0, COLUMNS)
        inside = real[:, None] & (column < units)[None, :]
        at = (token * units)[:, None] + column[None, :]
        gates_at = (token * (4 * units))[:, None] + column[None, :]
        own = begin[:, None] + column[None, :]
        value, write, keep, show = _gates(z, gates_at, units, inside)
        shown = tanh(tl.load(c + at, mask=inside, other=0.0))
        grad = tl.load(g_state + own, mask=inside, other=0.0)
        by_c = tl.load(g_state + own + units, mask=inside, other=0.0) + grad * show * (1.0 - shown * shown)
        by_keep = by_c * tl.load(c_before + at, mask=inside, other=0.0)
        tl.store(gz + gates_at, by_c * write * (1.0 - value * value), mask=inside)
        tl.store(gz + gates_at + units, by_c * value * write * (1.0 - write), mask=inside)
        tl.store(gz + gates_at + 2 * units, by_keep * keep * (1.0 - keep), mask=inside)
        tl.store(gz + gates_at + 3 * units, grad * shown * show * (1.0 - show), mask=inside)
        tl.store(g_state + own + units, by_c * keep, mask=inside)
        low += COLUMNS


@triton.jit
def _backward(
    weights, memory, w_tau, amplitude, time, z, g, c, c_before, gh, gz, gg, g_time, g_w, g_amplitude, g_state,
    batch, T, inter, command, motor, MODE: tl.constexpr, HEADS: tl.constexpr, TIMED: tl.constexpr,
    MEMORY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """From gh (batch, T, U) fills gz, gg and, where TIMED, g_time; adds to g_w and g_amplitude (batch, U).

    g_state, h and c side by side: comes with zeros and the gradient by the last c, leaves with those by the first ones.
    """
    units = inter + command + motor
    sequence = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    real = sequence < batch
    begin = sequence * ((1 + MEMORY) * units)
    t = T - 1
    while t >= 0:
        token = sequence * T + t
        by_time = tl.zeros((ROWS,), g.dtype.element_ty)
        layer = 2
        while layer >= 0:
            below, n, start, at = _place(layer, inter, command, motor, HEADS)
            by_time += _heads_back(
                g, time, w_tau, amplitude, gh, gg, g_w, g_amplitude, g_state, token, sequence, begin, real, n, start,
                units, MODE, HEADS, TIMED, ROWS, COLUMNS,
            )  # fmt: skip
            tl.debug_barrier()
            _line_back(
                gg, token * (HEADS * units) + HEADS * start, weights + at, g_state, begin + start - below, real,
                HEADS * n, below + n, below, ROWS, COLUMNS, DEPTH,
            )  # fmt: skip
            tl.debug_barrier()
            layer -= 1
        if TIMED:
            tl.store(g_time + token, by_time, mask=real)
        if MEMORY:
            whole = 4 * units
            _cell_back(z, c, c_before, gz, g_state, token, begin, real, units, ROWS, COLUMNS)
            tl.debug_barrier()
            _line_back(
                gz, token * whole, memory, g_state, begin, real, whole, units, 0, ROWS, COLUMNS, DEPTH
            )  # fmt: skip
            tl.debug_barrier()
        t -= 1
