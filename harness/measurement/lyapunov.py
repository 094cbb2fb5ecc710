"""The largest Lyapunov exponent of a trained recurrence, along tokens that it reads."""

import copy
from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor

from harness.model.backbone import LanguageModel
from harness.model.state import State, map_tensors, tensors

DIFFERENCE = 1e-7
"""Of two states, over the norm of one: small against what is nonlinear, large against float64's rounding."""


def exponents(model: LanguageModel, tokens: Tensor, settle: int) -> Tensor:
    """Nats a token by which a small difference of two states grows while both read the same tokens: (passages).

    Negative: what was there before is forgotten, by a factor e in -1 / exponent tokens. Positive: chaos. -inf where no
    difference is left, as of what remembers a few tokens. It is of the model's whole state at once, the largest of its
    layers, and conditional on the tokens (passages, T): two trajectories, their difference scaled back after every
    token (Benettin et al. 1980, part 2). The first `settle` tokens turn it into the direction that lasts, and count for
    nothing. In float64, on the CPU; the state must be of constant size.
    """
    model = copy.deepcopy(model).cpu().double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        _, state = model(tokens[:, :1])
        moves = [torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in _numbers(state)]
        growth = torch.zeros(len(tokens), dtype=torch.float64)
        for number, token in enumerate(tokens[:, 1:].unbind(1), 1):
            size, left = DIFFERENCE * _norm(_numbers(state)), _norm(moves)
            other = _moved(state, moves, torch.where(left > 0, size / left, 0.0))
            (_, state), (_, other) = model.step(token, state), model.step(token, other)
            moves = [y - x for x, y in zip(_numbers(state), _numbers(other), strict=True)]
            if number >= settle:
                growth += (_norm(moves) / size).log()
        return growth / (tokens.shape[1] - max(1, settle))


def _numbers(state: State) -> list[Tensor]:
    """The tensors of a state that are no counters."""
    return [tensor for tensor in tensors(state) if tensor.is_floating_point()]


def _norm(parts: Iterable[Tensor]) -> Tensor:
    """Of each row over all of them: (passages)."""
    return reduce(torch.add, (part.flatten(1).square().sum(1) for part in parts)).sqrt()


def _moved(state: State, moves: Iterable[Tensor], scale: Tensor) -> State:
    """The state plus `scale` (passages) times the moves, one for each of its numbers."""
    left = iter(moves)

    def move(x: Tensor) -> Tensor:
        return x + next(left) * scale.view(-1, *[1] * (x.dim() - 1)) if x.is_floating_point() else x

    return map_tensors(move, state)
