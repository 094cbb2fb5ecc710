"""The operations `liquid_tokens`: the flows of all tokens of a liquid scan at once, from guessed states before them.

h_t = F_t(h_{t-1}) with F_t the flow of token t across its elapsed time. One state a channel and no coupling between
channels: the derivative of F_t is a diagonal, and one tangent finds it whole. Neither operation can be differentiated.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from arch.field import Field
from arch.ltc.scan import sample as scan_sample
from arch.solvers import FIXED, Solver, refused_by
from harness.ops.linear_scan.scan import neighbours
from harness.ops.registry import Kernel, Operation
from harness.ops.samples import Draw, Sample, Samples
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


def check(compiler: str, solver: Solver, field: Field, h0: Tensor, elapsed: Tensor | None, h: Tensor) -> None:
    """Raises ValueError for a call that the kernels of a compiler refuse, or whose shapes do not fit together."""
    reason = refused_by(compiler, solver.name)
    if reason is not None:
        raise ValueError(f"liquid_tokens cannot serve this call: {reason}.")
    if h0.shape[-1] != 1 or field.B is not None or field.C is not None or field.coupled not in ("none", "diagonal"):
        raise ValueError("liquid_tokens takes one state a channel, no B and C, and coupling=none or diagonal.")
    field.check("liquid_tokens", h0, elapsed)
    expect("liquid_tokens", ("h", h, field.a.shape), ("omega", field.omega, field.inv_tau.shape))


def sample(draw: Draw, **keywords) -> Sample:
    """One call of the scan (arch/ltc/scan.py), never differentiated, with states that do not solve it."""
    call = scan_sample(draw, states=0, **keywords)
    solver, field, h0, elapsed = call.arguments
    field, h = field.map(torch.detach), draw.normal(*field.a.shape).detach()
    return Sample((solver, field, h0.detach(), elapsed, h), {"solver": solver.name})


def vjp_sample(draw: Draw, **keywords) -> Sample:
    """The same with the gradients of the flows."""
    call = sample(draw, **keywords)
    return replace(call, arguments=(*call.arguments, draw.normal(*call.arguments[-1].shape).detach()))


def _operation(name: str, reference: Callable, function: str, make: Callable[..., Sample]) -> Operation:
    """One of the two operations, which are tested by the same calls."""
    dtypes = (torch.float32, torch.float64)
    kernels = (
        Kernel("numba", "cpu", f"arch.ltc.tokens_numba:{function}", dtypes, partial(refused_by, "numba")),
        Kernel(
            "triton", "cuda", f"arch.ltc.tokens_triton:{function}", dtypes, partial(refused_by, "triton"), ("triton",)
        ),
    )
    sizes = {"batch": (1, 3), "length": (1, 2, 63, 65), "channels": (1, 31, 65, 260), "substeps": (1, 2, 3)}
    kinds = ((s, *form) for s in FIXED for form in (("sigmoid", "none"), ("softplus", "diagonal")))
    several = {"batch": 7, "length": 10, "channels": 70}  # tiles of a GPU's
    variants = ({}, {"timed": False}, several, *({"kind": kind, "batch": 1, "substeps": 1} for kind in kinds))
    large = tuple({"kind": (s, "softplus", "diagonal"), "length": 140, "channels": 300} for s in FIXED)
    return Operation(name, reference, kernels, samples=Samples(make, sizes, variants, large))


LIQUID_TOKENS = _operation("liquid_tokens", tokens, "tokens", sample)
LIQUID_TOKENS_VJP = _operation("liquid_tokens_vjp", tokens_vjp, "tokens_vjp", vjp_sample)
