"""A row's matrix product within a walk over time: the tiles that a program multiplies while it holds a token.

A walk leaves every row in memory, where it stays in the caches, and meets itself at a barrier before it reads one.
"""

import triton
import triton.language as tl

from harness.ops.toolbox.triton_math import sigmoid, tanh

ROWS, COLUMNS, DEPTH = 16, 64, 32  # of a product's tile: 16 is the least that the matrix units take
STAGES = tl.constexpr(3)  # tiles on their way from the cache while one is multiplied
WARPS = 8
ACTIVATIONS = {"lecun_tanh": 0, "tanh": 1, "relu": 2, "silu": 3, "gelu": 4}
"""The KIND of each; -1 is none."""


@triton.jit
def activate(x, KIND: tl.constexpr):
    if KIND == 0:
        x = 1.7159 * tanh(0.666 * x)
    elif KIND == 1:
        x = tanh(x)
    elif KIND == 2:
        x = tl.where(x < 0, 0.0, x)
    elif KIND == 3:
        x = x * sigmoid(x)
    elif KIND == 4:
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    return x


@triton.jit
def product(
    x, begin, real, depth, weight, column, width, by_column, by_depth, KIND: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Some columns of activation(x) @ W: (ROWS, COLUMNS). W[k, c] is at by_depth k + by_column c.

    begin (ROWS): where in x the `depth` numbers of each row begin; real: which of the rows there are.
    """
    total = tl.zeros((ROWS, COLUMNS), x.dtype.element_ty)
    for k in tl.range(0, depth, DEPTH, num_stages=STAGES):
        inner = k + tl.arange(0, DEPTH)
        part = tl.load(x + begin[:, None] + inner[None, :], mask=real[:, None] & (inner < depth)[None, :], other=0.0)
        inside = (inner < depth)[:, None] & (column < width)[None, :]
        tile = tl.load(weight + inner[:, None] * by_depth + column[None, :] * by_column, mask=inside, other=0.0)
        # Of float32 three products on the matrix units, which lose no more than one of its own.
        exact: tl.constexpr = "ieee" if x.dtype.element_ty == tl.float64 else "tf32x3"
        total += tl.dot(activate(part, KIND), tile, input_precision=exact, out_dtype=total.dtype)
    return total
