"""The CfC scan's walks over time on CUDA: one program takes a group of sequences through all tokens.

Each token is two matrix products that need the whole row before them, so a program leaves every row in memory, where it
stays in the caches, and meets itself at a barrier. What is differentiated outside the walks is scan_torch's.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from arch.cfc.cell_triton import MODES, beside, combine
from arch.cfc.scan import Cell
from arch.cfc.scan_torch import Walks, scan_by
from harness.ops.toolbox.triton_linear import ACTIVATIONS, COLUMNS, DEPTH, ROWS, WARPS, product


def cfc_scan(cell: Cell, u: Tensor, h: Tensor, time: Tensor | None) -> Tensor:
    """As arch.cfc.scan.reference, for a backbone of one layer."""
    return scan_by(Walks(walk, walk_back), cell, u, h, time)


def walk(cell: Cell, u: Tensor, h: Tensor, time: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """As arch.cfc.scan_torch.walk."""
    T, batch, units = u.shape
    width, heads = h.shape[1], len(cell.heads[1])
    z, g = torch.empty_like(u, memory_format=torch.contiguous_format), u.new_empty(T, batch, heads)
    states = h.new_empty(T + 1, batch, width)
    states[0] = h
    nothing = cell.recurrent
    extras = [nothing if x is None else x.contiguous() for x in (time, cell.w_tau, cell.amplitude)]
    weights = [x.contiguous() for x in (u, cell.recurrent, *cell.heads)]
    kind = (ACTIVATIONS[cell.activation], MODES[cell.mode], heads // width, time is not None)
    grid = (triton.cdiv(batch, ROWS),)
    sizes = (T, batch, units, width)
    _walk[grid](*weights, *extras, z, g, states, *sizes, *kind, ROWS, COLUMNS, DEPTH, num_warps=WARPS)
    return [z, g], states


def walk_back(
    grad: Tensor, matrices: list[Tensor], slopes: tuple[Tensor, ...], by_head: Tensor
) -> tuple[Tensor, list[Tensor], Tensor]:
    """As arch.cfc.scan_torch.walk_back."""
    T, batch, width = grad.shape
    (slope,), (recurrent, heads) = slopes, matrices
    grad_h, carry = grad.new_empty(T, batch, width), grad.new_zeros(batch, width)
    grad_z, grad_g = slope.new_empty(slope.shape), by_head.new_empty(by_head.shape)
    given = [x.contiguous() for x in (grad, recurrent, heads, slope, by_head)]
    sizes = (T, batch, slope.shape[2], width, by_head.shape[2])
    grid = (triton.cdiv(batch, ROWS),)
    _walk_back[grid](*given, grad_h, grad_z, grad_g, carry, *sizes, ROWS, COLUMNS, DEPTH, num_warps=WARPS)
    return grad_h, [grad_z, grad_g], carry


@triton.jit
def _backbone(
    u, recurrent, z, states, row, real, units, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr
):
    """Fills one token's rows of z (.., units) from its u and the states before it."""
    low = 0
    while low < units:
        column = low + tl.arange(0, COLUMNS)
        inside = real[:, None] & (column < units)[None, :]
        at = row[:, None] * units + column[None, :]
        total = product(states, row * width, real, width, recurrent, column, units, width, 1, -1, ROWS, COLUMNS, DEPTH)
        tl.store(z + at, tl.load(u + at, mask=inside, other=0.0) + total, mask=inside)
        low += COLUMNS


@triton.jit
def _heads(
    z, heads, bias, g, row, real, units, width, column, KIND: tl.constexpr, HEADS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Fills some columns of every head in one token's rows of g; returns them as a, b, t_a, t_b."""
    there = column < width
    a = tl.zeros((ROWS, COLUMNS), z.dtype.element_ty)
    b, t_a, t_b = a, a, a
    for head in tl.static_range(HEADS):
        place, weight = head * width + column, heads + head * width * units
        total = product(z, row * units, real, units, weight, column, width, units, 1, KIND, ROWS, COLUMNS, DEPTH)
        total += tl.load(bias + place, mask=there, other=0.0)[None, :]
        tl.store(g + row[:, None] * (HEADS * width) + place[None, :], total, mask=real[:, None] & there[None, :])
        if head == 0:
            a = total
        elif head == 1:
            b = total
        elif head == 2:
            t_a = total
        else:
            t_b = total
    return a, b, t_a, t_b


@triton.jit
def _walk(
    u, recurrent, heads, bias, time, w_tau, amplitude, z, g, states, T, batch, units, width,
    KIND: tl.constexpr, MODE: tl.constexpr, HEADS: tl.constexpr, TIMED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Fills z (T, batch, units), g (T, batch, HEADS width) and the rows of states (T + 1, batch, width) after row 0."""
    sequence = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = sequence < batch
    t = 0
    while t < T:
        row = (t * batch + sequence).to(tl.int64)
        _backbone(u, recurrent, z, states, row, real, units, width, ROWS, COLUMNS, DEPTH)
        tl.debug_barrier()
        low = 0
        while low < width:
            column = low + tl.arange(0, COLUMNS)
            inside = real[:, None] & (column < width)[None, :]
            a, b, t_a, t_b = _heads(
                z, heads, bias, g, row, real, units, width, column, KIND, HEADS, ROWS, COLUMNS, DEPTH
            )  # fmt: skip
            step, rate, scale = beside(time, w_tau, amplitude, row, column, real, column < width, a, MODE, TIMED)
            h = combine(a, b, t_a, t_b, step, rate, scale, MODE, TIMED)
            tl.store(states + (row + batch)[:, None] * width + column[None, :], h, mask=inside)
            low += COLUMNS
        tl.debug_barrier()
        t += 1


@triton.jit
def _through(
    x, weight, scale, result, row, to, real, depth, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """result[to] = x[row] @ W, times scale[to] where SCALED: x (.., depth), W (depth, width), the rest (.., width)."""
    low = 0
    while low < width:
        column = low + tl.arange(0, COLUMNS)
        inside = real[:, None] & (column < width)[None, :]
        at = to[:, None] * width + column[None, :]
        total = product(x, row * depth, real, depth, weight, column, width, 1, width, -1, ROWS, COLUMNS, DEPTH)
        if SCALED:
            total *= tl.load(scale + at, mask=inside, other=0.0)
        tl.store(result + at, total, mask=inside)
        low += COLUMNS


@triton.jit
def _walk_back(
    grad, recurrent, heads, slope, by_head, grad_h, grad_z, grad_g, carry, T, batch, units, width, all_heads,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Fills the gradients by every state, z and g, and leaves in `carry` (batch, width) that by the first state."""
    sequence = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = sequence < batch
    t = T - 1
    while t >= 0:
        row = (t * batch + sequence).to(tl.int64)
        low = 0
        while low < width:
            column = low + tl.arange(0, COLUMNS)
            inside = real[:, None] & (column < width)[None, :]
            at = row[:, None] * width + column[None, :]
            total = tl.load(grad + at, mask=inside, other=0.0)
            total += tl.load(carry + sequence[:, None] * width + column[None, :], mask=inside, other=0.0)
            tl.store(grad_h + at, total, mask=inside)
            head = 0
            while head < all_heads:
                place = row[:, None] * all_heads + head + column[None, :]
                tl.store(grad_g + place, tl.load(by_head + place, mask=inside, other=0.0) * total, mask=inside)
                head += width
            low += COLUMNS
        tl.debug_barrier()
        _through(grad_g, heads, slope, grad_z, row, row, real, all_heads, units, ROWS, COLUMNS, DEPTH, True)
        tl.debug_barrier()
        _through(grad_z, recurrent, slope, carry, row, sequence, real, units, width, ROWS, COLUMNS, DEPTH, False)
        tl.debug_barrier()
        t -= 1
