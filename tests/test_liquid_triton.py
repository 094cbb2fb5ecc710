"""The liquid scan's Triton kernels against the loop over time; without a GPU, in Triton's interpreter."""

import itertools
from functools import partial

import pytest
import torch

from arch.ltc import scan_triton as liquid_triton
from arch.ltc.scan import LIQUID_SCAN
from arch.ltc.scan import reference as reference_of_a_field
from arch.ltc.scan_triton import liquid_scan as liquid_scan_of_a_field
from kernel_checks import check, exact, relative_errors, values_and_gradients
from liquid_calls import SOLVERS, by_tensors
from triton_checks import DEVICE, needs_gpu

INTERPRETED = DEVICE == "cpu"
reference, liquid_scan = by_tensors(reference_of_a_field), by_tensors(liquid_scan_of_a_field)


def inputs(batch=2, length=3, channels=5, states=1, coupled=True, dtype=torch.float64, scale=1.0):
    """The tensors of a call that there are; `scale` multiplies a."""
    make = {"dtype": dtype, "device": DEVICE}
    a, A = torch.randn(2, batch, length, channels, **make)
    projections = torch.randn(2, batch, length, states, **make).unbind() if states > 1 else ()
    rates = torch.rand(2, channels, states, **make)
    w, h0 = [torch.randn(channels, **make)] if coupled else [], torch.randn(batch, channels, states, **make)
    return [x.detach().requires_grad_() for x in (a * scale, A, *projections, *rates, *w, h0)]


def scan(function, solver, states=1, coupled=True, substeps=2, gate="sigmoid", elapsed=None):
    """The scan as a function of the tensors of `inputs`."""

    def run(a, A, *rest):
        B, C = rest[:2] if states > 1 else (None, None)
        inv_tau, omega, *w, h0 = rest[2:] if states > 1 else rest
        return function(solver, substeps, gate, a, A, B, C, inv_tau, omega, w[0] if coupled else None, h0, elapsed)

    return run


def agree(tensors, *options, **more):
    check(scan(liquid_scan, *options, **more), scan(reference, *options, **more), tensors)


def test_states_are_kept_by_chunks_of_tokens(monkeypatch):
    monkeypatch.setattr(liquid_triton, "STATES_KEPT", 3)
    for length in (3, 4, 7):
        agree(inputs(1, length, 3, states=2), "semi_implicit", 2)


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize(("solver", "scale"), itertools.product(["semi_implicit", "exponential"], [1e3, 1e6]))
def test_large_gates_stay_finite(solver, scale):
    for gate in ("sigmoid", "softplus"):
        run = scan(liquid_scan, solver, gate=gate)
        for got in values_and_gradients(run, inputs(dtype=torch.float32, scale=scale)):
            assert got.isfinite().all()


def test_a_carried_state_continues_the_sequence_and_its_gradient():
    def in_parts(a, A, inv_tau, omega, w, h):
        ys = []
        for part in (slice(0, 1), slice(1, 4)):
            y, h = liquid_scan(
                "semi_implicit", 2, "sigmoid", a[:, part], A[:, part], None, None, inv_tau, omega, w, h, None
            )
            ys.append(y)
        return torch.cat(ys, dim=1), h

    check(in_parts, scan(reference, "semi_implicit"), inputs(1, 4, 3))


def test_half_precision_is_computed_in_float32():
    tensors = inputs(dtype=torch.bfloat16)
    y, last = scan(liquid_scan, "euler")(*tensors)
    assert y.dtype == last.dtype == torch.float32
    expected = scan(reference, "euler")(*exact(tensors))
    assert max(relative_errors((y, last), expected)) < 1e-6


def test_what_it_has_no_code_for_is_refused():
    a, A, inv_tau, omega, w, h0 = inputs()
    call = partial(liquid_scan, "euler", 1, "sigmoid", a, A, None, None, inv_tau, omega)
    with pytest.raises(ValueError, match="elapsed"):
        call(w, h0, torch.ones(2, 3, requires_grad=True))
    with pytest.raises(ValueError, match="heads"):
        call(torch.zeros(1, 5, 5), h0, None)
    refuses = next(kernel.refuses for kernel in LIQUID_SCAN.kernels if kernel.backend == "triton")
    assert "heads" in refuses("euler", "heads", 1, 32)
    assert "dense" in refuses("euler", "dense", 1)
    assert "dopri5" in refuses("dopri5", "none", 1)
    assert refuses("rk4", "diagonal", 16) is None


@needs_gpu
@pytest.mark.parametrize(("solver", "states"), itertools.product(SOLVERS, [1, 16]))
def test_larger_shapes_on_a_gpu(solver, states):
    tensors = [x.detach().mul(0.3).requires_grad_() for x in inputs(3, 70, 300, states)]
    agree(tensors, solver, states, substeps=6)


@needs_gpu
def test_float32_on_a_gpu_is_close_to_float64_and_repeats_itself():
    tensors = inputs(8, 512, 256, dtype=torch.float32)
    run = scan(liquid_scan, "semi_implicit", substeps=6)
    first, again = values_and_gradients(run, tensors), values_and_gradients(run, tensors)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert max(relative_errors(first, values_and_gradients(run, exact(tensors)))) < 1e-4
