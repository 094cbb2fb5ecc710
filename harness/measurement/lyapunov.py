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
LEAST = 1e-30
"""Of a norm that is divided by."""


def exponents(model: LanguageModel, tokens: Tensor, settle: int) -> Tensor:
    """Nats a token by which a small difference of two states grows while both read the same tokens: (passages).

    Negative: what was there before is forgotten, by a factor e in -1 / exponent tokens. Positive: chaos. It is of the
    model's whole state at once, the largest of its layers, and conditional on the tokens (passages, T), on average over
    those after the first `settle`: two trajectories, their difference scaled back after every token (Benettin et al.
    1980, part 2). Where a difference vanishes, as a state of a few tokens makes it do, it is very low. In float64, on
    the CPU; the state must be of constant size.
    """
    model = copy.deepcopy(model).cpu().double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        _, state = model(tokens[:, :settle])
        moves = [torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in _numbers(state)]
        growth = torch.zeros(len(tokens), dtype=torch.float64)
        for token in tokens[:, settle:].unbind(1):
            size = DIFFERENCE * _norm(_numbers(state))
            other = _moved(state, moves, size / _norm(moves))
            (_, state), (_, other) = model.step(token, state), model.step(token, other)
            moves = [y - x for x, y in zip(_numbers(state), _numbers(other), strict=True)]
            growth += (_norm(moves) / size).log()
        return growth / (tokens.shape[1] - settle)


def _numbers(state: State) -> list[Tensor]:
    """The tensors of a state that are no counters."""
    return [tensor for tensor in tensors(state) if tensor.is_floating_point()]


def _norm(parts: Iterable[Tensor]) -> Tensor:
    """Of each row over all of them: (passages)."""
    return reduce(torch.add, (part.flatten(1).square().sum(1) for part in parts)).sqrt().clamp(min=LEAST)


def _moved(state: State, moves: Iterable[Tensor], scale: Tensor) -> State:
    """The state plus `scale` (passages) times the moves, one for each of its numbers."""
    left = iter(moves)

    def move(x: Tensor) -> Tensor:
        return x + next(left) * scale.view(-1, *[1] * (x.dim() - 1)) if x.is_floating_point() else x

    return map_tensors(move, state)
