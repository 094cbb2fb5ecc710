"""torch's own recurrences behind the operations' signatures: cuDNN on CUDA, oneDNN and ATen's loop on the CPU."""

import torch
from torch import Tensor

from harness.ops.shapes import expect, expect_tokens


def lstm_scan(
    x: Tensor, h: Tensor, c: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> tuple[Tensor, Tensor]:
    """The LSTM over x (B, T, D) from h, c (B, d_inner): h (B, T, d_inner) and the last c."""
    _check("lstm_scan", x, weight_hh, h=h, c=c)
    state = h[None].contiguous(), c[None].contiguous()
    y, _, c = torch._VF.lstm(x, state, [weight_ih, weight_hh, bias_ih, bias_hh], *_one_layer())
    return y, c[0]


def gru_scan(x: Tensor, h: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor) -> Tensor:
    """The GRU over x (B, T, D) from h (B, d_inner): h (B, T, d_inner)."""
    _check("gru_scan", x, weight_hh, h=h)
    return torch._VF.gru(x, h[None].contiguous(), [weight_ih, weight_hh, bias_ih, bias_hh], *_one_layer())[0]


def _check(operation: str, x: Tensor, weight_hh: Tensor, **states: Tensor) -> None:
    """torch's modules look at the states' shapes; their kernels, called here, do not."""
    expect_tokens(operation, x.shape[1])
    expect(operation, *((name, state, (len(x), weight_hh.shape[1])) for name, state in states.items()))


def _one_layer() -> tuple[bool, int, float, bool, bool, bool]:
    """Biases, layers, dropout, whether a backward may follow (cuDNN keeps what it needs only then), two directions,
    batch first."""
    return True, 1, 0.0, torch.is_grad_enabled(), False, True
