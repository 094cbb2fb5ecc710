"""What is particular to the selective scan's Triton kernels: tiles, sizes of step, mixed types."""

import pytest
import torch

from baselines.mamba import scan_triton as selective_triton
from baselines.mamba.scan import reference
from baselines.mamba.scan_triton import selective_scan
from kernel_checks import check, exact, relative_errors, values_and_gradients
from triton_checks import DEVICE


def inputs(batch=2, length=5, channels=3, states=2, dtype=torch.float64, scale=1.0):
    """Random inputs of the scan; `scale` multiplies dt."""
    make = {"dtype": dtype, "device": DEVICE}
    x, B, C = (torch.randn(batch, length, size, **make) for size in (channels, states, states))
    dt = torch.rand(batch, length, channels, **make) * scale
    A = -torch.rand(channels, states, **make) * 16
    D, h0 = torch.randn(channels, **make), torch.randn(batch, channels, states, **make)
    return [t.requires_grad_() for t in (x, dt, A, B, C, D, h0)]


def test_several_chunks_and_several_blocks_of_channels(monkeypatch):
    monkeypatch.setattr(selective_triton, "TILE", 4)  # of two channels and two states
    check(selective_scan, reference, inputs(1, 35, 5, 2))


def test_more_states_than_a_tile_has_pairs(monkeypatch):
    monkeypatch.setattr(selective_triton, "TILE", 4)
    check(selective_scan, reference, inputs(1, 1, 2, 11))


@pytest.mark.parametrize("scale", [1e-6, 1e4])
def test_steps_from_tiny_to_huge(scale):
    check(selective_scan, reference, inputs(1, 18, 2, 2, scale=scale), atol=1e-10 * max(scale, 1))


def test_half_precision_is_computed_in_float32_and_keeps_its_type():
    tensors = [t.detach().bfloat16().requires_grad_() for t in inputs(1, 18, 3, 2)]
    got = values_and_gradients(selective_scan, tensors)
    assert [t.dtype for t in got] == [torch.bfloat16, torch.float32] + [torch.bfloat16] * 7
    expected = values_and_gradients(reference, exact(tensors))
    assert max(relative_errors(got, expected)) < 5e-3
    assert relative_errors(got, expected)[1] < 1e-6


def test_it_refuses_too_many_states():
    assert selective_triton.refuses(d_state=256) is None
    assert "257" in selective_triton.refuses(d_state=257)
