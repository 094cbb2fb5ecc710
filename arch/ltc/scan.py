"""The operation `liquid_scan`: a sequence of the liquid ODE, its reference in torch and the kernels that serve it.

Every implementation has the signature of `reference`.
"""

from functools import partial

from torch import Tensor

from arch.field import Field, Gate
from arch.gradients import scan
from arch.solvers import Exponential, RungeKutta, SemiImplicit, Solver
from harness.ops.registry import Kernel, Operation
from harness.ops.shapes import expect, expect_tokens

FROZEN = {"semi_implicit": SemiImplicit, "exponential": Exponential}


def fixed_step(name: str, substeps: int) -> Solver:
    """The solver of fixed steps of that name."""
    return FROZEN[name](substeps=substeps) if name in FROZEN else RungeKutta(name, substeps)


def reference(
    solver: str,
    substeps: int,
    gate: Gate,
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
    """Integrates dh_dn/dt = -(inv_tau_dn + omega_dn f_d) h_dn + f_d B_n A_d with f_d = gate(a_d + couple(y)_d).

    y_d = sum_n C_n h_dn, inside the gate too, with the token's own C. Each token crosses `elapsed` in `substeps` equal
    steps. a, A (batch, T, D); B, C (batch, T, N), or None for ones, and then N = 1; inv_tau >= 0, omega (D, N);
    w (D,) for the diagonal coupling, (heads, P, P) for heads, (D, D) for dense, None for none; h0 (batch, D, N);
    elapsed (batch, T), or None for 1. Returns y (batch, T, D) and the last h (batch, D, N).
    """
    field = Field(a, A, B, C, inv_tau, omega.expand_as(inv_tau), w, gate)
    return scan(partial(_cross, fixed_step(solver, substeps)), field, h0, elapsed)


def _cross(solver: Solver, field: Field, h: Tensor, elapsed: Tensor | None) -> Tensor:
    return solver.integrate(field, h, elapsed)


def check(
    a: Tensor,
    A: Tensor,
    B: Tensor | None,
    C: Tensor | None,
    inv_tau: Tensor,
    w: Tensor | None,
    h0: Tensor,
    elapsed: Tensor | None,
) -> None:
    """Raises ValueError for a call that no kernel can serve, or whose shapes do not go together."""
    if elapsed is not None and elapsed.requires_grad:
        raise ValueError("liquid_scan gives no gradient by elapsed; pass elapsed.detach() or use the reference solver.")
    expect_tokens("liquid_scan", a.shape[1])
    if (B is None) != (C is None) or (B is None and h0.shape[-1] != 1):
        raise ValueError("liquid_scan needs both B and C, or neither and one state per channel.")
    check_shapes(a, A, B, C, inv_tau, w, h0, elapsed)


def check_shapes(a, A, B, C, inv_tau, w, h0, elapsed) -> None:
    """Raises ValueError where shapes do not go together; omega is expanded to inv_tau by whoever takes it."""
    (batch, T, D), N = a.shape, h0.shape[-1]
    couples = w is not None and w.dim() > 1
    if couples and (w.shape[-1] == 0 or (w.dim() == 3 and D % w.shape[-1])):
        raise ValueError(f"liquid_scan: w has the shape {tuple(w.shape)}, whose heads do not divide {D} channels.")
    weights = (D,) if not couples else (D, D) if w.dim() == 2 else (D // w.shape[-1], w.shape[-1], w.shape[-1])
    states = [("B", B, (batch, T, N)), ("C", C, (batch, T, N)), ("h0", h0, (batch, D, N))]
    rates = [("inv_tau", inv_tau, (D, N)), ("w", w, weights)]
    expect("liquid_scan", ("A", A, (batch, T, D)), *states, *rates, ("elapsed", elapsed, (batch, T)))


def numba_refuses(solver: str, coupling: str, d_state: int, head_dim: int = 1) -> str | None:
    """What the CPU kernel has no code for; it couples heads that lie within one of its blocks of channels."""
    if solver not in ("euler", "midpoint", "heun", "rk4", "semi_implicit", "exponential"):
        return f"solver={solver} chooses its own steps"
    if coupling == "heads" and (head_dim < 4 or 64 % head_dim):
        return f"coupling=heads of head_dim={head_dim} does not fit its blocks, as 4 to 64 channels of a power of 2 do"
    return "coupling=dense mixes all channels" if coupling == "dense" else None


def triton_refuses(solver: str, coupling: str, d_state: int, head_dim: int = 1) -> str | None:
    """What the CUDA kernel has no code for."""
    if coupling == "heads":
        return "coupling=heads mixes channels"
    return numba_refuses(solver, coupling, d_state, head_dim)


LIQUID_SCAN = Operation(
    "liquid_scan",
    reference,
    (
        Kernel("numba", "cpu", "arch.ltc.scan_numba:liquid_scan", refuses=numba_refuses),
        Kernel("triton", "cuda", "arch.ltc.scan_triton:liquid_scan", refuses=triton_refuses, needs=("triton",)),
    ),
)
