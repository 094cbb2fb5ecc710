"""The liquid scan: a whole sequence of the liquid ODE in one fused CPU kernel, with gradients.

The kernel compiles at first use (some seconds for each of forward and backward, float32 and float64) and is then kept
on disk by numba.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from arch.field import Field
from arch.ltc import dense_numba
from arch.ltc.scan import check, numba_refuses
from arch.ltc.stage_numba import DENSE, WIDTH, Plan, plan
from arch.ltc.walk_numba import backward, forward, table_of
from arch.solvers import Solver
from harness.ops.toolbox.numba_linear import group, panels
from harness.ops.toolbox.threads import spread

Place = tuple[int, int, int]
WINDOW = 64  # tokens, at most, that the backward of a dense coupling takes before it adds up the gradient by W


class Inputs(NamedTuple):
    """What a call reads, in one type and with contiguous channels; dt (batch, T) is the length of a substep."""

    a: Tensor
    A: Tensor
    B: Tensor | None
    C: Tensor | None
    inv_tau: Tensor  # (N, D), as omega
    omega: Tensor
    w: Tensor | None
    h0: Tensor  # (batch, N, D)
    dt: Tensor | None


def liquid_scan(solver: Solver, field: Field, h0: Tensor, elapsed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The operation `liquid_scan` (arch/ltc/scan.py); no gradient by elapsed.

    Computes in the widest of the inputs' types, float32 at least. Only a state in some tokens is kept for the backward,
    no more than `a` takes. Raises ValueError.
    """
    check(solver, field, h0, elapsed, numba_refuses)
    p, tableau = plan(solver, field, h0.shape[-1])
    f, h = field.computed(h0)
    dt = None if elapsed is None else (elapsed / solver.substeps).to(h.dtype)
    inputs = Inputs(f.a, f.A, f.B, f.C, f.inv_tau.t(), f.omega.t(), f.coupling, h.transpose(1, 2), dt)
    inputs = Inputs(*(None if x is None else rows(x) for x in inputs))
    tableau = tableau.astype(np.float32 if h.dtype == torch.float32 else np.float64)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        y, last = _LiquidScan.apply(p, tableau, *inputs)
    else:
        y, last, _ = _forward(p, tableau, inputs, keep=False)
    return y, last.transpose(1, 2)


def rows(x: Tensor) -> Tensor:
    """x itself where its last axis is contiguous, else a contiguous copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


@cache
def _constant(dtype: torch.dtype, value: float, length: int) -> Tensor:
    """What stands for inputs that are not given; the kernels never write to it."""
    with torch.inference_mode(False):  # a call without gradients may make what a later one needs
        return torch.full((length,), value, dtype=dtype, device="cpu")


def weight_rows(w: Tensor | None) -> Tensor | None:
    """A coupling's weight as the kernels take it, one row after another.

    Heads (heads, P, P) -> (2 P, D): row p holds W[h, q, p] in lane q of head h, row P + q holds it in lane p. Dense:
    the panels of W^T, then those of W.
    """
    if w is None or w.dim() == 1:
        return w
    if w.dim() == 2:
        return torch.stack([panels(w.t()), panels(w)])
    return torch.cat([w.permute(2, 0, 1).flatten(1), w.transpose(0, 1).flatten(1)])


def place(x: Tensor, batch: int | None, token: int | None) -> Place:
    """A tensor's row of the kernels' table. batch, token: its axes of these; None where it has none."""
    size = x.element_size()
    return x.data_ptr(), *(0 if axis is None else x.stride(axis) * size for axis in (batch, token))


def _places(p: Plan, inputs: Inputs) -> dict[str, Place]:
    a, A, B, C, inv_tau, omega, w, h0, dt = inputs
    one = _constant(a.dtype, 1.0, 1)
    return {
        "a": place(a, 0, 1),
        "A": place(A, 0, 1),
        "B": place(one, None, None) if B is None else place(B, 0, 1),
        "C": place(one, None, None) if C is None else place(C, 0, 1),
        "inv_tau": place(inv_tau, None, 0),
        "omega": place(omega, None, 0),
        "w": (0, 0, 0) if w is None else place(w, None, 0),
        "h0": place(h0, 0, 1),
        "dt": place(_constant(a.dtype, 1 / p.substeps, 1), None, None) if dt is None else place(dt, 0, 1),
    }


def _forward(p: Plan, tableau: np.ndarray, inputs: Inputs, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y (batch, T, D), the last state (batch, N, D) and the states kept, a chunk's after another's (batch, .. N, D).

    Without projections the read-out is the state, and y is what is kept.
    """
    inputs = inputs._replace(w=weight_rows(inputs.w))  # held while the kernel runs, as all it is given
    a = inputs.a
    batch, T, D = a.shape
    y, last = a.new_empty(a.shape), a.new_empty(batch, p.n_states, D)
    marks = (T - 1) // p.chunk if keep and p.projected else 0
    kept = a.new_empty(batch, marks * p.n_states, D)
    made = {"y": place(y, 0, 1), "last": place(last, 0, 1), "marks": place(kept, 0, 1)}
    table = table_of(**_places(p, inputs), **made)
    if p.coupling == DENSE:
        _run_groups(dense_numba.forward, p, a.shape, tableau, table, batch, T, D, marks > 0)
    else:
        _run(forward, p, a.shape, tableau, table, marks > 0)
    return y, last, kept if p.projected else y


class _LiquidScan(torch.autograd.Function):
    """The tensors of Inputs, one by one."""

    @staticmethod
    def forward(ctx, p: Plan, tableau: np.ndarray, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        y, last, kept = _forward(p, tableau, Inputs(*inputs), keep=True)
        ctx.p, ctx.tableau = p, tableau
        ctx.save_for_backward(*inputs, kept)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, gy: Tensor, g_last: Tensor):
        p = ctx.p
        *inputs, kept = ctx.saved_tensors
        inputs = Inputs(*inputs)
        a, w, h0 = inputs.a, inputs.w, inputs.h0
        batch, T, D = a.shape
        blocks = -(-D // int(WIDTH))
        g_a, g_A = a.new_empty(a.shape), a.new_empty(a.shape)
        parts = a.new_empty(2, batch, T, blocks * p.n_states if p.projected else 0)  # a block's beside another's
        g_inv_tau, g_omega, g_h0 = a.new_zeros(3, *h0.shape)
        gy, g_last, inputs = rows(gy), rows(g_last), inputs._replace(w=weight_rows(w))
        given = {"y": place(gy, 0, 1), "last": place(g_last, 0, 1), "marks": _marks(p, kept)}
        gradients = {"g_a": g_a, "g_A": g_A, "g_B": parts[0], "g_C": parts[1]}
        gradients |= {"g_inv_tau": g_inv_tau, "g_omega": g_omega, "g_h0": g_h0}
        places = _places(p, inputs) | given | {name: place(g, 0, 1) for name, g in gradients.items()}
        g_w = (_backward_dense if p.coupling == DENSE else _backward)(p, ctx.tableau, a, w, places)
        g_B, g_C = parts.view(2, batch, T, blocks, -1).sum(3) if p.projected else (None, None)
        totals = [x.sum(0) for x in (g_inv_tau, g_omega)]
        return None, None, g_a, g_A, g_B, g_C, *totals, g_w, g_h0, None


def _backward(p: Plan, tableau: np.ndarray, a: Tensor, w: Tensor | None, places: dict[str, Place]) -> Tensor | None:
    """Fills the gradients in their places; returns the one by w.

    From its rows (P, D): row p holds that of W[h, q, p] in lane q of head h.
    """
    rows = a.new_empty(len(a), p.head, a.shape[2])
    _run(backward, p, a.shape, tableau, table_of(**places, g_w=place(rows, 0, 1)))
    if w is None:
        return None
    found = rows.sum(0)
    return found[0] if w.dim() == 1 else found.view(p.head, *w.shape[:2]).permute(1, 2, 0)


def _backward_dense(p: Plan, tableau: np.ndarray, a: Tensor, w: Tensor, places: dict[str, Place]) -> Tensor:
    """The same, window by window: what W multiplied and the gradients by its products take no more than `a` does."""
    (batch, T, D), stages = a.shape, p.substeps * p.stages
    window = max(min(WINDOW, T // (2 * stages)) // p.chunk, 1) * p.chunk
    both, g_w = a.new_empty(2, batch * min(window, T) * stages * D), torch.zeros_like(w)
    for begin in range((T - 1) // window * window, -1, -window):
        end = min(begin + window, T)
        rows = (end - begin) * stages
        reads, arguments = (x[: batch * rows * D].view(batch, rows, D) for x in both)
        places |= {"reads": place(reads, 0, 1), "g_arguments": place(arguments, 0, 1)}
        _run_groups(dense_numba.backward, p, a.shape, tableau, table_of(**places), batch, begin, end, D)
        places["last"] = places["g_h0"]
        with torch.autocast(a.device.type, enabled=False):  # a backward keeps the precision of its forward
            g_w.addmm_(arguments.flatten(0, 1).t(), reads.flatten(0, 1))
    return g_w


def _marks(p: Plan, kept: Tensor) -> Place:
    """The place of the states kept before the tokens chunk, 2 chunk, ...; without projections they are rows of y."""
    address, batch, token = place(kept, 0, 1)
    return (address, batch, token) if p.projected else (address + (p.chunk - 1) * token, batch, p.chunk * token)


def _run(kernel, p: Plan, shape: torch.Size, tableau: np.ndarray, table: np.ndarray, *more) -> None:
    """Runs a kernel of walk_numba.py over all blocks of channels of all sequences."""
    batch, T, D = shape
    work = batch * T * D * p.n_states * p.substeps * p.stages
    spread(kernel, batch * -(-D // int(WIDTH)), work, p, tableau, table, T, D, *more)


def _run_groups(kernel, p: Plan, shape: torch.Size, tableau: np.ndarray, table: np.ndarray, *more) -> None:
    """Runs a kernel of dense_numba.py over all groups of sequences."""
    batch, T, D = shape
    size = group(batch)
    spread(kernel, -(-batch // size), batch * T * D * D * p.substeps * p.stages, size, p, tableau, table, *more)
