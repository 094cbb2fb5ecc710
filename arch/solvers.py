"""Solvers: each carries h across the horizon of one token, `elapsed`, in `substeps` equal steps.

The horizon belongs to the token and the number of steps to the solver, so that two solvers differ in nothing but how
well they solve the same problem. A solver sees a field through `split(h) -> (rate, drive)` and `derivative(h)` =
drive - rate * h; the field does not change while the token lasts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from torchdiffeq import odeint

from arch.field import Field

# Butcher tableaus as (lower triangle of stage weights, weights of the result, order, the same rule in torchdiffeq).
TABLEAUS = {
    "euler": (((),), (1.0,), 1, "euler"),
    "midpoint": (((), (0.5,)), (0.0, 1.0), 2, "midpoint"),
    "heun": (((), (1.0,)), (0.5, 0.5), 2, "heun2"),
    # torchdiffeq's "rk4" is Kutta's 3/8 rule, this one the classic rule: the same order and stages, not the same bits.
    "rk4": (((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4, "rk4"),
}
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
    """An explicit Runge-Kutta rule (Hairer, Norsett, Wanner, "Solving ODEs I", II.1): one integrator, four tableaus."""

    name: Literal["euler", "midpoint", "heun", "rk4"]
    substeps: PositiveInt = 1

    @property
    def order(self) -> int:
        return TABLEAUS[self.name][2]

    @property
    def evals_per_step(self) -> int:
        return len(TABLEAUS[self.name][0])

    @property
    def torchdiffeq_method(self) -> str:
        return TABLEAUS[self.name][3]

    def step(self, field: Field, h: Tensor, dt: Tensor | float) -> Tensor:
        stages, weights, _, _ = TABLEAUS[self.name]
        slopes: list[Tensor] = []
        for row in stages:
            slopes.append(field.derivative(_advance(h, dt, row, slopes)))
        return _advance(h, dt, weights, slopes)


def _advance(h: Tensor, dt: Tensor | float, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    terms = [weight * slope for weight, slope in zip(weights, slopes, strict=True) if weight]
    return h + dt * sum(terms[1:], terms[0]) if terms else h


@dataclass(frozen=True)
class SemiImplicit(Solver):
    """The fused step of Hasani et al. (2021, alg. 1): (h + dt drive) / (1 + dt rate), stable at any dt; order 1."""

    name: Literal["semi_implicit"] = "semi_implicit"
    substeps: PositiveInt = 6
    order: ClassVar[int] = 1
    evals_per_step: ClassVar[int] = 1

    def step(self, field: Field, h: Tensor, dt: Tensor | float) -> Tensor:
        rate, drive = field.split(h)
        return (h + dt * drive) / (1 + dt * rate)


@dataclass(frozen=True)
class Exponential(Solver):
    """h_inf + (h - h_inf) exp(-dt rate), h_inf = drive / rate: exact where f is frozen, of order 1 where it is not.

    The exponential Euler step (Hochbruck & Ostermann, "Exponential integrators", Acta Numerica 2010) of the equation
    with rate and drive frozen at h; written with phi1 it needs no division by a rate that may be 0.
    """

    name: Literal["exponential"] = "exponential"
    substeps: PositiveInt = 1
    order: ClassVar[int] = 1
    evals_per_step: ClassVar[int] = 1

    def step(self, field: Field, h: Tensor, dt: Tensor | float) -> Tensor:
        rate, drive = field.split(h)
        z = dt * rate
        return h * torch.exp(-z) + dt * drive * phi1(z)


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


@dataclass(frozen=True)
class Adaptive(Solver):
    """torchdiffeq's step-size control: dopri5 (Dormand & Prince 1980) or the Heun-Euler pair, from one step a token.

    The error norm is over the whole tensor, so the rows of a batch share their steps: a row's value moves within the
    tolerances with its company. evals_per_step counts one accepted step from a fresh token, the least there can be.
    """

    name: Literal["dopri5", "adaptive_heun"]
    rtol: PositiveFloat = 1e-4
    atol: PositiveFloat = 1e-6
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
            return odeint(normalised(field, elapsed), h, ends, **self.torchdiffeq_options(h))[-1]
        except AssertionError:  # torchdiffeq's word for a step size that vanished and for too many steps
            return h * torch.nan

    def torchdiffeq_options(self, h: Tensor) -> dict:
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64, device=h.device)
        # A step must end where the token ends (forward and, for the adjoint, backward): else it is interpolated.
        options = {"first_step": 1.0, "step_t": ends, "max_num_steps": MAX_ADAPTIVE_STEPS}
        return {"method": self.name, "rtol": self.rtol, "atol": self.atol, "options": options}
