"""One step of each solver for one state of one channel, with its vector-Jacobian product; the loops are elsewhere.

Every solver advances dh/dt = drive - rate * h with rate = 1/tau + omega f and drive = f B A (LTC, Hasani et al., AAAI
2021, eq. 1). A new solver is one scalar map and its vjp here: explicit Runge-Kutta ones are only a tableau.
"""

import numpy as np
from numba import njit

from harness.numba_math import FASTMATH, exp, one, phi1, phi1_grad

# Helpers are compiled into the kernels that call them, which alone are cached and called from Python.
jit = njit(fastmath=FASTMATH, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
once = njit(inline="always")  # for a helper with one caller: spares its own compilation
scalar = njit(fastmath=FASTMATH, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True)

SLOPE, SEMI_IMPLICIT, EXPONENTIAL = 0, 1, 2

# Butcher tableaus: rows of A, then the weights b (c is not needed: the inputs are constant within a token).
TABLEAUS = {
    "euler": [[0], [1]],
    "midpoint": [[0, 0], [1 / 2, 0], [0, 1]],
    "heun": [[0, 0], [1, 0], [1 / 2, 1 / 2]],
    "rk4": [[0, 0, 0, 0], [1 / 2, 0, 0, 0], [0, 1 / 2, 0, 0], [0, 0, 1, 0], [1 / 6, 1 / 3, 1 / 3, 1 / 6]],
}
MAX_STAGES = 4
FROZEN = {"semi_implicit": SEMI_IMPLICIT, "exponential": EXPONENTIAL}


def method(solver: str) -> tuple[int, np.ndarray]:
    """The scalar map of a solver and its tableau in float64; one stage where the gate is frozen over the step."""
    if solver in FROZEN:
        return FROZEN[solver], np.zeros((2, 1))
    return SLOPE, np.array(TABLEAUS[solver], dtype=np.float64)


@scalar
def slope(h, rate, drive):
    """dh/dt, the k of a Runge-Kutta stage."""
    return drive - rate * h


@scalar
def slope_vjp(h, rate, drive, g):
    """Cotangents of (h, rate, drive) for the cotangent g of the slope."""
    return -rate * g, -h * g, g


@scalar
def semi_implicit(h, rate, drive, dt):
    """The LTC paper's fused step: the decay is taken at the end of the step."""
    return (h + dt * drive) / (one(dt) + dt * rate)


@scalar
def semi_implicit_vjp(h, rate, drive, dt, g):
    """h' = h + dt (drive - rate h'), so the cotangents are those of a slope at h', scaled."""
    shrink = one(dt) / (one(dt) + dt * rate)
    gh = shrink * g
    return gh, -shrink * (h + dt * drive) * dt * gh, dt * gh


@scalar
def exponential(h, rate, drive, dt):
    """Exact where the gate is frozen: h e^-z + dt drive phi1(z), z = dt rate."""
    z = dt * rate
    return h * exp(-z) + dt * drive * phi1(z)


@scalar
def exponential_vjp(h, rate, drive, dt, g):
    """Cotangents of (h, rate, drive) for the cotangent g of h'."""
    z = dt * rate
    decay = exp(-z)
    gz = g * (dt * drive * phi1_grad(z) - h * decay)
    return g * decay, dt * gz, g * dt * phi1(z)
