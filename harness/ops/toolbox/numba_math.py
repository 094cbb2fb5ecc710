"""Scalar functions for the inner loops of numba kernels, vectorisable in float32 and exact in float64.

exp, expm1, sigmoid, tanh, softplus, log1p_unit, phi1, phi1_grad; zero and one give constants of the argument's type.
Called from @njit code they dispatch on that type at compile time. float32 gets branch-free polynomials (relative error
below 1e-6, saturating in place of overflow, NaN kept) that LLVM inlines and vectorises, since numba has no vector libm
and np.exp there is a scalar call. float64 gets libm. Called from Python they are slow references.

Kernels should compile with `fastmath=FASTMATH, error_model="numpy"`: all that vectorising needs, without the flags that
let LLVM assume that NaN and infinity never occur (a diverged run must stay visible). The functions here keep strict
order, whatever the caller's flags. A Python literal is float64 or int64 in numba and would widen a float32 loop.
"""

import hashlib
import math
import re
from pathlib import Path

import numpy as np
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic, overload


def kernel_digest(root: Path) -> str:
    """Names the sources under `root` that go into compiled kernels.

    Those import numba or a module like this, or hold the text that `bind` gives to compilers (arch/solvers.py).
    """
    sources = sorted(p for folder in ("arch", "baselines", "harness") for p in (root / folder).rglob("*.py"))
    texts = [path.read_bytes() for path in sources]
    kernels = [
        text
        for text in texts
        if re.search(rb"^(?:from|import) (?:numba|harness\.ops\.toolbox\.(?:jit|numba_\w+))\b", text, re.MULTILINE)
        or b"\ndef bind(" in text
    ]
    return hashlib.sha256(b"\0".join(kernels)).hexdigest()[:16]


# With cache=True numba looks only at the file that holds a kernel, and would go on using it after a change to the
# functions it calls. So the compiled kernels are kept by the digest of all their sources.
_cache_root = Path(config.CACHE_DIR) if config.CACHE_DIR else Path(__file__).parent / "__pycache__"
config.CACHE_DIR = str(_cache_root / f"numba-{kernel_digest(Path(__file__).parents[3])}")

FASTMATH = {"reassoc", "contract", "arcp", "nsz"}
# Reassociation would undo the argument reduction; the check for a zero divisor would keep loops from vectorising.
_STRICT = {"fastmath": {"contract"}, "error_model": "numpy", "forceinline": True}

_f = np.float32
ZERO, HALF, ONE, TWO = _f(0), _f(0.5), _f(1), _f(2)
EXP_MIN, EXP_MAX = _f(-87.33), _f(88.37)  # exp stays a normal float32
TANH_MAX = _f(9.1)  # tanh rounds to 1 in float32
LOG2_E = _f(1.4426950408889634)
ROUND = _f(1.5 * 2**23)  # adding it rounds to an integer, left in the low bits
LN2_HIGH, LN2_LOW = _f(0.693359375), _f(-2.12194440e-4)  # n * LN2_HIGH is exact for |n| < 2^14
# (expm1(r) - r) / r^2 on |r| <= ln(2) / 2, interpolated at Chebyshev nodes: relative error of expm1 2.4e-8
E0, E1, E2, E3, E4 = _f(0.5), _f(0.1666657667), _f(0.04166655421), _f(0.008363232884), _f(0.001392625083)
# (2 atanh(s) / s - 2) / s^2 in s^2 on [0, 1/9]: relative error of log1p 1.6e-8
L0, L1, L2, L3 = _f(0.6666664034), _f(0.4000756064), _f(0.2823661981), _f(0.2685149802)
# d phi1 / dz on |z| <= 1/2: relative error 7e-9
P0, P1, P2, P3 = _f(-0.5), _f(0.3333333712), _f(-0.1250000043), _f(0.03333212212)
P4, P5, P6 = _f(-0.0069443083), _f(0.001200155576), _f(-0.0001746993258)
PHI1_GRAD_SERIES = tuple((-1.0) ** k * k / math.factorial(k + 1) for k in range(1, 18))


@intrinsic
def _power_of_two(_context, t):
    """2^n as float32, where t = n + ROUND."""
    if t != types.float32:
        return None

    def codegen(context, builder, _signature, args):
        int32, float32 = cgutils.int32_t, context.get_value_type(types.float32)
        bits = builder.add(builder.bitcast(args[0], int32), int32(127))
        return builder.bitcast(builder.shl(bits, int32(23)), float32)

    return types.float32(types.float32), codegen


def _reduced_expm1(x):
    """(scale, expm1(r)) with exp(x) = scale * exp(r), |r| <= ln(2) / 2."""
    raise NotImplementedError("float32, inside numba only")


@overload(_reduced_expm1, jit_options=_STRICT)
def _reduced_expm1_overload(x):
    def reduced(x):
        x = EXP_MAX if x > EXP_MAX else x
        x = EXP_MIN if x < EXP_MIN else x
        t = x * LOG2_E + ROUND
        n = t - ROUND
        r = (x - n * LN2_HIGH) - n * LN2_LOW
        p = E0 + r * (E1 + r * (E2 + r * (E3 + r * E4)))
        return _power_of_two(t), r + r * r * p

    return reduced


def _dispatch(reference, single, double):
    """Registers the float32 and float64 implementations of one scalar function."""

    @overload(reference, jit_options=_STRICT)
    def choose(x):
        if x == types.float32:
            return single
        return double if x == types.float64 else None

    return reference


def zero(x):
    """0 in the type of x."""
    return np.zeros_like(x)


def one(x):
    """1 in the type of x."""
    return np.ones_like(x)


def exp(x):
    """e^x; float32 saturates at 1.2e-38 and 2.4e38."""
    return np.exp(x)


def expm1(x):
    """e^x - 1, accurate near 0."""
    return np.expm1(x)


def sigmoid(x):
    """1 / (1 + e^-x)."""
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1.0) / (1.0 + e)


def tanh(x):
    """Hyperbolic tangent."""
    return np.tanh(x)


def log1p_unit(x):
    """log(1 + x) for 0 <= x <= 1."""
    return np.log1p(x)


def softplus(x):
    """log(1 + e^x)."""
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


def phi1(x):
    """(1 - e^-x) / x, 1 at x = 0: the mean of e^-s over 0 <= s <= x."""
    return np.where(x == 0, 1.0, -np.expm1(-x) / np.where(x == 0, 1.0, x))


def phi1_grad(x):
    """d phi1 / dz = (e^-x (1 + x) - 1) / x^2, -1/2 at x = 0."""
    large = np.where(np.abs(x) < 0.5, 1.0, x)
    return np.where(np.abs(x) < 0.5, np.polyval(PHI1_GRAD_SERIES[::-1], x), (np.exp(-x) * (1 + x) - 1) / large**2)


def _exp32(x):
    scale, em = _reduced_expm1(x)
    return scale + scale * em


def _expm1_32(x):
    scale, em = _reduced_expm1(x)
    return scale * em + (scale - ONE)


def _sigmoid32(x):
    e = exp(-abs(x))
    return (e if x < ZERO else ONE) / (ONE + e)


def _sigmoid64(x):
    e = math.exp(-abs(x))
    return (e if x < 0.0 else 1.0) / (1.0 + e)


def _tanh32(x):
    x = TANH_MAX if x > TANH_MAX else x
    x = -TANH_MAX if x < -TANH_MAX else x
    em = expm1(TWO * x)
    return em / (em + TWO)


def _log1p_unit32(x):
    s = x / (TWO + x)
    q = s * s
    return s * (TWO + q * (L0 + q * (L1 + q * (L2 + q * L3))))


def _softplus32(x):
    return (ZERO if x < ZERO else x) + log1p_unit(exp(-abs(x)))


def _softplus64(x):
    return (0.0 if x < 0.0 else x) + math.log1p(math.exp(-abs(x)))


def _phi1_32(x):  # the same argument to each exp, so that LLVM merges them where a loop needs several
    nonzero = ONE if x == ZERO else x
    return ONE if x == ZERO else -expm1(-x) / nonzero


def _phi1_64(x):
    return 1.0 if x == 0.0 else -math.expm1(-x) / x


def _phi1_grad32(x):
    series = P0 + x * (P1 + x * (P2 + x * (P3 + x * (P4 + x * (P5 + x * P6)))))
    large = ONE if abs(x) < HALF else x
    closed = (exp(-x) - ONE) / large + exp(-x)
    return series if abs(x) < HALF else closed / large


def _phi1_grad64(x):
    if abs(x) >= 0.5:
        return (math.exp(-x) * (1.0 + x) - 1.0) / (x * x)
    total = 0.0
    for k in range(len(PHI1_GRAD_SERIES) - 1, -1, -1):
        total = total * x + PHI1_GRAD_SERIES[k]
    return total


_dispatch(zero, lambda x: ZERO, lambda x: 0.0)
_dispatch(one, lambda x: ONE, lambda x: 1.0)
_dispatch(exp, _exp32, lambda x: math.exp(x))
_dispatch(expm1, _expm1_32, lambda x: math.expm1(x))
_dispatch(sigmoid, _sigmoid32, _sigmoid64)
_dispatch(tanh, _tanh32, lambda x: math.tanh(x))
_dispatch(log1p_unit, _log1p_unit32, lambda x: math.log1p(x))
_dispatch(softplus, _softplus32, _softplus64)
_dispatch(phi1, _phi1_32, _phi1_64)
_dispatch(phi1_grad, _phi1_grad32, _phi1_grad64)
