"""Small matrix products inside numba kernels, and arrays at an address.

At the widths of small models a product by the code here runs at the speed of the cache, where a library's call costs as
much as the product, and handing a tensor over as an array costs more than handing over its address.
"""

import torch
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from harness.ops.toolbox.jit import helper
from harness.ops.toolbox.numba_math import zero

ROWS = 4  # rows of a product that share each load of a weight: enough to be bound by arithmetic, not by the cache
VECTORS = 2  # registers of 64 bytes that a row's sums take: ROWS x VECTORS sums in flight hide the latency of one
TILE_BYTES = 64 * VECTORS


@intrinsic
def _pointer(_context, address):
    """The float32 pointer of an integer address."""
    pointer = types.CPointer(types.float32)

    def codegen(context, builder, _signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(types.int64), codegen


@helper
def at(address, shape):
    """The contiguous float32 array of `shape` that begins at a tensor's `data_ptr()`; the caller keeps it alive."""
    return carray(_pointer(address), shape)


@helper
def matvec(weight, x, y):
    """y = weight @ x: weight (O, I) with contiguous rows, x (I), y (O)."""
    for i in range(weight.shape[0]):
        row = weight[i]
        total = zero(x[0])
        for j in range(weight.shape[1]):
            total += row[j] * x[j]
        y[i] = total


def owned(*weights: Tensor) -> list[Tensor]:
    """Contiguous copies in float32 of weights as they stand, for a function that is to keep them."""
    return [w.detach().float().clone(memory_format=torch.contiguous_format) for w in weights]


def panels(weight: Tensor) -> Tensor:
    """weight (I, O) as `product` takes it: tiles of columns (tiles, I, TILE), the last filled up with zeros."""
    tile = TILE_BYTES // weight.element_size()
    depth, width = weight.shape
    tiles = -(-width // tile)
    padded = weight.new_zeros(depth, tiles * tile)
    padded[:, :width] = weight
    return padded.view(depth, tiles, tile).transpose(0, 1).contiguous()


def _block(rows: int):
    """The product of so many rows with one panel, its sums in registers; numba would keep an array in memory."""

    @intrinsic
    def block(_context, x, panel, y, row, column):
        def codegen(context, builder, signature, arguments):
            arrays = [context.make_array(t)(context, builder, arguments[i]) for i, t in enumerate(signature.args[:3])]
            _emit(builder, context.get_value_type(x.dtype), 512 // x.dtype.bitwidth, rows, *arrays, *arguments[3:])
            return context.get_dummy_value()

        return types.void(x, panel, y, types.intp, types.intp), codegen

    return block


def _emit(builder, scalar, lanes: int, rows: int, x, panel, y, row, column) -> None:
    """y[row + r, column + c] = sum_k x[row + r, k] panel[k, c] for r < rows and each column c of the panel."""
    vector, i32, index = ir.VectorType(scalar, lanes), ir.IntType(32), row.type
    contract = {"flags": ("contract",)}  # a multiplication and an addition in one instruction
    aligned = {"align": 64 // lanes}

    def vectors(array, start):  # where the vectors of one row of a tile lie
        places = [builder.gep(array.data, [builder.add(start, index(v * lanes))]) for v in range(VECTORS)]
        return [builder.bitcast(place, vector.as_pointer()) for place in places]

    def line(array, r, offset):  # the flat index of [row + r, offset]
        width = cgutils.unpack_tuple(builder, array.shape)[1]
        return builder.add(builder.mul(builder.add(row, index(r)), width), offset)

    zeros = ir.Constant(vector, [0.0] * lanes)
    sums = [[cgutils.alloca_once_value(builder, zeros) for _ in range(VECTORS)] for _ in range(rows)]
    depth = cgutils.unpack_tuple(builder, panel.shape)[0]
    with cgutils.for_range(builder, depth, intp=index) as loop:
        places = vectors(panel, builder.mul(loop.index, index(VECTORS * lanes)))
        weights = [builder.load(place, **aligned) for place in places]
        for r in range(rows):
            value = builder.load(builder.gep(x.data, [line(x, r, loop.index)]))
            value = builder.insert_element(ir.Constant(vector, ir.Undefined), value, i32(0))
            value = builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(i32, lanes), [0] * lanes))
            for weight, total in zip(weights, sums[r], strict=True):
                term = builder.fmul(value, weight, **contract)
                builder.store(builder.fadd(builder.load(total), term, **contract), total)
    for r in range(rows):
        for total, place in zip(sums[r], vectors(y, line(y, r, column)), strict=True):
            builder.store(builder.load(total), place, **aligned)


_four, _two, _one = _block(4), _block(2), _block(1)


@helper
def product(x, weight, y):
    """y = x @ weight: x (R, I) and y (R, tiles x TILE) contiguous, weight (tiles, I, TILE) as `panels` lays it out.

    A row's sums are taken in one order whatever the rows beside it. x may be wider than I.
    """
    rows = x.shape[0]
    for tile in range(weight.shape[0]):
        panel, column = weight[tile], tile * weight.shape[2]
        row = 0
        while row + 4 <= rows:
            _four(x, panel, y, row, column)
            row += 4
        if row + 2 <= rows:
            _two(x, panel, y, row, column)
            row += 2
        if row < rows:
            _one(x, panel, y, row, column)


@helper
def padded(x, width):
    """The columns of y in `product` for so many columns of weight, in the type of x."""
    tile = TILE_BYTES // x.itemsize
    return (width + tile - 1) // tile * tile


def group(batch: int) -> int:
    """Rows that walk time together: enough to share the loads of weights, few enough that each thread has some."""
    return min(ROWS, max(1, -(-batch // torch.get_num_threads())))


@helper
def panels_at(address, depth, width):
    """The float32 panels of a weight (depth, width) that begin at a tensor's `data_ptr()`."""
    tile = TILE_BYTES // 4
    return at(address, ((width + tile - 1) // tile, depth, tile))
