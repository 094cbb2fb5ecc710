"""What a step computes (arch/solvers.py) as Triton compiles it, and the solvers in numbers for its kernels."""

import triton
import triton.language as tl

from arch import solvers
from arch.solvers import TABLEAUS, Solver, unserved
from harness.ops.toolbox.triton_math import exp, one, phi1, phi1_grad

# Triton's interpreter looks for tl among a function's names too.
_VOCABULARY = {"tl": tl, "exp": exp, "one": one, "phi1": phi1, "phi1_grad": phi1_grad}

slope = triton.jit(solvers.bind(solvers.slope, _VOCABULARY))
slope_vjp = triton.jit(solvers.bind(solvers.slope_vjp, _VOCABULARY))
semi_implicit = triton.jit(solvers.bind(solvers.semi_implicit, _VOCABULARY))
semi_implicit_vjp = triton.jit(solvers.bind(solvers.semi_implicit_vjp, _VOCABULARY))
exponential = triton.jit(solvers.bind(solvers.exponential, _VOCABULARY))
exponential_vjp = triton.jit(solvers.bind(solvers.exponential_vjp, _VOCABULARY))
_VOCABULARY |= {"exponential": exponential, "exponential_vjp": exponential_vjp}
reflected = triton.jit(solvers.bind(solvers.reflected, _VOCABULARY))
reflected_vjp = triton.jit(solvers.bind(solvers.reflected_vjp, _VOCABULARY))

SLOPE, SEMI_IMPLICIT, EXPONENTIAL, REFLECTED = (tl.constexpr(kind) for kind in range(4))
MAPS = {"semi_implicit": SEMI_IMPLICIT.value, "exponential": EXPONENTIAL.value, "reflected": REFLECTED.value}
"""The maps compiled here, by solver; all rules of TABLEAUS evaluate SLOPE."""


def refuses(solver: str) -> str | None:
    """Why a solver of that name has no code here, or None where it has."""
    return unserved(solver, MAPS)


def method(solver: Solver) -> tuple[int, int, tuple[float, ...]]:
    """The map of a solver, its stages and its tableau: the rows of a, each as long as b, then b, one after another.

    Raises KeyError for a solver that `refuses` names.
    """
    if solver.name in MAPS:
        return MAPS[solver.name], 1, ()
    tableau = TABLEAUS[solver.name]
    stages = len(tableau.b)
    rows = ((*row, *[0.0] * (stages - len(row))) for row in (*tableau.a, tableau.b))
    return SLOPE.value, stages, tuple(weight for row in rows for weight in row)


@triton.jit
def sum_slopes(h, dt, slopes, TABLEAU: tl.constexpr, STAGES: tl.constexpr, ROW: tl.constexpr):
    """h + dt times the slopes so far, as weighted by a row of the tableau."""
    for i in tl.static_range(len(slopes)):
        if TABLEAU[ROW * STAGES + i] != 0:
            h += dt * TABLEAU[ROW * STAGES + i] * slopes[i]
    return h
