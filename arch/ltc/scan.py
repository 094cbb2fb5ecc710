"""The operation `liquid_scan`: a sequence of the liquid ODE, its reference in torch and the kernels that serve it.

Every implementation has the signature of `reference`.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from arch.field import Coupling, Field, Gate
from arch.gradients import Backprop
from arch.solvers import FIXED, FROZEN, Solver, make_solver, refused_by
from harness.ops.registry import Kernel, Operation
from harness.ops.samples import Draw, Sample, Samples


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
    return refused_by("numba", solver) or _way_refused(gradient, timed) or _heads_refused(coupling, head_dim)


def triton_refuses(
    solver: str,
    coupling: Coupling,
    d_state: int,
    head_dim: int = 1,
    gradient: str = "checkpoint",
    timed: bool = False,
) -> str | None:
    """What the CUDA kernel has no code for; as `numba_refuses`."""
    if coupling in ("heads", "dense"):
        return f"coupling={coupling} mixes channels, for which there is no Triton kernel"
    return refused_by("triton", solver) or _way_refused(gradient, timed)


def token_refuses(refuses: Callable[..., str | None]) -> Callable[..., str | None]:
    """What a kernel of the scan leaves to torch of single tokens, by which checks judge the scan."""

    def refused(gradient: str = "none", **facts) -> str | None:
        return refuses(**facts) if gradient == "none" else "a single token is differentiated by torch"

    return refused


def _way_refused(gradient: str, timed: bool) -> str | None:
    if gradient not in ("checkpoint", "none"):
        return f"gradient={gradient} is another way to differentiate than the kernel's, which is checkpoint"
    if timed:
        return "it gives no gradient by elapsed; pass elapsed.detach() or set kernel=auto"
    return None


def _heads_refused(coupling: Coupling, head_dim: int) -> str | None:
    if coupling == "heads" and (head_dim < 4 or 64 % head_dim):
        return f"coupling=heads of head_dim={head_dim} does not fit its blocks, as 4 to 64 channels of a power of 2 do"
    return None


Kind = tuple[str, Gate, Coupling | int]
"""What a sample varies: the solver, the gate and the coupling, of which a number is heads of that many channels."""


def sampled_field(draw: Draw, kind: Kind, sizes: tuple[int, int, int, int]) -> Field:
    """A field of batch, length, channels and states, 0 of them for one state without B and C.

    Its rates are within the region of stability of every solver.
    """
    (solver, gate, coupling), (batch, T, D, N) = kind, sizes
    # A gate without an upper bound takes an explicit rule out of it where numbers are large.
    normal = draw.normal if solver in FROZEN or gate == "sigmoid" else Draw(draw.dtype, device=draw.device).normal
    a, A = normal(batch, T, D), normal(batch, T, D)
    B, C = (normal(batch, T, N), normal(batch, T, N)) if N else (None, None)
    inv_tau, omega = draw.unit(D, N or 1) / 2, draw.unit(D, N or 1) / 2
    if coupling == "none":
        return Field(a, A, B, C, inv_tau, omega, None, gate)
    shape = {"diagonal": (D,), "dense": (D, D)}.get(coupling) or (D // coupling, coupling, coupling)
    return Field(a, A, B, C, inv_tau, omega, draw.weight(*shape), gate)


def sample(
    draw: Draw,
    batch=2,
    length=3,
    channels=5,
    states=3,
    substeps=2,
    kind: Kind = ("semi_implicit", "sigmoid", "diagonal"),
    timed=True,
) -> Sample:
    """One call from a state that an earlier one left. channels: rounded up to whole heads. timed: with elapsed times.

    kind, states: as `sampled_field` takes them.
    """
    solver, _, coupling = kind
    channels += -channels % coupling if isinstance(coupling, int) else 0
    field = sampled_field(draw, kind, (batch, length, channels, states))
    facts = {"solver": solver, "coupling": field.coupled, "d_state": states or 1}
    facts |= {"head_dim": coupling} if isinstance(coupling, int) else {}
    h0 = draw.weight(batch, channels, states or 1)
    elapsed = draw.unit(batch, length).detach() if timed else None
    return Sample((make_solver(solver, substeps), field, h0, elapsed), facts)


_FORMS: tuple[tuple[int, Gate, Coupling | int], ...] = (
    (0, "sigmoid", "none"),
    (0, "softplus", "diagonal"),
    (0, "sigmoid", 4),
    (2, "softplus", "none"),
    (2, "sigmoid", "diagonal"),
    (2, "softplus", 4),
    (0, "sigmoid", "dense"),
    (2, "softplus", "dense"),
)
"""States, gate and coupling, which every solver is tested with."""
_SHORT = {"batch": 1, "length": 2}
_VARIANTS = (
    {},
    {"states": 0, "kind": ("exponential", "softplus", "diagonal"), "timed": False},
    *({"states": n, "kind": (solver, *form), **_SHORT} for solver in FIXED for n, *form in _FORMS),
    {"states": 1, "timed": False},
    {"kind": ("semi_implicit", "softplus", "diagonal")},
)
_LARGE = {"length": 70, "channels": 130, "substeps": 1}
LIQUID_SCAN = Operation(
    "liquid_scan",
    reference,
    (
        Kernel("numba", "cpu", "arch.ltc.scan_numba:liquid_scan", refuses=numba_refuses),
        Kernel("triton", "cuda", "arch.ltc.scan_triton:liquid_scan", refuses=triton_refuses, needs=("triton",)),
    ),
    samples=Samples(
        sample,
        {
            "batch": (1, 3),
            "length": (1, 2, 5),
            "channels": (1, 4, 31, 33, 65, 129),
            "states": (0, 1, 2, 5, 17),
            "substeps": (1, 2, 3),
        },
        _VARIANTS,
        (
            *({"kind": (solver, "sigmoid", "diagonal"), "states": 0, **_LARGE} for solver in FIXED),
            {**_LARGE, "states": 16},
            {"kind": ("midpoint", "sigmoid", 32), **_LARGE},
            {"kind": ("exponential", "sigmoid", 64), "states": 0, **_LARGE},
            {"kind": ("semi_implicit", "sigmoid", "dense"), "states": 0, "batch": 5, **_LARGE},
            {"kind": ("rk4_38", "sigmoid", "dense"), "states": 3, "batch": 5, **_LARGE},
        ),
    ),
)


def token_sample(draw: Draw, length: int = 1, **keywords) -> Sample:
    """One token."""
    call = sample(draw, length=length, **keywords)
    return replace(call, options=call.options | {"gradient": "none"})


# Checks run single tokens in float64, and differentiate them: both stay with torch, and the rest is the scan's.
_SINGLE = (torch.float32,)
LIQUID_TOKEN = Operation(
    "liquid_token",
    reference,
    (
        Kernel("numba", "cpu", "arch.ltc.scan_numba:liquid_scan", _SINGLE, token_refuses(numba_refuses)),
        Kernel(
            "triton", "cuda", "arch.ltc.scan_triton:liquid_scan", _SINGLE, token_refuses(triton_refuses), ("triton",)
        ),
    ),
    optional=True,
    samples=Samples(token_sample, {"batch": (1, 3), "channels": (1, 65), "states": (0, 2)}, ({}, {"states": 0})),
)
