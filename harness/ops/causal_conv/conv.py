"""The operation `causal_conv`: a short causal depthwise convolution that carries its state.

    y_t = bias + sum_k weight_k x_{t - K + 1 + k},    then silu(y) = y sigmoid(y) where asked for

Tap K - 1 falls on the token itself; the K - 1 inputs before the first token are the state. Shapes: x, y (B, T, D);
weight (K, D); bias (D); state (B, K - 1, D), oldest first.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.ops.registry import Kernel, Operation
from harness.ops.samples import Draw, Sample, Samples


def reference(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, silu: bool) -> tuple[Tensor, Tensor]:
    """Returns y (B, T, D) and the last K - 1 inputs (B, K - 1, D), a tensor of its own; both in the type of x."""
    taps, length = weight.shape[0], x.shape[1]
    window = torch.cat([state.to(x.dtype), x], dim=1)  # (B, K - 1 + T, D)
    weight, y = weight.to(x.dtype), bias.to(x.dtype)
    for k in range(taps):
        y = torch.addcmul(y, window[:, k : k + length], weight[k])
    return F.silu(y) if silu else y, window[:, length:].clone()  # a view would keep the whole sequence alive


def step_reference(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor, silu: bool) -> tuple[Tensor, Tensor]:
    """`reference` for one token: x, y (B, D)."""
    window = torch.cat([state.to(x.dtype), x.unsqueeze(1)], dim=1)  # (B, K, D)
    y = (window * weight.to(x.dtype)).sum(1) + bias.to(x.dtype)
    return F.silu(y) if silu else y, window[:, 1:].clone()  # a view would keep what it leaves out


def sample(draw: Draw, batch=2, length=7, channels=5, taps=4, silu=True) -> Sample:
    """One call, with a state left by earlier inputs."""
    inputs = draw.normal(batch, length, channels), draw.normal(taps, channels), draw.normal(channels)
    return Sample((*inputs, draw.normal(batch, taps - 1, channels), silu))


CAUSAL_CONV = Operation(
    "causal_conv",
    reference,
    (
        Kernel("numba", "cpu", "harness.ops.causal_conv.conv_numba:causal_conv"),
        Kernel("triton", "cuda", "harness.ops.causal_conv.conv_triton:causal_conv", needs=("triton",)),
    ),
    samples=Samples(
        sample,
        {"batch": (1, 3), "length": (1, 2, 9, 65), "channels": (1, 7, 33, 257), "taps": (1, 2, 4, 5)},
        ({}, {"silu": False}),
        ({"length": 130, "channels": 300}, {"length": 61, "channels": 33}, {"length": 1, "channels": 700, "taps": 3}),
    ),
)
