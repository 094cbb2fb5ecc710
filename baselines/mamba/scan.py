"""The operation `selective_scan`: S6 (Gu and Dao 2023, arXiv:2312.00752, eq. 2 and algorithm 2) over a sequence.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t,    y_t = <C_t, h_t> + D x_t

Shapes: x, dt, y (batch, T, channels); A (channels, N); B, C (batch, T, N); D (channels); h (batch, channels, N). The
input term keeps only the first order of zero-order hold, as Mamba's code does. dt is positive, A negative.
"""

import importlib

import torch
import torch.nn.functional as F
from torch import Tensor

from baselines.mamba import scan_mamba_ssm as selective_mamba_ssm
from harness.ops.registry import Kernel, Operation
from harness.ops.samples import Draw, Sample, Samples


def scan_step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """One token: x, dt (batch, channels), B, C (batch, N). Returns y (batch, channels) and the new h."""
    decay = torch.exp(dt.unsqueeze(-1) * A)  # (batch, channels, N)
    h = decay * h + (dt * x).unsqueeze(-1) * B.unsqueeze(1)
    return (h * C.unsqueeze(1)).sum(-1) + D * x, h


def reference(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, h0: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A loop of `scan_step` from h0, zero where None: returns y and the last h."""
    h = x.new_zeros(x.shape[0], *A.shape) if h0 is None else h0
    ys = []
    for token in zip(*(tensor.unbind(1) for tensor in (x, dt, B, C)), strict=True):
        x_t, dt_t, B_t, C_t = token
        y, h = scan_step(x_t, dt_t, A, B_t, C_t, D, h)
        ys.append(y)
    return torch.stack(ys, dim=1), h


def _triton_refuses(**options) -> str | None:
    return importlib.import_module("baselines.mamba.scan_triton").refuses(**options)


def sample(draw: Draw, batch=2, length=5, channels=3, states=2, carried=True) -> Sample:
    """One call, from a state that an earlier scan left, or none."""
    x, B, C = (draw.normal(batch, length, size) for size in (channels, states, states))
    dt, A = F.softplus(draw.normal(batch, length, channels)), -16 * draw.unit(channels, states)
    D, h0 = draw.normal(channels), draw.normal(batch, channels, states)
    arguments = (x, dt, A, B, C, D, h0 if carried else None)
    return Sample(arguments, {"d_state": states, "carried": carried})


SELECTIVE_SCAN = Operation(
    "selective_scan",
    reference,
    (
        Kernel("numba", "cpu", "baselines.mamba.scan_numba:selective_scan"),
        Kernel(
            "mamba-ssm",
            "cuda",
            "baselines.mamba.scan_mamba_ssm:selective_scan",
            (torch.float32,),
            refuses=selective_mamba_ssm.refuses,
        ),
        Kernel(
            "triton",
            "cuda",
            "baselines.mamba.scan_triton:selective_scan",
            refuses=_triton_refuses,
            needs=("triton",),
        ),
    ),
    samples=Samples(
        sample,
        {"batch": (1, 3), "length": (1, 2, 15, 17, 33), "channels": (1, 3, 33, 65), "states": (1, 3, 16, 17)},
        ({}, {"carried": False}),
        ({"length": 513, "channels": 130, "states": 16}, {"length": 3, "channels": 9, "states": 256}),
    ),
)
