"""The causal convolution on the CPU: its kernels against torch's own convolution and the reference."""

import torch
import torch.nn.functional as F

from harness.ops.causal_conv.conv import reference
from harness.ops.causal_conv.conv_numba import causal_conv


def inputs(batch=2, length=5, channels=3, taps=4, dtype=torch.float64, scale=1.0):
    shapes = (batch, length, channels), (taps, channels), (channels,), (batch, taps - 1, channels)
    return [(scale * torch.randn(shape, dtype=dtype)).requires_grad_() for shape in shapes]


def test_the_reference_is_torchs_convolution():
    x, weight, bias, state = (t.detach() for t in inputs(2, 9, 5))
    y, last = reference(x, weight, bias, state, False)
    window = torch.cat([state, x], dim=1).transpose(1, 2)
    torch.testing.assert_close(y.transpose(1, 2), F.conv1d(window, weight.t().unsqueeze(1), bias, groups=5))
    assert torch.equal(last, x[:, -3:])
    torch.testing.assert_close(reference(x, weight, bias, state, True)[0], F.silu(y))


def test_half_precision_is_computed_in_float32_and_keeps_its_type():
    tensors = [t.detach() for t in inputs(dtype=torch.bfloat16)]
    y, last = causal_conv(*tensors, True)
    expected, kept = reference(*(t.double() for t in tensors), True)
    assert y.dtype == last.dtype == torch.bfloat16
    assert torch.equal(y, expected.bfloat16())
    assert torch.equal(last.double(), kept)
