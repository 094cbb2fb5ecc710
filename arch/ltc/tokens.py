"""The operations `liquid_tokens`: the flows of all tokens of a liquid scan at once, from guessed states before them.

h_t = F_t(h_{t-1}) with F_t the flow of token t across its elapsed time. One state a channel and no coupling between
channels: the derivative of F_t is a diagonal, and one tangent finds it whole. Neither operation can be differentiated.
"""

from dataclasses import replace

import torch
from torch import Tensor

from arch.field import Field
from arch.solvers import FIXED, Solver
from harness.ops.linear_scan.scan import neighbours
from harness.ops.registry import Kernel, Operation
from harness.ops.shapes import expect


def tokens(solver: Solver, field: Field, h0: Tensor, elapsed: Tensor | None, h: Tensor) -> tuple[Tensor, Tensor]:
    """F_t(h_{t-1}) - h_t and J_t = dF_t/dh at h_{t-1}, for the guessed states h after each token; no gradient.

    field: a sequence of one state a channel, its coupling none or diagonal. h0 (batch, D, 1), h (batch, T, D); elapsed
    (batch, T) or None for 1. Returns two tensors (batch, T, D).
    """
    before = neighbours(h, h0.squeeze(2))
    F, J = torch.func.jvp(lambda x: _flow(solver, field, elapsed, x), (before,), (torch.ones_like(before),))
    return F - h, J


def tokens_vjp(
    solver: Solver, field: Field, h0: Tensor, elapsed: Tensor | None, h: Tensor, g: Tensor
) -> tuple[Tensor, ...]:
    """The gradients of field.tensors() from those of F_t(h_{t-1}), g (batch, T, D)."""
    leaves = field.map(lambda x: x.detach().requires_grad_())
    with torch.enable_grad():
        F = _flow(solver, leaves, elapsed, neighbours(h, h0.squeeze(2)))
        return torch.autograd.grad(F, leaves.tensors(), g)


def _flow(solver: Solver, field: Field, elapsed: Tensor | None, before: Tensor) -> Tensor:
    """F_t of all tokens from the states before them, (batch, T, D); tokens stand in the place of sequences."""
    flat = replace(field, a=field.a.flatten(0, 1), A=field.A.flatten(0, 1))  # (batch * T, D)
    times = None if elapsed is None else elapsed.flatten()
    return solver.integrate(flat, before.flatten(0, 1).unsqueeze(2), times).view(before.shape)


def check(solver: Solver, field: Field, h0: Tensor, elapsed: Tensor | None, h: Tensor) -> None:
    """Raises ValueError for a call that the kernels have no code for, or whose shapes do not fit together."""
    if solver.name not in FIXED:
        raise ValueError(
            f"liquid_tokens: solver={solver.name} is none of the solvers of fixed steps, {', '.join(FIXED)}."
        )
    if h0.shape[-1] != 1 or field.B is not None or field.C is not None or field.coupled not in ("none", "diagonal"):
        raise ValueError("liquid_tokens takes one state a channel, no B and C, and coupling=none or diagonal.")
    field.check("liquid_tokens", h0, elapsed)
    expect("liquid_tokens", ("h", h, field.a.shape), ("omega", field.omega, field.inv_tau.shape))


def _kernels(name: str) -> tuple[Kernel, ...]:
    return (
        Kernel("numba", "cpu", f"arch.ltc.tokens_numba:{name}"),
        Kernel("triton", "cuda", f"arch.ltc.tokens_triton:{name}", needs=("triton",)),
    )


LIQUID_TOKENS = Operation("liquid_tokens", tokens, _kernels("tokens"))
LIQUID_TOKENS_VJP = Operation("liquid_tokens_vjp", tokens_vjp, _kernels("tokens_vjp"))
