"""The liquid scan parallel in time, by Newton's method over the whole sequence (arch/newton.py).

F_t is the flow of token t, whose derivative is diagonal because each channel's gate sees its own state alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from arch.field import Coupling, Field, Gate
from arch.ltc.scan import LIQUID_SCAN
from arch.ltc.tokens import LIQUID_TOKENS, LIQUID_TOKENS_VJP
from arch.newton import Diagnostics, Newton, Recurrence, solve
from arch.solvers import FIXED, Solver
from harness.ops.linear_scan.scan import LINEAR_SCAN, Scan, transposed
from harness.ops.registry import Choice

DEFAULT = Newton()


def refuses(solver: str, coupling: Coupling, d_state: int) -> str | None:
    """Why Newton's method over time cannot serve, or None where it can."""
    if solver not in FIXED:
        return f"solver={solver} chooses its own steps, so the flow of a token is no fixed function of its state"
    if coupling not in ("none", "diagonal"):
        return f"coupling={coupling} mixes channels, so the derivative of a token's flow is a matrix and not a diagonal"
    if coupling == "diagonal" and d_state > 1:
        return f"d_state={d_state} with coupling=diagonal mixes a channel's states in its gate"
    return None


def newton_scan(
    solver: Solver,
    field: Field,
    h0: Tensor,
    elapsed: Tensor | None = None,
    options: Newton = DEFAULT,
    kernel: Choice = "auto",
    record: Callable[[Diagnostics], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """As arch.ltc.scan.reference, computed parallel in time; `record` is called with the diagnostics.

    The coupling is none or diagonal. N > 1 states a channel need none: they are then channels of their own, and B, C
    None stands for ones. Returns y (batch, T, D) and the last h (batch, D, N) in the widest of the inputs' types,
    float32 at least. No gradient by elapsed. Raises ValueError for what `refuses` names.
    """
    D, N = h0.shape[1:]
    _check(solver, field, N, elapsed)
    field.check("newton_scan", h0, elapsed)
    field, h0 = field.computed(h0)
    elapsed = None if elapsed is None else elapsed.to(h0.dtype)
    a, A = field.a, field.A  # (batch, T, D * N), as all that follows
    if N > 1:
        a = a.repeat_interleave(N, dim=2)
        A = A.repeat_interleave(N, dim=2) if field.B is None else (A.unsqueeze(3) * field.B.unsqueeze(2)).flatten(2)
    elif field.B is not None:
        A = A * field.B
    problem = _Problem(solver, field.gate, elapsed, options, kernel, record)
    tensors = a, A, field.inv_tau.reshape(-1, 1), field.omega.reshape(-1, 1), field.coupling
    h = _NewtonScan.apply(problem, h0.reshape(len(h0), D * N, 1), *tensors)
    states = h.unflatten(2, (D, N))
    last = states[:, -1].clone()  # on its own: a view would keep every state alive
    if field.C is not None:
        states = states * field.C.unsqueeze(2)
    return (h if N == 1 and field.C is None else states.sum(3)), last


def _check(solver: Solver, field: Field, N: int, elapsed: Tensor | None) -> None:
    reason = refuses(solver.name, field.coupled, N)
    if reason is None and field.coupling is not None and (field.B is not None or field.C is not None):
        reason = "B and C with coupling=diagonal would stand between a channel's state and its gate"
    if reason is None and elapsed is not None and elapsed.requires_grad:
        reason = "it gives no gradient by elapsed; pass elapsed.detach() or use the reference"
    if reason is not None:
        raise ValueError(f"newton_scan cannot serve this call: {reason}.")


@dataclass(frozen=True, eq=False)
class _Problem:
    """What one call holds besides the tensors it is differentiated by, which are h0 and the field's."""

    solver: Solver
    gate: Gate
    elapsed: Tensor | None
    options: Newton
    kernel: Choice
    record: Callable[[Diagnostics], None] | None

    def field(self, a: Tensor, A: Tensor, inv_tau: Tensor, omega: Tensor, w: Tensor | None) -> Field:
        """The field of one state a channel."""
        return Field(a, A, None, None, inv_tau, omega, w, self.gate)

    def scan(self, like: Tensor) -> Scan:
        return LINEAR_SCAN.choose(self.kernel, like.device, like.dtype)

    def linearised(self, field: Field, h0: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """(F_t(h_{t-1}) - h_t, J_t) at the states h."""
        run = LIQUID_TOKENS.choose(self.kernel, h.device, h.dtype, solver=self.solver.name)
        return run(self.solver, field, h0, self.elapsed, h)

    def vjp(self, field: Field, h0: Tensor, h: Tensor, g: Tensor) -> tuple[Tensor, ...]:
        """From the gradients g of all F_t to those of field.tensors()."""
        run = LIQUID_TOKENS_VJP.choose(self.kernel, h.device, h.dtype, solver=self.solver.name)
        return run(self.solver, field, h0, self.elapsed, h, g)

    def sequential(self, field: Field, h0: Tensor, rows: Tensor) -> Tensor:
        """The states of some of the sequences, (rows, T, D), one token after the other."""
        facts = {"solver": self.solver.name, "coupling": field.coupled, "d_state": 1}
        run = LIQUID_SCAN.choose(self.kernel, field.a.device, field.a.dtype, **facts)
        elapsed = None if self.elapsed is None else self.elapsed[rows]
        return run(self.solver, replace(field, a=field.a[rows], A=field.A[rows]), h0[rows], elapsed)[0]


def _solve(p: _Problem, field: Field, h0: Tensor) -> tuple[Tensor, Diagnostics]:
    """The states h (batch, T, D)."""
    recurrence = Recurrence(
        h0.squeeze(2),
        field.a.shape[1],
        lambda h: p.linearised(field, h0, h),
        lambda rows: p.sequential(field, h0, rows),
        linear=field.coupling is None,
    )
    return solve(recurrence, p.options, p.scan(h0))


class _NewtonScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, p: _Problem, h0: Tensor, *tensors: Tensor | None) -> Tensor:
        h, diagnostics = _solve(p, p.field(*tensors), h0)
        if p.record is not None:
            p.record(diagnostics)
        ctx.p = p
        ctx.save_for_backward(h0, *tensors, h)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor):
        p, (h0, *tensors, h) = ctx.p, ctx.saved_tensors
        field = p.field(*tensors)
        _, J = p.linearised(field, h0, h)
        adjoint, g_h0 = transposed(p.scan(h), J, g)  # of h, and so of F, each token's and all that follow it
        del J
        found = p.vjp(field, h0, h, adjoint)
        return None, g_h0.unsqueeze(2), *found, *[None] * (len(tensors) - len(found))  # none by an absent coupling
