"""The selective scan's Triton kernels against the loop over time; without a GPU, in Triton's interpreter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.mamba import scan_triton as selective_triton
from baselines.mamba.scan import reference
from baselines.mamba.scan_triton import selective_scan
from kernel_checks import check, exact, poison, relative_errors, values_and_gradients
from triton_checks import DEVICE, compiled, needs_gpu

INTERPRETED = DEVICE == "cpu"


def inputs(batch=2, length=5, channels=3, states=2, dtype=torch.float64, scale=1.0):
    """Random inputs of the scan; `scale` multiplies dt."""
    make = {"dtype": dtype, "device": DEVICE}
    x, B, C = (torch.randn(batch, length, size, **make) for size in (channels, states, states))
    dt = torch.rand(batch, length, channels, **make) * scale
    A = -torch.rand(channels, states, **make) * 16
    D, h0 = torch.randn(channels, **make), torch.randn(batch, channels, states, **make)
    return [t.requires_grad_() for t in (x, dt, A, B, C, D, h0)]


@settings(max_examples=5 if INTERPRETED else 50, deadline=None)
@given(st.integers(1, 2), st.integers(1, 20), st.integers(1, 4), st.integers(1, 4))
def test_values_and_gradients_are_those_of_the_loop(batch, length, channels, states):
    check(selective_scan, reference, inputs(batch, length, channels, states))


def test_several_chunks_and_several_blocks_of_channels(monkeypatch):
    monkeypatch.setattr(selective_triton, "TILE", 4)  # of two channels and two states
    check(selective_scan, reference, inputs(1, 35, 5, 2))


def test_more_states_than_a_tile_has_pairs(monkeypatch):
    monkeypatch.setattr(selective_triton, "TILE", 4)
    check(selective_scan, reference, inputs(1, 1, 2, 11))


@pytest.mark.parametrize("scale", [1e-6, 1e4])
def test_steps_from_tiny_to_huge(scale):
    check(selective_scan, reference, inputs(1, 18, 2, 2, scale=scale), atol=1e-10 * max(scale, 1))


def test_inputs_may_be_laid_out_in_any_order():
    tensors = inputs(2, 4, 3, 2)

    def arranged(function):
        def run(x, dt, A, B, C, D, h0):
            wide = torch.stack([x, x], dim=-1)[..., 1]  # a view with gaps
            A, dt = A.t().contiguous().t(), dt.transpose(1, 2).contiguous().transpose(1, 2)
            pair = torch.cat([B, C], dim=-1)
            return function(wide, dt, A, *pair.chunk(2, dim=-1), D.expand(1, -1)[0], h0.mT.contiguous().mT)

        return run

    check(arranged(selective_scan), reference, tensors)


def test_a_carried_state_continues_the_sequence_and_its_gradient():
    def in_parts(x, dt, A, B, C, D, h):
        ys = []
        for part in (slice(0, 1), slice(1, 18), slice(18, 20)):
            y, h = selective_scan(x[:, part], dt[:, part], A, B[:, part], C[:, part], D, h)
            ys.append(y)
        return torch.cat(ys, dim=1), h

    check(in_parts, reference, inputs(1, 20, 2, 2))


def test_no_initial_state_means_zero_and_no_gradient_is_no_graph():
    *rest, h0 = (t.detach() for t in inputs())
    first, second = selective_scan(*rest), selective_scan(*rest, torch.zeros_like(h0))
    assert all(a.equal(b) and a.grad_fn is None for a, b in zip(first, second, strict=True))


def test_every_element_of_the_outputs_is_written(monkeypatch):
    tensors = inputs(2, 17, 3, 3, dtype=torch.float32)
    expected = values_and_gradients(selective_scan, tensors)
    poison(monkeypatch)
    for got, value in zip(values_and_gradients(selective_scan, tensors), expected, strict=True):
        assert got.equal(value)


def test_half_precision_is_computed_in_float32_and_keeps_its_type():
    tensors = [t.detach().bfloat16().requires_grad_() for t in inputs(1, 18, 3, 2)]
    got = values_and_gradients(selective_scan, tensors)
    assert [t.dtype for t in got] == [torch.bfloat16, torch.float32] + [torch.bfloat16] * 7
    expected = values_and_gradients(reference, exact(tensors))
    assert max(relative_errors(got, expected)) < 5e-3
    assert relative_errors(got, expected)[1] < 1e-6


def test_a_diverged_input_stays_visible_where_it_is():
    tensors = [t.detach() for t in inputs(2, 6, 3, 2, dtype=torch.float32)]
    healthy, _ = selective_scan(*tensors)
    tensors[0][0, 2, 1] = float("nan")
    y, h = selective_scan(*tensors)
    assert y[0, 2:, 1].isnan().all()
    assert h[0, 1].isnan().all()
    healthy[0, 2:, 1] = y[0, 2:, 1] = 0
    assert y.equal(healthy)


def test_it_refuses_too_many_states():
    assert selective_triton.refuses(d_state=256) is None
    assert "257" in selective_triton.refuses(d_state=257)


def test_the_kernels_compile_for_a_gpu(tmp_path):
    calls = """
from baselines.mamba.scan_triton import selective_scan
for length, channels, states, dtype in ((100, 96, 16, torch.float32), (1, 3, 1, torch.float64)):
    x, dt = torch.ones(2, 1, length, channels, dtype=dtype).requires_grad_()
    B, C = torch.ones(2, 1, length, states, dtype=dtype)
    A, D = torch.ones(channels, states, dtype=dtype), torch.ones(channels, dtype=dtype)
    differentiate(selective_scan(x, dt, A, B, C, D))
"""
    assert compiled(calls, tmp_path) == ["_forward", "_backward"] * 2


@needs_gpu
@pytest.mark.parametrize(
    "sizes", [(2, 37, 70, 5), (3, 16, 64, 1), (2, 513, 130, 16), (1, 100, 40, 100), (1, 3, 9, 256)]
)
def test_larger_shapes_on_a_gpu(sizes):
    check(selective_scan, reference, inputs(*sizes), atol=1e-9)


@needs_gpu
def test_float32_on_a_gpu_is_close_to_float64_and_repeats_itself():
    tensors = inputs(4, 1025, 192, 16, dtype=torch.float32, scale=0.1)
    first, second = (values_and_gradients(selective_scan, tensors) for _ in range(2))
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
    assert max(relative_errors(first, values_and_gradients(reference, exact(tensors)))) < 1e-5
