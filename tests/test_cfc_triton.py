"""The CfC scan's Triton kernels against the loop over time; without a GPU, in Triton's interpreter."""

import itertools
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import test_cfc_scan
from arch.cfc import scan_triton as cfc_triton
from arch.cfc.mixer import CfC
from arch.cfc.scan import CFC_SCAN, reference
from arch.cfc.scan_triton import cfc_scan
from kernel_checks import check, exact, poison, relative_errors, values_and_gradients
from test_cfc_scan import arranged, scan
from triton_checks import DEVICE, needs_gpu

INTERPRETED = DEVICE == "cpu"


inputs = partial(test_cfc_scan.inputs, device=DEVICE)


def agree(tensors, *options):
    check(scan(cfc_scan, *options), scan(reference, *options), tensors)


@pytest.mark.parametrize(("mode", "merged"), itertools.product(["default", "no_gate", "pure"], [False, True]))
def test_values_and_gradients_are_those_of_the_loop(mode, merged):
    agree(inputs(mode, merged), mode, merged)


@pytest.mark.parametrize("activation", ["lecun_tanh", "tanh", "relu", "gelu", "silu"])
def test_every_activation(activation):
    agree(inputs(merged=True, length=2), "default", True, activation)


@settings(max_examples=6 if INTERPRETED else 50, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 7), st.integers(1, 7))
def test_odd_sizes(batch, length, units, width):
    agree(inputs("default", True, batch, length, units, width), "default", True)


def test_several_tiles_and_groups_of_sequences(monkeypatch):
    for name, size in (("ROWS", 2), ("COLUMNS", 4), ("DEPTH", 2)):
        monkeypatch.setattr(cfc_triton, name, size)
    agree(inputs("no_gate", False, 3, 2, 6, 5), "no_gate")


def test_inputs_may_be_laid_out_in_any_order():
    check(arranged(cfc_scan), arranged(reference), inputs(merged=True))


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("mode", ["default", "pure"])
def test_large_pre_activations_stay_finite(mode):
    tensors = inputs(mode, True, dtype=torch.float32, scale=1e4)
    for got in values_and_gradients(scan(cfc_scan, mode, True), tensors):
        assert got.isfinite().all()


def test_every_element_of_the_outputs_is_written(monkeypatch):
    tensors = inputs(merged=True)
    expected = values_and_gradients(scan(reference, merged=True), tensors)
    poison(monkeypatch)
    for got, want in zip(values_and_gradients(scan(cfc_scan, merged=True), tensors), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_a_diverged_input_stays_visible_in_its_own_sequence():
    tensors = [x.detach() for x in inputs(merged=True)]
    tensors[0][1, 1, 2] = torch.nan
    (h,) = scan(cfc_scan, merged=True)(*tensors)
    assert h[1:, 1].isnan().all()
    assert not h[:, 0].isnan().any()


def test_more_layers_are_left_to_torch():
    mixer = CfC(6, backbone_layers=2)
    refuses = next(kernel.refuses for kernel in CFC_SCAN.kernels if kernel.backend == "triton")
    assert "backbone_layers=2" in refuses(layers=len(mixer.hidden) + 1, mode="default")
    assert refuses(layers=1, mode="default") is None


@needs_gpu
@pytest.mark.parametrize("mode", ["default", "no_gate", "pure"])
def test_larger_shapes_on_a_gpu(mode):
    agree(inputs(mode, True, 19, 40, 96, 130), mode, True)


@needs_gpu
def test_float32_on_a_gpu_is_close_to_float64_and_repeats_itself():
    tensors = [0.1 * x.detach() for x in inputs("default", True, 8, 128, 256, 256, dtype=torch.float32)]
    tensors, run = [x.requires_grad_() for x in tensors], scan(cfc_scan, merged=True)
    first, again = values_and_gradients(run, tensors), values_and_gradients(run, tensors)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert max(relative_errors(first, values_and_gradients(run, exact(tensors)))) < 1e-4
