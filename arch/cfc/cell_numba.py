"""The elementwise parts of the CfC cell for numba: the backbone's activations and the closed form, with their slopes.

Each takes one token of one sequence: rows, over whose channels its loops vectorise.
"""

import math

from harness.ops.toolbox.jit import helper
from harness.ops.toolbox.numba_math import exp, one, sigmoid, tanh, zero

ACTIVATIONS = ("lecun_tanh", "tanh", "relu", "silu", "gelu")
LECUN_TANH, TANH, RELU, SILU, GELU = range(5)
MODES = ("default", "no_gate", "pure")
DEFAULT, NO_GATE, PURE = range(3)
LECUN_SCALE, LECUN_SLOPE = 1.7159, 0.666
SQRT_HALF, SQRT_HALF_PI_INVERSE = math.sqrt(0.5), 1 / math.sqrt(2 * math.pi)


@helper
def activate(kind, z, a):
    """a = activation(z)."""
    real = z.dtype.type
    if kind == LECUN_TANH:
        for c in range(len(z)):
            a[c] = real(LECUN_SCALE) * tanh(real(LECUN_SLOPE) * z[c])
    elif kind == TANH:
        for c in range(len(z)):
            a[c] = tanh(z[c])
    elif kind == RELU:
        for c in range(len(z)):
            a[c] = zero(z[c]) if z[c] < zero(z[c]) else z[c]
    elif kind == SILU:
        for c in range(len(z)):
            a[c] = z[c] * sigmoid(z[c])
    else:
        for c in range(len(z)):
            a[c] = z[c] * real(0.5) * (one(z[c]) + real(math.erf(real(SQRT_HALF) * z[c])))


@helper
def activate_vjp(kind, z, g, a, gz):
    """a = activation(z), gz = g activation'(z)."""
    real = z.dtype.type
    activate(kind, z, a)
    if kind == LECUN_TANH:
        for c in range(len(z)):
            t = a[c] * real(1 / LECUN_SCALE)
            gz[c] = g[c] * (one(t) - t * t) * real(LECUN_SCALE * LECUN_SLOPE)
    elif kind == TANH:
        for c in range(len(z)):
            gz[c] = g[c] * (one(g[c]) - a[c] * a[c])
    elif kind == RELU:
        for c in range(len(z)):
            gz[c] = zero(z[c]) if z[c] <= zero(z[c]) else g[c]
    elif kind == SILU:
        for c in range(len(z)):
            s = sigmoid(z[c])
            gz[c] = g[c] * (s + a[c] * (one(s) - s))
    else:
        for c in range(len(z)):
            density = real(SQRT_HALF_PI_INVERSE) * exp(real(-0.5) * z[c] * z[c])
            gz[c] = g[c] * (real(0.5) * (one(z[c]) + real(math.erf(real(SQRT_HALF) * z[c]))) + z[c] * density)


@helper
def _gate(g, time, gate):
    """The gate's sigmoid from the heads g after a and b: t_a and t_b, or their sum for unit steps of time."""
    width = len(gate)
    t_a, t_b = g[2 * width : 3 * width], g[len(g) - width :]
    if len(g) == 3 * width:
        for c in range(width):
            gate[c] = sigmoid(t_a[c])
    else:
        for c in range(width):
            gate[c] = sigmoid(t_b[c] + t_a[c] * time)


@helper
def combine(mode, g, time, w_tau, amplitude, gate, h):
    """h (d_inner) from the heads g; `gate` is scratch of the same width."""
    width = len(h)
    if mode == PURE:
        for c in range(width):
            h[c] = amplitude[c] - amplitude[c] * g[c] * exp(-(abs(w_tau[c]) + abs(g[c])) * time)
        return
    _gate(g, time, gate)
    a, b = g[:width], g[width : 2 * width]
    if mode == NO_GATE:
        for c in range(width):
            h[c] = tanh(a[c]) + gate[c] * tanh(b[c])
    else:
        for c in range(width):
            left = tanh(a[c])
            h[c] = left + gate[c] * (tanh(b[c]) - left)


@helper
def _pure_vjp(g, time, w_tau, amplitude, gh, gg, g_w, g_amplitude):
    by_time = zero(time)
    for c in range(len(gh)):
        rate = abs(w_tau[c]) + abs(g[c])
        decay = exp(-rate * time)
        by_rate = gh[c] * amplitude[c] * g[c] * decay
        gg[c] = -gh[c] * amplitude[c] * decay * (one(time) - abs(g[c]) * time)
        g_amplitude[c] += gh[c] * (one(time) - g[c] * decay)
        signed = by_rate * time
        g_w[c] += zero(time) if w_tau[c] == zero(time) else (-signed if w_tau[c] < zero(time) else signed)
        by_time += by_rate * rate
    return by_time


@helper
def combine_vjp(mode, g, time, w_tau, amplitude, gate, gh, gg, g_w, g_amplitude):
    """gg from the gradient gh of h; adds to g_w and g_amplitude (mode pure). Returns the gradient by time."""
    if mode == PURE:
        return _pure_vjp(g, time, w_tau, amplitude, gh, gg, g_w, g_amplitude)
    width = len(gh)
    _gate(g, time, gate)
    a, b = g[:width], g[width : 2 * width]
    g_a, g_b, g_ta, g_tb = gg[:width], gg[width : 2 * width], gg[2 * width : 3 * width], gg[len(gg) - width :]
    for c in range(width):
        left, right, s = tanh(a[c]), tanh(b[c]), gate[c]
        keep = one(s) if mode == NO_GATE else one(s) - s
        apart = right if mode == NO_GATE else right - left
        g_a[c] = gh[c] * keep * (one(s) - left * left)
        g_b[c] = gh[c] * s * (one(s) - right * right)
        gate[c] = gh[c] * apart * s * (one(s) - s)
    by_time, t_a = zero(time), g[2 * width : 3 * width]
    if len(g) == 3 * width:
        for c in range(width):
            g_ta[c] = gate[c]
        return by_time
    for c in range(width):
        g_ta[c] = gate[c] * time
        g_tb[c] = gate[c]
        by_time += gate[c] * t_a[c]
    return by_time
