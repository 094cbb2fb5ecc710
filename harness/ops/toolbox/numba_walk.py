"""The walk over time of a dense recurrence: groups of sequences go together, so that they share each load of a weight.

A recurrence brings, for each direction, a NamedTuple of what its kernel is given and two functions of it, `scratch` and
`token`, registered by `takes`. The kernel packs the tuple and calls `walk` or `walk_back`, which find the functions by
the tuple's class while they are compiled. Functions handed over as arguments would run as fast, but numba keeps no
kernel on the disk that was compiled with them.
"""

import numpy as np
from numba import types
from numba.extending import overload

from harness.ops.toolbox.jit import INNER, helper


def scratch(given, state):
    """The working memory of a group of sequences whose states (or the gradients by them) are shaped like `state`.

    For `walk_back` a pair: the memory, and how many columns the carry has, which a product may fill up with zeros.
    """
    raise NotImplementedError("inside numba only")


def token(given, t, low, state, room):
    """Takes token t of the group whose first sequence is `low`, with `room`, the memory that `scratch` made.

    For `walk`, state (rows, d) before the token becomes the one after it. For `walk_back` the first d columns of
    `state`, the gradient by the state after the token, become the one by the state before it.
    """
    raise NotImplementedError("inside numba only")


def takes(kind: type, scratch_of, token_of) -> None:
    """Registers the functions that stand for `scratch` and `token` where `given` is of the NamedTuple `kind`."""
    for general, special in ((scratch, scratch_of), (token, token_of)):

        @overload(general, jit_options=INNER, strict=False)
        def choose(given, *rest, special=special):
            mine = isinstance(given, types.BaseNamedTuple) and given.instance_class is kind
            return special if mine else None


@helper
def walk(first, last, size, length, h0, given):
    """Takes the groups first..last - 1, of `size` sequences each, over `length` tokens from the states h0 (B, d)."""
    for low in range(first * size, min(last * size, len(h0)), size):
        state = h0[low : min(low + size, len(h0))].copy()
        room = scratch(given, state)
        for t in range(length):
            token(given, t, low, state, room)


@helper
def walk_back(first, last, size, length, g_h0, given):
    """The same from the last token to the first; fills g_h0 (B, d), the gradient by the states h0."""
    batch, width = g_h0.shape
    for low in range(first * size, min(last * size, batch), size):
        high = min(low + size, batch)
        room, columns = scratch(given, g_h0[low:high])
        carry = np.zeros((high - low, columns), g_h0.dtype)
        for t in range(length - 1, -1, -1):
            token(given, t, low, carry, room)
        g_h0[low:high] = carry[:, :width]
