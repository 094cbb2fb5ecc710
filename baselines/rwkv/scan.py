"""The operation `rwkv_scan`: WKV-7, a generalised delta rule on one N x N state per head (arXiv:2503.14456, eq. 15-18).

    S_t = S_{t-1} diag(w_t) + (S_{t-1} a_t) b_t^T + v_t k_t^T        y_t = S_t r_t

Rows of S are values, columns are keys.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.ops.registry import Kernel, Operation
from harness.ops.samples import Draw, Sample, Samples


def step(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token: vectors (B, H, N) and state (B, H, N, N) -> y (B, H, N) and the new state; pure."""
    removed = state @ a.unsqueeze(-1)  # (B, H, N, 1): what the state holds under the key that is replaced
    state = state * w.unsqueeze(-2) + removed * b.unsqueeze(-2) + v.unsqueeze(-1) * k.unsqueeze(-2)
    return (state @ r.unsqueeze(-1)).squeeze(-1), state


def reference(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """A loop of `step`: vectors (B, T, H, N) -> y (B, T, H, N) and the state after the last token."""
    outputs = []
    for token in zip(*(x.unbind(1) for x in (r, w, k, v, a, b)), strict=True):
        y, state = step(*token, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def sample(draw: Draw, batch=2, length=5, heads=2, size=4) -> Sample:
    """Vectors as the model makes them: decays in (0.55, 1), a = -kk and b = kk * rate with kk of unit length."""
    r, w, k, v, kk, rate = (draw.normal(batch, length, heads, size) for _ in range(6))
    kk = F.normalize(kk, dim=-1)
    vectors = r, torch.exp(-0.6 * torch.sigmoid(w)), k, v, -kk, kk * torch.sigmoid(rate)
    return Sample((*vectors, draw.normal(batch, heads, size, size)), {"head_dim": size})


RWKV_SCAN = Operation(
    "rwkv_scan",
    reference,
    (
        Kernel("numba", "cpu", "baselines.rwkv.scan_numba:rwkv_scan"),
        Kernel("triton", "cuda", "baselines.rwkv.scan_triton:rwkv_scan", needs=("triton",)),
    ),
    samples=Samples(
        sample,
        {"batch": (1, 3), "length": (1, 2, 15, 16, 17, 33), "heads": (1, 3), "size": (1, 3, 8, 17, 64)},
        large=(
            {"length": 130, "heads": 4, "size": 64},
            {"batch": 1, "length": 17, "heads": 1, "size": 256},
            {"length": 40, "size": 16},
        ),
    ),
)
