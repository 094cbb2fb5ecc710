"""What the tests of the liquid scan share: its solvers, as conf/solver lists them, and calls by their tensors."""

from collections.abc import Callable
from pathlib import Path

import run
from arch.field import Field
from arch.solvers import FIXED, TABLEAUS, make_solver

CONFIGURED = sorted(path.stem for path in (Path(run.ROOT) / "conf" / "solver").glob("*.yaml"))
SOLVERS = list(FIXED)
EXPLICIT = list(TABLEAUS)


def by_tensors(scan: Callable) -> Callable:
    """A scan, or the flows of all tokens, called with the solver's name and the field's tensors one by one."""

    def run(solver, substeps, gate, a, A, B, C, inv_tau, omega, w, h0, elapsed, *more, **options):
        field = Field(a, A, B, C, inv_tau, omega, w, gate)
        return scan(make_solver(solver, substeps), field, h0, elapsed, *more, **options)

    return run
