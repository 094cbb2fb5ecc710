"""One substep of each solver on CUDA, and its vector-Jacobian product: states (CHANNELS, N), the rest by channel.

A token's field is the tuple (a, A, B, C, inv_tau, omega, w) of shapes (CHANNELS), (CHANNELS), (N), (N), twice
(CHANNELS, N), (CHANNELS). Runge-Kutta rules are a tableau whose stages each start from the slope of the one before.
"""

import triton
import triton.language as tl

from harness.ops.toolbox.triton_math import phi1, sigmoid, softplus

SLOPE, SEMI_IMPLICIT, EXPONENTIAL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def read_out(C, h):
    """y = sum_n C_n h_n, by channel."""
    return tl.sum(C[None, :] * h, axis=1)


@triton.jit
def _gate(field, h, COUPLED: tl.constexpr, SOFTPLUS: tl.constexpr):
    """f and its slope by its argument."""
    a, _, _, C, _, _, w = field
    u = a
    if COUPLED:
        u = a + w * read_out(C, h)
    slope = sigmoid(u)
    if SOFTPLUS:
        return softplus(u), slope
    else:
        return slope, slope * (1.0 - slope)


@triton.jit
def _rates(field, f):
    """The rate and the drive of every state."""
    _, A, B, _, inv_tau, omega, _ = field
    return inv_tau + omega * f[:, None], (f * A)[:, None] * B[None, :]


@triton.jit
def _slope(field, h, COUPLED: tl.constexpr, SOFTPLUS: tl.constexpr):
    f, _ = _gate(field, h, COUPLED, SOFTPLUS)
    rate, drive = _rates(field, f)
    return drive - rate * h


@triton.jit
def _stage(field, h, dt, j: tl.constexpr, AHEAD: tl.constexpr, COUPLED: tl.constexpr, SOFTPLUS: tl.constexpr):
    """What stage j of a Runge-Kutta substep from h starts from."""
    x = h
    for i in tl.static_range(j):
        x = h + dt * AHEAD[i] * _slope(field, x, COUPLED, SOFTPLUS)
    return x


@triton.jit
def substep(
    field, h, dt, KIND: tl.constexpr, AHEAD: tl.constexpr, SHARE: tl.constexpr, COUPLED: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """The states after one substep of length dt."""
    if KIND == SLOPE:
        x, end = h, h
        for j in tl.static_range(len(AHEAD)):
            k = _slope(field, x, COUPLED, SOFTPLUS)
            end += dt * SHARE[j] * k
            x = h + dt * AHEAD[j] * k
        return end
    else:
        f, _ = _gate(field, h, COUPLED, SOFTPLUS)
        rate, drive = _rates(field, f)
        if KIND == SEMI_IMPLICIT:
            return (h + dt * drive) / (1.0 + dt * rate)
        else:
            phi, _ = phi1(dt * rate)
            return h * tl.exp(-dt * rate) + dt * drive * phi


@triton.jit
def _map_vjp(h, rate, drive, dt, g, KIND: tl.constexpr):
    """Cotangents of (h, rate, drive) for g of the states after a substep whose gate is frozen."""
    if KIND == SEMI_IMPLICIT:
        inverse = 1.0 / (1.0 + dt * rate)
        end = (h + dt * drive) * inverse
        return g * inverse, -dt * end * g * inverse, dt * g * inverse
    else:
        decay = tl.exp(-dt * rate)
        phi, slope = phi1(dt * rate)
        return g * decay, g * dt * (dt * drive * slope - h * decay), g * dt * phi


@triton.jit
def _field_vjp(field, x, f, slope, g_x, g_rate, g_drive, sums, COUPLED: tl.constexpr):
    """From the cotangents of x, rate and drive to that of x through the gate too; adds the field's to `sums`."""
    _, A, B, C, _, omega, w = field
    g_a, g_A, g_B, g_C, g_inv_tau, g_omega, g_w = sums
    by_drive = tl.sum(B[None, :] * g_drive, axis=1)
    g_u = (tl.sum(omega * g_rate, axis=1) + A * by_drive) * slope
    g_A += f * by_drive
    g_B += tl.sum((f * A)[:, None] * g_drive, axis=0)
    g_inv_tau += g_rate
    g_omega += f[:, None] * g_rate
    g_a += g_u
    if COUPLED:
        g_w += g_u * read_out(C, x)
        g_C += tl.sum((g_u * w)[:, None] * x, axis=0)
        g_x += C[None, :] * (g_u * w)[:, None]
    return g_x, (g_a, g_A, g_B, g_C, g_inv_tau, g_omega, g_w)


@triton.jit
def substep_vjp(
    field, h, dt, g, sums, KIND: tl.constexpr, AHEAD: tl.constexpr, SHARE: tl.constexpr, COUPLED: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """From g of the states after a substep to that of h, before it; adds the field's cotangents to `sums`."""
    if KIND == SLOPE:
        total, g_x = g, tl.zeros_like(g)
        for j in tl.static_range(len(AHEAD) - 1, -1, -1):
            x = _stage(field, h, dt, j, AHEAD, COUPLED, SOFTPLUS)
            f, slope = _gate(field, x, COUPLED, SOFTPLUS)
            rate, _ = _rates(field, f)
            g_k = dt * (SHARE[j] * g + AHEAD[j] * g_x)
            g_x, sums = _field_vjp(field, x, f, slope, -rate * g_k, -x * g_k, g_k, sums, COUPLED)
            total += g_x
        return total, sums
    else:
        f, slope = _gate(field, h, COUPLED, SOFTPLUS)
        rate, drive = _rates(field, f)
        g_x, g_rate, g_drive = _map_vjp(h, rate, drive, dt, g, KIND)
        return _field_vjp(field, h, f, slope, g_x, g_rate, g_drive, sums, COUPLED)
