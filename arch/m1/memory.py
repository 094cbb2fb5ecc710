"""The operation `fast_weight`: a matrix with one decay a head, written by outer products or the delta rule, and read.

    F_t = decay F_{t-1} + k_t e_t',   r_t = F_t' q_t,   e_t = v_t, or of the delta rule rate (v_t - F_{t-1}' k_t)

Shapes: q, k (B, T, heads, E); v (B, T, heads, M); F (B, heads, E, M); log_decay, rate (heads). The decay is constant:
within a chunk every weight of the past is a power of it, and a chunk is a few matrix products.
"""

from functools import partial, reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.ops.registry import Kernel, Operation
from harness.ops.samples import Draw, Sample, Samples

Read = tuple[Tensor, Tensor]


def reference(
    q: Tensor, k: Tensor, v: Tensor, memory: Tensor, log_decay: Tensor, rate: Tensor | None = None, chunk: int = 64
) -> Read:
    """Token by token from `memory`; returns r (B, T, heads, M) and the last F. chunk: of `chunked`, of no effect."""
    q, k, v, memory, log_decay = _widened(q, k, v, memory, log_decay)
    decay, reads = log_decay.exp()[:, None, None], []
    for q_t, k_t, v_t in zip(q.unbind(1), k.unbind(1), v.unbind(1), strict=True):  # (B, heads, ..)
        if rate is not None:
            v_t = rate.to(v)[:, None] * (v_t - torch.einsum("bhe,bhem->bhm", k_t, memory))
        memory = decay * memory + torch.einsum("bhe,bhm->bhem", k_t, v_t)
        reads.append(torch.einsum("bhe,bhem->bhm", q_t, memory))
    return torch.stack(reads, 1), memory


def chunked(
    q: Tensor, k: Tensor, v: Tensor, memory: Tensor, log_decay: Tensor, rate: Tensor | None = None, chunk: int = 64
) -> Read:
    """As `reference`, a chunk of tokens at a time; only the memory between chunks is carried one after the other.

    From the memory F at a chunk's start, token t (from 0) finds decay^t F and what the tokens j before it have written,
    decay^(t-1-j) k_j e_j'. The delta rule's e therefore solve a triangular system, and are linear in F: e = w - W F
    (the UT transform: Yang et al. 2024, arXiv:2406.06484). No exponent is negative, so nothing overflows.
    """
    given = q.shape[1]
    size = min(chunk, given)
    q, k, v, memory, log_decay = _widened(q, k, v, memory, log_decay)
    q, k, v = (_in_chunks(x, size) for x in (q, k, v))  # (B, heads, chunks, size, ..)
    t = torch.arange(size, device=q.device)
    last = torch.arange(size - 1, size * k.shape[2], size, device=q.device).clamp(max=given - 1) % size  # of each chunk
    powers = partial(_powers, log_decay)
    scores = (q @ k.mT) * powers(t[:, None] - t)
    written, reads_memory = v, None
    if rate is not None:
        rate = rate.to(v)[:, None, None, None]
        system = rate * (k @ k.mT) * powers(t[:, None] - t - 1)
        sides = rate * torch.cat([v, k * powers(t[:, None])], -1)
        solved = torch.linalg.solve_triangular(system, sides, upper=False, unitriangular=True)
        written, reads_memory = solved.split([v.shape[-1], k.shape[-1]], -1)
    to_end = (k * powers((last[:, None] - t).clamp(min=0).unsqueeze(-1))).mT  # what pads the last chunk has no keys
    kept, added = powers(last[:, None, None] + 1), to_end @ written
    removed = None if reads_memory is None else to_end @ reads_memory
    starts = []
    for n in range(k.shape[2]):
        starts.append(memory)
        change = added[:, :, n] if removed is None else added[:, :, n] - removed[:, :, n] @ memory
        memory = kept[:, n] * memory + change
    start = torch.stack(starts, 2)  # (B, heads, chunks, E, M)
    if reads_memory is not None:
        written = written - reads_memory @ start
    r = scores @ written + powers(t[:, None] + 1) * (q @ start)
    return r.flatten(2, 3)[:, :, :given].transpose(1, 2), memory


def _powers(log_decay: Tensor, n: Tensor) -> Tensor:
    """decay^n of each head, zero where n is negative: n ([chunks,] rows, columns) -> (heads, [chunks or] 1, ..)."""
    log = log_decay[:, None, None, None]
    return torch.where(n >= 0, torch.exp(log * n.clamp(min=0)), log.new_zeros(()))


def _in_chunks(x: Tensor, size: int) -> Tensor:
    """(B, T, heads, E) -> (B, heads, chunks, size, E), zeros after the last token."""
    return F.pad(x.transpose(1, 2), (0, 0, 0, -x.shape[1] % size)).unflatten(2, (-1, size))


def _widened(*tensors: Tensor) -> list[Tensor]:
    dtype = reduce(torch.promote_types, (x.dtype for x in tensors), torch.float32)
    return [x.to(dtype) for x in tensors]


def sample(draw: Draw, batch=2, length=7, heads=2, keys=4, values=5, delta=False, chunk=3) -> Sample:
    """One call from a carried memory; the delta rule's keys have the length 1, or the memory would grow without end."""
    q, k, v = (draw.normal(batch, length, heads, width) for width in (keys, keys, values))
    k = F.normalize(k, dim=-1) if delta else k
    memory, log_decay = draw.normal(batch, heads, keys, values), draw.unit(heads).log()
    return Sample((q, k, v, memory, log_decay, draw.unit(heads) if delta else None, chunk))


FAST_WEIGHT = Operation(
    "fast_weight",
    reference,
    tuple(Kernel("torch", device, "arch.m1.memory:chunked") for device in ("cpu", "cuda")),
    samples=Samples(
        sample,
        {
            "batch": (1, 3),
            "length": (1, 2, 17, 33),
            "heads": (1, 3),
            "keys": (1, 6),
            "values": (1, 7),
            "chunk": (1, 2, 8, 64),
        },
        ({}, {"delta": True}),
        (
            {"length": 150, "keys": 32, "values": 33, "chunk": 64},
            {"length": 150, "keys": 32, "delta": True, "chunk": 64},
        ),
    ),
)
