"""The operation `linear_scan`: h_t = J_t h_{t-1} + b_t with a diagonal J, what Newton's method solves over time.

The recurrence is associative (Blelloch, "Prefix sums and their applications", 1990): two tokens compose into one of the
same form, (J, b) after (J', b') being (J J', J b' + b), so that any grouping of the tokens gives the same states.
"""

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.ops.registry import Kernel, Operation
from harness.ops.samples import Draw, Sample, Samples
from harness.ops.shapes import expect, expect_tokens

Scan = Callable[[Tensor, Tensor, Tensor, bool], Tensor]


def reference(J: Tensor, b: Tensor, h0: Tensor, reverse: bool = False) -> Tensor:
    """h_t = J_t h_{t-1} + b_t from h_{-1} = h0, or, in reverse, h_t = J_t h_{t+1} + b_t from h_T = h0.

    J, b (batch, T, D), T >= 1; h0 (batch, D). Returns h (batch, T, D) in the widest of their types, float32 at least.
    """
    J, b, h = _widened(J, b, h0)
    tokens = list(zip(J.unbind(1), b.unbind(1), strict=True))
    states = []
    for J_t, b_t in reversed(tokens) if reverse else tokens:
        h = J_t * h + b_t
        states.append(h)
    return torch.stack(states[::-1] if reverse else states, dim=1)


def log_depth(J: Tensor, b: Tensor, h0: Tensor, reverse: bool = False) -> Tensor:
    """As `reference` in log2(T) rounds of torch operations, each twice the reach of the last.

    Hillis & Steele, "Data parallel algorithms" (CACM 1986): T log T work, for devices that run it in parallel.
    """
    return differentiable(_doubling, J, b, h0, reverse)


def differentiable(run: Scan, J: Tensor, b: Tensor, h0: Tensor, reverse: bool) -> Tensor:
    """Calls `run`, which autograd cannot see into, on contiguous tensors of one type; its vjp is `run` in reverse."""
    expect_tokens("linear_scan", J.shape[1])
    expect("linear_scan", ("b", b, J.shape), ("h0", h0, (J.shape[0], J.shape[2])))
    return _LinearScan.apply(run, reverse, *(x.contiguous() for x in _widened(J, b, h0)))


def neighbours(x: Tensor, edge: Tensor, reverse: bool = False) -> Tensor:
    """x_{t-1}, or x_{t+1} in reverse, with `edge` (batch, D) past the end: (batch, T, D) -> (batch, T, D)."""
    edge = edge.unsqueeze(1)
    return torch.cat([x[:, 1:], edge] if reverse else [edge, x[:, :-1]], dim=1)


def transposed(run: Scan, J: Tensor, g: Tensor, reverse: bool = False) -> tuple[Tensor, Tensor]:
    """The adjoint of a scan: from the gradients g of its states to those of its b and of its h0.

    lambda_t = g_t + J_{t+1} lambda_{t+1}, the other way round in reverse; the gradient of h0 is J_0 lambda_0.
    """
    nothing = torch.zeros_like(g[:, 0])
    adjoint = run(neighbours(J, nothing, not reverse), g, nothing, not reverse)
    first = -1 if reverse else 0
    return adjoint, J[:, first] * adjoint[:, first]


class _LinearScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run: Scan, reverse: bool, J: Tensor, b: Tensor, h0: Tensor) -> Tensor:
        h = run(J, b, h0, reverse)
        ctx.run, ctx.reverse = run, reverse
        ctx.save_for_backward(J, h0, h)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor):
        J, h0, h = ctx.saved_tensors
        g_b, g_h0 = transposed(ctx.run, J, g.contiguous(), ctx.reverse)
        return None, None, g_b * neighbours(h, h0, ctx.reverse), g_b, g_h0


def _widened(*tensors: Tensor) -> list[Tensor]:
    dtype = reduce(torch.promote_types, (x.dtype for x in tensors), torch.float32)
    return [x.to(dtype) for x in tensors]


def _doubling(J: Tensor, b: Tensor, h0: Tensor, reverse: bool) -> Tensor:
    if reverse:
        return _doubling(J.flip(1), b.flip(1), h0, False).flip(1)
    h = torch.cat([J[:, :1] * h0.unsqueeze(1) + b[:, :1], b[:, 1:]], dim=1)
    reach = 1
    while reach < J.shape[1]:  # h_t gathers the tokens t - reach + 1..t, J_t is their product
        h = torch.cat([h[:, :reach], torch.addcmul(h[:, reach:], J[:, reach:], h[:, :-reach])], dim=1)
        J = torch.cat([J[:, :reach], J[:, reach:] * J[:, :-reach]], dim=1)
        reach *= 2
    return h


def sample(draw: Draw, batch=2, length=7, width=5, reverse=False) -> Sample:
    """One call whose states neither die out nor grow."""
    return Sample(
        (2 * draw.unit(batch, length, width) - 1, draw.normal(batch, length, width), draw.normal(batch, width), reverse)
    )


LINEAR_SCAN = Operation(
    "linear_scan",
    reference,
    (
        Kernel("numba", "cpu", "harness.ops.linear_scan.scan_numba:linear_scan"),
        Kernel("triton", "cuda", "harness.ops.linear_scan.scan_triton:linear_scan", needs=("triton",)),
        Kernel("torch", "cuda", "harness.ops.linear_scan.scan:log_depth"),
    ),
    samples=Samples(
        sample,
        {"batch": (1, 3), "length": (1, 2, 8, 17, 33), "width": (1, 5, 16, 70)},
        ({}, {"reverse": True}),
        ({"batch": 1, "length": 1100, "width": 3}, {"batch": 2, "length": 600, "width": 130, "reverse": True}),
    ),
)
