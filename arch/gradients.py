"""How the gradient of the flow is found: three ways from the same states to the same parameters.

backprop differentiates every operation of the solver; checkpoint keeps h at token boundaries and computes the substeps
again; adjoint solves the adjoint equation of the flow backwards in time (Chen et al. 2018, arXiv:1806.07366), so its
gradient is that of the exact flow, discretised anew, and not the derivative of the numbers computed forward.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torchdiffeq import odeint_adjoint

from arch.field import Field
from arch.solvers import TABLEAUS, Solver, normalised
from harness.config.errors import ConfigError
from harness.config.ranges import Length

Cross = Callable[[Field, Tensor, Tensor | None], Tensor]


def scan(cross: Cross, field: Field, h: Tensor, elapsed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The reference recurrence, and the oracle of every kernel: `cross` each token's field in turn.

    field: a sequence (B, T, ...). h: (B, D, N). elapsed: (B, T) or None for 1. Returns y (B, T, D) and the last h.
    """
    times = [None] * field.a.shape[1] if elapsed is None else elapsed.unbind(1)
    outputs = []
    for token, time in zip(field.tokens(), times, strict=True):
        h = cross(token, h, time)
        outputs.append(token.read_out(h))
    return torch.stack(outputs, dim=1), h  # (B, T, D), (B, D, N)


class Gradient:
    """A way to differentiate the flow."""

    name: str

    def check(self, solver: Solver) -> None:
        """Raises ConfigError where this gradient cannot serve `solver`."""

    def cross(self, solver: Solver, field: Field, h: Tensor, elapsed: Tensor | None = None) -> Tensor:
        """Carries h across one token."""
        return solver.integrate(field, h, elapsed)

    def scan(self, solver: Solver, field: Field, h: Tensor, elapsed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Carries h across a sequence; as the function `scan`."""
        return scan(partial(self.cross, solver), field, h, elapsed)


@dataclass(frozen=True)
class Backprop(Gradient):
    """Autograd through every operation of the solver; memory grows with tokens x substeps x stages."""

    name: Literal["backprop"] = "backprop"


@dataclass(frozen=True)
class Checkpoint(Gradient):
    """The same gradient from h kept at token boundaries, the substeps computed again in the backward pass.

    The fused kernel does this by itself, token by token; where it does not serve, autograd does it by windows of
    `window_tokens`, since a window a token costs more in bookkeeping than in work.
    """

    name: Literal["checkpoint"] = "checkpoint"
    window_tokens: Length = 8

    def scan(self, solver: Solver, field: Field, h: Tensor, elapsed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not torch.is_grad_enabled():
            return super().scan(solver, field, h, elapsed)
        outputs = []
        length = field.a.shape[1]
        for start in range(0, length, self.window_tokens):
            stop = min(start + self.window_tokens, length)
            times = None if elapsed is None else elapsed[:, start:stop]
            run = partial(scan, partial(self.cross, solver), field.window(start, stop), elapsed=times)
            y, h = checkpoint(run, h, use_reentrant=False, preserve_rng_state=False)
            outputs.append(y)
        return torch.cat(outputs, dim=1), h


@dataclass(frozen=True)
class Adjoint(Gradient):
    """torchdiffeq's adjoint, one token at a time; nothing of the solver's inside is kept.

    The token's inputs and the cell's parameters are the adjoint's parameters, so gradients reach all of them. The
    forward pass is torchdiffeq's too: its rk4 is Kutta's 3/8 rule, of the same order as the classic one used elsewhere.
    """

    name: Literal["adjoint"] = "adjoint"

    def check(self, solver: Solver) -> None:
        if solver.torchdiffeq_method is None:
            rules = ", ".join(name for name, tableau in TABLEAUS.items() if tableau.torchdiffeq)
            raise ConfigError(
                f"gradient=adjoint cannot be used with solver={solver.name}: torchdiffeq has no such method.",
                f"a solver that torchdiffeq has: {rules}, dopri5 or adaptive_heun.",
                "set gradient=checkpoint (the exact gradient at the same memory) or choose one of those solvers.",
            )

    def cross(self, solver: Solver, field: Field, h: Tensor, elapsed: Tensor | None = None) -> Tensor:
        ends = torch.tensor([0.0, 1.0], dtype=h.dtype, device=h.device)
        parameters = field.tensors() if elapsed is None else (*field.tensors(), elapsed)
        flow = normalised(field, elapsed)
        states = odeint_adjoint(flow, h, ends, adjoint_params=parameters, **solver.torchdiffeq_options(h))
        return states[-1].clone()  # a view would keep the first
