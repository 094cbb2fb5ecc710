"""The CfC recurrence over time: one cell, a plain loop over it, and the same loop with its gradient written by hand."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

Mode = Literal["default", "pure", "no_gate"]
HEADS = {"default": ("a", "b", "t_a", "t_b"), "no_gate": ("a", "b", "t_a", "t_b"), "pure": ("a",)}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "lecun_tanh": lambda z: 1.7159 * torch.tanh(0.666 * z),
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": F.gelu,
    "silu": F.silu,
}


@dataclass(frozen=True)
class Cell:
    """One token of the recurrence: h' = combine(heads(backbone(u + R h)), time).

    recurrent: R (units, d_inner). layers: weight and bias of the backbone's further layers. heads: weight and bias of
    a, b, t_a, t_b stacked, or a, b, t_a + t_b for unit steps of time. w_tau, amplitude: (d_inner), mode=pure only.
    """

    mode: Mode
    activation: str
    recurrent: Tensor
    layers: list[tuple[Tensor, Tensor]]
    heads: tuple[Tensor, Tensor]
    w_tau: Tensor | None = None
    amplitude: Tensor | None = None

    def step(self, u: Tensor, h: Tensor, time: Tensor | None) -> Tensor:
        """u (B, units), h (B, d_inner), time (B, 1) or None for unit steps -> the new h."""
        activate = ACTIVATIONS[self.activation]
        z = activate(torch.addmm(u, h, self.recurrent.t()))
        for weight, bias in self.layers:
            z = activate(F.linear(z, weight, bias))
        return self.combine(F.linear(z, *self.heads), time)

    def combine(self, g: Tensor, time: Tensor | None) -> Tensor:
        """The closed form, elementwise in the channel. g: (..., heads x d_inner) -> h (..., d_inner)."""
        if self.mode == "pure":
            rate = self.w_tau.abs() + g.abs()
            return self.amplitude - self.amplitude * g * torch.exp(-rate if time is None else -rate * time)
        width = self.heads[0].shape[0] // (3 if time is None else 4)
        a, b = g[..., : 2 * width].tanh().chunk(2, dim=-1)
        gate = g[..., 2 * width :]
        if time is not None:
            t_a, t_b = gate.chunk(2, dim=-1)
            gate = torch.addcmul(t_b, t_a, time)
        gate = gate.sigmoid()
        return torch.addcmul(a, gate, b) if self.mode == "no_gate" else torch.lerp(a, b, gate)


def loop(cell: Cell, u: Tensor, h: Tensor, time: Tensor | None) -> Tensor:
    """The oracle of `scan`, and what runs where no gradient is wanted. Shapes as there."""
    outputs = []
    for t, u_t in enumerate(u.unbind(0)):
        h = cell.step(u_t, h, None if time is None else time[t])
        outputs.append(h)
    return torch.stack(outputs)


def scan(cell: Cell, u: Tensor, h: Tensor, time: Tensor | None = None) -> Tensor:
    """Runs the cell over u (T, B, units) from h (B, d_inner) with time (T, B, 1) or None; returns h (T, B, d_inner)."""
    with torch.autocast(u.device.type, enabled=False):
        if not torch.is_grad_enabled():
            return loop(cell, u, h, time)
        flat = [tensor for pair in (*cell.layers, cell.heads) for tensor in pair]
        return _Scan.apply(cell.mode, cell.activation, u, h, time, cell.w_tau, cell.amplitude, cell.recurrent, *flat)


class _Scan(Function):
    """`loop` with a backward pass that keeps only matrix products of the state's gradient inside the loop.

    Everything elementwise (slopes of the activations, the closed form's derivative by head) is differentiated for all
    tokens at once before that loop, and every weight's gradient is one product after it.
    """

    @staticmethod
    def forward(ctx, mode, activation, u, h, time, w_tau, amplitude, recurrent, *flat):
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        cell = Cell(mode, activation, recurrent, pairs[:-1], pairs[-1], w_tau, amplitude)
        activate = ACTIVATIONS[activation]
        z = [u.new_empty(*u.shape[:2], bias.shape[0]) for bias in (u[0, 0], *flat[1::2])]  # (T, B, width) each
        states = h.new_empty(u.shape[0] + 1, *h.shape)
        states[0] = h
        weights = [(weight.t(), bias) for weight, bias in pairs]
        transposed = recurrent.t()
        for t, (u_t, *z_t) in enumerate(zip(u, *z, strict=True)):
            torch.addmm(u_t, h, transposed, out=z_t[0])
            for (weight, bias), below, above in zip(weights, z_t, z_t[1:], strict=False):
                torch.addmm(bias, activate(below), weight, out=above)
            h = cell.combine(z_t[-1], None if time is None else time[t])
            states[t + 1] = h
        ctx.mode, ctx.activation = mode, activation
        ctx.save_for_backward(time, w_tau, amplitude, recurrent, states, *flat, *z)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        time, w_tau, amplitude, recurrent, states, *rest = ctx.saved_tensors
        depth = (len(rest) - 1) // 3
        flat, z = rest[: 2 * depth], rest[2 * depth :]
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        extras = [None if e is None else e.detach().requires_grad_() for e in (time, w_tau, amplitude)]
        cell = Cell(ctx.mode, ctx.activation, recurrent, pairs[:-1], pairs[-1], *extras[1:])
        with torch.autocast(grad.device.type, enabled=False):
            below, slopes = zip(*(_activation_and_slope(ctx.activation, part) for part in z[:-1]), strict=True)
            with torch.enable_grad():
                g = z[-1].detach().requires_grad_()
                h = cell.combine(g, extras[0])
            (by_head,) = torch.autograd.grad(h, g, torch.ones_like(h), retain_graph=True)
            matrices = [recurrent, *flat[::2]]
            grad_h, grad_z, carry = _walk_back(grad, matrices, slopes, by_head)
            wanted = [e for e in extras if e is not None]
            grads = iter(torch.autograd.grad(h, wanted, grad_h) if wanted else ())
            grad_extras = [None if e is None else next(grads) for e in extras]
            inputs = (states[:-1], *below)
            by_weight = [_outer(dz, a) for dz, a in zip(grad_z, inputs, strict=True)]
            grad_flat = [part for w, dz in zip(by_weight[1:], grad_z[1:], strict=True) for part in (w, dz.sum((0, 1)))]
        return None, None, grad_z[0], carry, *grad_extras, by_weight[0], *grad_flat


def _activation_and_slope(activation: str, z: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        a = ACTIVATIONS[activation](z)
    return a.detach(), torch.autograd.grad(a, z, torch.ones_like(a))[0]


def _walk_back(
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
