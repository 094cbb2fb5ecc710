"""The LRC neurons parallel in time, as their authors solve them: Newton's method over the sequence (arch/newton.py)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from arch.lrc.scan import LRC_SCAN, Neurons
from arch.newton import Diagnostics, Newton, Recurrence, solve
from harness.ops.linear_scan.scan import LINEAR_SCAN, Scan, neighbours, transposed
from harness.ops.registry import Choice


@dataclass(frozen=True)
class Way:
    """How one call is solved; `record` is called with how it converged."""

    options: Newton
    kernel: Choice
    record: Callable[[Diagnostics], None]

    def scan(self, like: Tensor) -> Scan:
        """The linear scan that serves such tensors."""
        return LINEAR_SCAN.choose(self.kernel, like.device, like.dtype)


def newton_scan(way: Way, neurons: Neurons, p: Tensor, q: Tensor, h: Tensor, elapsed: Tensor | None) -> Tensor:
    """As `reference` of arch/lrc/scan.py, to within the way's tolerance."""
    return _NewtonScan.apply(way, p, q, h, elapsed, *neurons)


def _column(elapsed: Tensor | None) -> Tensor | None:
    """(B, T) -> (B, T, 1)."""
    return None if elapsed is None else elapsed.unsqueeze(2)


class _NewtonScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, way, p, q, h0, elapsed, *neurons):

        def linearised(h):
            after, J = Neurons(*neurons).linearised(p, q, neighbours(h, h0), _column(elapsed))
            return after - h, J

        def sequential(rows):
            time = None if elapsed is None else elapsed[rows]
            run = LRC_SCAN.choose(way.kernel, p.device, p.dtype)
            return run(Neurons(*neurons), p[rows], q[rows], h0[rows], time)

        h, diagnostics = solve(Recurrence(h0, p.shape[1], linearised, sequential), way.options, way.scan(p))
        way.record(diagnostics)
        ctx.way = way
        ctx.save_for_backward(h0, h, p, q, elapsed, *neurons)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        h0, h, *given = ctx.saved_tensors
        p, q, elapsed, *neurons = given
        before = neighbours(h, h0)
        J = Neurons(*neurons).linearised(p, q, before, _column(elapsed))[1]
        adjoint, g_h0 = transposed(ctx.way.scan(g), J, g.contiguous())
        with torch.enable_grad():
            leaves = [None if x is None else x.detach().requires_grad_() for x in given]
            p, q, elapsed, *neurons = leaves
            after = Neurons(*neurons).step(p, q, before, _column(elapsed))
            found = iter(torch.autograd.grad(after, [x for x in leaves if x is not None], adjoint))
        g_p, g_q, g_elapsed, *g_neurons = [None if x is None else next(found) for x in leaves]
        return None, g_p, g_q, g_h0, g_elapsed, *g_neurons
