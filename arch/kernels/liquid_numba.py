"""The liquid scan: a whole sequence of the liquid ODE in one fused CPU kernel, with gradients.

The kernel compiles at first use (some seconds for each of forward and backward, float32 and float64) and is then kept
on disk by numba.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, reduce
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from arch.kernels.liquid_numba_backward import backward
from arch.kernels.liquid_numba_forward import Plan, forward, plan
from arch.kernels.liquid_numba_solvers import method

SMALL_WORK = 1 << 14  # channel-stage updates below which a second thread costs more than it saves


def liquid_scan(
    solver_name: str,
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
    """Integrates dh_dn/dt = -(inv_tau_dn + omega_dn f_d) h_dn + f_d B_n A_d with f_d = gate(a_d + w_d y_d).

    y_d = sum_n C_n h_dn, inside the gate too, with the token's own C. Each token crosses `elapsed` in `substeps` equal
    steps. a, A (batch, T, D); B, C (batch, T, N), or None for ones, and then N = 1; inv_tau >= 0, omega (D, N);
    w (D,), or None for no coupling; h0 (batch, D, N); elapsed (batch, T), or None for 1, without a gradient.
    Returns y (batch, T, D) and the last h (batch, D, N), in the widest of the inputs' types, float32 at least.
    """
    _check(a, B, C, h0, elapsed)
    given = (x.dtype for x in (a, A, B, C, inv_tau, omega, w, h0) if x is not None)
    dtype = reduce(torch.promote_types, given, torch.float32)
    batch, T, D = a.shape
    solver = method(solver_name)
    p = plan(solver, gate, w is not None, B is not None, substeps, tuple(h0.shape))
    ones = _ones(dtype)
    inputs = (
        a,
        A,
        ones if B is None else B,
        ones if C is None else C,
        inv_tau.t().unsqueeze(0),  # channels innermost: (1, N, D)
        omega.t().unsqueeze(0),
        torch.zeros(1, 1, D, dtype=dtype) if w is None else w.view(1, 1, D),
        h0.transpose(1, 2),
        torch.full((batch, T, 1), 1 / substeps, dtype=dtype) if elapsed is None else elapsed.unsqueeze(2) / substeps,
    )
    inputs = [x.to(dtype).contiguous() for x in inputs]
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        y, last = _LiquidScan.apply(p, solver[1], *inputs)
    else:
        y, states = _forward(p, solver[1], inputs, keep=False)
        last = states[:, -p.n_states :].clone()  # a state held on its own, not a view that would keep all of y
    return y, last.transpose(1, 2)


def _check(a: Tensor, B: Tensor | None, C: Tensor | None, h0: Tensor, elapsed: Tensor | None) -> None:
    if elapsed is not None and elapsed.requires_grad:
        raise ValueError("liquid_scan gives no gradient by elapsed; pass elapsed.detach() or use the reference solver.")
    if a.shape[1] == 0:
        raise ValueError("liquid_scan needs at least one token.")
    if (B is None) != (C is None) or (B is None and h0.shape[-1] != 1):
        raise ValueError("liquid_scan needs both B and C, or neither and one state per channel.")


@cache
def _ones(dtype: torch.dtype) -> Tensor:
    """What stands for B and C where there are none; the kernels never write to it."""
    with torch.inference_mode(False):  # a call without gradients may make what a later one saves for its backward
        return torch.ones(1, 1, 1, dtype=dtype)


def _forward(p: Plan, tableau: np.ndarray, inputs: Sequence[Tensor], keep: bool) -> tuple[Tensor, Tensor]:
    """y and the states after each token (batch, T * N, D), or where not kept perhaps after the last only.

    Without projections the read-out is the state: one tensor is both.
    """
    a = inputs[0]
    batch, T, D = a.shape
    y = torch.empty_like(a)
    states = torch.empty(batch, (T if keep else 1) * p.n_states, D, dtype=a.dtype) if p.projected else y
    arrays = [x.detach().numpy() for x in inputs]
    _run(p, a.shape, forward, p, tableau.astype(arrays[0].dtype), *arrays, y.numpy(), states.numpy())
    return y, states


class _LiquidScan(torch.autograd.Function):
    """The kernel's calling convention: arrays of three axes, channels innermost, one type, contiguous."""

    @staticmethod
    def forward(ctx, p: Plan, tableau: np.ndarray, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        y, states = _forward(p, tableau, inputs, keep=True)
        ctx.p, ctx.tableau = p, tableau
        ctx.save_for_backward(*inputs, states)
        return y, states[:, -p.n_states :].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, gy: Tensor, g_last: Tensor):
        p = ctx.p
        *inputs, states = ctx.saved_tensors
        a, h0 = inputs[0], inputs[7]
        batch, T, D = a.shape
        blocks = -(-D // p.width)
        parts = torch.zeros(2, batch, blocks * (T if p.projected else 1), p.n_states, dtype=a.dtype)
        g_inv_tau, g_omega, g_h0 = torch.empty(3, *h0.shape, dtype=a.dtype)
        g_a, g_A, g_w = torch.empty_like(a), torch.empty_like(a), torch.empty(batch, 1, D, dtype=a.dtype)
        gradients = (g_a, g_A, *parts, g_inv_tau, g_omega, g_w, g_h0)
        arrays = [tuple(x.numpy() for x in group) for group in (inputs, gradients)]
        outer = [x.contiguous().numpy() for x in (states, gy, g_last)]
        _run(p, a.shape, backward, p, ctx.tableau.astype(outer[0].dtype), arrays[0], *outer, arrays[1])
        g_B, g_C = parts.view(2, batch, blocks, -1, p.n_states).sum(2) if p.projected else (None, None)
        totals = [x.sum(0, keepdim=True) for x in (g_inv_tau, g_omega, g_w)]
        return None, None, g_a, g_A, g_B, g_C, *totals, g_h0, None


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="liquid_scan")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def _run(p: Plan, shape: torch.Size, kernel, *arguments) -> None:
    """Spreads a kernel's tasks over torch's number of threads, on which the result does not depend.

    Plain threads, the kernels holding no lock, in place of numba's prange, which optimises the whole kernel once more.
    """
    batch, T, D = shape
    tasks = batch * -(-D // p.width)
    work = batch * T * D * p.n_states * p.substeps * p.stages
    threads = min(torch.get_num_threads(), tasks) if work > SMALL_WORK else 1
    bounds = [tasks * i // threads for i in range(threads + 1)]
    others = [_pool(threads - 1).submit(kernel, *span, *arguments) for span in pairwise(bounds[1:])]
    kernel(0, bounds[1], *arguments)
    for other in others:
        other.result()
