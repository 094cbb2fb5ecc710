"""The CfC scan in torch with its gradient written by hand, around walks over time that a kernel can take over."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from arch.cfc.scan import ACTIVATIONS, Cell

Walk = Callable[[Cell, Tensor, Tensor, Tensor | None], tuple[list[Tensor], Tensor]]
WalkBack = Callable[[Tensor, list[Tensor], tuple[Tensor, ...], Tensor], tuple[Tensor, list[Tensor], Tensor]]


class Walks(NamedTuple):
    """What loops over time: functions like `walk` and `walk_back`."""

    forward: Walk
    back: WalkBack


def cfc_scan(cell: Cell, u: Tensor, h: Tensor, time: Tensor | None) -> Tensor:
    """Runs the cell over u (T, B, units) from h (B, d_inner) with time (T, B, 1), or None for 1: h (T, B, d_inner)."""
    return scan_by(Walks(walk, walk_back), cell, u, h, time)


def scan_by(walks: Walks, cell: Cell, u: Tensor, h: Tensor, time: Tensor | None) -> Tensor:
    """`cfc_scan` by these walks over time."""
    if not torch.is_grad_enabled():
        return walks.forward(cell, u, h, time)[1][1:]
    return _Scan.apply(walks, cell.mode, cell.activation, u, h, time, *cell.flat())


def walk(cell: Cell, u: Tensor, h: Tensor, time: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """The pre-activations (T, B, width), z of every layer and then g, and the states (T + 1, B, d_inner), h first."""
    activate, pairs = ACTIVATIONS[cell.activation], [*cell.layers, cell.heads]
    z = [u.new_empty(*u.shape[:2], len(bias)) for bias in (u[0, 0], *(bias for _, bias in pairs))]
    states = h.new_empty(u.shape[0] + 1, *h.shape)
    states[0] = h
    weights = [(weight.t(), bias) for weight, bias in pairs]
    transposed = cell.recurrent.t()
    for t, (u_t, *z_t) in enumerate(zip(u, *z, strict=True)):
        torch.addmm(u_t, h, transposed, out=z_t[0])
        for (weight, bias), below, above in zip(weights, z_t, z_t[1:], strict=False):
            torch.addmm(bias, activate(below), weight, out=above)
        h = cell.combine(z_t[-1], None if time is None else time[t])
        states[t + 1] = h
    return z, states


class _Scan(Function):
    """The reference loop with a backward pass that keeps only matrix products of the state's gradient inside the loop.

    Everything elementwise (slopes of the activations, the closed form's derivative by head) is differentiated for all
    tokens at once before that loop, and every weight's gradient is one product after it.
    """

    @staticmethod
    def forward(ctx, walks, mode, activation, u, h, time, *flat):
        z, states = walks.forward(Cell.from_flat(mode, activation, flat), u, h, time)
        ctx.walks, ctx.mode, ctx.activation = walks, mode, activation
        ctx.save_for_backward(time, states, *z, *flat)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        time, states, *rest = ctx.saved_tensors  # z, one more than the pairs of flat, then R, the pairs and two extras
        depth = (len(rest) - 4) // 3 + 1
        z, (recurrent, *pairs, w_tau, amplitude) = rest[:depth], rest[depth:]
        extras = [None if e is None else e.detach().requires_grad_() for e in (time, w_tau, amplitude)]
        cell = Cell.from_flat(ctx.mode, ctx.activation, (recurrent, *pairs, *extras[1:]))
        with torch.autocast(grad.device.type, enabled=False):
            below, slopes = zip(*(_activation_and_slope(ctx.activation, part) for part in z[:-1]), strict=True)
            with torch.enable_grad():
                g = z[-1].detach().requires_grad_()
                h = cell.combine(g, extras[0])
            (by_head,) = torch.autograd.grad(h, g, torch.ones_like(h), retain_graph=True)
            matrices = [recurrent, *pairs[::2]]
            grad_h, grad_z, carry = ctx.walks.back(grad, matrices, slopes, by_head)
            wanted = [e for e in extras if e is not None]
            grads = iter(torch.autograd.grad(h, wanted, grad_h) if wanted else ())
            grad_time, *grad_extras = [None if e is None else next(grads) for e in extras]
            inputs = (states[:-1], *below)
            by_weight = [_outer(dz, a) for dz, a in zip(grad_z, inputs, strict=True)]
            grad_pairs = [part for w, dz in zip(by_weight[1:], grad_z[1:], strict=True) for part in (w, dz.sum((0, 1)))]
        return None, None, None, grad_z[0], carry, grad_time, by_weight[0], *grad_pairs, *grad_extras


def _activation_and_slope(activation: str, z: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        a = ACTIVATIONS[activation](z)
    return a.detach(), torch.autograd.grad(a, z, torch.ones_like(a))[0]


def walk_back(
    grad: Tensor, matrices: list[Tensor], slopes: tuple[Tensor, ...], by_head: Tensor
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Carries the state's gradient from the last token to the first.

    grad: (T, B, d_inner), the loss by each output. matrices: R, further layers, heads. slopes: the activations'.
    by_head: (T, B, heads x d_inner), the state by each head. Returns the gradients by every state (through its future),
    by every pre-activation, and by the state before the first token.
    """
    steps, batch, width = grad.shape
    by_head = by_head.view(steps, batch, -1, width)
    grad_h, grad_z = (
        torch.empty_like(grad, memory_format=torch.contiguous_format),
        [torch.empty_like(s) for s in slopes],
    )
    grad_g = torch.empty_like(by_head)
    carry = grad.new_zeros(batch, width)
    backbone = list(zip(matrices[:-1], slopes, grad_z, strict=True))[::-1]
    for t in range(steps - 1, -1, -1):
        torch.add(grad[t], carry, out=grad_h[t])
        torch.mul(by_head[t], grad_h[t].unsqueeze(1), out=grad_g[t])
        carry = torch.mm(grad_g[t].view(batch, -1), matrices[-1])
        for matrix, slope, grad_part in backbone:
            torch.mul(carry, slope[t], out=grad_part[t])
            carry = torch.mm(grad_part[t], matrix)
    return grad_h, [*grad_z, grad_g.view(steps, batch, -1)], carry


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """Sum over time and batch of left x right: (T, B, m), (T, B, n) -> (m, n)."""
    return left.flatten(0, 1).t() @ right.flatten(0, 1)
