"""WKV-7: the fused kernels against the torch loop, in values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.rwkv import scan as rwkv_scan
from baselines.rwkv.scan_numba import rwkv_scan as fused
from kernel_checks import check, exact, poison, relative_errors, values_and_gradients

NAMES = ("r", "w", "k", "v", "a", "b", "state")


def inputs(B: int, T: int, H: int, N: int, dtype=torch.float64) -> list[torch.Tensor]:
    """Vectors as the model makes them: decays in (0.55, 1), a = -kk and b = kk * rate with kk of unit length."""
    r, w, k, v, kk, rate = (torch.randn(B, T, H, N, dtype=dtype) for _ in range(6))
    kk = F.normalize(kk, dim=-1)
    state = torch.randn(B, H, N, N, dtype=dtype)
    values = [r, torch.exp(-0.6 * torch.sigmoid(w)), k, v, -kk, kk * torch.sigmoid(rate), state]
    return [value.requires_grad_() for value in values]


def run(function, values):
    """Outputs, and gradients of a loss that weighs every output and the final state differently."""
    y, final = function(*values)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    loss = (weights * y).sum() + (torch.cos(torch.arange(final.numel(), dtype=y.dtype)).view_as(final) * final).sum()
    return (y, final), torch.autograd.grad(loss, values)


@pytest.mark.parametrize("T", [1, 15, 16, 17, 40])
@pytest.mark.parametrize("N", [5, 16])
def test_the_kernels_agree_with_the_loop(T, N):
    values = inputs(2, T, 3, N)
    outputs, gradients = run(fused, values)
    expected_outputs, expected_gradients = run(rwkv_scan.reference, values)
    for got, expected in zip(outputs, expected_outputs, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    for name, got, expected in zip(NAMES, gradients, expected_gradients, strict=True):
        assert got.abs().max() > 0
        torch.testing.assert_close(got, expected, atol=1e-11, rtol=0, msg=lambda text, name=name: f"d{name}: {text}")


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 3), st.sampled_from([1, 2, 15, 16, 17, 33]), st.integers(1, 3), st.sampled_from([1, 3, 8, 17, 64])
)
def test_odd_sizes(B, T, H, N):
    check(fused, rwkv_scan.reference, inputs(B, T, H, N), rtol=1e-10, atol=1e-10)


def test_large_values_stay_finite_and_right():
    values = [value.detach() for value in inputs(2, 19, 2, 8, torch.float32)]
    for number in (0, 2, 3, 6):  # r, k, v and the state
        values[number] *= 1e6
    got = values_and_gradients(fused, [value.requires_grad_() for value in values])
    assert all(value.isfinite().all() for value in got)
    assert max(relative_errors(got, values_and_gradients(rwkv_scan.reference, exact(values)))) < 1e-5


@pytest.mark.parametrize("sizes", [(2, 3, 1, 5), (1, 33, 2, 16)])
def test_every_element_of_the_outputs_is_written(sizes, monkeypatch):
    values = inputs(*sizes)
    expected = values_and_gradients(rwkv_scan.reference, values)
    poison(monkeypatch)
    for got, want in zip(values_and_gradients(fused, values), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_the_loop_is_the_published_equation():
    r, w, k, v, a, b, state = (value.detach() for value in inputs(1, 1, 1, 4))
    r, w, k, v, a, b = (value[0, 0, 0] for value in (r, w, k, v, a, b))
    expected = state[0, 0] @ torch.diag(w) + torch.outer(state[0, 0] @ a, b) + torch.outer(v, k)
    y, new = rwkv_scan.step(*(value.view(1, 1, 4) for value in (r, w, k, v, a, b)), state)
    torch.testing.assert_close(new[0, 0], expected)
    torch.testing.assert_close(y[0, 0], expected @ r)


def test_a_unit_key_written_at_full_rate_is_replaced():
    """The delta rule: with decay 1 and rate 1, writing (k, v2) over (k, v1) leaves v2 alone under k."""
    k, first, second = F.normalize(torch.randn(8), dim=0), torch.randn(8), torch.randn(8)
    keys = torch.stack([k, k]).view(1, 2, 1, 8)
    values = torch.stack([first, second]).view(1, 2, 1, 8)
    y, _ = fused(keys, torch.ones_like(keys), keys, values, -keys, keys, torch.zeros(1, 1, 8, 8))
    torch.testing.assert_close(y[0, 0, 0], first)
    torch.testing.assert_close(y[0, 1, 0], second)


def test_float32_and_strided_inputs():
    values = inputs(2, 33, 2, 16, torch.float32)
    got = run(fused, values)
    expected = run(rwkv_scan.reference, exact(values))
    for a, b in zip(got[0] + got[1], expected[0] + expected[1], strict=True):
        assert (a.double() - b).abs().max() <= 2e-6 * b.abs().max()
    strided = [value.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for value in values[:-1]]
    state = values[-1].detach().mT.contiguous().mT.requires_grad_()
    assert not strided[0].is_contiguous()
    again = run(fused, [*strided, state])
    for a, b in zip(got[0] + got[1], again[0] + again[1], strict=True):
        assert torch.equal(a, b)


def test_it_is_deterministic_and_leaves_its_inputs_alone():
    values = inputs(3, 20, 2, 16)
    before = [value.detach().clone() for value in values]
    first, second = run(fused, values), run(fused, values)
    for a, b in zip(first[0] + first[1], second[0] + second[1], strict=True):
        assert torch.equal(a, b)
    for a, b in zip(before, values, strict=True):
        assert torch.equal(a, b)


def test_a_carried_state_continues_the_sequence_and_its_gradient():
    values = inputs(2, 21, 2, 8)

    def split(*values):
        *vectors, state = values
        y1, state = fused(*(value[:, :9] for value in vectors), state)
        y2, state = fused(*(value[:, 9:] for value in vectors), state)
        return torch.cat([y1, y2], dim=1), state

    whole, parts = run(fused, values), run(split, values)
    for a, b in zip(whole[0] + whole[1], parts[0] + parts[1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0)


def test_only_every_sixteenth_state_is_kept_and_none_without_gradients():
    values = inputs(1, 40, 1, 8)
    y, _ = fused(*values)
    assert y.grad_fn.saved_tensors[-1].shape == (1, 1, 3, 8, 8)
    with torch.no_grad():
        y, _ = fused(*(value.detach() for value in values))
    assert y.grad_fn is None


def test_a_value_that_is_not_finite_stays_visible():
    values = [value.detach() for value in inputs(1, 8, 1, 8)]
    values[2][0, 3, 0, 0] = float("nan")
    y, _ = fused(*values)
    assert y[:, :3].isfinite().all()
    assert not y[:, 3:].isfinite().any()
