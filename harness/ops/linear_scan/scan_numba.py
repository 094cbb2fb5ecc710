"""The linear scan on CPU: each task walks the tokens of one piece of one sequence for one block of channels.

A batch too small to give every thread a task has its time cut into pieces, of which first only the composed map is
found (one product and one state), and then, from where each begins, the states.
"""

import numpy as np
import torch
from torch import Tensor

from harness.ops.linear_scan.scan import differentiable
from harness.ops.toolbox.jit import kernel
from harness.ops.toolbox.numba_math import one, zero
from harness.ops.toolbox.threads import spread

WIDEST, NARROWEST = 256, 64  # channels of a block
MANY = 4  # tasks: enough for small machines; more pieces would only cost their second reading
PIECE = 256  # tokens, the shortest piece worth its second reading


def linear_scan(J: Tensor, b: Tensor, h0: Tensor, reverse: bool = False) -> Tensor:
    """As harness.ops.linear_scan.scan.reference, with gradients."""
    return differentiable(run, J, b, h0, reverse)


def run(J: Tensor, b: Tensor, h0: Tensor, reverse: bool) -> Tensor:
    """The states h (batch, T, D); contiguous tensors of one type, no gradient."""
    batch, T, D = J.shape
    width, blocks, pieces = cut(batch, T, D)
    arrays = [x.detach().numpy() for x in (J, b)]
    starts = h0.detach().unsqueeze(1)  # (batch, pieces, D): the state each piece begins from
    if pieces > 1:
        P, E = J.new_empty(2, batch, pieces, D)
        spread(compose, batch * pieces * blocks, J.numel(), width, reverse, *arrays, P.numpy(), E.numpy())
        states = [starts[:, 0]]
        for k in range(pieces - 1):
            states.append(P[:, k] * states[k] + E[:, k])
        starts = torch.stack(states, dim=1)
    h = torch.empty_like(b)
    starts = starts.contiguous().numpy()
    spread(walk, batch * pieces * blocks, J.numel(), width, reverse, *arrays, starts, h.numpy())
    return h


def cut(batch: int, T: int, D: int) -> tuple[int, int, int]:
    """Channels of a block, blocks of a sequence and pieces of its time: (width, blocks, pieces).

    Wide blocks read memory in order, narrow ones and pieces give a small batch tasks to spread over threads. The choice
    knows nothing of the threads there are, so that results do not either.
    """
    width = WIDEST
    while width > NARROWEST and batch * -(-D // width) < MANY:
        width //= 2
    blocks = -(-D // width)
    pieces = min(-(-MANY // max(1, batch * blocks)), T // PIECE)
    return width, blocks, max(pieces, 1)


@kernel
def compose(first, last, width, reverse, J, b, P, E):
    """The map h -> P h + E of each piece, (batch, pieces, D), for the tasks first..last - 1."""
    _, T, D = J.shape
    pieces = P.shape[1]
    blocks = (D + width - 1) // width
    for task in range(first, last):
        i, k, low = task // (pieces * blocks), task // blocks % pieces, task % blocks * width
        high = min(low + width, D)
        product, state = P[i, k, low:high], E[i, k, low:high]
        for c in range(len(product)):
            product[c] = one(product[c])
            state[c] = zero(product[c])
        for s in range(T * k // pieces, T * (k + 1) // pieces):
            t = T - 1 - s if reverse else s
            J_t, b_t = J[i, t, low:high], b[i, t, low:high]
            for c in range(len(product)):
                product[c] *= J_t[c]
                state[c] = J_t[c] * state[c] + b_t[c]


@kernel
def walk(first, last, width, reverse, J, b, starts, h):
    """The states h (batch, T, D) of each piece from `starts` (batch, pieces, D), for the tasks first..last - 1."""
    _, T, D = J.shape
    pieces = starts.shape[1]
    blocks = (D + width - 1) // width
    for task in range(first, last):
        i, k, low = task // (pieces * blocks), task // blocks % pieces, task % blocks * width
        high = min(low + width, D)
        state = np.copy(starts[i, k, low:high])
        for s in range(T * k // pieces, T * (k + 1) // pieces):
            t = T - 1 - s if reverse else s
            J_t, b_t, h_t = J[i, t, low:high], b[i, t, low:high], h[i, t, low:high]
            for c in range(len(state)):
                state[c] = J_t[c] * state[c] + b_t[c]
                h_t[c] = state[c]
