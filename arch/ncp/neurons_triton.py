"""The wired neurons on CUDA: one program takes a sequence through all tokens, its potentials in memory.

A neuron gathers what its sources show, so a program leaves every step's potentials in memory, where they stay in the
caches, and meets itself at a barrier before the next. What needs no order in time runs for all tokens at once: what
sensory synapses conduct, the steps that the backward computes again from the potentials between tokens, and the
gradients by weights, which are sums over rows. The walk back divides each step's gradient among its current and its
conductance, and gathers by source. The backward takes a chunk of tokens at a time, so as to keep only its steps.

A row is a token of a sequence, or one of its steps. Nothing is added by atomics.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from arch.ncp.neurons import EPSILON, Neurons, check
from harness.ops.toolbox.triton_math import sigmoid

SEQUENCES = 1  # of a program that walks: what it takes is the time of one step after another
COLUMNS = 256  # neurons of a tile, at most
TILE = 1024  # numbers of a tile of a kernel that takes all tokens at once
ROWS, SYNAPSES, RUN = 16, 64, 512  # of a tile and of a program that sums gradients by weights; RUN in rows
KEPT = 2**24  # numbers of a kind that the backward keeps at a time
UNROLL = tl.constexpr(4)  # synapses of a neuron whose loads are under way together


def neuron_scan(neurons: Neurons, x: Tensor, v: Tensor, elapsed: Tensor | None) -> Tensor:
    """As arch.ncp.neurons.reference, with gradients. All of one type, float32 or float64."""
    kinds = neurons.sensory, neurons.recurrent
    near = [replace(s, source=s.source.cpu(), target=s.target.cpu()) for s in kinds]
    check(replace(neurons, sensory=near[0], recurrent=near[1]), x, v, elapsed)
    units = v.shape[1]
    ends = [(s.source.numpy().tobytes(), s.target.numpy().tobytes()) for s in near]
    wires = [_wires(*pair, count, units, x.device) for pair, count in zip(ends, (x.shape[2], units), strict=True)]
    weights = [weight for s in kinds for weight in s.weights]
    return _NeuronScan.apply(
        neurons.unfolds, wires, x, v, elapsed, neurons.capacity, neurons.leak, neurons.rest, *weights
    )


@dataclass(frozen=True)
class _Table:
    """Of each neuron its synapses and their other ends (fan, neurons), -1 where it has fewer than fan."""

    synapses: Tensor
    ends: Tensor

    def weights(self, weights: Sequence[Tensor]) -> Tensor:
        """mu, sigma, w and current (4, fan, neurons), 0 where there is no synapse."""
        return F.pad(torch.stack(list(weights)), (0, 1))[:, self.synapses].contiguous()


@dataclass(frozen=True)
class _Wires:
    """Synapses (S): the ends of each, and tables of those into each target and out of each source."""

    source: Tensor
    target: Tensor
    into: _Table
    out_of: _Table


@lru_cache(maxsize=64)
def _wires(source: bytes, target: bytes, sources: int, units: int, device: torch.device) -> _Wires:
    """Made once of a wiring, though every call brings it. source, target: int64 each."""
    first, last = (torch.from_numpy(np.frombuffer(end, np.int64).copy()) for end in (source, target))
    into, out_of = _table(last, first, units, device), _table(first, last, sources, device)
    return _Wires(first.to(device), last.to(device), into, out_of)


def _table(near: Tensor, far: Tensor, neurons: int, device: torch.device) -> _Table:
    order = near.argsort(stable=True)
    sizes, near = near.bincount(minlength=neurons), near[order]
    place = torch.arange(len(near)) - (sizes.cumsum(0) - sizes)[near]
    found = torch.full((max(sizes.tolist(), default=0), neurons), -1)
    found[place, near] = order
    ends = F.pad(far, (0, 1), value=-1)[found]  # of the synapse -1, the one that was added
    return _Table(found.to(device), ends.to(device, torch.int32))


class _NeuronScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, unfolds, wires, x, v0, elapsed, *weights):
        (batch, T, _), units = x.shape, v0.shape[1]
        dt = _steps(x, elapsed, unfolds)
        path, states = v0.new_empty(2, batch, units), v0.new_empty(batch, T, units)
        path[0] = v0
        _advance(wires[1], weights, _sense(wires[0], weights, x), dt, path, states, unfolds)
        ctx.unfolds, ctx.wires = unfolds, wires
        ctx.save_for_backward(x, v0, elapsed, *weights, states)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, v0, elapsed, *weights, states = ctx.saved_tensors
        (batch, T, units), dt = states.shape, _steps(x, elapsed, ctx.unfolds)
        g_x, g_v = torch.empty_like(x), torch.zeros_like(v0, memory_format=torch.contiguous_format)
        g_dt, sums = torch.empty_like(dt), [torch.zeros_like(weight) for weight in weights]
        chunk = max(1, KEPT // max(1, batch * units * ctx.unfolds))
        for low in reversed(range(0, T, chunk)):
            tokens = slice(low, low + chunk)
            before = torch.cat([states[:, low - 1 : low] if low else v0[:, None], states[:, tokens][:, :-1]], dim=1)
            x_t, dt_t, g_t = (part[:, tokens].contiguous() for part in (x, dt, g))
            of_x, of_dt, parts = _chunk_back(ctx.wires, weights, ctx.unfolds, before, x_t, dt_t, g_t, g_v)
            g_x[:, tokens], g_dt[:, tokens] = of_x, of_dt
            sums = [total + part for total, part in zip(sums, parts, strict=True)]
        return None, None, g_x, g_v, None if elapsed is None else g_dt / ctx.unfolds, *sums


def _steps(x: Tensor, elapsed: Tensor | None, unfolds: int) -> Tensor:
    """The time of a step of each token (B, T)."""
    return x.new_full(x.shape[:2], 1 / unfolds) if elapsed is None else (elapsed / unfolds).contiguous()


def _columns(neurons: int) -> int:
    return min(COLUMNS, max(16, triton.next_power_of_2(neurons)))


def _at_once(rows: int, neurons: int) -> tuple[tuple[int, int], int, int]:
    """The grid of a kernel that takes all rows at once, and its tile."""
    columns = _columns(neurons)
    each = max(1, TILE // columns)
    return (triton.cdiv(rows, each), triton.cdiv(neurons, columns)), each, columns


def _sense(wires: _Wires, weights: Sequence[Tensor], x: Tensor) -> Tensor:
    """The currents and conductances (2, B T, U) that the steps of a token share. x: (B, T, inputs)."""
    (batch, T, inputs), (_, leak, rest) = x.shape, weights[:3]
    rows, units, (fan, _) = batch * T, len(rest), wires.into.ends.shape
    own, sensed = torch.stack([rest, leak + EPSILON]), x.new_empty(2, rows, units)
    grid, *tile = _at_once(rows, units)
    synapses = wires.into.ends, wires.into.weights(weights[3:7])
    _conduct[grid](x.contiguous(), own, *synapses, sensed, rows, inputs, units, fan, *tile, num_warps=_warps(*tile))
    return sensed


def _advance(wires: _Wires, weights: Sequence[Tensor], sensed, dt, path, states, unfolds, kept=None) -> None:
    """Carries path[0] (B, U) over the tokens of dt (B, T) and fills states (B, T, U).

    kept: out and slope of _walk, of a single token, in place of states; then path has a slot for every step.
    """
    (batch, T), (slots, _, units) = dt.shape, path.shape
    fan, columns = len(wires.into.ends), _columns(units)
    each = SEQUENCES if kept is None else max(1, TILE // columns)
    sizes = T, batch, units, fan, unfolds, slots
    given = sensed, dt, weights[0].contiguous(), wires.into.ends, wires.into.weights(weights[7:])
    out = (states, states, False) if kept is None else (*kept, True)
    warps = _warps(each, columns)
    _walk[(triton.cdiv(batch, each),)](*given, path, *out, *sizes, each, columns, num_warps=warps)


def _warps(rows: int, columns: int) -> int:
    """So many that a thread has a number or, of large tiles, a few."""
    return min(max(rows * columns // 32, 1), 8)


def _chunk_back(wires, weights, unfolds, before, x, dt, g, g_v) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The gradients by some tokens' x, by their steps' dt, and their parts of those by the weights; carries g_v on.

    before: the potentials (B, T, U) before each of those tokens. x, dt, g: of those tokens.
    """
    batch, T, units = before.shape
    rows, (sensory, recurrent), capacity = batch * T, wires, weights[0].contiguous()
    path = g.new_empty(unfolds + 1, rows, units)
    path[0] = before.flatten(0, 1)
    inverse, slope, share, by_current, by_conductance = (torch.empty_like(path[1:]) for _ in range(5))
    sensed = _sense(sensory, weights, x)
    _advance(recurrent, weights, sensed, dt.view(rows, 1), path, None, unfolds, (inverse, slope))
    fan, columns = len(recurrent.out_of.ends), _columns(units)
    synapses = recurrent.out_of.ends, recurrent.out_of.weights(weights[7:])
    _walk_back[(triton.cdiv(batch, SEQUENCES),)](
        g, dt, capacity, *synapses, path[:-1], path[1:], inverse, share, by_current, by_conductance, g_v,
        T, batch, units, fan, unfolds, SEQUENCES, columns, num_warps=_warps(SEQUENCES, columns),
    )  # fmt: skip
    g_capacity = (share * (path[:-1] - path[1:])).sum((0, 1))
    g_dt = (share * slope).sum((0, 2)).view(batch, T)
    by_sensed = by_current.sum(0), by_conductance.sum(0)
    of_recurrent = _by_weights(recurrent, weights[7:], path[:-1], by_current, by_conductance)
    of_sensory = _by_weights(sensory, weights[3:7], x, *by_sensed)
    g_rest, g_leak = (part.sum(0) for part in by_sensed)
    g_x = _by_inputs(sensory, weights[3:7], x, *by_sensed)
    return g_x, g_dt, [g_capacity, g_leak, g_rest, *of_sensory, *of_recurrent]


def _by_weights(wires: _Wires, weights: Sequence[Tensor], v, by_current, by_conductance) -> list[Tensor]:
    """The gradients by mu, sigma, w and current of synapses whose sources showed v (.., sources) at every row."""
    sources, units, size = v.shape[-1], by_current.shape[-1], len(wires.source)
    rows = by_current.shape[:-1].numel()
    parts = v.new_empty(triton.cdiv(rows, RUN), 4, size)
    grid, sizes = (len(parts), triton.cdiv(size, SYNAPSES)), (rows, sources, units, size)
    given = v, by_current, by_conductance, wires.source, wires.target, torch.stack(list(weights))
    _synapses_back[grid](*given, parts, *sizes, RUN, ROWS, SYNAPSES, num_warps=_warps(ROWS, SYNAPSES))
    return list(parts.sum(0))


def _by_inputs(wires: _Wires, weights: Sequence[Tensor], x, by_current, by_conductance) -> Tensor:
    (rows, units), inputs, g_x = by_current.shape, x.shape[2], torch.empty_like(x)
    grid, *tile = _at_once(rows, inputs)
    synapses = wires.out_of.ends, wires.out_of.weights(weights)
    sizes, warps = (rows, inputs, units, len(wires.out_of.ends)), _warps(*tile)
    _inputs_back[grid](x, *synapses, by_current, by_conductance, g_x, *sizes, *tile, num_warps=warps)
    return g_x


@triton.jit
def _synapse(ends, weights, j, fan, column, neurons):
    """The j-th synapse of some neurons: its other end, -1 where there is none, its mu, sigma, w and current."""
    there, at, size = column < neurons, j * neurons + column, fan * neurons
    end = tl.load(ends + at, mask=there, other=-1)
    mu = tl.load(weights + at, mask=there, other=0.0)
    sigma = tl.load(weights + size + at, mask=there, other=0.0)
    w = tl.load(weights + 2 * size + at, mask=there, other=0.0)
    current = tl.load(weights + 3 * size + at, mask=there, other=0.0)
    return end[None, :], mu[None, :], sigma[None, :], w[None, :], current[None, :]


@triton.jit
def _receive(v, row, real, sources, ends, weights, fan, column, units, current, conductance):
    """Adds to current and conductance (rows, columns) what synapses carry there from rows of v (.., sources)."""
    for j in tl.range(0, fan, loop_unroll_factor=UNROLL):
        source, mu, sigma, w, at_rest = _synapse(ends, weights, j, fan, column, units)
        shown = tl.load(v + row[:, None] * sources + source, mask=real[:, None] & (source >= 0), other=0.0)
        s = sigmoid(sigma * (shown - mu))
        current += at_rest * s
        conductance += w * s
    return current, conductance


@triton.jit
def _return(v, row, real, units, ends, weights, fan, column, sources, by_current, by_conductance, g):
    """Adds to g (rows, columns), by what sources showed, v, from rows of the gradients by the targets' (.., units)."""
    for j in tl.range(0, fan, loop_unroll_factor=UNROLL):
        target, mu, sigma, w, at_rest = _synapse(ends, weights, j, fan, column, sources)
        there, at = real[:, None] & (target >= 0), row[:, None] * units + target
        carried = at_rest * tl.load(by_current + at, mask=there, other=0.0)
        carried += w * tl.load(by_conductance + at, mask=there, other=0.0)
        s = sigmoid(sigma * (v - mu))
        g += carried * s * (1.0 - s) * sigma
    return g


@triton.jit
def _conduct(
    x, own, ends, weights, sensed, rows, inputs, units, fan, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Fills sensed (2, rows, units), currents and conductances, from x (rows, inputs) and those of no synapse, own."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real, there = row < rows, column < units
    nothing = tl.zeros((ROWS, COLUMNS), x.dtype.element_ty)
    current = nothing + tl.load(own + column, mask=there, other=0.0)[None, :]
    conductance = nothing + tl.load(own + units + column, mask=there, other=0.0)[None, :]
    current, conductance = _receive(x, row, real, inputs, ends, weights, fan, column, units, current, conductance)
    inside, at = real[:, None] & there[None, :], row[:, None] * units + column[None, :]
    tl.store(sensed + at, current, mask=inside)
    tl.store(sensed + (rows + row)[:, None] * units + column[None, :], conductance, mask=inside)


@triton.jit
def _walk(
    sensed, dt, capacity, ends, weights, path, out, slope, KEEP: tl.constexpr, T, batch, units, fan,
    UNFOLDS: tl.constexpr, SLOTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Fills out (batch, T, units) with the potentials after each token, from path[0]; path: (slots, batch, units).

    A step makes new = (c v + dt I) / (c + dt G). KEEP, of a single token: fills out with 1 / (c + dt G) and slope with
    I - G new, whose product is the derivative of new by dt; both (unfolds, batch, units).
    """
    sequence = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = sequence < batch
    n = 0  # steps made
    while n < T * UNFOLDS:
        token = sequence * T + n // UNFOLDS
        step = tl.load(dt + token, mask=real, other=0.0)[:, None]
        before, after = n % SLOTS * batch + sequence, (n + 1) % SLOTS * batch + sequence
        low = 0
        while low < units:
            column = low + tl.arange(0, COLUMNS)
            inside = real[:, None] & (column < units)[None, :]
            at = token[:, None] * units + column[None, :]
            current = tl.load(sensed + at, mask=inside, other=0.0)
            conductance = tl.load(
                sensed + (batch * T + token)[:, None] * units + column[None, :], mask=inside, other=0.0
            )
            current, conductance = _receive(
                path, before, real, units, ends, weights, fan, column, units, current, conductance
            )  # fmt: skip
            c = tl.load(capacity + column, mask=column < units, other=1.0)[None, :]
            v = tl.load(path + before[:, None] * units + column[None, :], mask=inside, other=0.0)
            total = c + step * conductance
            new = (c * v + step * current) / total
            tl.store(path + after[:, None] * units + column[None, :], new, mask=inside)
            if KEEP:
                tl.store(out + before[:, None] * units + column[None, :], 1.0 / total, mask=inside)
                tl.store(slope + before[:, None] * units + column[None, :], current - new * conductance, mask=inside)
            else:
                tl.store(out + at, new, mask=inside & ((n + 1) % UNFOLDS == 0))
            low += COLUMNS
        tl.debug_barrier()
        n += 1


@triton.jit
def _divide(g, at, inside, step, after, inverse, share, by_current, by_conductance):
    """From g, by the potentials after a step, stores the gradients by its dividend, by I and by G."""
    part = g * tl.load(inverse + at, mask=inside, other=0.0)
    tl.store(share + at, part, mask=inside)
    tl.store(by_current + at, part * step, mask=inside)
    tl.store(by_conductance + at, -part * step * tl.load(after + at, mask=inside, other=0.0), mask=inside)


@triton.jit
def _walk_back(
    g, dt, capacity, ends, weights, before, after, inverse, share, by_current, by_conductance, carry,
    T, batch, units, fan, UNFOLDS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """From g (batch, T, units) fills what _divide stores, of every step (unfolds, batch T, units).

    carry (batch, units): from the tokens that follow, the gradient by the last potentials; becomes that by the first.
    """
    sequence = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real, rows = sequence < batch, batch * T
    n = T * UNFOLDS
    while n >= 0:  # the step n, of which all is stored, passes its gradient on to the step n - 1
        later, earlier = n if n < T * UNFOLDS else 0, n - 1 if n > 0 else 0
        row = later % UNFOLDS * rows + sequence * T + later // UNFOLDS
        token = sequence * T + earlier // UNFOLDS
        step = tl.load(dt + token, mask=real, other=0.0)[:, None]
        low = 0
        while low < units:
            column = low + tl.arange(0, COLUMNS)
            inside = real[:, None] & (column < units)[None, :]
            carry_at = carry + sequence[:, None] * units + column[None, :]
            if n == T * UNFOLDS:
                total = tl.load(carry_at, mask=inside, other=0.0)
            else:
                at = row[:, None] * units + column[None, :]
                v = tl.load(before + at, mask=inside, other=0.0)
                c = tl.load(capacity + column, mask=column < units, other=0.0)[None, :]
                total = _return(
                    v, row, real, units, ends, weights, fan, column, units, by_current, by_conductance,
                    c * tl.load(share + at, mask=inside, other=0.0),
                )  # fmt: skip
            if n == 0:
                tl.store(carry_at, total, mask=inside)
            else:
                shown = inside & ((earlier + 1) % UNFOLDS == 0)
                total += tl.load(g + token[:, None] * units + column[None, :], mask=shown, other=0.0)
                at = (earlier % UNFOLDS * rows + token)[:, None] * units + column[None, :]
                _divide(total, at, inside, step, after, inverse, share, by_current, by_conductance)
            low += COLUMNS
        tl.debug_barrier()
        n -= 1


@triton.jit
def _inputs_back(
    x, ends, weights, by_current, by_conductance, g_x, rows, inputs, units, fan, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Fills g_x (rows, inputs) from the gradients (rows, units) by what the sensory synapses carried."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real = row < rows
    inside, at = real[:, None] & (column < inputs)[None, :], row[:, None] * inputs + column[None, :]
    seen = tl.load(x + at, mask=inside, other=0.0)
    total = _return(
        seen, row, real, units, ends, weights, fan, column, inputs, by_current, by_conductance, tl.zeros_like(seen)
    )  # fmt: skip
    tl.store(g_x + at, total, mask=inside)


@triton.jit
def _synapses_back(
    v, by_current, by_conductance, sources, targets, weights, parts, rows, inputs, units, size, RUN: tl.constexpr,
    ROWS: tl.constexpr, SYNAPSES: tl.constexpr,
):  # fmt: skip
    """Fills a run's parts (runs, 4, size) of the gradients by weights (4, size): mu, sigma, w, current.

    v: (rows, inputs), what sources showed. by_current, by_conductance: (rows, units).
    """
    synapse = tl.program_id(1) * SYNAPSES + tl.arange(0, SYNAPSES)
    there = synapse < size
    source = tl.load(sources + synapse, mask=there, other=0)[None, :]
    target = tl.load(targets + synapse, mask=there, other=0)[None, :]
    mu = tl.load(weights + synapse, mask=there, other=0.0)[None, :]
    sigma = tl.load(weights + size + synapse, mask=there, other=0.0)[None, :]
    w = tl.load(weights + 2 * size + synapse, mask=there, other=0.0)[None, :]
    at_rest = tl.load(weights + 3 * size + synapse, mask=there, other=0.0)[None, :]
    g_mu = tl.zeros((ROWS, SYNAPSES), v.dtype.element_ty)
    g_sigma, g_w, g_current = g_mu, g_mu, g_mu
    first = tl.program_id(0).to(tl.int64) * RUN
    low = 0
    while (low < RUN) & (first + low < rows):
        row = first + low + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & there[None, :]
        shown = tl.load(v + row[:, None] * inputs + source, mask=inside, other=0.0)
        q = tl.load(by_current + row[:, None] * units + target, mask=inside, other=0.0)
        p = tl.load(by_conductance + row[:, None] * units + target, mask=inside, other=0.0)
        s = sigmoid(sigma * (shown - mu))
        by_argument = (at_rest * q + w * p) * s * (1.0 - s)
        g_mu -= by_argument * sigma
        g_sigma += by_argument * (shown - mu)
        g_w += p * s
        g_current += q * s
        low += ROWS
    part = parts + tl.program_id(0).to(tl.int64) * 4 * size + synapse
    tl.store(part, tl.sum(g_mu, axis=0), mask=there)
    tl.store(part + size, tl.sum(g_sigma, axis=0), mask=there)
    tl.store(part + 2 * size, tl.sum(g_w, axis=0), mask=there)
    tl.store(part + 3 * size, tl.sum(g_current, axis=0), mask=there)
