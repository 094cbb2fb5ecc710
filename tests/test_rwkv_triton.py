"""WKV-7's Triton kernels against the torch loop; without a GPU, in Triton's interpreter."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.rwkv import scan_triton as rwkv_triton
from baselines.rwkv.scan import reference
from baselines.rwkv.scan_triton import rwkv_scan
from kernel_checks import check, exact, poison, relative_errors, values_and_gradients
from triton_checks import DEVICE, compiled, needs_gpu

INTERPRETED = DEVICE == "cpu"


def inputs(batch: int, length: int, heads: int, size: int, dtype=torch.float64, scale=1.0) -> list[torch.Tensor]:
    """Vectors as the model makes them: decays in (0.55, 1), a = -kk and b = kk * rate with kk of unit length."""
    make = {"dtype": dtype, "device": DEVICE}
    r, w, k, v, kk, rate = (scale * torch.randn(batch, length, heads, size, **make) for _ in range(6))
    kk = F.normalize(kk, dim=-1)
    state = torch.randn(batch, heads, size, size, **make)
    values = [r, torch.exp(-0.6 * torch.sigmoid(w)), k, v, -kk, kk * torch.sigmoid(rate), state]
    return [value.requires_grad_() for value in values]


@settings(max_examples=6 if INTERPRETED else 50, deadline=None)
@given(st.integers(1, 2), st.integers(1, 18), st.integers(1, 2), st.integers(1, 9))
def test_values_and_gradients_are_those_of_the_loop(batch, length, heads, size):
    check(rwkv_scan, reference, inputs(batch, length, heads, size))


def test_several_chunks_and_several_blocks_of_rows(monkeypatch):
    monkeypatch.setattr(rwkv_triton, "ROWS", 4)
    check(rwkv_scan, reference, inputs(1, 33, 1, 7))


def test_large_inputs_and_decays_that_forget_everything():
    *vectors, state = inputs(1, 17, 1, 4, scale=1e3)
    with torch.no_grad():
        vectors[1][:, ::3] = 0  # the step could not be inverted
    check(rwkv_scan, reference, [*vectors, state], atol=1e-3)  # of results around 1e8


def test_inputs_may_be_laid_out_in_any_order():
    def arranged(*tensors):
        *vectors, state = tensors
        vectors = [z.transpose(1, 2).contiguous().transpose(1, 2) for z in vectors]
        vectors[0] = torch.stack([vectors[0]] * 2, dim=-1)[..., 1]
        assert not any(z.is_contiguous() for z in vectors)
        return rwkv_scan(*vectors, state.mT.contiguous().mT)

    check(arranged, reference, inputs(1, 4, 2, 5))


def test_a_carried_state_continues_the_sequence_and_its_gradient():
    def in_parts(*tensors):
        *vectors, state = tensors
        first, state = rwkv_scan(*(z[:, :1] for z in vectors), state)
        rest, state = rwkv_scan(*(z[:, 1:] for z in vectors), state)
        return torch.cat([first, rest], dim=1), state

    check(in_parts, reference, inputs(1, 18, 1, 4))


def test_no_gradient_is_no_graph_and_the_same_values():
    tensors = inputs(1, 17, 1, 4)
    with torch.no_grad():
        quiet = rwkv_scan(*tensors)
    assert all(a.equal(b) and a.grad_fn is None for a, b in zip(quiet, rwkv_scan(*tensors), strict=True))


def test_every_element_of_the_outputs_is_written(monkeypatch):
    tensors = inputs(2, 17, 1, 5, dtype=torch.float32)
    expected = values_and_gradients(rwkv_scan, tensors)
    poison(monkeypatch)
    for got, value in zip(values_and_gradients(rwkv_scan, tensors), expected, strict=True):
        assert got.equal(value)


def test_half_precision_is_computed_in_float32_and_keeps_its_type():
    *vectors, state = inputs(1, 17, 1, 6)
    tensors = [z.detach().bfloat16().requires_grad_() for z in vectors] + [state.detach().float().requires_grad_()]
    got = values_and_gradients(rwkv_scan, tensors)
    assert [t.dtype for t in got] == [torch.bfloat16, torch.float32] + [torch.bfloat16] * 6 + [torch.float32]
    expected = values_and_gradients(reference, exact(tensors))
    errors = relative_errors(got, expected)
    assert max(errors) < 5e-3
    assert max(errors[1], errors[-1]) < 1e-6


def test_a_value_that_is_not_finite_stays_visible_where_it_is():
    tensors = [value.detach() for value in inputs(2, 8, 1, 4)]
    healthy, _ = rwkv_scan(*tensors)
    tensors[2][0, 3, 0, 0] = float("nan")
    y, _ = rwkv_scan(*tensors)
    assert not y[0, 3:].isfinite().any()
    assert y[0, :3].equal(healthy[0, :3])
    assert y[1].equal(healthy[1])


def test_it_refuses_too_large_heads():
    assert rwkv_triton.refuses(head_dim=256) is None
    assert "257" in rwkv_triton.refuses(head_dim=257)


def test_the_kernels_compile_for_a_gpu(tmp_path):
    calls = """
from baselines.rwkv.scan_triton import rwkv_scan
for length, size, dtype in ((100, 64, torch.float32), (1, 5, torch.float64)):
    vectors = torch.ones(6, 1, length, 2, size, dtype=dtype).requires_grad_()
    differentiate(rwkv_scan(*vectors, torch.zeros(1, 2, size, size, dtype=dtype)))
"""
    assert compiled(calls, tmp_path) == ["_forward", "_backward"] * 2


@needs_gpu
@pytest.mark.parametrize("sizes", [(2, 37, 3, 5), (2, 130, 4, 64), (1, 40, 2, 100), (1, 17, 1, 256), (2, 1, 2, 64)])
def test_larger_shapes_on_a_gpu(sizes):
    check(rwkv_scan, reference, inputs(*sizes), atol=1e-9)


@needs_gpu
def test_float32_on_a_gpu_is_close_to_float64_and_repeats_itself():
    tensors = inputs(4, 1025, 6, 64, dtype=torch.float32)
    first, second = (values_and_gradients(rwkv_scan, tensors) for _ in range(2))
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
    assert max(relative_errors(first, values_and_gradients(reference, exact(tensors)))) < 1e-5
