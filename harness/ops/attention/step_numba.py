"""Attention for one token in three calls, float32 on the CPU: projection and rotation, the heads, the output.

The keys and then the values are read once, in the order in which they lie. The Transformer's and MT-LNN's.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from harness.model.mixer import UNTIMED
from harness.ops.shapes import expect
from harness.ops.toolbox.jit import helper, kernel
from harness.ops.toolbox.numba_linear import at, matvec, owned
from harness.ops.toolbox.numba_math import exp, one, zero
from harness.ops.toolbox.threads import spread

BYTES = np.int64(4)  # of a float32
NOTHING = np.float32(-80)  # a score so far below the largest weighs nothing, and its denormal products would be slow
TOKENS = np.int64(128)  # read for one query head before the next of its group reads them from the cache


def attention_step(
    plain: Callable, qkv: Tensor, out: Tensor, sizes: tuple[int, int, int], theta: float, window: int | None = None,
    slopes: Tensor | None = None, norms: tuple[Tensor, float] | None = None,
) -> Callable:  # fmt: skip
    """A function like `plain`, the mixer's own `step`, for its weights as they stand, without gradients.

    qkv ((heads + 2 shared_by) size, width), out (width, heads size); sizes: heads, shared_by, size: of query heads, of
    key-value heads, and the head_dim. theta: base of the rotary frequencies. slopes (heads): see attention.py.
    norms: weights (2, size) and eps of the RMSNorms of queries and keys, which come before the rotation. The state is a
    cache with `position`, `length`, `keys`, `values` and `append`; `plain` takes one that a graph captures.
    """
    nothing = qkv.new_empty(0)
    scales, eps = (nothing, 0.0) if norms is None else norms
    weights = owned(qkv, out, nothing if slopes is None else slopes, scales)  # kept alive by the function
    qkv_at, out_at, fall_at, norm_at = (weight.data_ptr() for weight in weights)  # no address where nothing is
    (heads, shared_by, size), width = sizes, qkv.shape[1]

    def step(x_t: Tensor, state, call=UNTIMED, weights=weights) -> tuple[Tensor, object]:
        if not isinstance(state.position, int) or state.keys.dtype != torch.float32:
            return plain(x_t, state)
        x, batch = x_t.float().contiguous(), len(x_t)
        cached = (batch, shared_by, window or state.length, size)
        expect(
            "attention_step", ("x", x, (batch, width)), ("keys", state.keys, cached), ("values", state.values, cached)
        )
        queries, keys, values = (x.new_empty(batch, n, 1, size) for n in (heads, shared_by, shared_by))
        q_at = queries.data_ptr()
        _project(
            x.data_ptr(), qkv_at, q_at, keys.data_ptr(), values.data_ptr(),
            batch, width, heads, shared_by, size, state.position, float(theta), norm_at, np.float32(eps),
        )  # fmt: skip
        cache = state.append(keys, values)
        keys, values = cache.keys, cache.values
        y, places = torch.empty_like(x), (keys.data_ptr(), values.data_ptr(), *keys.stride()[:2])
        group = heads // shared_by, shared_by, cache.length, size
        # a number read is less than an update: few tokens stay on one thread
        work = batch * shared_by * cache.length * size // 8
        spread(_attend, batch * shared_by, work, q_at, *places, *group, fall_at)  # writes in the queries' place
        _product(q_at, out_at, y.data_ptr(), batch, width, heads * size)
        return y, cache

    return step


@kernel
def _project(x_at, qkv_at, q_at, k_at, v_at, batch, width, heads, shared_by, size, position, theta, norm_at, eps):
    """Queries (batch, heads, size), keys and values (batch, shared_by, size); the first two rotated.

    norm_at: of the two norms' weights (2, size), which come before the rotation; 0 for none.
    """
    x, rows = at(x_at, (batch, width)), heads + 2 * shared_by
    weight = at(qkv_at, (rows * size, width))
    q, k, v = at(q_at, (batch, heads, size)), at(k_at, (batch, shared_by, size)), at(v_at, (batch, shared_by, size))
    out, half = np.empty((rows, size), np.float32), size // 2
    turns = np.empty((2, half), np.float32)
    for i in range(half):
        angle = position * theta ** (-2.0 * i / size)
        turns[0, i], turns[1, i] = np.cos(angle), np.sin(angle)
    for b in range(batch):
        matvec(weight, x[b], out.reshape(rows * size))
        if norm_at != 0:
            norms = at(norm_at, (2, size))
            for h in range(heads + shared_by):
                _normalise(out[h], norms[0] if h < heads else norms[1], eps)
        for h in range(heads + shared_by):
            target = q[b, h] if h < heads else k[b, h - heads]
            for i in range(half):
                first, second = out[h, i], out[h, half + i]
                target[i] = first * turns[0, i] - second * turns[1, i]
                target[half + i] = second * turns[0, i] + first * turns[1, i]
        v[b] = out[heads + shared_by :]


@helper
def _normalise(row, weight, eps):
    """RMSNorm in place."""
    squares = zero(eps)
    for i in range(len(row)):
        squares += row[i] * row[i]
    factor = one(eps) / np.sqrt(squares / np.float32(len(row)) + eps)
    for i in range(len(row)):
        row[i] *= factor * weight[i]


@helper
def soften(scores):
    """Softmax in place."""
    most, total = scores[0], zero(scores[0])
    for t in range(len(scores)):
        most = max(most, scores[t])
    for t in range(len(scores)):
        below = scores[t] - most
        scores[t] = zero(below) if below < NOTHING else exp(below)
    for t in range(len(scores)):
        total += scores[t]
    for t in range(len(scores)):
        scores[t] /= total


@helper
def _accumulate(weights, values, out):
    """out += weights @ values: weights (tokens), values (tokens, size); four tokens at a time."""
    whole = len(weights) // 4 * 4
    for t in range(0, whole, 4):
        a, b, c, d = weights[t], weights[t + 1], weights[t + 2], weights[t + 3]
        v, w, x, y = values[t], values[t + 1], values[t + 2], values[t + 3]
        for i in range(len(out)):
            out[i] += a * v[i] + b * w[i] + c * x[i] + d * y[i]
    for t in range(whole, len(weights)):
        for i in range(len(out)):
            out[i] += weights[t] * values[t, i]


@helper
def _turn(rows, columns):
    """The first columns of (size, TOKENS) from rows (tokens, size)."""
    for i in range(rows.shape[1]):
        for t in range(len(rows)):
            columns[i, t] = rows[t, i]


@helper
def _score(columns, query, scores):
    """scores (tokens) = query (size) @ columns (size, TOKENS)."""
    scores[:] = zero(query[0])
    for i in range(len(query)):
        for t in range(len(scores)):
            scores[t] += query[i] * columns[i, t]


@helper
def _gather(weights, columns, out):
    """out (size) += columns (size, TOKENS) @ weights (tokens)."""
    for i in range(len(out)):
        total = zero(out[0])
        for t in range(len(weights)):
            total += columns[i, t] * weights[t]
        out[i] += total


@kernel
def _attend(first, last, q_at, keys_at, values_at, across, along, group, shared_by, length, size, fall_at):
    """The tasks first..last - 1, one for each key-value head of each sequence; outputs take the queries' place.

    keys, values: `length` tokens of `size` numbers a head, the heads `along` and the sequences `across` numbers apart.
    Query heads that share them read them turned: tokens fill the vectors of a processor where a short head does not.
    fall_at: where the slopes of the heads lie, 0 for none.
    """
    scores, columns = np.empty((group, length), np.float32), np.empty((size, TOKENS), np.float32)
    scale = np.float32(1.0 / np.sqrt(size))
    for task in range(first, last):
        place = (task // shared_by * across + task % shared_by * along) * BYTES
        keys, values = at(keys_at + place, (length, size)), at(values_at + place, (length, size))
        queries = at(q_at + task * group * size * BYTES, (group, size))
        for g in range(group):
            for i in range(size):
                queries[g, i] *= scale
        for start in range(0, length, TOKENS):
            stop = min(start + TOKENS, length)
            if group == 1:
                matvec(keys[start:stop], queries[0], scores[0, start:stop])
                continue
            _turn(keys[start:stop], columns)
            for g in range(group):
                _score(columns, queries[g], scores[g, start:stop])
        if fall_at:
            fall = at(fall_at + task % shared_by * group * BYTES, (group,))
            for g in range(group):
                for t in range(length):
                    scores[g, t] -= fall[g] * np.float32(length - 1 - t)
        for g in range(group):
            soften(scores[g])
            queries[g] = zero(scale)
        for start in range(0, length, TOKENS):
            stop = min(start + TOKENS, length)
            if group == 1:
                _accumulate(scores[0, start:stop], values[start:stop], queries[0])
                continue
            _turn(values[start:stop], columns)
            for g in range(group):
                _gather(scores[g, start:stop], columns, queries[g])


@kernel
def _product(x_at, weight_at, y_at, batch, rows, columns):
    x, y, weight = at(x_at, (batch, columns)), at(y_at, (batch, rows)), at(weight_at, (rows, columns))
    for b in range(batch):
        matvec(weight, x[b], y[b])
