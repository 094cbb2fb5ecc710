"""The liquid scan: a whole sequence of the liquid ODE in one fused CPU kernel, with gradients.

The kernel compiles at first use (some seconds for each of forward and backward, float32 and float64) and is then kept
on disk by numba.
"""

from collections.abc import Sequence
from functools import cache, reduce

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from arch.ltc.backward_numba import backward
from arch.ltc.forward_numba import forward
from arch.ltc.layout_numba import WIDTH, Plan, plan
from arch.ltc.maps_numba import method
from arch.ltc.scan import check
from harness.ops.toolbox.threads import spread

NOTHING = (0, 0, 0)


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
    """The operation `liquid_scan` (arch/ltc/scan.py): dh_dn/dt = -(inv_tau_dn + omega_dn f_d) h_dn + f_d B_n A_d.

    Takes no dense coupling and no gradient by elapsed. Computes in the widest of the inputs' types, float32 at least.
    Only a state in some tokens is kept for the backward, no more than `a` takes. Raises ValueError.
    """
    check(a, A, B, C, inv_tau, w, h0, elapsed)
    if w is not None and (w.dim() == 2 or (w.dim() == 3 and (w.shape[-1] < 4 or WIDTH % w.shape[-1]))):
        raise ValueError(
            f"liquid_scan couples channels one by one or in heads of 4 to {WIDTH}, not as {tuple(w.shape)}."
        )
    given = (x.dtype for x in (a, A, B, C, inv_tau, omega, w, h0) if x is not None)
    dtype = reduce(torch.promote_types, given, torch.float32)
    p, tableau = plan_of(solver, substeps, gate, w, B, h0.shape[-1])
    inputs = [
        a,
        A,
        B,
        C,
        inv_tau.t(),  # channels innermost: (N, D)
        omega.expand_as(inv_tau).t(),
        w,
        h0.transpose(1, 2),
        None if elapsed is None else elapsed / substeps,
    ]
    inputs = [None if x is None else rows(x.to(dtype)) for x in inputs]
    tableau = tableau.astype(np.float32 if dtype == torch.float32 else np.float64)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        y, last = _LiquidScan.apply(p, tableau, *inputs)
    else:
        y, last, _ = _forward(p, tableau, inputs, keep=False)
    return y, last.transpose(1, 2)


def plan_of(
    solver: str, substeps: int, gate: str, w: Tensor | None, B: Tensor | None, n_states: int
) -> tuple[Plan, np.ndarray]:
    """What the kernels are to do for such a call, and the solver's tableau in float64."""
    kind, tableau = method(solver)
    head = 0 if w is None else w.shape[-1] if w.dim() == 3 else 1
    return plan(kind, tableau.shape[1], gate, head, B is not None, substeps, n_states), tableau


def rows(x: Tensor) -> Tensor:
    """x itself where its last axis is contiguous, else a contiguous copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


@cache
def _constant(dtype: torch.dtype, value: float, length: int) -> Tensor:
    """What stands for inputs that are not given; the kernels never write to it."""
    with torch.inference_mode(False):  # a call without gradients may make what a later one needs
        return torch.full((length,), value, dtype=dtype, device="cpu")


def weight_rows(w: Tensor | None) -> Tensor | None:
    """(heads, P, P) -> (2 P, D): row p holds W[h, q, p] in lane q of head h, row P + q holds it in lane p."""
    if w is None or w.dim() == 1:
        return w
    return torch.cat([w.permute(2, 0, 1).flatten(1), w.transpose(0, 1).flatten(1)])


def _place(x: Tensor, batch: int | None, token: int | None) -> tuple[int, int, int]:
    """A tensor's line of the kernels' table; batch, token: its axes of that meaning, or None for one for all."""
    size = x.element_size()
    return x.data_ptr(), *(0 if axis is None else x.stride(axis) * size for axis in (batch, token))


def _places(p: Plan, inputs: Sequence[Tensor | None]) -> list[tuple[int, int, int]]:
    a, A, B, C, inv_tau, omega, w, h0, dt = inputs
    one = _constant(a.dtype, 1.0, 1)
    return [
        _place(a, 0, 1),
        _place(A, 0, 1),
        _place(one, None, None) if B is None else _place(B, 0, 1),
        _place(one, None, None) if C is None else _place(C, 0, 1),
        _place(inv_tau, None, 0),
        _place(omega, None, 0),
        NOTHING if w is None else _place(w, None, 0),
        _place(h0, 0, 1),
        _place(_constant(a.dtype, 1 / p.substeps, 1), None, None) if dt is None else _place(dt, 0, 1),
    ]


def _forward(p: Plan, tableau: np.ndarray, inputs: Sequence[Tensor | None], keep: bool) -> tuple[Tensor, ...]:
    """y (batch, T, D), the last state (batch, N, D) and the states kept, a chunk's after another's (batch, .. N, D).

    Without projections the read-out is the state, and y is what is kept.
    """
    inputs = [*inputs[:6], weight_rows(inputs[6]), *inputs[7:]]  # held while the kernel runs, as all it is given
    a = inputs[0]
    batch, T, D = a.shape
    y, last = a.new_empty(a.shape), a.new_empty(batch, p.n_states, D)
    marks = (T - 1) // p.chunk if keep and p.projected else 0
    kept = a.new_empty(batch, marks * p.n_states, D)
    table = [*_places(p, inputs), _place(y, 0, 1), _place(last, 0, 1), _place(kept, 0, 1)]
    _run(forward, p, a.shape, tableau, table, marks > 0)
    return y, last, kept if p.projected else y


class _LiquidScan(torch.autograd.Function):
    """The kernel's calling convention: one type, channels innermost."""

    @staticmethod
    def forward(ctx, p: Plan, tableau: np.ndarray, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        y, last, kept = _forward(p, tableau, inputs, keep=True)
        ctx.p, ctx.tableau = p, tableau
        ctx.save_for_backward(*inputs, kept)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, gy: Tensor, g_last: Tensor):
        p = ctx.p
        *inputs, kept = ctx.saved_tensors
        a, w, h0 = inputs[0], inputs[6], inputs[7]
        batch, T, D = a.shape
        blocks = -(-D // int(WIDTH))
        g_a, g_A = a.new_empty(a.shape), a.new_empty(a.shape)
        parts = a.new_empty(2, batch, T, blocks * p.n_states if p.projected else 0)  # a block's beside another's
        g_inv_tau, g_omega, g_h0 = a.new_empty(3, *h0.shape)
        g_w = a.new_empty(batch, p.head or 1, D)
        gy, g_last, inputs[6] = rows(gy), rows(g_last), weight_rows(w)
        given = [_place(gy, 0, 1), _place(g_last, 0, 1), _marks(p, kept)]
        gradients = (g_a, g_A, *parts, g_inv_tau, g_omega, g_w, g_h0)
        table = [*_places(p, inputs), *given, *(_place(g, 0, 1) for g in gradients)]
        _run(backward, p, a.shape, ctx.tableau, table)
        g_B, g_C = parts.view(2, batch, T, blocks, -1).sum(3) if p.projected else (None, None)
        totals = [x.sum(0) for x in (g_inv_tau, g_omega)]
        return None, None, g_a, g_A, g_B, g_C, *totals, None if w is None else _gradient_of(w, g_w.sum(0)), g_h0, None


def _gradient_of(w: Tensor, rows: Tensor) -> Tensor:
    """The gradient by w from its rows (P, D): row p holds that of W[h, q, p] in lane q of head h."""
    return rows[0] if w.dim() == 1 else rows.view(len(rows), *w.shape[:2]).permute(1, 2, 0)


def _marks(p: Plan, kept: Tensor) -> tuple[int, int, int]:
    """The place of the states kept before the tokens chunk, 2 chunk, ...; without projections they are rows of y."""
    address, batch, token = _place(kept, 0, 1)
    return (address, batch, token) if p.projected else (address + (p.chunk - 1) * token, batch, p.chunk * token)


def _run(kernel, p: Plan, shape: torch.Size, tableau: np.ndarray, table: list, *more) -> None:
    batch, T, D = shape
    work = batch * T * D * p.n_states * p.substeps * p.stages
    spread(kernel, batch * -(-D // int(WIDTH)), work, p, tableau, np.array(table, dtype=np.int64), T, D, *more)
