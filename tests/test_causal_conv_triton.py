"""What is particular to the causal convolution's Triton kernels: blocks, and mixed types."""

from functools import partial

import pytest
import torch

from harness.ops.causal_conv import conv_triton as causal_conv_triton
from harness.ops.causal_conv.conv import reference
from harness.ops.causal_conv.conv_triton import causal_conv
from kernel_checks import check, exact, relative_errors, values_and_gradients
from triton_checks import DEVICE


def inputs(batch=2, length=5, channels=3, taps=4, dtype=torch.float64, scale=1.0):
    make = {"dtype": dtype, "device": DEVICE}
    shapes = (batch, length, channels), (taps, channels), (channels,), (batch, taps - 1, channels)
    return [(scale * torch.randn(shape, **make)).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("silu", [False, True])
def test_several_blocks_of_tokens_and_of_channels(silu, monkeypatch):
    monkeypatch.setattr(causal_conv_triton, "BLOCK_T", 8)
    monkeypatch.setattr(causal_conv_triton, "BLOCK_D", 4)
    for length in (5, 6, 21):  # the last inputs fall within a block, and on both sides of its end
        check(partial(causal_conv, silu=silu), partial(reference, silu=silu), inputs(2, length, 6, 4))


def test_half_precision_is_computed_in_float32_and_keeps_its_type():
    x, weight, bias, state = inputs(2, 40, 6)
    tensors = [x.detach().bfloat16(), weight.detach().float(), bias.detach().float(), state.detach().bfloat16()]
    tensors = [t.requires_grad_() for t in tensors]
    run = partial(causal_conv, silu=True)
    got = values_and_gradients(run, tensors)
    types = [torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.float32, torch.float32, torch.bfloat16]
    assert [t.dtype for t in got] == types
    expected = values_and_gradients(partial(reference, silu=True), exact(tensors))
    assert max(relative_errors(got, expected)) < 5e-3
