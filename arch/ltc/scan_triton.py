"""The liquid scan on CUDA: its calling convention around the walks over time of walk_triton.py."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from arch.field import Field
from arch.ltc.scan import check, triton_refuses
from arch.ltc.walk_triton import backward, forward
from arch.solvers import Solver
from arch.solvers_triton import method

STATES_KEPT = 16  # tokens from one kept state to the next, at least, where a state is more than its read-out
IN_FLIGHT = 4  # tokens that are loaded ahead: a token is crossed in less than the latency of a load


class Inputs(NamedTuple):
    """What a call reads, contiguous and in one type."""

    a: Tensor
    A: Tensor
    B: Tensor | None
    C: Tensor | None
    inv_tau: Tensor
    omega: Tensor
    w: Tensor | None
    h0: Tensor


def liquid_scan(solver: Solver, field: Field, h0: Tensor, elapsed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The operation `liquid_scan` (arch/ltc/scan.py); no heads, no dense coupling and no gradient by elapsed.

    Computes in the widest of the inputs' types, float32 at least. Raises ValueError.
    """
    check(solver, field, h0, elapsed, triton_refuses)
    f, h = field.computed(h0)
    inputs = Inputs(f.a, f.A, f.B, f.C, f.inv_tau, f.omega, f.coupling, h)
    inputs = Inputs(*(x if x is None else x.contiguous() for x in inputs))
    dt = h.new_ones(f.a.shape[:2]) if elapsed is None else elapsed.to(h.dtype)
    rule = (*method(solver), f.coupling is not None, f.gate == "softplus")
    differentiable = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    return _LiquidScan.apply(differentiable, solver.substeps, rule, (dt / solver.substeps).contiguous(), *inputs)


class _LiquidScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, keep: bool, substeps: int, rule: tuple, dt: Tensor, *inputs: Tensor | None):
        inputs = Inputs(*inputs)
        a, h0, projected = inputs.a, inputs.h0, inputs.B is not None
        (batch, T, D), N = a.shape, h0.shape[2]
        chunk = max(STATES_KEPT, N) if projected else 1
        y, last = torch.empty_like(a), torch.empty_like(h0)
        marks = a.new_empty(batch, (T - 1) // chunk if projected and keep else 0, D, N)
        sizes = (T, D, N, chunk, substeps)
        block, launch = _block(N)
        grid = (batch, triton.cdiv(D, block[0]))
        rule = (projected, *rule, *block, IN_FLIGHT)
        forward[grid](*_filled(inputs), dt, y, last, marks, *sizes, projected and keep, *rule, **launch)
        ctx.save_for_backward(dt, *inputs, marks if projected else y)
        ctx.call = sizes, rule, block, launch, grid
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, gy: Tensor, g_last: Tensor) -> tuple[Tensor | None, ...]:
        dt, *inputs, marks = ctx.saved_tensors
        sizes, rule, block, launch, grid = ctx.call
        inputs = Inputs(*inputs)
        a, w, h0, projected = inputs.a, inputs.w, inputs.h0, rule[0]
        batch, T, D, N = *a.shape, h0.shape[2]
        by_token = torch.empty_like(a), torch.empty_like(a)
        parts = a.new_empty(2, batch, T, grid[1], N if projected else 0)
        by_batch = a.new_empty(2, batch, D, N)
        g_w, g_h0 = a.new_empty(batch, D), torch.empty_like(h0)
        scratch = a.new_empty(grid[0] * grid[1] * sizes[3] * block[0] * block[1] if projected else 0)
        gradients = (*by_token, *parts, *by_batch, g_w, g_h0, scratch)
        given = (marks, gy.contiguous(), g_last.contiguous())
        backward[grid](*_filled(inputs), dt, *given, *gradients, *sizes, *rule, **launch)
        g_B, g_C = parts.sum(3) if projected else (None, None)
        g_inv_tau, g_omega = by_batch.sum(1)
        return *[None] * 4, *by_token, g_B, g_C, g_inv_tau, g_omega, None if w is None else g_w.sum(0), g_h0


def _block(N: int) -> tuple[tuple[int, int], dict[str, int]]:
    """Channels and states of a program, and its warps: one for up to 256 numbers, so that few walks wait together."""
    states = triton.next_power_of_2(N)
    channels = max(4, min(32, 256 // states))
    return (channels, states), {"num_warps": max(1, channels * states // 256)}


def _filled(inputs: Inputs) -> Inputs:
    """The inputs with something to point at in the place of those that are not given."""
    a, _, B, C, inv_tau, _, w, _ = inputs
    return inputs._replace(B=a if B is None else B, C=a if C is None else C, w=inv_tau if w is None else w)
