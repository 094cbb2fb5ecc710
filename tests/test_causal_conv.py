"""The causal convolution on the CPU: its kernels against torch's own convolution and the reference."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.ops.causal_conv.conv import reference
from harness.ops.causal_conv.conv_numba import causal_conv
from kernel_checks import check, poison, values_and_gradients


def inputs(batch=2, length=5, channels=3, taps=4, dtype=torch.float64, scale=1.0):
    shapes = (batch, length, channels), (taps, channels), (channels,), (batch, taps - 1, channels)
    return [(scale * torch.randn(shape, dtype=dtype)).requires_grad_() for shape in shapes]


def test_the_reference_is_torchs_convolution():
    x, weight, bias, state = (t.detach() for t in inputs(2, 9, 5))
    y, last = reference(x, weight, bias, state, False)
    window = torch.cat([state, x], dim=1).transpose(1, 2)
    torch.testing.assert_close(y.transpose(1, 2), F.conv1d(window, weight.t().unsqueeze(1), bias, groups=5))
    assert torch.equal(last, x[:, -3:])
    torch.testing.assert_close(reference(x, weight, bias, state, True)[0], F.silu(y))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.sampled_from([1, 7, 256, 257, 300]), st.integers(1, 5), st.booleans())
def test_values_and_gradients_are_those_of_torch(batch, length, channels, taps, silu):
    check(partial(causal_conv, silu=silu), partial(reference, silu=silu), inputs(batch, length, channels, taps))


def test_rows_of_x_may_lie_apart_and_other_inputs_in_any_order():
    def halves(function):
        def run(both, weight, bias, state):
            first, second = both.chunk(2, dim=-1)
            assert not first.is_contiguous()
            y, last = function(first, weight.t().contiguous().t(), bias, state.mT.contiguous().mT, True)
            z, _ = function(second.mT.contiguous().mT, weight, bias, state, False)
            return y, last, z

        return run

    _, weight, bias, state = inputs(2, 7, 5)
    both = torch.randn(2, 7, 10, dtype=torch.float64, requires_grad=True)
    check(halves(causal_conv), halves(reference), [both, weight, bias, state])


@pytest.mark.parametrize("scale", [0.0, 1e3])
def test_extreme_inputs_stay_finite(scale):
    for got in values_and_gradients(partial(causal_conv, silu=True), inputs(dtype=torch.float32, scale=scale)):
        assert got.isfinite().all()


@pytest.mark.parametrize("silu", [False, True])
def test_every_element_of_the_outputs_is_written(silu, monkeypatch):
    tensors = inputs(2, 3, 300)
    expected = values_and_gradients(partial(reference, silu=silu), tensors)
    poison(monkeypatch)
    for got, want in zip(values_and_gradients(partial(causal_conv, silu=silu), tensors), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_half_precision_is_computed_in_float32_and_keeps_its_type():
    tensors = [t.detach() for t in inputs(dtype=torch.bfloat16)]
    y, last = causal_conv(*tensors, True)
    expected, kept = reference(*(t.double() for t in tensors), True)
    assert y.dtype == last.dtype == torch.bfloat16
    assert torch.equal(y, expected.bfloat16())
    assert torch.equal(last.double(), kept)


def test_a_diverged_input_stays_visible_where_it_is():
    x, *rest = (t.detach() for t in inputs(2, 9, 3, dtype=torch.float32))
    x[1, 4, 2] = torch.nan
    y, _ = causal_conv(x, *rest, True)
    assert y[1, 4:8, 2].isnan().all()
    assert y.isnan().sum() == 4


def test_results_do_not_depend_on_the_number_of_threads():
    tensors, threads = inputs(3, 40, 700, dtype=torch.float32), torch.get_num_threads()
    runs = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            runs.append(values_and_gradients(partial(causal_conv, silu=True), tensors))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
