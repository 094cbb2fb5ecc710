"""The operations of the LSTM and the GRU, over a sequence and for one token: references in torch and their kernels.

Weights are as torch's modules hold them: weight_ih (gates x d_inner, D), weight_hh (gates x d_inner, d_inner) and two
biases (gates x d_inner), the gates i, f, g, o of the LSTM and r, z, n of the GRU. Every implementation of an operation
has the signature of its reference.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.ops.registry import FLOATS, Kernel, Operation
from harness.ops.samples import Draw, Sample, Samples


def lstm_cell(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The new h and c from the gates' pre-activations (B, 4 d_inner) and c (B, d_inner)."""
    i, f, g, o = gates.chunk(4, dim=-1)  # (B, d_inner) each
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_cell(by_x: Tensor, by_h: Tensor, h: Tensor) -> Tensor:
    """The new h (B, d_inner) from the input's and the state's products, biases in them (B, 3 d_inner each)."""
    (r_x, z_x, n_x), (r_h, z_h, n_h) = by_x.chunk(3, dim=-1), by_h.chunk(3, dim=-1)
    z, n = (z_x + z_h).sigmoid(), (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
    return n + z * (h - n)


def lstm_reference(
    x: Tensor, h: Tensor, c: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> tuple[Tensor, Tensor]:
    """The LSTM over x (B, T, D) from h, c (B, d_inner): h (B, T, d_inner) and the last c."""
    outputs = []
    for u_t in F.linear(x, weight_ih, bias_ih).unbind(1):
        h, c = lstm_cell(u_t + F.linear(h, weight_hh, bias_hh), c)
        outputs.append(h)
    return torch.stack(outputs, dim=1), c


def gru_reference(
    x: Tensor, h: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> Tensor:
    """The GRU over x (B, T, D) from h (B, d_inner): h (B, T, d_inner)."""
    outputs = []
    for u_t in F.linear(x, weight_ih, bias_ih).unbind(1):
        h = gru_cell(u_t, F.linear(h, weight_hh, bias_hh), h)
        outputs.append(h)
    return torch.stack(outputs, dim=1)


def lstm_step_reference(
    out: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """One token for these weights and the projection `out` (D, d_inner): x (B, D), h, c -> y (B, D), new h, new c."""

    def run(x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, c = lstm_cell(F.linear(x, weight_ih, bias_ih) + F.linear(h, weight_hh, bias_hh), c)
        return F.linear(h, out), h, c

    return run


def gru_step_reference(
    out: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """One token for these weights and the projection `out` (D, d_inner): x (B, D), h -> y (B, D), new h."""

    def run(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = gru_cell(F.linear(x, weight_ih, bias_ih), F.linear(h, weight_hh, bias_hh), h)
        return F.linear(h, out), h

    return run


def _weights(draw: Draw, gates: int, width: int, inner: int) -> tuple[Tensor, ...]:
    rows = gates * inner
    return draw.weight(rows, width), draw.weight(rows, inner), draw.normal(rows), draw.normal(rows)


def gru_sample(draw: Draw, batch=2, length=3, width=5, inner=4) -> Sample:
    """One call from a state that an earlier one left."""
    weights = _weights(draw, 3, width, inner)
    return Sample((draw.normal(batch, length, width), draw.normal(batch, inner), *weights))


def lstm_sample(draw: Draw, batch=2, length=3, width=5, inner=4) -> Sample:
    """One call from a state that an earlier one left."""
    weights = _weights(draw, 4, width, inner)
    return Sample((draw.normal(batch, length, width), draw.normal(batch, inner), draw.normal(batch, inner), *weights))


def gru_step_sample(draw: Draw, batch=2, width=5, inner=4) -> Sample:
    """Weights, and one token with its state."""
    weights = draw.weight(width, inner), *_weights(draw, 3, width, inner)
    return Sample(weights, token=(draw.normal(batch, width), draw.normal(batch, inner)))


def lstm_step_sample(draw: Draw, batch=2, width=5, inner=4) -> Sample:
    """Weights, and one token with its state."""
    weights = draw.weight(width, inner), *_weights(draw, 4, width, inner)
    return Sample(weights, token=(draw.normal(batch, width), draw.normal(batch, inner), draw.normal(batch, inner)))


_WIDTHS = {"batch": (1, 3, 6), "width": (1, 5, 33), "inner": (1, 4, 31)}
_SIZES = {"length": (1, 2, 5), **_WIDTHS}
_LARGE = ({"batch": 5, "length": 40, "width": 33, "inner": 40},)


# On the CPU torch fuses the LSTM alone, through oneDNN and in float32; the rest is a loop in C++ over its operators.
_TORCH, _HERE, _SINGLE = "baselines.recurrent.scan_torch", "baselines.recurrent", (torch.float32,)
LSTM_SCAN = Operation(
    "lstm_scan",
    lstm_reference,
    (
        Kernel("onednn", "cpu", f"{_TORCH}:lstm_scan", _SINGLE),
        Kernel("aten", "cpu", f"{_TORCH}:lstm_scan", FLOATS),
        Kernel("cudnn", "cuda", f"{_TORCH}:lstm_scan", FLOATS),
    ),
    samples=Samples(lstm_sample, _SIZES, large=_LARGE),
)
GRU_SCAN = Operation(
    "gru_scan",
    gru_reference,
    (
        Kernel("numba", "cpu", f"{_HERE}.gru_numba:gru_scan", (torch.float32, torch.float64)),
        Kernel("aten", "cpu", f"{_TORCH}:gru_scan", FLOATS),
        Kernel("cudnn", "cuda", f"{_TORCH}:gru_scan", FLOATS),
    ),
    samples=Samples(gru_sample, _SIZES, large=_LARGE),
)
LSTM_STEP = Operation(
    "lstm_step",
    lstm_step_reference,
    (Kernel("numba", "cpu", f"{_HERE}.step_numba:lstm_step", _SINGLE),),
    optional=True,
    samples=Samples(lstm_step_sample, _WIDTHS),
)
GRU_STEP = Operation(
    "gru_step",
    gru_step_reference,
    (Kernel("numba", "cpu", f"{_HERE}.step_numba:gru_step", _SINGLE),),
    optional=True,
    samples=Samples(gru_step_sample, _WIDTHS),
)
