"""The operation `liquid_scan`: a sequence of the liquid ODE, its reference in torch and the kernels that serve it.

Every implementation has the signature of `reference`.
"""

from torch import Tensor

from arch.field import Coupling, Field
from arch.gradients import Backprop
from arch.solvers import FIXED, Solver
from harness.ops.registry import Kernel, Operation


def reference(solver: Solver, field: Field, h0: Tensor, elapsed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Integrates a sequence's field (arch/field.py) from h0, each token over its elapsed time, in the solver's steps.

    The gate sees y_d = sum_n C_n h_dn with the token's own C. field (batch, T, ...), without B and C only for N = 1;
    h0 (batch, D, N); elapsed (batch, T), or None for 1. Returns y (batch, T, D) and the last h (batch, D, N).
    """
    return Backprop().scan(solver, field, h0, elapsed)


def check(solver: Solver, field: Field, h0: Tensor, elapsed: Tensor | None, refuses) -> None:
    """Raises ValueError for a call that a kernel refuses, or whose shapes do not fit together."""
    if (field.B is None) != (field.C is None) or (field.B is None and h0.shape[-1] != 1):
        raise ValueError("liquid_scan needs both B and C, or neither and one state per channel.")
    field.check("liquid_scan", h0, elapsed)
    head_dim = field.coupling.shape[-1] if field.coupled == "heads" else 1
    timed = elapsed is not None and elapsed.requires_grad
    reason = refuses(solver.name, field.coupled, h0.shape[-1], head_dim, timed=timed)
    if reason is not None:
        raise ValueError(f"liquid_scan cannot serve this call: {reason}.")


def numba_refuses(
    solver: str,
    coupling: Coupling,
    d_state: int,
    head_dim: int = 1,
    gradient: str = "checkpoint",
    timed: bool = False,
) -> str | None:
    """What the CPU kernel has no code for; it couples heads that lie within one of its blocks of channels.

    gradient: how the call is differentiated, or "none". timed: whether the elapsed time is differentiated.
    """
    if solver not in FIXED:
        return f"solver={solver} is none of the solvers of fixed steps, {', '.join(FIXED)}"
    if gradient not in ("checkpoint", "none"):
        return f"gradient={gradient} is another way to differentiate than the kernel's, which is checkpoint"
    if timed:
        return "it gives no gradient by elapsed; pass elapsed.detach() or set kernel=auto"
    if coupling == "heads" and (head_dim < 4 or 64 % head_dim):
        return f"coupling=heads of head_dim={head_dim} does not fit its blocks, as 4 to 64 channels of a power of 2 do"
    return "coupling=dense mixes all channels" if coupling == "dense" else None


def triton_refuses(solver: str, coupling: Coupling, d_state: int, head_dim: int = 1, **call) -> str | None:
    """What the CUDA kernel has no code for."""
    if coupling == "heads":
        return "coupling=heads mixes channels"
    return numba_refuses(solver, coupling, d_state, head_dim, **call)


LIQUID_SCAN = Operation(
    "liquid_scan",
    reference,
    (
        Kernel("numba", "cpu", "arch.ltc.scan_numba:liquid_scan", refuses=numba_refuses),
        Kernel("triton", "cuda", "arch.ltc.scan_triton:liquid_scan", refuses=triton_refuses, needs=("triton",)),
    ),
)
