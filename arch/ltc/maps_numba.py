"""One stage of each solver for one state of one channel, with its vector-Jacobian product; the loops are elsewhere.

Every solver advances dh/dt = drive - rate * h with rate = 1/tau + omega f and drive = f B A (LTC, Hasani et al., AAAI
2021, eq. 1). A new solver is one scalar map and its vjp here: explicit Runge-Kutta ones are only a tableau.
"""

import numpy as np
from numba import njit

from harness.ops.toolbox.numba_math import FASTMATH, exp, one, phi1, phi1_grad

# Helpers are compiled into the kernels that call them, which alone are cached and called from Python. They must be
# inlined: rows that lie a known distance apart need no check for overlap before a vectorised loop.
inlined = njit(fastmath=FASTMATH, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True)

SLOPE, SEMI_IMPLICIT, EXPONENTIAL = 0, 1, 2
KEPT = {SLOPE: 0, SEMI_IMPLICIT: 1, EXPONENTIAL: 2}
"""Numbers that a map hands to its vjp: the inverse of semi_implicit, e^-z and phi1 of exponential."""

# Explicit rules each of whose stages starts from the slope of the one before: how far along it the next stage starts,
# and the weight of each slope in the step (c is not needed: the inputs are constant within a token).
TABLEAUS = {
    "euler": ([0], [1]),
    "midpoint": ([1 / 2, 0], [0, 1]),
    "heun": ([1, 0], [1 / 2, 1 / 2]),
    "rk4": ([1 / 2, 1 / 2, 1, 0], [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
}
FROZEN = {"semi_implicit": SEMI_IMPLICIT, "exponential": EXPONENTIAL}


def method(solver: str) -> tuple[int, np.ndarray]:
    """The scalar map of a solver and its tableau (2, stages); one stage where the gate is frozen over the step."""
    if solver in FROZEN:
        return FROZEN[solver], np.zeros((2, 1))
    return SLOPE, np.array(TABLEAUS[solver], dtype=np.float64)


@inlined
def slope(h, rate, drive):
    """dh/dt, the k of a Runge-Kutta stage."""
    return drive - rate * h


@inlined
def slope_vjp(h, rate, g):
    """Cotangents of (h, rate, drive) for the cotangent g of the slope."""
    return -rate * g, -h * g, g


@inlined
def semi_implicit(h, rate, drive, dt):
    """The LTC paper's fused step, the decay taken at the end of the step; returns h' and what its vjp needs."""
    inverse = one(dt) / (one(dt) + dt * rate)
    return (h + dt * drive) * inverse, inverse


@inlined
def semi_implicit_vjp(after, inverse, dt, g):
    """h' = h + dt (drive - rate h'), so the cotangents are those of a slope at h' (`after`), scaled."""
    gh = inverse * g
    return gh, -dt * after * gh, dt * gh


@inlined
def exponential(h, rate, drive, dt):
    """Exact where the gate is frozen: h e^-z + dt drive phi1(z), z = dt rate; returns h' and what its vjp needs."""
    z = dt * rate
    decay, mean = exp(-z), phi1(z)
    return h * decay + dt * drive * mean, decay, mean


@inlined
def exponential_vjp(h, rate, drive, decay, mean, dt, g):
    """Cotangents of (h, rate, drive) for the cotangent g of h'."""
    gz = g * (dt * drive * phi1_grad(dt * rate) - h * decay)
    return g * decay, dt * gz, g * dt * mean
