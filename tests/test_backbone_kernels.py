"""The backbone's fused kernels against torch in float64: values, gradients, types, threads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.ops.elementwise import rms_norm_numba, swiglu_numba
from harness.ops.elementwise.rms_norm import reference as rms_norm
from harness.ops.elementwise.swiglu import reference as swiglu

OPERATIONS = {
    "swiglu": (swiglu_numba.swiglu, swiglu, 0),
    "rms_norm": (lambda x, w: rms_norm_numba.rms_norm(x, w, 1e-5), lambda x, w: rms_norm(x, w, 1e-5), 1),
}


def inputs(name: str, shape: tuple[int, ...], dtype=torch.float64, scale: float = 1.0):
    x = (scale * torch.randn(shape)).to(dtype).requires_grad_()
    weight = torch.randn(shape[-1]).to(dtype).requires_grad_()
    return [x, weight][: 1 + OPERATIONS[name][2]]


def run(function, tensors):
    y = function(*tensors)
    generator = torch.Generator().manual_seed(1)
    gradients = torch.autograd.grad(y, tensors, torch.randn(y.shape, generator=generator).to(y.dtype))
    return [y.detach(), *gradients]


@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_values_and_gradients_are_those_of_torch(name, data):
    shape = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 150)), 2 * data.draw(st.integers(1, 40)))
    fused, reference, _ = OPERATIONS[name]
    tensors = inputs(name, shape)
    for got, expected in zip(run(fused, tensors), run(reference, tensors), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_lower_precision_keeps_its_type_and_is_computed_in_float32(name, dtype, tolerance):
    fused, reference, _ = OPERATIONS[name]
    tensors = inputs(name, (3, 40, 64), dtype)
    exact = [x.detach().double().requires_grad_() for x in tensors]
    for got, expected in zip(run(fused, tensors), run(reference, exact), strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_extreme_inputs_stay_finite(name, scale):
    for got in run(OPERATIONS[name][0], inputs(name, (2, 5, 32), torch.float32, scale)):
        assert got.isfinite().all()


@pytest.mark.parametrize("name", OPERATIONS)
def test_nan_stays_visible(name):
    tensors = inputs(name, (1, 3, 8), torch.float32)
    with torch.no_grad():
        tensors[0][0, 1, 2] = torch.nan
    y = OPERATIONS[name][0](*tensors)
    assert y[0, 1].isnan().any()
    assert y[0, [0, 2]].isfinite().all()


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_result_does_not_depend_on_threads_or_on_layout(name):
    tensors = inputs(name, (4, 200, 96), torch.float32)
    threads, runs = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            runs.append(run(OPERATIONS[name][0], tensors))
    finally:
        torch.set_num_threads(threads)
    strided = tensors[0].detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    runs.append(run(OPERATIONS[name][0], [strided, *tensors[1:]]))
    for other in runs[1:]:
        assert all(a.equal(b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_element_of_the_outputs_is_written(name, monkeypatch):
    """Fresh memory is filled with NaN, so that what a kernel leaves out would show."""
    tensors = inputs(name, (2, 130, 34), torch.float32)
    expected = run(OPERATIONS[name][0], tensors)
    empty_like, new_empty = torch.empty_like, torch.Tensor.new_empty
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(torch.nan))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: new_empty(*a, **k).fill_(torch.nan))
    for got, value in zip(run(OPERATIONS[name][0], tensors), expected, strict=True):
        assert got.equal(value)


def test_the_references_are_the_textbook_formulas():
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    gate, up = x[..., :4], x[..., 4:]
    torch.testing.assert_close(swiglu(x), gate / (1 + torch.exp(-gate)) * up)
    weight = torch.randn(8, dtype=torch.float64)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), expected)
