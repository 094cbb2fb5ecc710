"""The linear scan in each of its forms against a dense solve in float64: values, gradients and their promises."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config.errors import ConfigError
from harness.ops.linear_scan import scan_numba as linear_scan_numba
from harness.ops.linear_scan import scan_triton as linear_scan_triton
from harness.ops.linear_scan.scan import LINEAR_SCAN, log_depth, reference

ROOT = Path(__file__).parent.parent
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCANS = {
    "reference": (reference, "cpu"),
    "log_depth": (log_depth, "cpu"),
    "numba": (linear_scan_numba.linear_scan, "cpu"),
    "triton": (linear_scan_triton.linear_scan, DEVICE),
}


def oracle(J, b, h0, reverse=False):
    """(I - J shifted) h = b, with J_0 h0 added to the first b, solved as one dense system for each channel."""
    if reverse:
        return oracle(J.flip(1), b.flip(1), h0).flip(1)
    T = J.shape[1]
    first = torch.zeros_like(b)
    first[:, 0] = 1
    rhs = (b + first * J * h0[:, None]).transpose(1, 2)  # (batch, D, T)
    shifted = torch.diag_embed(J.transpose(1, 2)[..., 1:], offset=-1)
    return torch.linalg.solve(torch.eye(T, dtype=J.dtype) - shifted, rhs.unsqueeze(-1)).squeeze(-1).transpose(1, 2)


def case(batch, T, D, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    J = 2 * torch.rand(batch, T, D, generator=g, dtype=torch.float64) - 1
    b = torch.randn(batch, T, D, generator=g, dtype=torch.float64)
    return [x.to(dtype) for x in (J, b, torch.randn(batch, D, generator=g, dtype=torch.float64))]


def run(scan, tensors, reverse, device="cpu"):
    """The states and the gradients by J, b and h0 of a fixed functional of them, on the CPU in float64."""
    leaves = [x.detach().to(device).requires_grad_() for x in tensors]
    h = scan(*leaves, reverse)
    g = torch.randn(h.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad((h * g.to(device)).sum(), leaves)
    return [x.detach().cpu().double() for x in (h, *gradients)]


def close(got, expected, tolerance):
    for x, y in zip(got, expected, strict=True):
        assert (x - y).abs().max() <= tolerance * y.abs().max().clamp_min(1)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Time is cut into pieces at lengths that tests can afford."""
    monkeypatch.setattr(linear_scan_numba, "PIECE", 4)
    monkeypatch.setattr(linear_scan_triton, "TOKENS", 4)
    monkeypatch.setattr(linear_scan_triton, "PIECE", 8)
    monkeypatch.setattr(linear_scan_triton, "CHANNELS", 16)
    monkeypatch.setattr(linear_scan_triton, "MANY", 4)


SIZES = st.tuples(st.integers(1, 3), st.sampled_from([1, 2, 3, 8, 17, 33]), st.sampled_from([1, 5, 16, 70]))


@pytest.mark.parametrize("name", SCANS)
def test_values_and_gradients(name, small_pieces):
    scan, device = SCANS[name]

    @settings(max_examples=6 if name == "triton" and device == "cpu" else 25, deadline=None)
    @given(SIZES, st.booleans(), st.integers(0, 9))
    def check(size, reverse, seed):
        tensors = case(*size, seed=seed)
        expected = run(oracle, tensors, reverse)
        close(run(scan, tensors, reverse, device), expected, 1e-12)
        close(run(scan, [x.float() for x in tensors], reverse, device), expected, 2e-5)

    check()


@pytest.mark.parametrize("reverse", [False, True])
def test_pieces_are_cut_and_stitched(reverse):
    tensors = case(1, 41, 3)
    assert linear_scan_numba.cut(1, 41, 3)[2] == 4
    assert linear_scan_numba.cut(8, 41, 300)[2] == 1
    for scan, device in SCANS.values():
        close(run(scan, tensors, reverse, device), run(oracle, tensors, reverse), 1e-12)


@pytest.mark.parametrize("name", SCANS)
def test_strided_and_half_precision_inputs(name):
    scan, device = SCANS[name]
    tensors = case(2, 9, 5, torch.bfloat16)
    strided = [x.to(device).repeat_interleave(2, dim=-1)[..., ::2] for x in tensors]
    h = scan(*strided, True)
    assert h.dtype == torch.float32
    close([h.cpu().double()], [oracle(*(x.double() for x in tensors), True)], 1e-5)


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_values_stay_finite_and_right(name, dtype):
    scan, device = SCANS[name]
    J, b, h0 = case(2, 19, 5)
    tensors = [x.to(dtype) for x in (1.5 * J, 1e30 * b, 1e30 * h0)]  # products of J alone reach 1.5^19
    expected = run(oracle, [x.double() for x in tensors], False)
    got = run(scan, tensors, False, device)
    for x, y in zip(got, expected, strict=True):
        assert x.isfinite().all()
        torch.testing.assert_close(x / y.abs().max(), y / y.abs().max(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SCANS)
def test_a_sequence_does_not_see_its_company(name):
    scan, device = SCANS[name]
    tensors = [x.to(device) for x in case(3, 21, 5)]
    together = scan(*tensors, False)
    for i in range(3):
        torch.testing.assert_close(
            scan(*(x[i : i + 1] for x in tensors), False), together[i : i + 1], rtol=0, atol=1e-13
        )


@pytest.mark.parametrize("name", ["log_depth", "numba", "triton"])
def test_no_tokens_are_refused(name):
    with pytest.raises(ValueError, match="at least one token"):
        SCANS[name][0](*case(1, 0, 2), False)


def test_the_registry_serves_each_device():
    assert LINEAR_SCAN.choose("fused", torch.device("cpu"), torch.float32) is linear_scan_numba.linear_scan
    assert LINEAR_SCAN.choose("fused", torch.device("cuda"), torch.float32) is linear_scan_triton.linear_scan
    assert LINEAR_SCAN.choose("reference", torch.device("cuda"), torch.float32) is reference
    assert LINEAR_SCAN.choose("auto", torch.device("meta"), torch.float32) is reference
    with pytest.raises(ConfigError, match="cannot serve linear_scan"):
        LINEAR_SCAN.choose("fused", torch.device("cpu"), torch.int32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("size", [(1, 5000, 3), (8, 1000, 256)])
def test_on_cuda(size, reverse, monkeypatch):
    monkeypatch.undo()  # the sizes of real use
    tensors = case(*size)
    expected = run(linear_scan_numba.linear_scan, tensors, reverse)
    for scan in (linear_scan_triton.linear_scan, log_depth):
        close(run(scan, tensors, reverse, "cuda"), expected, 1e-12)
        close(run(scan, [x.float() for x in tensors], reverse, "cuda"), expected, 2e-5)
