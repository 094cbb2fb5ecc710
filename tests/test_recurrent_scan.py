"""The LSTM's and the GRU's kernels against the loop over time, and their one token against the cell."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from baselines.recurrent import gru_numba, step_numba
from baselines.recurrent import scan_torch as recurrent_torch
from baselines.recurrent.scan import gru_reference, gru_step_reference, lstm_reference, lstm_step_reference
from harness.ops.toolbox.numba_linear import padded, panels, product
from kernel_checks import check, poison, relative_errors, values_and_gradients

SCANS = {
    "gru, numba": (3, gru_numba.gru_scan, gru_reference),
    "gru, torch": (3, recurrent_torch.gru_scan, gru_reference),
    "lstm, torch": (4, recurrent_torch.lstm_scan, lstm_reference),
}
KERNELS = pytest.mark.parametrize("name", SCANS)


def inputs(gates, batch=2, length=3, width=5, inner=4, dtype=torch.float64, scale=1.0):
    """x, the state (h, and c of the LSTM) and the weights; `scale` multiplies x."""
    states = [(batch, inner)] * (1 if gates == 3 else 2)
    weights = [(gates * inner, width), (gates * inner, inner), (gates * inner,), (gates * inner,)]
    tensors = [torch.randn(shape, dtype=dtype) for shape in [(batch, length, width), *states, *weights]]
    tensors[0] *= scale
    return [x.requires_grad_() for x in tensors]


def tupled(function):
    """The function with its result as a tuple."""

    def run(*tensors):
        result = function(*tensors)
        return result if isinstance(result, tuple) else (result,)

    return run


@KERNELS
def test_values_and_gradients_are_those_of_the_loop(name):
    gates, kernel, reference = SCANS[name]

    @settings(max_examples=15, deadline=None)
    @given(st.integers(1, 6), st.integers(1, 5), st.sampled_from([1, 5, 33]), st.sampled_from([1, 4, 31]))
    def holds(batch, length, width, inner):
        check(tupled(kernel), tupled(reference), inputs(gates, batch, length, width, inner))

    holds()


@KERNELS
def test_inputs_may_be_laid_out_in_any_order(name):
    gates, kernel, reference = SCANS[name]

    def arranged(function):
        def run(x, h, *rest):
            x, h = x.transpose(0, 1).contiguous().transpose(0, 1), torch.stack([h, h], dim=-1)[..., 1]
            return tupled(function)(x, h, *rest)

        return run

    check(arranged(kernel), arranged(reference), inputs(gates))


@KERNELS
def test_large_inputs_stay_finite(name):
    gates, kernel, _ = SCANS[name]
    for got in values_and_gradients(tupled(kernel), inputs(gates, dtype=torch.float32, scale=1e4)):
        assert got.isfinite().all()


def test_every_element_of_the_outputs_is_written(monkeypatch):
    tensors = inputs(3, inner=35)
    expected = values_and_gradients(tupled(gru_reference), tensors)
    poison(monkeypatch)
    for got, want in zip(values_and_gradients(tupled(gru_numba.gru_scan), tensors), expected, strict=True):
        torch.testing.assert_close(got, want)


@KERNELS
def test_float32_is_close_to_float64(name):
    gates, kernel, reference = SCANS[name]
    tensors = [(0.3 * x.detach()).requires_grad_() for x in inputs(gates, 5, 40, 33, 40, torch.float32)]
    exact = values_and_gradients(tupled(reference), [x.detach().double().requires_grad_() for x in tensors])
    assert max(relative_errors(values_and_gradients(tupled(kernel), tensors), exact)) < 1e-5


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("gates", [3, 4])
def test_one_token_is_the_cell_and_its_projection(gates, batch):
    x, *rest = (t.detach() for t in inputs(gates, batch, 1, 17, 33, torch.float32))
    states, weights = rest[: gates - 2], rest[gates - 2 :]
    fused, reference = {
        3: (step_numba.gru_step, gru_step_reference),
        4: (step_numba.lstm_step, lstm_step_reference),
    }[gates]
    out, before = torch.randn(17, 33), [state.clone() for state in states]
    got, expected = (make(out, *weights)(x[:, 0], *states) for make in (fused, reference))
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(state, old) for state, old in zip(states, before, strict=True))


@njit
def small_product(x, panels, width):
    """The product has no entry from Python."""
    y = np.full((x.shape[0], padded(x, width)), np.nan, x.dtype)
    product(x, panels, y)
    return y


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 70), st.sampled_from([torch.float32, torch.float64]))
def test_the_small_product_is_torchs(rows, depth, width, dtype):
    x, weight = torch.randn(rows, depth, dtype=dtype), torch.randn(depth, width, dtype=dtype)
    y = torch.from_numpy(small_product(x.numpy(), panels(weight).numpy(), width))
    torch.testing.assert_close(y[:, :width], x @ weight, rtol=1e-4, atol=1e-4)
    assert (y[:, width:] == 0).all()


def test_the_gru_scans_gradients_do_not_follow_autocast():
    shapes = (2, 5, 8), (2, 8), (24, 8), (24, 8), (24,), (24,)
    tensors = [torch.randn(shape).requires_grad_() for shape in shapes]
    loss = gru_numba.gru_scan(*tensors).square().sum()
    outside = torch.autograd.grad(loss, tensors, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        inside = torch.autograd.grad(loss, tensors)
    assert all(map(torch.equal, inside, outside))
