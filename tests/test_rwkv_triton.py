"""What is particular to WKV-7's Triton kernels: blocks of rows, decays of zero, mixed types."""

import torch
import torch.nn.functional as F

from baselines.rwkv import scan_triton as rwkv_triton
from baselines.rwkv.scan import reference
from baselines.rwkv.scan_triton import rwkv_scan
from kernel_checks import check, exact, relative_errors, values_and_gradients
from triton_checks import DEVICE


def inputs(batch: int, length: int, heads: int, size: int, dtype=torch.float64, scale=1.0) -> list[torch.Tensor]:
    """Vectors as the model makes them: decays in (0.55, 1), a = -kk and b = kk * rate with kk of unit length."""
    make = {"dtype": dtype, "device": DEVICE}
    r, w, k, v, kk, rate = (scale * torch.randn(batch, length, heads, size, **make) for _ in range(6))
    kk = F.normalize(kk, dim=-1)
    state = torch.randn(batch, heads, size, size, **make)
    values = [r, torch.exp(-0.6 * torch.sigmoid(w)), k, v, -kk, kk * torch.sigmoid(rate), state]
    return [value.requires_grad_() for value in values]


def test_several_chunks_and_several_blocks_of_rows(monkeypatch):
    monkeypatch.setattr(rwkv_triton, "ROWS", 4)
    check(rwkv_scan, reference, inputs(1, 33, 1, 7))


def test_large_inputs_and_decays_that_forget_everything():
    *vectors, state = inputs(1, 17, 1, 4, scale=1e3)
    with torch.no_grad():
        vectors[1][:, ::3] = 0  # the step could not be inverted
    check(rwkv_scan, reference, [*vectors, state], atol=1e-3)  # of results around 1e8


def test_half_precision_is_computed_in_float32_and_keeps_its_type():
    *vectors, state = inputs(1, 17, 1, 6)
    tensors = [z.detach().bfloat16().requires_grad_() for z in vectors] + [state.detach().float().requires_grad_()]
    got = values_and_gradients(rwkv_scan, tensors)
    assert [t.dtype for t in got] == [torch.bfloat16, torch.float32] + [torch.bfloat16] * 6 + [torch.float32]
    expected = values_and_gradients(reference, exact(tensors))
    errors = relative_errors(got, expected)
    assert max(errors) < 5e-3
    assert max(errors[1], errors[-1]) < 1e-6


def test_it_refuses_too_large_heads():
    assert rwkv_triton.refuses(head_dim=256) is None
    assert "257" in rwkv_triton.refuses(head_dim=257)
