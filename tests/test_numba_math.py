"""The scalar functions against libm in higher precision, over their range and at its ends."""

import platform
from pathlib import Path

import numpy as np
import pytest
from numba import config, njit

from harness.ops.toolbox import numba_math

RANGES = {  # where float32 neither saturates nor leaves the normal numbers
    "exp": (-87.0, 88.0),
    "expm1": (-80.0, 88.0),
    "sigmoid": (-80.0, 80.0),
    "tanh": (-20.0, 20.0),
    "softplus": (-80.0, 1e4),
    "log1p_unit": (0.0, 1.0),
    "phi1": (-20.0, 1e3),
    "phi1_grad": (-20.0, 1e3),
}
OPTIONS = {"fastmath": numba_math.FASTMATH, "error_model": "numpy"}


@njit(**OPTIONS, cache=True)
def every(x, out):
    """One compilation a type for all functions; log1p_unit sees |x| folded into its range."""
    for i in range(x.shape[0]):
        out[0, i] = numba_math.exp(x[i])
        out[1, i] = numba_math.expm1(x[i])
        out[2, i] = numba_math.sigmoid(x[i])
        out[3, i] = numba_math.tanh(x[i])
        out[4, i] = numba_math.softplus(x[i])
        out[5, i] = numba_math.log1p_unit(x[i])
        out[6, i] = numba_math.phi1(x[i])
        out[7, i] = numba_math.phi1_grad(x[i])


def evaluate(name: str, x: np.ndarray) -> np.ndarray:
    out = np.empty((len(RANGES), len(x)), x.dtype)
    every(x, out)
    return out[list(RANGES).index(name)]


def exact(name: str, x: np.ndarray) -> np.ndarray:
    """The definition in extended precision; phi1_grad by its series near 0, where the closed form cancels."""
    x = x.astype(np.longdouble)
    if name != "phi1_grad":
        return getattr(numba_math, name)(x)
    series, term = np.zeros_like(x), np.ones_like(x)  # sum over k of (-1)^k k x^(k-1) / (k+1)!
    for k in range(1, 30):
        term = term / (k + 1)
        series += (-1) ** k * k * term
        term = term * np.where(np.abs(x) < 1, x, 0)
    large = np.where(np.abs(x) < 1, 1, x)
    return np.where(np.abs(x) < 1, series, (np.exp(-large) * (1 + large) - 1) / large**2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", RANGES)
def test_accuracy(name, dtype):
    low, high = RANGES[name]
    rng = np.random.default_rng(0)
    tiny = 10.0 ** rng.uniform(-25, 0, 2000)
    near = [rng.uniform(max(low, -2), min(high, 2), 5000), tiny, tiny if low >= 0 else -tiny]
    x = np.concatenate([np.linspace(low, high, 5000), *near, [0.0]]).astype(dtype)
    expected = exact(name, x)
    error = np.abs(evaluate(name, x) - expected) / np.maximum(np.abs(expected), np.finfo(np.float32).tiny)
    assert error.max() < (1e-6 if dtype == np.float32 else 2e-15)


def test_no_overflow_and_nan_kept():
    x = np.array([1e30, -1e30, np.inf, -np.inf], np.float32)
    assert np.isfinite(evaluate("exp", x)).all()
    np.testing.assert_allclose(evaluate("sigmoid", x), [1, 0, 1, 0], atol=1e-37)
    np.testing.assert_allclose(evaluate("tanh", x), [1, -1, 1, -1])
    np.testing.assert_allclose(evaluate("softplus", x[:2]), [1e30, 0], atol=1e-37)
    np.testing.assert_allclose(evaluate("phi1", x[:1]), [1e-30], rtol=1e-6)
    for name in RANGES:
        assert np.isnan(evaluate(name, np.full(9, np.nan, np.float32))).all(), name


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86 assembly")
def test_float32_loops_vectorise():
    @njit(**OPTIONS)
    def loop(x, out):
        for i in range(x.shape[0]):
            out[i] = numba_math.sigmoid(x[i])

    loop(np.zeros(8, np.float32), np.zeros(8, np.float32))
    assert "divps" in "".join(loop.inspect_asm().values())  # a packed division, not divss


def test_compiled_kernels_are_kept_by_all_their_sources(tmp_path):
    for folder in ("arch", "harness"):
        (tmp_path / folder).mkdir()
    helper, other = tmp_path / "harness" / "helper.py", tmp_path / "arch" / "other.py"
    helper.write_text("from numba import njit\n")
    other.write_text("import torch\n")
    before = numba_math.kernel_digest(tmp_path)
    other.write_text("import torch  # numba is only mentioned\n")
    assert numba_math.kernel_digest(tmp_path) == before
    helper.write_text("from numba import njit\n\nCHANGED = True\n")
    assert (changed := numba_math.kernel_digest(tmp_path)) != before
    solvers = (Path(numba_math.__file__).parents[3] / "arch" / "solvers.py").read_text()
    other.write_text(solvers)
    assert numba_math.kernel_digest(tmp_path) != changed
    assert numba_math.kernel_digest(Path(numba_math.__file__).parents[3]) in config.CACHE_DIR
