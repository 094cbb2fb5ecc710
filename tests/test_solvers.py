"""Solvers: the order of convergence by its slope, exactness where it is claimed, and one horizon for all."""

from dataclasses import FrozenInstanceError, dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from torchdiffeq import odeint

from arch.field import Field
from arch.solvers import (
    TABLEAUS,
    Adaptive,
    Exponential,
    Reflected,
    RungeKutta,
    SemiImplicit,
    exponential,
    exponential_vjp,
    make_solver,
    phi1,
    reflected,
    reflected_vjp,
    semi_implicit,
    semi_implicit_vjp,
)
from liquid_calls import CONFIGURED, EXPLICIT, SOLVERS

B, D = 3, 8
ADAPTIVE = ["dopri5", "adaptive_heun"]
ORDERS = {name: make_solver(name).order for name in SOLVERS}
TOLERANCES = (1e-3, 1e-5)
EXACT = RungeKutta("rk4", substeps=400)


def test_the_rules_are_those_of_the_textbooks():
    """Hairer, Norsett and Wanner, "Solving ODEs I", II.1."""
    rows = [(), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)]
    assert TABLEAUS["euler"][:3] == (((),), (1,), 1)
    assert TABLEAUS["midpoint"][:3] == (((), (0.5,)), (0, 1), 2)
    assert TABLEAUS["heun"][:3] == (((), (1.0,)), (0.5, 0.5), 2)
    assert TABLEAUS["rk4"][:3] == (tuple(rows), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4)


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (lambda: RungeKutta("rk4", 2), RungeKutta("rk4", 3)),
        (lambda: SemiImplicit(2), SemiImplicit(3)),
        (lambda: Exponential(2), Exponential(3)),
        (lambda: Reflected(2), Reflected(3)),
        (lambda: Adaptive("dopri5", 1e-3), Adaptive("dopri5", 1e-4)),
    ],
    ids=["RungeKutta", "SemiImplicit", "Exponential", "Reflected", "Adaptive"],
)
def test_a_solver_is_a_value_that_cannot_change(make, other):
    solver = make()
    assert {solver, make(), other} == {solver, other}
    with pytest.raises(FrozenInstanceError):
        solver.name = "euler"


def test_every_solver_has_its_file_of_configuration():
    assert set(CONFIGURED) == {*SOLVERS, *ADAPTIVE}


@pytest.mark.parametrize("name", EXPLICIT)
def test_a_rules_order_is_that_of_its_conditions(name):
    """The trees of Butcher up to order 4, of an equation that does not depend on time; and no more where b allows."""
    stages = len(TABLEAUS[name].b)
    A, b = np.zeros((stages, stages)), np.array(TABLEAUS[name].b)
    for i, row in enumerate(TABLEAUS[name].a):
        assert len(row) == i
        A[i, :i] = row
    c = A.sum(1)
    conditions = {1: [(b.sum(), 1)], 2: [(b @ c, 1 / 2)], 3: [(b @ c**2, 1 / 3), (b @ A @ c, 1 / 6)]}
    conditions[4] = [(b @ c**3, 1 / 4), (b @ (c * (A @ c)), 1 / 8), (b @ A @ c**2, 1 / 12), (b @ A @ A @ c, 1 / 24)]
    holds = [np.allclose(*zip(*conditions[order], strict=True)) for order in conditions]
    assert [*holds, False].index(False) == TABLEAUS[name].order


@pytest.mark.parametrize("name", [name for name in EXPLICIT if TABLEAUS[name].torchdiffeq and name != "rk4"])
def test_a_rule_is_torchdiffeqs_own(name):
    field, h = liquid(coupled=True)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    expected = odeint(lambda _, x: field.derivative(x), h, ends, method=TABLEAUS[name].torchdiffeq)[-1]
    torch.testing.assert_close(make_solver(name).integrate(field, h), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("step", "vjp"),
    [(semi_implicit, semi_implicit_vjp), (exponential, exponential_vjp), (reflected, reflected_vjp)],
    ids=["semi_implicit", "exponential", "reflected"],
)
def test_the_cotangents_are_those_of_the_map(step, vjp):
    h, rate, drive = torch.rand(3, 50, dtype=torch.float64) + 0.01
    values = step(h, rate, drive, 0.7)
    given = (values[0], values[1], 0.7) if step is semi_implicit else (h, rate, drive, 0.7, *values[1:])
    leaves = [x.requires_grad_() for x in (h.clone(), rate.clone(), drive.clone())]
    g = torch.randn(50, dtype=torch.float64)
    expected = torch.autograd.grad(step(*leaves, 0.7)[0], leaves, g)
    for got, want in zip(vjp(*given, g), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


def liquid(coupled, seed=0):
    """A liquid field of large gates, and a state: float64."""
    generator = torch.Generator().manual_seed(seed)
    a, A, w, h = (2 * torch.randn(*s, generator=generator, dtype=torch.float64) for s in [(B, D), (B, D), (D,), (B, D)])
    inv_tau = torch.rand(D, 1, generator=generator, dtype=torch.float64)
    field = Field(a, A, None, None, inv_tau, torch.ones_like(inv_tau), w if coupled else None, "sigmoid")
    return field, h.unsqueeze(-1)


@dataclass
class Logistic:
    """dh/dt = r h (1 - h), whose solution is known: h0 e^rt / (1 + h0 (e^rt - 1))."""

    r: Tensor

    def split(self, h):
        return self.r * h, self.r * h

    def derivative(self, h):
        return self.r * h * (1 - h)

    def solution(self, h, elapsed):
        growth = torch.exp(self.r * elapsed[:, None, None])
        return h * growth / (1 + h * (growth - 1))


def logistic():
    generator = torch.Generator().manual_seed(1)
    r, h = torch.rand(2, B, D, 1, generator=generator, dtype=torch.float64)
    return Logistic(0.5 + r), 0.1 + 0.8 * h


def fitted_order(name, field, h, elapsed, exact):
    """The slope of log error against log dt."""
    counts = torch.tensor([16.0, 32.0, 64.0, 128.0] if ORDERS[name] == 1 else [8.0, 16.0, 32.0, 64.0])
    solved = [make_solver(name, int(count)).integrate(field, h, elapsed) for count in counts]
    log_error = torch.stack([(h1 - exact).norm() for h1 in solved]).log()
    log_dt = -counts.log().to(log_error)
    spread = log_dt - log_dt.mean()
    return ((spread * log_error).sum() / spread.square().sum()).item()


@pytest.mark.parametrize("name", SOLVERS)
def test_order_on_the_liquid_equation(name):
    field, h = liquid(coupled=True)
    elapsed = torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)
    slope = fitted_order(name, field, h, elapsed, EXACT.integrate(field, h, elapsed))
    assert slope == pytest.approx(make_solver(name).order, abs=0.15)


@pytest.mark.parametrize("name", SOLVERS)
def test_order_on_a_problem_with_a_known_solution(name):
    field, h = logistic()
    elapsed = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    slope = fitted_order(name, field, h, elapsed, field.solution(h, elapsed))
    assert slope == pytest.approx(ORDERS[name], abs=0.15)


@pytest.mark.parametrize("substeps", [1, 5])
def test_exponential_is_exact_where_the_gate_ignores_the_state(substeps):
    field, h = liquid(coupled=False)
    rate, drive = field.split(h)
    for elapsed in (0.01, 1.0, 30.0):
        exact = drive / rate + (h - drive / rate) * torch.exp(-elapsed * rate)
        solved = Exponential(substeps=substeps).integrate(field, h, torch.full((B,), elapsed, dtype=torch.float64))
        torch.testing.assert_close(solved, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("elapsed", [0.0, 0.3, 1.0, 2.0, 1e6])
def test_reflected_leaves_h_as_far_from_equilibrium_as_before_at_most(elapsed):
    """By 2 exp(-z/2) - 1, negative where z > 2 ln 2, whatever the elapsed time."""
    field, h = liquid(coupled=False)
    rate, drive = field.split(h)
    end = Reflected().integrate(field, h, torch.full((B,), elapsed, dtype=torch.float64))
    multiplier = 2 * torch.exp(-elapsed * rate / 2) - 1
    torch.testing.assert_close(end - drive / rate, multiplier * (h - drive / rate), rtol=1e-12, atol=1e-12)
    assert (multiplier.abs() <= 1).all()
    assert (multiplier < 0).any() == (elapsed > 0.3)


def test_phi1_and_its_gradient_down_to_zero():
    z = torch.tensor([0.0, 1e-300, 1e-9, 1e-3, 0.0999999, 0.1, 0.5, 3.0, 30.0], dtype=torch.float64)
    z.requires_grad_()
    value = phi1(z)
    (slope,) = torch.autograd.grad(value.sum(), z)
    x = z.detach()
    assert torch.isfinite(slope).all()
    # Quadrature of phi1(z) = int_0^1 e^(-z s) ds and phi1'(z) = -int_0^1 s e^(-z s) ds: no cancellation anywhere.
    nodes, weights = gauss_legendre(200)
    kernel = torch.exp(-x[:, None] * nodes)
    torch.testing.assert_close(value.detach(), kernel @ weights, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(slope, -(kernel * nodes) @ weights, rtol=1e-11, atol=1e-14)


def gauss_legendre(count):
    """Nodes and weights on 0..1."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_solvers_meet_their_tolerance_and_tightening_it_helps(name):
    field, h = liquid(coupled=True)
    elapsed = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    exact = EXACT.integrate(field, h, elapsed)
    errors = [(Adaptive(name, rtol, rtol / 10).integrate(field, h, elapsed) - exact).abs().max() for rtol in TOLERANCES]
    assert all(error < 10 * rtol for error, rtol in zip(errors, TOLERANCES, strict=True))
    assert errors[-1] < errors[0] / 10


@pytest.mark.parametrize("name", [*SOLVERS, *ADAPTIVE])
def test_all_solvers_cross_the_same_horizon(name):
    """As the steps grow short every solver ends at the same point, whatever the elapsed time (0 included)."""
    field, h = liquid(coupled=True)
    for elapsed in (None, torch.tensor([0.0, 0.7, 2.5], dtype=torch.float64)):
        solver = Adaptive(name, 1e-4, 1e-5) if name in ADAPTIVE else make_solver(name, 400 // ORDERS[name] ** 2)
        solved = solver.integrate(field, h, elapsed)
        torch.testing.assert_close(solved, EXACT.integrate(field, h, elapsed), rtol=0, atol=2e-2)
    torch.testing.assert_close(solved[0], h[0], rtol=0, atol=1e-15)


def test_twice_the_elapsed_time_is_two_unit_steps():
    field, h = liquid(coupled=False)
    twice = Exponential().integrate(field, h, torch.full((B,), 2.0, dtype=torch.float64))
    again = Exponential().integrate(field, Exponential().integrate(field, h))
    torch.testing.assert_close(twice, again, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", SOLVERS)
def test_evals_per_step_is_what_a_step_evaluates(name):
    field, h = logistic()
    calls = []
    field.split, split = lambda x: calls.append(1) or split(x), field.split
    field.derivative, derivative = lambda x: calls.append(1) or derivative(x), field.derivative
    make_solver(name, 3).integrate(field, h)
    assert len(calls) == 3 * make_solver(name).evals_per_step


def test_semi_implicit_is_stable_at_any_step_where_euler_is_not():
    field, h = liquid(coupled=True)
    far = torch.full((B,), 1000.0, dtype=torch.float64)
    bound = torch.maximum(h.abs(), field.A.abs().unsqueeze(-1))
    assert (SemiImplicit(substeps=1).integrate(field, h, far).abs() <= bound).all()
    assert (Exponential().integrate(field, h, far).abs() <= bound).all()
    assert (RungeKutta("euler").integrate(field, h, far).abs() > bound).any()


def test_an_exact_flow_keeps_the_order_of_two_states_and_a_coarse_one_need_not():
    """The flow of a one-dimensional equation is monotone: two states never cross, so none can flip its sign for both.

    That is why a diagonal cell with an exact flow cannot follow parity; a solver whose step overshoots can.
    """
    field, low = liquid(coupled=True)
    high = low + 0.01 + torch.rand(B, D, 1, dtype=torch.float64)
    exact = Adaptive("dopri5", 1e-9, 1e-11)
    far = torch.full((B,), 3.0, dtype=torch.float64)
    for elapsed in (None, far):
        assert (exact.integrate(field, high, elapsed) > exact.integrate(field, low, elapsed)).all()
    euler = RungeKutta("euler")
    assert (euler.integrate(field, high, far) < euler.integrate(field, low, far)).any()


def test_a_state_that_no_step_size_can_follow_is_not_a_number():
    field, h = liquid(coupled=True)
    assert Adaptive("dopri5").integrate(field, h * torch.inf).isnan().all()
