"""The vector field: each equation written out by loops, and the S6 identity's ingredients."""

import math

import pytest
import torch

from arch.field import GATES, Field, couple

B, D, N = 2, 6, 3


def make_field(d_state=N, coupling=None, gate="sigmoid", time=None):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    lead = (B,) if time is None else (B, time)
    projected = (randn(*lead, d_state), randn(*lead, d_state)) if d_state > 1 else (None, None)
    rates = (randn(D, d_state).exp(), randn(D, d_state).exp())
    weight = None if coupling is None else randn(*coupling)
    field = Field(randn(*lead, D), randn(*lead, D), *projected, *rates, weight, gate)
    return field, randn(B, D, d_state)


def weight_matrix(weight):
    """Any coupling weight as the (D, D) matrix it means."""
    if weight.dim() == 1:
        return torch.diag(weight)
    return torch.block_diag(*weight) if weight.dim() == 3 else weight


@pytest.mark.parametrize("shape", [(D,), (2, 3, 3), (D, D)], ids=["diagonal", "heads", "dense"])
def test_a_coupling_is_its_matrix(shape):
    weight, y = torch.randn(shape, dtype=torch.float64), torch.randn(B, D, dtype=torch.float64)
    torch.testing.assert_close(couple(y, weight), y @ weight_matrix(weight).T)


def test_softplus_is_exact_where_it_is_nearly_its_argument():
    x = torch.tensor([19.9, 20.1, 30.0, 45.0], dtype=torch.float64)
    torch.testing.assert_close(GATES["softplus"](x), x.exp().log1p(), rtol=1e-15, atol=0)


@pytest.mark.parametrize("d_state", [1, N])
@pytest.mark.parametrize("gate", ["sigmoid", "softplus"])
@pytest.mark.parametrize("shape", [None, (D,), (2, 3, 3), (D, D)], ids=["none", "diagonal", "heads", "dense"])
def test_the_derivative_is_the_equation(shape, gate, d_state):
    field, h = make_field(d_state, shape, gate)
    y = torch.zeros(B, D, dtype=torch.float64)
    expected = torch.zeros_like(h)
    for b in range(B):
        for d in range(D):
            y[b, d] = sum((1 if field.C is None else field.C[b, n]) * h[b, d, n] for n in range(d_state))
    for b in range(B):
        seen = torch.zeros(D, dtype=torch.float64) if shape is None else weight_matrix(field.coupling) @ y[b]
        for d in range(D):
            u = (field.a[b, d] + seen[d]).item()
            f = 1 / (1 + math.exp(-u)) if gate == "sigmoid" else math.log1p(math.exp(u))
            for n in range(d_state):
                drive = f * field.A[b, d] * (1 if field.B is None else field.B[b, n])
                expected[b, d, n] = drive - (field.inv_tau[d, n] + field.omega[d, n] * f) * h[b, d, n]
    torch.testing.assert_close(field.derivative(h), expected)
    torch.testing.assert_close(field.read_out(h), y)


def test_tokens_and_windows_cut_a_sequence():
    field, h = make_field(coupling=(D,), time=5)
    for t, token in enumerate(field.tokens()):
        torch.testing.assert_close(token.a, field.a[:, t])
        torch.testing.assert_close(token.C, field.C[:, t])
        torch.testing.assert_close(token.derivative(h), field.window(t, t + 1).tokens()[0].derivative(h))
    assert len(field.tokens()) == 5


def test_tensors_are_all_of_them():
    field, _ = make_field(coupling=(D,))
    assert {id(t) for t in field.tensors()} == {id(v) for v in vars(field).values() if isinstance(v, torch.Tensor)}
    assert len(field.tensors()) == 7
