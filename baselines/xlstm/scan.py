"""The recurrences of xLSTM (Beck et al. 2024, arXiv:2405.04517): references in torch, and their kernels.

Gates are exponential, and kept in range by a stabiliser m (equations 15 to 17 for the sLSTM, 48 to 54 for the mLSTM):
what the memories hold is the true value times exp(-m), which every read-out divides out. The authors' code adds 1e-6 to
the mLSTM's divisor, and so do we.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.ops.registry import Kernel, Operation
from harness.ops.samples import Draw, Sample, Samples
from harness.ops.shapes import expect_tokens

EPS = 1e-6
NORM_EPS = 1e-5
LARGEST = 80.0
"""Of the exponent of what the mLSTM divides by at least, so that float32 holds it; the result is zero long before."""

State = tuple[Tensor, ...]


def normed(h: Tensor, gain: Tensor) -> Tensor:
    """Each head of h (..., H, D) without its mean and to unit variance, times the gain: (..., H D)."""
    return F.layer_norm(h, h.shape[-1:], eps=NORM_EPS).flatten(-2) * gain


def read_reference(answer: Tensor, m: Tensor, u: Tensor, z: Tensor, gain: Tensor, skip: Tensor) -> Tensor:
    """(normed(h) + skip u) silu(z), with h = answer / max(|weight|, 1): what leaves an mLSTM before its projection.

    answer (B, H, T, D + 1), the weight last, both divided by exp(m); m (B, H, T); u, z and the result (B, T, H D).
    """
    least = torch.exp((-m).clamp(max=LARGEST))
    h = answer[..., :-1] / (torch.maximum(answer[..., -1].abs(), least) + EPS).unsqueeze(-1)
    return (normed(h.transpose(1, 2), gain) + skip * u) * F.silu(z)


def mlstm_step(qkv: State, i: Tensor, f: Tensor, C: Tensor, n: Tensor, m: Tensor) -> tuple[Tensor, State]:
    """One token: C' = sigmoid(f) C + exp(i) k v^T, n' = sigmoid(f) n + exp(i) k; it answers C'^T q and n' q.

    q, k, v (B, H, D), k divided by sqrt(D) here; i, f and m (B, H); C (B, H, D of k, D of v); n (B, H, D). Returns the
    answer (B, H, D + 1), and the new C, n and m.
    """
    q, k, v = qkv
    held = F.logsigmoid(f) + m
    m = torch.maximum(held, i)
    keep, write = torch.exp(held - m).unsqueeze(-1), torch.exp(i - m).unsqueeze(-1)
    k = k * (write * k.shape[-1] ** -0.5)
    C, n = keep.unsqueeze(-1) * C + k.unsqueeze(-1) * v.unsqueeze(-2), keep * n + k
    answer = torch.matmul(q.unsqueeze(-2), C).squeeze(-2)
    return torch.cat([answer, (q * n).sum(-1, keepdim=True)], dim=-1), (C, n, m)


def mlstm_reference(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, C: Tensor, n: Tensor, m: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The mLSTM over q, k, v (B, H, T, D) and i, f (B, H, T): answers (B, H, T, D + 1), m (B, H, T), last C and n."""
    expect_tokens("mlstm_scan", q.shape[2])
    answers, stabilisers = [], []
    for *qkv, i_t, f_t in zip(*(t.unbind(2) for t in (q, k, v, i, f)), strict=True):
        answer, (C, n, m) = mlstm_step(tuple(qkv), i_t, f_t, C, n, m)
        answers.append(answer)
        stabilisers.append(m)
    return torch.stack(answers, dim=2), torch.stack(stabilisers, dim=2), C, n


def slstm_step(raw: Tensor, c: Tensor, n: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One token: c' = sigmoid(f) c + exp(i) tanh(z), n' = sigmoid(f) n + exp(i), y = sigmoid(o) c' / n'.

    raw (..., 4 D): i, f, z, o before their activations; c, n, m (..., D). Returns y and the new c, n and m. Nothing
    depends on m, which therefore passes no gradient. Where n is zero nothing was written, and m counts for nothing.
    """
    i, f, z, o = raw.chunk(4, dim=-1)
    held, fresh = F.logsigmoid(f) + m.detach(), n == 0
    m = torch.where(fresh, i, torch.maximum(held, i)).detach()
    keep, write = torch.exp((held - m).masked_fill(fresh, -torch.inf)), torch.exp(i - m)
    c, n = keep * c + write * z.tanh(), keep * n + write
    return o.sigmoid() * c / n, c, n, m


def recurrent(y: Tensor, R: Tensor) -> Tensor:
    """What the last output adds to the gates, head by head: y (B, H, D), R (H, D, 4 D) -> (B, H, 4 D)."""
    return torch.matmul(y.unsqueeze(-2), R).squeeze(-2)


def slstm_reference(
    u: Tensor, R: Tensor, y: Tensor, c: Tensor, n: Tensor, m: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sLSTM over u (B, H, T, 4 D), what the tokens add to the gates: y (B, H, T, D) and the last c, n and m."""
    expect_tokens("slstm_scan", u.shape[2])
    outputs = []
    for u_t in u.unbind(2):
        y, c, n, m = slstm_step(u_t + recurrent(y, R), c, n, m)
        outputs.append(y)
    return torch.stack(outputs, dim=2), c, n, m


def mlstm_sample(draw: Draw, batch=2, heads=2, length=7, width=4) -> Sample:
    """One call from a state that an earlier one left; of three large factors the sums' differences would be lost."""
    rows = batch, heads
    q, k, v = (draw_(*rows, length, width) for draw_ in (draw.weight, draw.normal, draw.normal))
    gates = [draw.normal(*rows, length) for _ in range(2)]
    return Sample((q, k, v, *gates, draw.normal(*rows, width, width), draw.normal(*rows, width), draw.normal(*rows)))


def read_sample(draw: Draw, batch=2, heads=2, length=3, width=4) -> Sample:
    """One call."""
    answers = draw.normal(batch, heads, length, width + 1), draw.normal(batch, heads, length)
    ways = draw.normal(batch, length, heads * width), draw.normal(batch, length, heads * width)
    return Sample((*answers, *ways, draw.normal(heads * width), draw.normal(heads * width)))


def slstm_sample(draw: Draw, batch=2, heads=2, length=5, width=4, fresh=False) -> Sample:
    """One call from a state that an earlier one left, or from an empty one."""
    shape = batch, heads, width
    given = draw.normal(batch, heads, length, 4 * width), draw.weight(heads, width, 4 * width)
    state = draw.normal(*shape), draw.normal(*shape), 1 + draw.unit(*shape), draw.normal(*shape)
    return Sample((*given, *(0 * t.detach() if fresh else t for t in state)))


_FLOATS = (torch.float32, torch.float64)
_HEADS = {"batch": (1, 3, 6), "heads": (1, 3), "width": (1, 4, 17)}
_CHUNKED = "baselines.xlstm.mlstm_chunks:mlstm_scan"
MLSTM_SCAN = Operation(
    "mlstm_scan",
    mlstm_reference,
    (Kernel("torch", "cpu", _CHUNKED, _FLOATS, chunked=True), Kernel("torch", "cuda", _CHUNKED, _FLOATS, chunked=True)),
    samples=Samples(
        mlstm_sample,
        {**_HEADS, "length": (1, 2, 31, 32, 33, 70)},
        large=({"length": 300, "width": 33}, {"length": 1060, "batch": 1, "heads": 1}),
    ),
)
MLSTM_READ = Operation(
    "mlstm_read",
    read_reference,
    (Kernel("numba", "cpu", "baselines.xlstm.read_numba:mlstm_read", _FLOATS),),
    optional=True,
    samples=Samples(read_sample, {**_HEADS, "length": (1, 2, 65)}, large=({"batch": 3, "length": 150, "width": 33},)),
)
SLSTM_SCAN = Operation(
    "slstm_scan",
    slstm_reference,
    (
        Kernel("numba", "cpu", "baselines.xlstm.slstm_numba:slstm_scan", _FLOATS),
        Kernel("triton", "cuda", "baselines.xlstm.slstm_triton:slstm_scan", _FLOATS, needs=("triton",)),
    ),
    samples=Samples(
        slstm_sample, {**_HEADS, "length": (1, 2, 5)}, ({}, {"fresh": True}), ({"batch": 5, "length": 40, "width": 33},)
    ),
)
