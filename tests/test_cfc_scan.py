"""The CfC scan's CPU kernel against the loop over time, and its one token against the cell."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arch.cfc import scan_numba as cfc_numba
from arch.cfc import step_numba
from arch.cfc.scan import ACTIVATIONS, Cell, reference, step_reference
from kernel_checks import check, poison, relative_errors, values_and_gradients

MODES = ("default", "no_gate", "pure")


def inputs(
    mode="default", merged=False, batch=2, length=3, units=5, width=4, layers=1, dtype=torch.float64, scale=1.0,
    device="cpu",
):  # fmt: skip
    """u, h, time (none where merged) and the cell's tensors, in the order of Cell.flat; `scale` multiplies u.

    The weights are of the size at which a sum over their inputs is as large as these: a chaotic cell would make any two
    orders of summation disagree.
    """
    heads = 1 if mode == "pure" else 4 - merged
    shapes = [(length, batch, units), (batch, width), *([] if merged else [(length, batch, 1)]), (units, width)]
    shapes += [(units, units), (units,)] * (layers - 1) + [(heads * width, units), (heads * width,)]
    shapes += [(width,), (width,)] if mode == "pure" else []
    tensors = [torch.randn(shape, dtype=dtype, device=device) for shape in shapes]
    tensors[0] *= scale
    for weight in (x for x in tensors[2:] if x.dim() == 2):
        weight *= weight.shape[1] ** -0.5
    return [x.requires_grad_() for x in tensors]


def scan(function, mode="default", merged=False, activation="lecun_tanh"):
    """The scan as a function of the tensors of `inputs`."""

    def run(u, h, *rest):
        time, flat = (None, rest) if merged else (rest[0].abs(), rest[1:])
        flat = flat if mode == "pure" else (*flat, None, None)
        return (function(Cell.from_flat(mode, activation, flat), u, h, time),)

    return run


def agree(tensors, *options):
    check(scan(cfc_numba.cfc_scan, *options), scan(reference, *options), tensors)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(MODES), st.booleans(), st.sampled_from(sorted(ACTIVATIONS)), st.integers(1, 6), st.integers(1, 5),
    st.sampled_from([1, 5, 33]), st.sampled_from([1, 4, 31]), st.integers(1, 3),
)  # fmt: skip
def test_values_and_gradients_are_those_of_the_loop(mode, merged, activation, batch, length, units, width, layers):
    agree(inputs(mode, merged, batch, length, units, width, layers), mode, merged, activation)


def arranged(function):
    """The scan over inputs that are laid out in other orders."""

    def run(u, h, recurrent, weight, bias):
        u, h = u.transpose(0, 1).contiguous().transpose(0, 1), torch.stack([h, h], dim=-1)[..., 1]
        return scan(function, merged=True)(u, h, recurrent.t().contiguous().t(), weight.mT.contiguous().mT, bias)

    return run


def test_inputs_may_be_laid_out_in_any_order():
    check(arranged(cfc_numba.cfc_scan), arranged(reference), inputs(merged=True))


@pytest.mark.parametrize("mode", MODES)
def test_large_pre_activations_stay_finite(mode):
    run = scan(cfc_numba.cfc_scan, mode, True)
    for got in values_and_gradients(run, inputs(mode, True, dtype=torch.float32, scale=1e4)):
        assert got.isfinite().all()


@pytest.mark.parametrize("layers", [1, 2])
def test_every_element_of_the_outputs_is_written(layers, monkeypatch):
    tensors = inputs("pure", layers=layers, units=35)
    expected = values_and_gradients(scan(reference, "pure"), tensors)
    poison(monkeypatch)
    for got, want in zip(values_and_gradients(scan(cfc_numba.cfc_scan, "pure"), tensors), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_float32_is_close_to_float64_whatever_the_threads():
    tensors = [x.detach() for x in inputs("default", True, 5, 40, 33, 40, dtype=torch.float32)]
    exact = values_and_gradients(scan(reference, merged=True), [x.double().requires_grad_() for x in tensors])
    tensors, threads, runs = [x.requires_grad_() for x in tensors], torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            runs.append(values_and_gradients(scan(cfc_numba.cfc_scan, merged=True), tensors))
    finally:
        torch.set_num_threads(threads)
    for got in runs:
        assert max(relative_errors(got, exact)) < 1e-5


@pytest.mark.parametrize(("mode", "layers", "batch"), itertools.product(MODES, [1, 2], [1, 3]))
def test_one_token_is_the_cell_between_its_projections(mode, layers, batch):
    tensors = inputs(mode, True, batch, 1, 33, 20, layers, torch.float32)
    _, h, *flat = (x.detach() for x in tensors)
    cell = Cell.from_flat(mode, "silu", flat if mode == "pure" else (*flat, None, None))
    x, before = torch.randn(batch, 17), h.clone()
    weights = (torch.randn(33, 17), torch.randn(33)), cell, torch.randn(17, 20)
    for got, expected in zip(step_numba.cfc_step(*weights)(x, h), step_reference(*weights)(x, h), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(h, before)


@pytest.mark.parametrize("mode", MODES)
def test_the_gradients_do_not_follow_autocast(mode):
    tensors = inputs(mode, dtype=torch.float32)
    loss = scan(cfc_numba.cfc_scan, mode)(*tensors)[0].square().sum()
    outside = torch.autograd.grad(loss, tensors, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        inside = torch.autograd.grad(loss, tensors)
    assert all(map(torch.equal, inside, outside))
