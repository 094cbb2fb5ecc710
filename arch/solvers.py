"""Solvers: each carries h across the horizon of one token, `elapsed`, in `substeps` equal steps.

The horizon belongs to the token and the number of steps to the solver, so that two solvers differ in nothing but how
well they solve the same problem. A solver sees a field through `split(h) -> (rate, drive)` and `derivative(h)` =
drive - rate * h; the field does not change while the token lasts.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import FunctionType
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torchdiffeq import odeint

from arch.field import Field
from harness.config.ranges import Steps, Tolerance


class Tableau(NamedTuple):
    """An explicit Runge-Kutta rule: stage i starts from h + dt sum_j a_ij k_j, the step ends at h + dt sum_j b_j k_j.

    a: the strictly lower triangle, row i of length i. torchdiffeq: the same rule there, for the adjoint; None where it
    has none. The times c are not needed: a token's inputs do not change while it lasts.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    torchdiffeq: str | None = None


TABLEAUS = {
    "euler": Tableau(((),), (1.0,), 1, "euler"),
    "midpoint": Tableau(((), (0.5,)), (0.0, 1.0), 2, "midpoint"),
    "heun": Tableau(((), (1.0,)), (0.5, 0.5), 2, "heun2"),
    "ralston": Tableau(((), (2 / 3,)), (1 / 4, 3 / 4), 2),
    # torchdiffeq's "rk4" is Kutta's 3/8 rule, this one the classic rule: the same order and stages, not the same bits.
    "rk4": Tableau(((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4, "rk4"),
    "rk4_38": Tableau(((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8), 4, "rk4"),
}
"""Every explicit rule, by name; each also has a file in conf/solver. Torch and all kernels compute from these."""


# What a step computes, written once for torch, numba and Triton: functions of scalars, or of tensors by element, and
# their partial derivatives. The names exp, phi1, phi1_grad and one are torch's here; `bind` gives the same text
# those of numba (arch/solvers_numba.py) or of Triton (arch/solvers_triton.py).


def exp(x: Tensor) -> Tensor:
    """e^x."""
    return torch.exp(x)


def phi1(z: Tensor) -> Tensor:
    """(1 - exp(-z)) / z for z >= 0, accurate with its gradient down to z = 0, where it is 1.

    Below 0.1 a Taylor series of nine terms (error below 1e-16), since the quotient's derivative cancels there.
    """
    small = z < 0.1
    series = torch.ones_like(z)
    for k in range(9, 1, -1):  # Horner: 1 - z/2 (1 - z/3 (1 - ... z/9))
        series = 1 - z / k * series
    safe = torch.where(small, 1.0, z)  # the branch not taken must not put a nan into the gradient
    return torch.where(small, series, -torch.expm1(-safe) / safe)


def phi1_grad(z: Tensor) -> Tensor:
    """d phi1 / dz."""
    return torch.func.jvp(phi1, (z,), (torch.ones_like(z),))[1]


def one(x) -> float:
    """1 in the type of x, which a literal has in torch."""
    return 1.0


def slope(h, rate, drive):
    """dh/dt, which the explicit rules evaluate."""
    return drive - rate * h


def slope_vjp(h, rate, g):
    """The cotangents of h, rate and drive for that of `slope`, g; with g = 1 the partial derivatives."""
    return -rate * g, -h * g, g


def semi_implicit(h, rate, drive, dt):
    """The fused step of Hasani et al. (2021, alg. 1), the decay taken at the step's end: h' and 1 / (1 + dt rate)."""
    inverse = one(dt) / (one(dt) + dt * rate)
    return (h + dt * drive) * inverse, inverse


def semi_implicit_vjp(end, inverse, dt, g):
    """Those for h' = end, which `semi_implicit` returned with the inverse: of a slope at h', scaled."""
    by_h = inverse * g
    by_drive = dt * by_h
    return by_h, -end * by_drive, by_drive


def exponential(h, rate, drive, dt):
    """Exact where rate and drive are constant: h' = h e^-z + dt drive phi1(z), z = dt rate; and e^-z, phi1(z)."""
    z = dt * rate
    decay, mean = exp(-z), phi1(z)
    return h * decay + dt * drive * mean, decay, mean


def exponential_vjp(h, rate, drive, dt, decay, mean, g):
    """Those for h', decay and mean being what `exponential` returned."""
    return decay * g, dt * (dt * drive * phi1_grad(dt * rate) - h * decay) * g, dt * mean * g


def reflected(h, rate, drive, dt):
    """As far again as `exponential` goes in half the time: h' = h + 2 (h(dt/2) - h); and e^-z/2, phi1(z/2)."""
    middle, decay, mean = exponential(h, rate, drive, dt / (one(dt) + one(dt)))
    return middle + middle - h, decay, mean


def reflected_vjp(h, rate, drive, dt, decay, mean, g):
    """Those for h', decay and mean being what `reflected` returned."""
    by_h, by_rate, by_drive = exponential_vjp(h, rate, drive, dt / (one(dt) + one(dt)), decay, mean, g + g)
    return by_h - g, by_rate, by_drive


FROZEN = ("semi_implicit", "exponential", "reflected")
"""The solvers that freeze the gate over a step, one of the maps above a step."""
FIXED = (*TABLEAUS, *FROZEN)
"""The solvers of fixed steps."""


def unserved(solver: str, maps: Collection[str]) -> str | None:
    """Why kernels cannot serve a solver, or None where they can.

    maps: the solvers of a frozen gate whose maps they compiled; the rules of TABLEAUS reach them as numbers.
    """
    known = (*TABLEAUS, *maps)
    return None if solver in known else f"solver={solver} is none of those it computes, {', '.join(known)}"


def refused_by(compiler: Literal["numba", "triton"], solver: str) -> str | None:
    """The same of the kernels of one compiler, whose module is loaded once it is asked: what it compiled, it says."""
    return import_module(f"arch.solvers_{compiler}").refuses(solver)


def bind(function: Callable, vocabulary: Mapping[str, Any]) -> Callable:
    """The same text with the names of another module, for a compiler."""
    bound = FunctionType(function.__code__, dict(vocabulary), function.__name__)
    bound.__doc__, bound.__module__, bound.__qualname__ = function.__doc__, function.__module__, function.__qualname__
    return bound


MAX_ADAPTIVE_STEPS = 10_000


class Solver:
    """order: the global error is O(dt^order). evals_per_step: evaluations of the field. adaptive: chooses its steps."""

    name: str
    substeps: int
    order: int
    evals_per_step: int
    adaptive: ClassVar[bool] = False
    torchdiffeq_method: str | None = None
    """The method of torchdiffeq that solves the adjoint equation of this solver; None where there is none."""

    def step(self, field: Field, h: Tensor, dt: Tensor | float) -> Tensor:
        """One step of `dt`, a number or (B, 1, 1): h (B, D, N) -> (B, D, N)."""
        raise NotImplementedError

    def integrate(self, field: Field, h: Tensor, elapsed: Tensor | None = None) -> Tensor:
        """Carries h (B, D, N) across the horizon `elapsed`, (B,) or None for 1."""
        dt = 1 / self.substeps if elapsed is None else (elapsed / self.substeps)[:, None, None]
        for _ in range(self.substeps):
            h = self.step(field, h, dt)
        return h

    def torchdiffeq_options(self, h: Tensor) -> dict:
        """Keyword arguments that make torchdiffeq take this solver's steps over the normalised time 0..1."""
        return {"method": self.torchdiffeq_method, "options": {"grid_constructor": self._grid}}

    def _grid(self, function: Callable, y0: Tensor, t: Tensor) -> Tensor:
        return torch.linspace(t[0].item(), t[-1].item(), self.substeps + 1, dtype=t.dtype, device=t.device)


def normalised(field: Field, elapsed: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
    """The field over the normalised time s = t / elapsed in 0..1, as torchdiffeq calls it: (s, h) -> dh/ds."""
    if elapsed is None:
        return lambda s, h: field.derivative(h)
    scale = elapsed[:, None, None]
    return lambda s, h: scale * field.derivative(h)


@dataclass(frozen=True)
class RungeKutta(Solver):
    """An explicit Runge-Kutta rule of TABLEAUS (Hairer, Norsett, Wanner, "Solving ODEs I", II.1)."""

    name: Literal[tuple(TABLEAUS)]
    substeps: Steps = 1

    @property
    def order(self) -> int:
        return TABLEAUS[self.name].order

    @property
    def evals_per_step(self) -> int:
        return len(TABLEAUS[self.name].b)

    @property
    def torchdiffeq_method(self) -> str | None:
        return TABLEAUS[self.name].torchdiffeq

    def step(self, field: Field, h: Tensor, dt: Tensor | float) -> Tensor:
        tableau = TABLEAUS[self.name]
        slopes: list[Tensor] = []
        for row in tableau.a:
            slopes.append(field.derivative(_advance(h, dt, row, slopes)))
        return _advance(h, dt, tableau.b, slopes)


def _advance(h: Tensor, dt: Tensor | float, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    terms = [weight * slope for weight, slope in zip(weights, slopes, strict=True) if weight]
    return h + dt * sum(terms[1:], terms[0]) if terms else h


@dataclass(frozen=True)
class SemiImplicit(Solver):
    """The fused step of Hasani et al. (2021, alg. 1): (h + dt drive) / (1 + dt rate), stable at any dt; order 1."""

    substeps: Steps = 6
    name: Literal["semi_implicit"] = "semi_implicit"
    order: ClassVar[int] = 1
    evals_per_step: ClassVar[int] = 1

    def step(self, field: Field, h: Tensor, dt: Tensor | float) -> Tensor:
        return semi_implicit(h, *field.split(h), dt)[0]


@dataclass(frozen=True)
class Exponential(Solver):
    """h_inf + (h - h_inf) exp(-dt rate), h_inf = drive / rate: exact where f is frozen, of order 1 where it is not.

    The exponential Euler step (Hochbruck & Ostermann, "Exponential integrators", Acta Numerica 2010) of the equation
    with rate and drive frozen at h; written with phi1 it needs no division by a rate that may be 0.
    """

    substeps: Steps = 1
    name: Literal["exponential"] = "exponential"
    order: ClassVar[int] = 1
    evals_per_step: ClassVar[int] = 1

    def step(self, field: Field, h: Tensor, dt: Tensor | float) -> Tensor:
        return exponential(h, *field.split(h), dt)[0]


@dataclass(frozen=True)
class Reflected(Solver):
    """h through where its exact flow is in the middle of the step: h_inf + (h - h_inf) (2 exp(-dt rate / 2) - 1).

    Of order 1. The multiplier lies between -1 and 1 whatever dt and rate, and is negative where dt rate > 2 ln 2: the
    sign that no flow of a scalar equation changes (docs/mathematics.md).
    """

    substeps: Steps = 1
    name: Literal["reflected"] = "reflected"
    order: ClassVar[int] = 1
    evals_per_step: ClassVar[int] = 1

    def step(self, field: Field, h: Tensor, dt: Tensor | float) -> Tensor:
        return reflected(h, *field.split(h), dt)[0]


@dataclass(frozen=True)
class Adaptive(Solver):
    """torchdiffeq's step-size control: dopri5 (Dormand & Prince 1980) or the Heun-Euler pair, from one step a token.

    The error norm is over the whole tensor, so the rows of a batch share their steps: a row's value moves within the
    tolerances with its company. evals_per_step counts one accepted step from a fresh token, the least there can be.
    """

    name: Literal["dopri5", "adaptive_heun"]
    rtol: Tolerance = 1e-4
    atol: Tolerance = 1e-6
    substeps: ClassVar[int] = 1
    adaptive: ClassVar[bool] = True

    @property
    def order(self) -> int:
        return {"dopri5": 5, "adaptive_heun": 2}[self.name]

    @property
    def evals_per_step(self) -> int:
        return {"dopri5": 7, "adaptive_heun": 2}[self.name]

    @property
    def torchdiffeq_method(self) -> str:
        return self.name

    def integrate(self, field: Field, h: Tensor, elapsed: Tensor | None = None) -> Tensor:
        """As Solver.integrate; not-a-number where no step size meets the tolerance, so that a run ends as diverged."""
        ends = torch.tensor([0.0, 1.0], dtype=h.dtype, device=h.device)
        try:
            states = odeint(normalised(field, elapsed), h, ends, **self.torchdiffeq_options(h))
            return states[-1].clone()  # a view would keep the first
        except AssertionError:  # what torchdiffeq raises for a vanished step size and for too many steps
            return h * torch.nan

    def torchdiffeq_options(self, h: Tensor) -> dict:
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64, device=h.device)
        # A step must end where the token ends (forward and, for the adjoint, backward): else it is interpolated.
        options = {"first_step": 1.0, "step_t": ends, "max_num_steps": MAX_ADAPTIVE_STEPS}
        return {"method": self.name, "rtol": self.rtol, "atol": self.atol, "options": options}


def make_solver(name: str, substeps: int = 1) -> Solver:
    """The solver of FIXED of that name."""
    frozen = {"semi_implicit": SemiImplicit, "exponential": Exponential, "reflected": Reflected}
    return frozen[name](substeps=substeps) if name in frozen else RungeKutta(name, substeps=substeps)
