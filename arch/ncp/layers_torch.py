"""What the kernels of `wired_cfc_scan` share: the checks at the door, and gradients in torch around walks over time."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from arch.ncp.layers import Layers
from harness.ops.shapes import expect, expect_tokens, expect_type

Seen = tuple[Tensor | None, Tensor]


class Walks(NamedTuple):
    """What loops over time; each of them fills `made`.

    forward: takes layers, time, seen, the first state (B, U), h and c side by side where there is a memory, which it
    may change, and of `made` what `room` lays out. back: takes layers, time, what the forward kept with the c before
    each token (z, g, c, c before), the gradients by every h and by the last c, and of `made` those by z, g and time,
    each sequence's by w_tau and by amplitude (B, U), which it adds to, and those by the first state, zeros before.
    """

    forward: Callable[[Layers, Tensor | None, Seen, Tensor, tuple[Tensor, ...]], None]
    back: Callable[[Layers, Tensor | None, tuple[Tensor, ...], tuple[Tensor, Tensor], tuple[Tensor, ...]], None]


def scan_by(
    walks: Walks, layers: Layers, seen: Seen, h: Tensor, c: Tensor | None, time: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """As arch.ncp.layers.reference, by these walks over time. All float32 or all float64."""
    _check(layers, seen, h, c, time)
    if torch.is_grad_enabled():
        states, last = _WiredCfCScan.apply(walks, layers.mode, time, *seen, h, c, *layers.flat())
    else:
        _, _, kept, states = _forward(walks, layers, seen, h, c, time, keep=False)
        last = kept[:, -1]
    return states, None if c is None else last.clone()


def room(layers: Layers, batch: int, length: int, kept: int, like: Tensor) -> tuple[Tensor, ...]:
    """z (B, kept, 4 U), g (B, kept, heads x U), c (B, kept, U), h (B, T, U); z and c are empty without a memory.

    kept: the tokens that z, g and c hold; where there is one, each overwrites it.
    """
    units, rows = sum(layers.sizes), sum(weight.shape[0] for weight in layers.weights)
    memory = 0 if layers.memory is None else units
    widths = (kept, 4 * memory), (kept, rows), (kept, memory), (length, units)
    return tuple(like.new_empty(batch, *width) for width in widths)


def _check(layers: Layers, seen: Seen, h: Tensor, c: Tensor | None, time: Tensor | None) -> None:
    """Raises ValueError or TypeError where the kernels would read past a tensor's end or take it for another type."""
    (batch, T, _), (inter, command, motor) = seen[1].shape, layers.sizes
    heads, units = 1 if layers.mode == "pure" else 3 if time is None else 4, inter + command + motor
    expect_tokens("wired_cfc_scan", T)
    shapes = (inter, inter), (command, inter + command), (motor, command + motor)
    tokens = (batch, T, 4 * units), (batch, T, heads * inter)
    rows = zip("012", layers.weights, shapes, strict=True)
    named = {f"weight {n}": (weight, (heads * k, width)) for n, weight, (k, width) in rows}
    named |= {f"bias {n}": (b, (heads * k,)) for n, b, k in zip("12", layers.biases, (command, motor), strict=True)}
    named |= {"memory": (layers.memory, (4 * units, units)), "w_tau": (layers.w_tau, (units,))}
    named |= {"amplitude": (layers.amplitude, (units,)), "h": (h, (batch, units)), "c": (c, (batch, units))}
    named |= {"by_memory": (seen[0], tokens[0]), "by_inter": (seen[1], tokens[1]), "time": (time, (batch, T))}
    expect("wired_cfc_scan", *((name, tensor, shape) for name, (tensor, shape) in named.items()))
    expect_type("wired_cfc_scan", h.dtype, **{name: tensor for name, (tensor, _) in named.items()})


def _forward(
    walks: Walks, layers: Layers, seen: Seen, h: Tensor, c: Tensor | None, time: Tensor | None, keep: bool
) -> tuple[Tensor, ...]:
    """What `room` says; z, g and c of one token only where they are not kept."""
    batch, length, _ = seen[1].shape
    made = room(layers, batch, length, length if keep else 1, h)
    walks.forward(layers, time, seen, torch.cat([h] if c is None else [h, c], dim=1), made)
    return made


class _WiredCfCScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, walks, mode, time, by_memory, by_inter, h0, c0, *flat):
        z, g, c, h = _forward(walks, Layers.from_flat(mode, flat), (by_memory, by_inter), h0, c0, time, keep=True)
        ctx.walks, ctx.mode = walks, mode
        ctx.save_for_backward(time, h0, c0, z, g, c, h, *flat)
        return h, h.new_empty(0) if c0 is None else c[:, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, gh, gc):
        time, h0, c0, z, g, c, h, *flat = ctx.saved_tensors
        layers = Layers.from_flat(ctx.mode, flat)
        (batch, length, units), memory = h.shape, c0 is not None
        gz, gg, g_time = torch.empty_like(z), torch.empty_like(g), h.new_empty(batch, length)
        extras, g_state = h.new_zeros(2, batch, units), h.new_zeros(batch, (1 + memory) * units)
        before = torch.cat([c0[:, None], c[:, :-1]], dim=1) if memory else c
        gc = gc if memory else h.new_empty(batch, 0)
        ctx.walks.back(layers, time, (z, g, c, before), (gh, gc), (gz, gg, g_time, *extras, g_state))
        with torch.autocast(gh.device.type, enabled=False):  # a backward keeps the precision of its forward
            before = torch.cat([h0[:, None], h[:, :-1]], dim=1)
            own = c.tanh() * z[..., 3 * units :].sigmoid() if memory else before  # what the layers see of themselves
            own, new = own.split(layers.sizes, dim=2), h.split(layers.sizes, dim=2)
            inputs = own[0], torch.cat([new[0], own[1]], dim=2), torch.cat([new[1], own[2]], dim=2)
            by_layer = gg.split([weight.shape[0] for weight in layers.weights], dim=2)
            by_weight = [_outer(part, x) for part, x in zip(by_layer, inputs, strict=True)]
            by_weight += [part.sum((0, 1)) for part in by_layer[1:]]
            by_weight += [_outer(gz, before) if memory else None]
            by_extra = [e.sum(0) for e in extras] if ctx.mode == "pure" else [None, None]
        by_memory, by_c = (gz, g_state[:, units:]) if memory else (None, None)
        g_time = None if time is None else g_time
        return None, None, g_time, by_memory, by_layer[0], g_state[:, :units], by_c, *by_weight, *by_extra


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """Sum over batch and time of left x right: (B, T, m), (B, T, n) -> (m, n)."""
    return left.flatten(0, 1).t() @ right.flatten(0, 1)
