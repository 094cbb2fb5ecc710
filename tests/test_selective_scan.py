"""The selective scan: its kernels against the loop over time, mamba-ssm's reference and each other."""

import sys
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
from torch.testing import assert_close

from baselines.mamba import scan_mamba_ssm as selective_mamba_ssm
from baselines.mamba import scan_numba as selective_numba
from baselines.mamba.oracle import import_mamba_ssm
from baselines.mamba.scan import reference
from baselines.mamba.scan_mamba_ssm import scan_by
from baselines.mamba.scan_numba import selective_scan
from kernel_checks import check, relative_errors, values_and_gradients


def inputs(batch=2, length=5, channels=3, states=2, dtype=torch.float64, scale=1.0):
    """Random inputs of the scan; `scale` multiplies dt."""
    x, B, C = (torch.randn(batch, length, size, dtype=dtype) for size in (channels, states, states))
    dt = torch.rand(batch, length, channels, dtype=dtype) * scale
    A = -torch.rand(channels, states, dtype=dtype) * 16
    D, h0 = torch.randn(channels, dtype=dtype), torch.randn(batch, channels, states, dtype=dtype)
    return [t.requires_grad_() for t in (x, dt, A, B, C, D, h0)]


def test_large_values_stay_finite_and_right():
    tensors = [t.detach() for t in inputs(2, 19, 7, 4, dtype=torch.float32, scale=1e3)]
    for number in (0, 3, 4, 6):  # x, B, C and h0
        tensors[number] *= 1e6
    got = values_and_gradients(selective_scan, [t.requires_grad_() for t in tensors])
    assert all(value.isfinite().all() for value in got)
    exact = values_and_gradients(reference, [t.detach().double().requires_grad_() for t in tensors])
    assert max(relative_errors(got, exact)) < 1e-5


def test_steps_from_tiny_to_huge():
    for scale in (1e-6, 1.0, 1e3):
        check(selective_scan, reference, inputs(2, 19, 7, 4, scale=scale), rtol=1e-10, atol=1e-9)


def test_float32_is_as_close_to_float64_as_the_loop_is():
    tensors = inputs(2, 65, 70, 16, dtype=torch.float32)
    exact = values_and_gradients(reference, [t.detach().double().requires_grad_() for t in tensors])
    errors = []
    for function in (selective_scan, reference):
        results = zip(values_and_gradients(function, tensors), exact, strict=True)
        errors.append([((a - b).norm() / b.norm()).item() for a, b in results])
    assert max(errors[0]) < 2e-6
    assert all(fused < 5 * loop + 1e-7 for fused, loop in zip(*errors, strict=True))


def test_parts_of_a_sequence_with_the_state_carried_equal_the_whole():
    def in_parts(x, dt, A, B, C, D, h):
        ys = []
        for part in (slice(0, 1), slice(1, 20), slice(20, 39)):
            y, h = selective_scan(x[:, part], dt[:, part], A, B[:, part], C[:, part], D, h)
            ys.append(y)
        return torch.cat(ys, dim=1), h

    check(in_parts, selective_scan, inputs(2, 39, 5, 3), rtol=1e-10, atol=1e-11)


def test_states_are_kept_for_the_backward_only_where_there_will_be_one(monkeypatch):
    seen, forward = [], selective_numba._forward
    monkeypatch.setattr(selective_numba, "_forward", lambda inputs, kept: (seen.append(kept), forward(inputs, kept))[1])
    tensors = inputs(1, 33, 3, 2)
    with torch.no_grad():
        quiet = selective_scan(*tensors)
    recorded = selective_scan(*tensors)
    assert seen == [0, 3]
    assert all(torch.equal(a, b) for a, b in zip(quiet, recorded, strict=True))


@pytest.fixture
def mamba_reference():
    """mamba-ssm's own torch mamba_reference."""
    if find_spec("mamba_ssm") is None:
        pytest.skip("mamba-ssm is not installed")
    return import_mamba_ssm("mamba_ssm.ops.selective_scan_interface").selective_scan_ref


def test_kernels_equal_mamba_ssm_and_its_last_state_has_a_gradient(mamba_reference):
    tensors = inputs(2, 23, 6, 4, dtype=torch.float32, scale=0.1)[:6]

    def theirs(*tensors):
        return scan_by(mamba_reference, *tensors)

    check(selective_scan, theirs, tensors, rtol=1e-4, atol=1e-4)

    x, dt, A, B, C, D = tensors
    channels_first = [t.transpose(1, 2) for t in (x, dt, B, C)]
    y, last = mamba_reference(*channels_first[:2], A, *channels_first[2:], D, return_last_state=True)
    for own in (selective_scan, theirs):
        assert_close(own(x, dt, A, B, C, D), (y.transpose(1, 2), last), rtol=1e-5, atol=1e-5)


def test_mamba_ssm_kernel_is_taken_only_where_it_was_compiled(monkeypatch):
    compiled, interface = ModuleType("selective_scan_cuda"), ModuleType("interface")
    interface.selective_scan_fn = lambda: None
    monkeypatch.setitem(sys.modules, "mamba_ssm", ModuleType("mamba_ssm"))
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops", ModuleType("ops"))
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", interface)
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", None)
    assert selective_mamba_ssm.kernel() is None
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", compiled)
    compiled.fwd = None
    assert selective_mamba_ssm.kernel() is None
    compiled.fwd = object()
    assert selective_mamba_ssm.kernel() is interface.selective_scan_fn
    assert selective_mamba_ssm.refuses(carried=False, d_state=16) is None
    assert "zero" in selective_mamba_ssm.refuses(carried=True, d_state=16)
