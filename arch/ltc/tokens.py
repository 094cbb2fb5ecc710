"""The operations `liquid_tokens`: the flows of all tokens of a liquid scan at once, from guessed states before them.

h_t = F_t(h_{t-1}) with F_t the flow of token t across its elapsed time. One state a channel and no coupling between
channels: the derivative of F_t is a diagonal, and one tangent finds it whole. Neither operation can be differentiated.
"""

from functools import partial

import torch
from torch import Tensor

from arch.field import Field, Gate
from arch.ltc.scan import fixed_step
from harness.ops.linear_scan.scan import neighbours
from harness.ops.registry import Kernel, Operation


def tokens(
    solver: str,
    substeps: int,
    gate: Gate,
    a: Tensor,
    A: Tensor,
    inv_tau: Tensor,
    omega: Tensor,
    w: Tensor | None,
    h0: Tensor,
    h: Tensor,
    elapsed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """F_t(h_{t-1}) - h_t and J_t = dF_t/dh at h_{t-1}, for the guessed states h after each token; no gradient.

    a, A, h (batch, T, D); inv_tau, omega (D,); w (D,) or None; h0 (batch, D); elapsed (batch, T) or None for 1.
    Returns two tensors (batch, T, D).
    """
    before = neighbours(h, h0)
    flow = partial(_flow, solver, substeps, gate, elapsed, a, A, inv_tau, omega, w)
    F, J = torch.func.jvp(flow, (before,), (torch.ones_like(before),))
    return F - h, J


def tokens_vjp(
    solver: str,
    substeps: int,
    gate: Gate,
    a: Tensor,
    A: Tensor,
    inv_tau: Tensor,
    omega: Tensor,
    w: Tensor | None,
    h0: Tensor,
    h: Tensor,
    elapsed: Tensor | None,
    g: Tensor,
) -> tuple[Tensor | None, ...]:
    """The gradients of a, A, inv_tau, omega and w (None where it is) from those of F_t(h_{t-1}), g (batch, T, D)."""
    leaves = [x if x is None else x.detach().requires_grad_() for x in (a, A, inv_tau, omega, w)]
    with torch.enable_grad():
        F = _flow(solver, substeps, gate, elapsed, *leaves, neighbours(h, h0))
        found = iter(torch.autograd.grad(F, [x for x in leaves if x is not None], g))
    return tuple(None if x is None else next(found) for x in leaves)


def _flow(solver, substeps, gate, elapsed, a, A, inv_tau, omega, w, before: Tensor) -> Tensor:
    """F_t of all tokens from the states before them, (batch, T, D); tokens stand in the place of sequences."""
    flat = Field(
        a.flatten(0, 1), A.flatten(0, 1), None, None, inv_tau.unsqueeze(1), omega.unsqueeze(1), w, gate
    )  # (batch * T, D)
    times = None if elapsed is None else elapsed.flatten()
    end = fixed_step(solver, substeps).integrate(flat, before.flatten(0, 1).unsqueeze(2), times)
    return end.view(before.shape)


def _kernels(name: str) -> tuple[Kernel, ...]:
    return (
        Kernel("numba", "cpu", f"arch.ltc.tokens_numba:{name}"),
        Kernel("triton", "cuda", f"arch.ltc.tokens_triton:{name}", needs=("triton",)),
    )


LIQUID_TOKENS = Operation("liquid_tokens", tokens, _kernels("tokens"))
LIQUID_TOKENS_VJP = Operation("liquid_tokens_vjp", tokens_vjp, _kernels("tokens_vjp"))
