"""Functions that Triton lacks or rounds badly, for float32 and float64 alike."""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1.0 + e)


@triton.jit
def tanh(x):
    """Right to the type's own size near zero, where 1 - e^-2|x| cancels, as far as sums with numbers near 1 ask."""
    e = tl.exp(-2.0 * tl.abs(x))
    t = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -t, t)


@triton.jit
def softplus(x):
    """log(1 + e^x); where e^-|x| is small by 2 atanh(s), s = e / (2 + e), since 1 + e would round it away."""
    e = tl.exp(-tl.abs(x))
    s = e / (2.0 + e)
    q = s * s
    series = 1.0 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13))))))
    return tl.where(x < 0, 0.0, x) + tl.where(e < 0.1, 2.0 * s * series, tl.log(1.0 + e))


@triton.jit
def exp(x):
    return tl.exp(x)


@triton.jit
def one(x):
    """1, which takes the type of what it meets."""
    return 1.0


@triton.jit
def _phi1_and_grad(z):
    """Below 1/2, where both cancel, by their series."""
    series = tl.full(z.shape, 1.0, z.dtype)
    slope = tl.zeros(z.shape, z.dtype)
    for k in tl.static_range(16, 1, -1):  # Horner: 1 - z/2 (1 - z/3 (1 - ... z/16))
        slope = -(series + z * slope) / k
        series = 1.0 - z * series / k
    large = tl.where(z < 0.5, 1.0, z)
    e = tl.exp(-large)
    closed = (1.0 - e) / large
    return tl.where(z < 0.5, series, closed), tl.where(z < 0.5, slope, (e - closed) / large)


@triton.jit
def phi1(z):
    """(1 - e^-z) / z for z >= 0, 1 at z = 0."""
    value, _ = _phi1_and_grad(z)
    return value


@triton.jit
def phi1_grad(z):
    """d phi1 / dz; what it shares with phi1 the compiler computes once."""
    _, slope = _phi1_and_grad(z)
    return slope
