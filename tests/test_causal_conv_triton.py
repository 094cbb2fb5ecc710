"""The causal convolution's Triton kernels against torch; without a GPU, in Triton's interpreter."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.ops.causal_conv import conv_triton as causal_conv_triton
from harness.ops.causal_conv.conv import reference
from harness.ops.causal_conv.conv_triton import causal_conv
from kernel_checks import check, exact, poison, relative_errors, values_and_gradients
from triton_checks import DEVICE, compiled, needs_gpu

INTERPRETED = DEVICE == "cpu"


def inputs(batch=2, length=5, channels=3, taps=4, dtype=torch.float64, scale=1.0):
    make = {"dtype": dtype, "device": DEVICE}
    shapes = (batch, length, channels), (taps, channels), (channels,), (batch, taps - 1, channels)
    return [(scale * torch.randn(shape, **make)).requires_grad_() for shape in shapes]


@settings(max_examples=20 if INTERPRETED else 50, deadline=None)
@given(st.integers(1, 3), st.integers(1, 20), st.integers(1, 9), st.integers(1, 5), st.booleans())
def test_values_and_gradients_are_those_of_torch(batch, length, channels, taps, silu):
    check(partial(causal_conv, silu=silu), partial(reference, silu=silu), inputs(batch, length, channels, taps))


@pytest.mark.parametrize("silu", [False, True])
def test_several_blocks_of_tokens_and_of_channels(silu, monkeypatch):
    monkeypatch.setattr(causal_conv_triton, "BLOCK_T", 8)
    monkeypatch.setattr(causal_conv_triton, "BLOCK_D", 4)
    for length in (5, 6, 21):  # the last inputs fall within a block, and on both sides of its end
        check(partial(causal_conv, silu=silu), partial(reference, silu=silu), inputs(2, length, 6, 4))


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
    both = torch.randn(2, 7, 10, dtype=torch.float64, device=DEVICE, requires_grad=True)
    check(halves(causal_conv), halves(reference), [both, weight, bias, state])


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("scale", [0.0, 1e3])
def test_extreme_inputs_stay_finite(scale):
    for got in values_and_gradients(partial(causal_conv, silu=True), inputs(dtype=torch.float32, scale=scale)):
        assert got.isfinite().all()


def test_a_carried_state_continues_the_sequence_and_its_gradient():
    def in_parts(x, weight, bias, state):
        ys = []
        for part in (slice(0, 1), slice(1, 3), slice(3, 9)):
            y, state = causal_conv(x[:, part], weight, bias, state, True)
            ys.append(y)
        return torch.cat(ys, dim=1), state

    check(in_parts, partial(reference, silu=True), inputs(2, 9, 3, 4))


@pytest.mark.parametrize("silu", [False, True])
def test_every_element_of_the_outputs_is_written(silu, monkeypatch):
    tensors = inputs(2, 70, 5, dtype=torch.float32)
    run = partial(causal_conv, silu=silu)
    expected = values_and_gradients(run, tensors)
    poison(monkeypatch)
    for got, value in zip(values_and_gradients(run, tensors), expected, strict=True):
        assert got.equal(value)


def test_half_precision_is_computed_in_float32_and_keeps_its_type():
    x, weight, bias, state = inputs(2, 40, 6)
    tensors = [x.detach().bfloat16(), weight.detach().float(), bias.detach().float(), state.detach().bfloat16()]
    tensors = [t.requires_grad_() for t in tensors]
    run = partial(causal_conv, silu=True)
    got = values_and_gradients(run, tensors)
    types = [torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.float32, torch.float32, torch.bfloat16]
    assert [t.dtype for t in got] == types
    expected = values_and_gradients(partial(reference, silu=True), exact(tensors))
    assert max(relative_errors(got, expected)) < 5e-3


def test_a_diverged_input_stays_visible_where_it_is():
    x, weight, bias, state = (t.detach() for t in inputs(2, 9, 3, 4, dtype=torch.float32))
    healthy, _ = causal_conv(x, weight, bias, state, True)
    x[0, 2, 1] = float("nan")
    y, last = causal_conv(x, weight, bias, state, True)
    assert y[0, 2:6, 1].isnan().all()
    assert last.isfinite().all()
    healthy[0, 2:6, 1] = y[0, 2:6, 1] = 0
    assert y.equal(healthy)


def test_the_kernels_compile_for_a_gpu(tmp_path):
    calls = """
from harness.ops.causal_conv.conv_triton import causal_conv
for length, channels, taps, dtype in ((100, 96, 4, torch.float32), (1, 3, 1, torch.float64)):
    x = torch.ones(2, length, channels, dtype=dtype).requires_grad_()
    weight, bias, state = (torch.ones(shape) for shape in ((taps, channels), channels, (2, taps - 1, channels)))
    differentiate(causal_conv(x, weight, bias, state, True))
"""
    assert compiled(calls, tmp_path) == ["_forward", "_backward"] * 2


@needs_gpu
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("sizes", [(2, 513, 130, 4), (3, 64, 64, 1), (2, 61, 33, 4), (1, 1, 700, 3)])
def test_larger_shapes_on_a_gpu(sizes, silu):
    check(partial(causal_conv, silu=silu), partial(reference, silu=silu), inputs(*sizes))


@needs_gpu
def test_float32_on_a_gpu_is_close_to_float64_and_repeats_itself():
    tensors, run = inputs(4, 1025, 192, 4, dtype=torch.float32), partial(causal_conv, silu=True)
    first, second = (values_and_gradients(run, tensors) for _ in range(2))
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
    assert max(relative_errors(first, values_and_gradients(partial(reference, silu=True), exact(tensors)))) < 1e-5
