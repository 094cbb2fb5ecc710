"""Gradients: checkpoint equals float64 backprop, the adjoint approaches it as the steps grow short."""

import math
from functools import partial

import pytest
import torch

from arch.field import Field
from arch.gradients import Adjoint, Backprop, Checkpoint
from arch.solvers import FIXED, TABLEAUS, Adaptive, RungeKutta, make_solver
from harness.config.errors import ConfigError
from liquid_calls import EXPLICIT

B, T, D, N = 2, 5, 4, 2
SHAPES = {"none": None, "diagonal": (D,), "heads": (2, 2, 2), "dense": (D, D)}
NAMES = ("a", "A", "B", "C", "inv_tau", "omega", "coupling")
SOLVERS = {
    **{name: partial(make_solver, name) for name in FIXED},
    "dopri5": lambda n: Adaptive("dopri5", 1e-5 / n**2, 1e-7 / n**2),
    "adaptive_heun": lambda n: Adaptive("adaptive_heun", 1e-2 / n**2, 1e-3 / n**2),
}


def values_and_gradients(gradient, solver, coupling="diagonal", irregular=True):
    """y, the last h and the gradients of a random loss with respect to every input, float64."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shape = SHAPES[coupling]
    leaves = [randn(B, T, D), randn(B, T, D), randn(B, T, N), randn(B, T, N), *(0.3 * randn(2, D, N)).exp()]
    leaves += [] if shape is None else [randn(*shape)]
    leaves += [randn(B, D, N)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    tensors = dict(zip(NAMES, leaves[:-1], strict=False))
    # A derived tensor stands between the leaves and the field, as a mixer's projections do.
    field = Field(**{"coupling": None} | {name: 1.0 * tensor for name, tensor in tensors.items()}, gate="sigmoid")
    elapsed = 0.5 + torch.rand(B, T, generator=generator, dtype=torch.float64) if irregular else None
    y, h = gradient.scan(solver, field, leaves[-1], elapsed)
    loss = (y * randn(B, T, D)).sum() + (h * randn(B, D, N)).sum()
    return (y, h), torch.autograd.grad(loss, leaves)


def worst(ours, reference):
    """The largest difference relative to the largest gradient of each input."""
    return max(((x - y).abs().max() / y.abs().max()).item() for x, y in zip(ours, reference, strict=True))


CASES = [(name, "diagonal", window_tokens) for name in SOLVERS for window_tokens in (1, 2, 8)]
CASES += [(name, coupling, 2) for name in SOLVERS if name != "adaptive_heun" for coupling in ("none", "heads", "dense")]


@pytest.mark.parametrize(("name", "coupling", "window_tokens"), CASES)
def test_checkpoint_equals_backprop(name, coupling, window_tokens):
    solver = SOLVERS[name](2)
    values, gradients = values_and_gradients(Checkpoint(window_tokens=window_tokens), solver, coupling)
    expected_values, expected = values_and_gradients(Backprop(), solver, coupling)
    assert worst(values, expected_values) < 1e-12
    assert worst(gradients, expected) < 1e-10


@pytest.mark.parametrize("name", ["semi_implicit", "rk4"])
def test_backprop_is_the_derivative_of_the_numbers(name):
    solver = SOLVERS[name](2)
    a, A, h = torch.randn(3, 1, 3, 2, dtype=torch.float64)
    rates = torch.rand(2, 2, 1, dtype=torch.float64)
    w = torch.randn(2, dtype=torch.float64)

    def run(a, A, rates, w, h):
        field = Field(a, A, None, None, *rates, w, "softplus")
        return Backprop().scan(solver, field, h[:, 0, :, None])[0]

    inputs = [value.requires_grad_() for value in (a, A, rates, w, h)]
    assert torch.autograd.gradcheck(run, inputs)


# The least order at which the adjoint's gradient must approach backprop's, and its error at the finer of the two.
BOUNDS = {1: 0.5, 2: 0.05, 4: 1e-3}
ADJOINT = {n: (TABLEAUS[n].order - 0.2, BOUNDS[TABLEAUS[n].order]) for n in EXPLICIT if TABLEAUS[n].torchdiffeq}
ADJOINT |= {"dopri5": (1.0, 1e-5)}


@pytest.mark.parametrize("name", ADJOINT)
def test_the_adjoint_approaches_backprop_as_the_steps_grow_short(name):
    errors = []
    for count in (4, 8):  # twice the steps, or (dopri5) a quarter of the tolerance
        solver = SOLVERS[name](count)
        values, gradients = values_and_gradients(Adjoint(), solver)
        expected_values, expected = values_and_gradients(Backprop(), solver)
        errors.append(worst(gradients, expected))
        # The same rule forward, except rk4: torchdiffeq's is the 3/8 rule, equal only to the order of the method.
        assert worst(values, expected_values) < (1e-3 if name == "rk4" else 1e-12)
    order, bound = ADJOINT[name]
    assert math.log2(errors[0] / errors[1]) > order
    assert errors[1] < bound


@pytest.mark.parametrize("coupling", SHAPES)
def test_the_adjoint_reaches_every_input_under_every_coupling(coupling):
    """Gradients of a, A, B, C, 1/tau, omega, W and the carried-in h, with the elapsed time even and uneven."""
    solver = RungeKutta("rk4", 8)
    for irregular in (False, True):
        _, gradients = values_and_gradients(Adjoint(), solver, coupling, irregular)
        _, expected = values_and_gradients(Backprop(), solver, coupling, irregular)
        assert len(gradients) == 7 if coupling == "none" else 8
        assert worst(gradients, expected) < 1e-3


def test_the_adjoint_of_adaptive_heun_is_within_its_tolerance():
    _, gradients = values_and_gradients(Adjoint(), SOLVERS["adaptive_heun"](2))
    _, expected = values_and_gradients(Backprop(), Adaptive("dopri5", 1e-9, 1e-11))
    assert worst(gradients, expected) < 1e-2


LACKING = [make_solver(name) for name in FIXED if make_solver(name).torchdiffeq_method is None]


@pytest.mark.parametrize("solver", LACKING, ids=lambda solver: solver.name)
def test_the_adjoint_refuses_a_solver_that_torchdiffeq_lacks(solver):
    with pytest.raises(ConfigError, match=f"solver={solver.name}.*Remedy: set gradient=checkpoint"):
        Adjoint().check(solver)


def test_checkpoint_keeps_less_than_backprop():
    """What autograd saves for the backward pass, in bytes: less by the substeps and stages within a window."""
    saved = {}
    for gradient in (Backprop(), Checkpoint(window_tokens=1), Checkpoint(window_tokens=T)):
        tensors = {}

        def pack(tensor, kept=tensors):
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        h = torch.zeros(B, D, 1, requires_grad=True)
        inputs = torch.randn(2, B, T, D, requires_grad=True)
        field = Field(*inputs, None, None, torch.ones(D, 1), torch.ones(D, 1), torch.ones(D), "sigmoid")
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y, _ = gradient.scan(RungeKutta("rk4", 4), field, h)
        y.sum().backward()
        saved[gradient] = sum(tensors.values())
    backprop, each, whole = saved.values()
    assert each < backprop / 10
    assert whole < each
