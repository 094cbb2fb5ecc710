"""Newton's method over a whole sequence, for any recurrence whose derivative is diagonal.

The states solve h_t = F_t(h_{t-1}), F_t being the map of token t. From a guess, every F_t and its derivative J_t are
found at once, and the linearised recurrence is one associative scan (harness/ops/linear_scan/). With the residual
r_t = F_t(h_{t-1}) - h_t the update of the guess solves

    d_t = J_t d_{t-1} + r_t.

Lim et al., "Parallelizing non-linear sequential models over the sequence length" (DEER, ICLR 2024, arXiv:2309.12252);
Danieli et al., "ParaRNN" (ICLR 2026). Where J is diagonal the method is Newton's own and not the approximation of
quasi-DEER (Gonzalez et al., NeurIPS 2024, arXiv:2407.19115). The gradient is that of the implicit function: one reverse
scan with J at the solution, and one vjp of all maps. It does not depend on how the solution was found.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from harness.config.ranges import Steps, Tolerance
from harness.ops.linear_scan.scan import Scan


@dataclass(frozen=True)
class Sequential:
    """One token after another."""

    name: Literal["sequential"] = "sequential"


@dataclass(frozen=True)
class Newton:
    """When to stop: at an update of no more than `tolerance` times the largest state of its sequence.

    Convergence is quadratic, so the error left is of the order of the update's square. A sequence that has not
    converged after `max_iterations`, or whose update is not finite, is solved by the sequential scan instead.
    """

    name: Literal["newton"] = "newton"
    max_iterations: Steps = 20
    tolerance: Tolerance = 1e-4


@dataclass(frozen=True)
class Diagnostics:
    """How one call converged, in the worst of its sequences.

    iterations: evaluations of all flows. residuals: max |F_t(h_{t-1}) - h_t| of the guess that each iteration began
    with. updates: max |change of h| / max |h| of each iteration; of sequences still iterating, both. fallbacks:
    sequences solved by the sequential scan.
    """

    iterations: int
    residuals: tuple[float, ...]
    updates: tuple[float, ...]
    fallbacks: int

    @property
    def converged(self) -> bool:
        return self.fallbacks == 0


@dataclass
class Tally:
    """Sums the diagnostics of many calls; pass `tally.add` as `record`."""

    calls: int = 0
    iterations: int = 0
    fallbacks: int = 0
    last: Diagnostics | None = None

    def add(self, diagnostics: Diagnostics) -> None:
        self.calls += 1
        self.iterations += diagnostics.iterations
        self.fallbacks += diagnostics.fallbacks
        self.last = diagnostics


Parallel = Sequential | Newton
"""How a sequence's tokens are run: parallel=sequential or parallel=newton."""
FAR = 0.5  # relative update above which a guess is far: a J beyond 1 there would only throw the next one farther


@dataclass(frozen=True)
class Recurrence:
    """h_t = F_t(h_{t-1}) over `length` tokens from h0 (batch, D), as Newton's method needs it.

    linearised: from the states h (batch, T, D) to (F_t(h_{t-1}) - h_t, J_t). sequential: the states of some of the
    sequences, by their numbers (rows), one token after the other. linear: whether every F_t is linear.
    """

    h0: Tensor
    length: int
    linearised: Callable[[Tensor], tuple[Tensor, Tensor]]
    sequential: Callable[[Tensor], Tensor]
    linear: bool = False


def solve(r: Recurrence, options: Newton, scan: Scan) -> tuple[Tensor, Diagnostics]:
    """The states h (batch, T, D). Each sequence stops by itself, so that its values do not depend on its company."""
    nothing = torch.zeros_like(r.h0)
    h = r.h0.unsqueeze(1).repeat(1, r.length, 1)
    active = torch.ones(len(h), dtype=torch.bool, device="cpu")
    failed, far = torch.zeros_like(active), torch.full_like(active, not r.linear)
    residuals, updates = [], []
    while len(updates) < options.max_iterations and active.any():
        residual, J = r.linearised(h)
        if far.any():
            bound = _per_sequence(torch.where(far, 1.0, torch.inf), h)
            J.clamp_(-bound, bound)
        update = scan(J, residual, nothing, False)
        h.addcmul_(update, _per_sequence(active, h))
        norms = torch.stack([_largest(x) for x in (residual, update, h)])
        error, change, size = norms.double().cpu()  # one wait for the device an iteration
        residuals.append(error[active].max().item())
        updates.append((change / size.clamp_min(torch.finfo(h.dtype).tiny))[active].max().item())
        finite = change.isfinite() & size.isfinite()
        failed |= active & ~finite
        # Linear maps are solved exactly by one iteration.
        active &= finite & (far | (change > options.tolerance * size)) & (not r.linear)
        far &= change > FAR * size
    failed |= active
    if failed.any():
        rows = failed.nonzero().squeeze(1).to(h.device)
        h[rows] = r.sequential(rows)
    return h, Diagnostics(len(updates), tuple(residuals), tuple(updates), int(failed.sum()))


def _largest(x: Tensor) -> Tensor:
    """max |x| of each sequence, (batch, T, D) -> (batch,), without a copy of x."""
    return torch.maximum(x.amax((1, 2)), -x.amin((1, 2)))


def _per_sequence(values: Tensor, like: Tensor) -> Tensor:
    """One value a sequence, (batch,), to go with tensors (batch, T, D) such as `like`."""
    return values.to(like)[:, None, None]
