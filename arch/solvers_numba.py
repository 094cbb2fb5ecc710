"""What a step computes (arch/solvers.py) as numba compiles it, and the solvers in numbers for its kernels."""

import numpy as np

from arch import solvers
from arch.solvers import TABLEAUS, Solver, unserved
from harness.ops.toolbox import numba_math
from harness.ops.toolbox.jit import inlined

_VOCABULARY = {name: getattr(numba_math, name) for name in ("exp", "phi1", "phi1_grad", "one")}

slope = inlined(solvers.bind(solvers.slope, _VOCABULARY))
slope_vjp = inlined(solvers.bind(solvers.slope_vjp, _VOCABULARY))
semi_implicit = inlined(solvers.bind(solvers.semi_implicit, _VOCABULARY))
semi_implicit_vjp = inlined(solvers.bind(solvers.semi_implicit_vjp, _VOCABULARY))
exponential = inlined(solvers.bind(solvers.exponential, _VOCABULARY))
exponential_vjp = inlined(solvers.bind(solvers.exponential_vjp, _VOCABULARY))
_VOCABULARY |= {"exponential": exponential, "exponential_vjp": exponential_vjp}
reflected = inlined(solvers.bind(solvers.reflected, _VOCABULARY))
reflected_vjp = inlined(solvers.bind(solvers.reflected_vjp, _VOCABULARY))

SLOPE, SEMI_IMPLICIT, EXPONENTIAL, REFLECTED = 0, 1, 2, 3
MAPS = {"semi_implicit": SEMI_IMPLICIT, "exponential": EXPONENTIAL, "reflected": REFLECTED}
"""The maps compiled here, by solver; all rules of TABLEAUS evaluate SLOPE."""
KEPT = {SLOPE: 0, SEMI_IMPLICIT: 1, EXPONENTIAL: 2, REFLECTED: 2}
"""Numbers that a map returns beside h', for its partial derivatives."""


def refuses(solver: str) -> str | None:
    """Why a solver of that name has no code here, or None where it has."""
    return unserved(solver, MAPS)


def method(solver: Solver) -> tuple[int, np.ndarray]:
    """The map of a solver, and its tableau (stages + 1, stages): the rows of a, then b. Frozen gates have one stage.

    Raises KeyError for a solver that `refuses` names.
    """
    if solver.name in MAPS:
        return MAPS[solver.name], np.zeros((2, 1))
    tableau = TABLEAUS[solver.name]
    table = np.zeros((len(tableau.b) + 1, len(tableau.b)))
    for i, row in enumerate((*tableau.a, tableau.b)):
        table[i, : len(row)] = row
    return SLOPE, table


def looks_back(tableau: np.ndarray) -> bool:
    """Whether a stage starts from another slope than the last one before it."""
    return bool(np.tril(tableau[:-1], -2).any())
