"""The references of the elementwise operations against their textbook formulas."""

import torch

from harness.ops.elementwise.rms_norm import reference as rms_norm
from harness.ops.elementwise.swiglu import reference as swiglu


def test_the_references_are_the_textbook_formulas():
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    gate, up = x[..., :4], x[..., 4:]
    torch.testing.assert_close(swiglu(x), gate / (1 + torch.exp(-gate)) * up)
    weight = torch.randn(8, dtype=torch.float64)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), expected)
