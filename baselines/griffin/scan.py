"""The operation `rg_lru`: the recurrence of the RG-LRU and the gate that reads it (De et al. 2024, sections 2.3, 2.4).

    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) sigmoid(i_t) u_t,    a_t = exp(-rate sigmoid(r_t)),    y_t = gelu(z_t) h_t

Shapes: u, r, i, z, y (B, T, D); rate (D), positive; h0 and the last state (B, D); all of one type, float32 or float64.
gelu is the approximation by tanh, as in the authors' code.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.ops.linear_scan.scan import LINEAR_SCAN
from harness.ops.linear_scan.scan import reference as linear_scan
from harness.ops.registry import Kernel, Operation
from harness.ops.samples import Draw, Sample, Samples

SMALLEST = 1e-30
"""Of 1 - a^2: where a rounds to 1 its root has no slope."""


def reference(u: Tensor, r: Tensor, i: Tensor, z: Tensor, rate: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    """Returns y and the last state, by a loop over the tokens."""
    return _scanned(linear_scan, (u, r, i, rate), z, h0)


def composed(u: Tensor, r: Tensor, i: Tensor, z: Tensor, rate: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    """As `reference`, of torch's operations around the kernel of the linear scan."""
    return _scanned(LINEAR_SCAN.choose("auto", u.device, u.dtype), (u, r, i, rate), z, h0)


def step(u: Tensor, r: Tensor, i: Tensor, z: Tensor, rate: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """One token: y and the new state; u, r, i, z (B, D)."""
    a, b = _coefficients(u, r, i, rate)
    h = a * h + b
    return F.gelu(z, approximate="tanh") * h, h


def _scanned(scan: Callable, inputs: tuple[Tensor, ...], z: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    h = scan(*_coefficients(*inputs), h0)
    return F.gelu(z, approximate="tanh") * h, h[:, -1].clone()  # a view would keep every h alive


def _coefficients(u: Tensor, r: Tensor, i: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """a and b of h' = a h + b."""
    log_a = -rate * r.sigmoid()
    root = (-torch.expm1(2 * log_a)).clamp(min=SMALLEST).sqrt()
    return log_a.exp(), root * i.sigmoid() * u


def sample(draw: Draw, batch=2, length=7, width=5) -> Sample:
    """One call, with a state left by earlier tokens."""
    tokens = [draw.normal(batch, length, width) for _ in range(4)]
    return Sample((*tokens, draw.unit(width), draw.normal(batch, width)))


RG_LRU = Operation(
    "rg_lru",
    reference,
    (
        Kernel("numba", "cpu", "baselines.griffin.scan_numba:rg_lru", (torch.float32, torch.float64)),
        Kernel("torch", "cuda", "baselines.griffin.scan:composed"),
    ),
    samples=Samples(
        sample,
        {"batch": (1, 3), "length": (1, 2, 33), "width": (1, 5, 16, 130)},
        large=({"length": 600, "width": 96},),
    ),
)
