"""The ways in which numba compiles here: a kernel's own entry, and two kinds of function that kernels call.

All keep NaN and infinity and let loops vectorise (FASTMATH), and none tests for a divisor of zero, which would keep
loops from vectorising.
"""

from numba import njit

from harness.ops.toolbox.numba_math import FASTMATH

_options = {"fastmath": FASTMATH, "error_model": "numpy"}
INNER = {**_options, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # no entry from Python, which takes long

kernel = njit(**_options, cache=True, nogil=True)
"""Called from Python, on any thread (`spread`); kept on the disk."""
helper = njit(**INNER)
"""Called from kernels; LLVM decides whether its code is copied into them. For bodies with loops of their own."""
inlined = njit(**INNER, forceinline=True)
"""Called from kernels' innermost loops, which vectorise only where its code stands in them."""
