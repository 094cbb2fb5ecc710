"""How an LTC carries its state: which code runs a sequence of its field, and which a token.

Four ways lead from the same states to the same parameters: the gradient's own loop in torch (arch/gradients.py), the
fused scan that stands for it (scan.py), Newton's method over the whole sequence (newton.py), and for a generation one
call a token (step_numba.py).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from arch.field import Coupling, Field
from arch.gradients import Adjoint, Checkpoint, Gradient
from arch.ltc import newton
from arch.ltc.scan import LIQUID_SCAN, LIQUID_TOKEN
from arch.newton import Parallel, Sequential, Tally  # noqa: F401  # records name Sequential by this module
from arch.solvers import Solver
from harness.config.errors import ConfigError
from harness.ops.registry import Choice, Operation


class Recurrence:
    """The flow over a sequence (B, T, ...) of a field, as configured; raises ConfigError for what cannot be had.

    facts: of every call, as the kernels of `liquid_scan` may refuse them. tally: how Newton's method converged.
    """

    def __init__(
        self,
        solver: Solver,
        gradient: Gradient,
        parallel: Parallel,
        coupling: Coupling,
        d_state: int,
        head_dim: int,
        kernel: Choice,
    ):
        self.solver, self.gradient, self.parallel, self.kernel = solver, gradient, parallel, kernel
        self.facts = {"solver": solver.name, "coupling": coupling, "d_state": d_state}
        self.facts |= {"head_dim": head_dim} if coupling == "heads" else {}
        self.tally = Tally()
        gradient.check(solver)
        if parallel.name == "newton":
            self._check_newton()
        own = {**self.facts, "gradient": gradient.name}
        if kernel == "fused" and not LIQUID_SCAN.serves("cpu", torch.float32, **own):
            LIQUID_SCAN.choose(kernel, torch.device("cpu"), torch.float32, **own)  # raises, and says why

    def _check_newton(self) -> None:
        reason = newton.refuses(self.facts["solver"], self.facts["coupling"], self.facts["d_state"])
        if reason is None and not isinstance(self.gradient, Checkpoint):
            reason = f"gradient={self.gradient.name} is another derivative than the solution's own"
        if reason is not None:
            raise ConfigError(
                f"parallel=newton cannot serve this model: {reason}.",
                "a solver of fixed steps, coupling none, or diagonal with d_state=1, and gradient=checkpoint.",
                "set parallel=sequential, or change those.",
            )

    def served(self, device: torch.device | str, dtype: torch.dtype) -> bool:
        """Whether a kernel may compute the flow where it is not differentiated."""
        return LIQUID_SCAN.serves(device, dtype, **self._facts(differentiated=False, timed=False))

    def sequence(self, field: Field, h: Tensor, elapsed: Tensor | None) -> tuple[Tensor, Tensor]:
        """Carries h (B, D, N) across the tokens; returns y (B, T, D) and the last h."""
        timed = elapsed is not None and elapsed.requires_grad
        if self.parallel.name == "newton" and not timed:
            options = {"options": self.parallel, "kernel": self.kernel, "record": self.tally.add}
            return newton.newton_scan(self.solver, field, h, elapsed, **options)
        facts = self._facts(torch.is_grad_enabled(), timed)
        return self._chosen(LIQUID_SCAN, field, facts)(self.solver, field, h, elapsed)

    def token(self, field: Field, h: Tensor, elapsed: Tensor | None) -> tuple[Tensor, Tensor]:
        """As `sequence` for one token, T = 1."""
        facts = self._facts(torch.is_grad_enabled(), timed=False)
        return self._chosen(LIQUID_TOKEN, field, facts)(self.solver, field, h, elapsed)

    def _facts(self, differentiated: bool, timed: bool) -> dict:
        """Of one call. The adjoint's rk4 is another rule than the kernels', so it is refused without gradients too."""
        gradient = self.gradient.name if differentiated or isinstance(self.gradient, Adjoint) else "none"
        return {**self.facts, "gradient": gradient, "timed": timed}

    def _chosen(self, operation: Operation, field: Field, facts: dict) -> Callable:
        """What the registry chooses; the reference is that of the gradient asked for."""
        run = operation.choose(self.kernel, field.a.device, field.a.dtype, **facts)
        return self.gradient.scan if run is operation.reference else run
