"""The liquid scan on CUDA: its calling convention around the walks over time of liquid_triton_walk.py."""

from functools import reduce

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from arch.ltc.scan import check
from arch.ltc.walk_triton import backward, forward

TABLEAUS = {  # how far along each stage's slope the next one starts, and the weight of each slope in the step
    "euler": ((0.0,), (1.0,)),
    "midpoint": ((0.5, 0.0), (0.0, 1.0)),
    "heun": ((1.0, 0.0), (0.5, 0.5)),
    "rk4": ((0.5, 0.5, 1.0, 0.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}
FROZEN = {"semi_implicit": 1, "exponential": 2}
STATES_KEPT = 16  # tokens from one kept state to the next, at least, where a state is more than its read-out
STAGES = 4  # tokens in flight: a token is crossed in less than the latency of a load


def liquid_scan(
    solver: str,
    substeps: int,
    gate: str,
    a: Tensor,
    A: Tensor,
    B: Tensor | None,
    C: Tensor | None,
    inv_tau: Tensor,
    omega: Tensor,
    w: Tensor | None,
    h0: Tensor,
    elapsed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The operation `liquid_scan` (arch/ltc/scan.py); no heads, no dense coupling and no gradient by elapsed.

    Computes in the widest of the inputs' types, float32 at least. Raises ValueError.
    """
    check(a, A, B, C, inv_tau, w, h0, elapsed)
    if w is not None and w.dim() != 1:
        raise ValueError(f"liquid_scan couples channels one by one on CUDA, not as {tuple(w.shape)}.")
    given = (x.dtype for x in (a, A, B, C, inv_tau, omega, w, h0) if x is not None)
    dtype = reduce(torch.promote_types, given, torch.float32)
    inputs = [a, A, B, C, inv_tau, omega.expand_as(inv_tau), w, h0]
    inputs = [x if x is None else x.to(dtype).contiguous() for x in inputs]
    dt = a.new_ones(a.shape[:2], dtype=dtype) if elapsed is None else elapsed.to(dtype)
    ahead, share = TABLEAUS.get(solver, ((), ()))
    rule = (FROZEN.get(solver, 0), ahead, share, w is not None, gate == "softplus")
    differentiable = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    return _LiquidScan.apply(differentiable, substeps, rule, (dt / substeps).contiguous(), *inputs)


class _LiquidScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, keep: bool, substeps: int, rule: tuple, dt: Tensor, *inputs: Tensor | None):
        a, _, B, _, _, _, _, h0 = inputs
        (batch, T, D), N = a.shape, h0.shape[2]
        projected = B is not None
        chunk = max(STATES_KEPT, N) if projected else 1
        y, last = torch.empty_like(a), torch.empty_like(h0)
        marks = a.new_empty(batch, (T - 1) // chunk if projected and keep else 0, D, N)
        sizes = (T, D, N, chunk, substeps)
        block, launch = _block(N)
        grid = (batch, triton.cdiv(D, block[0]))
        rule = (projected, *rule, *block, STAGES)
        forward[grid](*_filled(inputs), dt, y, last, marks, *sizes, projected and keep, *rule, **launch)
        ctx.save_for_backward(dt, *inputs, marks if projected else y)
        ctx.call = sizes, rule, block, launch, grid
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, gy: Tensor, g_last: Tensor) -> tuple[Tensor | None, ...]:
        dt, *inputs, marks = ctx.saved_tensors
        sizes, rule, block, launch, grid = ctx.call
        a, w, h0, projected = inputs[0], inputs[6], inputs[7], rule[0]
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


def _filled(inputs: list[Tensor | None]) -> list[Tensor]:
    """The inputs with something to point at in the place of those that are not given."""
    a, A, B, C, inv_tau, omega, w, h0 = inputs
    return [a, A, a if B is None else B, a if C is None else C, inv_tau, omega, inv_tau if w is None else w, h0]
