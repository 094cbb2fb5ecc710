"""Every token's flow at once on CPU, for Newton's method over time: its value with its derivative, and its vjp."""

import numpy as np
import torch
from torch import Tensor

from arch.ltc import tokens_walk_numba as kernels
from arch.ltc.maps_numba import method
from harness.ops.shapes import expect
from harness.ops.toolbox.threads import spread

RUN = int(kernels.RUN)
WIDTH = 256  # channels of a block


def tokens(
    solver: str,
    substeps: int,
    gate: str,
    a: Tensor,
    A: Tensor,
    inv_tau: Tensor,
    omega: Tensor,
    w: Tensor | None,
    h0: Tensor,
    h: Tensor,
    elapsed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """As arch.ltc.newton.tokens."""
    p, tableau, inputs = _prepared(solver, substeps, gate, a, A, inv_tau, omega, w, h0, h, elapsed)
    residual, J = torch.empty_like(inputs[0]), torch.empty_like(inputs[0])
    _run(kernels.tokens, p, a.shape, tableau, *inputs, residual, J)
    return residual, J


def tokens_vjp(
    solver: str,
    substeps: int,
    gate: str,
    a: Tensor,
    A: Tensor,
    inv_tau: Tensor,
    omega: Tensor,
    w: Tensor | None,
    h0: Tensor,
    h: Tensor,
    elapsed: Tensor | None,
    g: Tensor,
) -> tuple[Tensor, ...]:
    """As arch.ltc.newton.tokens_vjp."""
    p, tableau, inputs = _prepared(solver, substeps, gate, a, A, inv_tau, omega, w, h0, h, elapsed)
    batch, T, D = a.shape
    expect("liquid_tokens", ("g", g, a.shape))
    g_a, g_A = torch.empty_like(inputs[0]), torch.empty_like(inputs[0])
    parts = g_a.new_empty(3, batch, -(-T // RUN), D)
    _run(kernels.tokens_vjp, p, a.shape, tableau, *inputs, g.contiguous(), g_a, g_A, *parts)
    g_inv_tau, g_omega, g_w = parts.sum((1, 2))
    return g_a, g_A, g_inv_tau, g_omega, None if w is None else g_w


def _prepared(
    solver, substeps, gate, a, A, inv_tau, omega, w, h0, h, elapsed
) -> tuple[kernels.Plan, np.ndarray, list[Tensor]]:
    batch, T, D = a.shape
    constants = [(name, x, (D,)) for name, x in (("inv_tau", inv_tau), ("omega", omega), ("w", w))]
    states = ("A", A, a.shape), ("h0", h0, (batch, D)), ("h", h, a.shape)
    expect("liquid_tokens", *states, *constants, ("elapsed", elapsed, (batch, T)))
    kind, tableau = method(solver)
    width = -(-D // -(-D // WIDTH))  # blocks of equal width ...
    width = -(-width // 32) * 32  # ... in whole rounds of the vectorised loops
    p = kernels.Plan(kind, int(gate == "softplus"), int(w is not None), substeps, width)
    constants = [torch.zeros_like(inv_tau) if x is None else x for x in (inv_tau, omega, w)]
    dt = (a.new_ones(batch, T) if elapsed is None else elapsed).unsqueeze(2) / substeps
    tensors = [a, A, *(x.view(1, 1, D) for x in constants), h0.unsqueeze(1), h, dt]
    return p, tableau, [x.contiguous() for x in tensors]


def _run(kernel, p: kernels.Plan, shape: torch.Size, tableau: np.ndarray, *tensors: Tensor) -> None:
    batch, T, D = shape
    tasks = batch * -(-T // RUN) * -(-D // p.width)
    arrays = [x.detach().numpy() for x in tensors]
    work = batch * T * D * p.substeps * tableau.shape[1]
    spread(kernel, tasks, work, p, tableau.astype(arrays[0].dtype), *arrays)
