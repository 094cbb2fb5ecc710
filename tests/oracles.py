"""The slow way that every mixer's fast path is held to."""

import torch

from harness.model.mixer import Call


def step_loop(mixer, x, state=None, elapsed=None):
    """`step`, token by token from `state` (an empty one where None): y (B, T, d_model) and the last state."""
    state = mixer.init_state(x.shape[0], dtype=x.dtype) if state is None else state
    outputs = []
    for t, x_t in enumerate(x.unbind(1)):
        y, state = mixer.step(x_t, state, Call(None if elapsed is None else elapsed[:, t]))
        outputs.append(y)
    return torch.stack(outputs, dim=1), state
