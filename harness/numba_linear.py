"""What one-token kernels are made of: arrays at an address, and matrix-vector products.

At the widths of small models a product by the code here runs at the speed of the cache, where a library's call costs as
much as the product, and handing a tensor over as an array costs more than handing over its address.
"""

from numba import carray, njit, types
from numba.extending import intrinsic

from harness.numba_math import FASTMATH, zero

HELPER = {"fastmath": FASTMATH, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


@intrinsic
def _pointer(_context, address):
    """The float32 pointer of an integer address."""
    pointer = types.CPointer(types.float32)

    def codegen(context, builder, _signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(types.int64), codegen


@njit(**HELPER)
def at(address, shape):
    """The contiguous float32 array of `shape` that begins at a tensor's `data_ptr()`; the caller keeps it alive."""
    return carray(_pointer(address), shape)


@njit(**HELPER)
def matvec(weight, x, y):
    """y = weight @ x: weight (O, I) with contiguous rows, x (I), y (O)."""
    for i in range(weight.shape[0]):
        row = weight[i]
        total = zero(x[0])
        for j in range(weight.shape[1]):
            total += row[j] * x[j]
        y[i] = total
