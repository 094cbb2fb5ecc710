"""What a trained model says of given tokens: log-likelihoods of continuations; a shared beginning is read once."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from harness.evaluation.text import token_losses
from harness.generation.generate import chunks
from harness.generation.library import CHUNK, Past, TrainedModel
from harness.model.interface import IGNORE
from harness.model.state import map_tensors

Ids = tuple[int, ...]
ROWS = 16
"""Continuations of one context that are scored at once."""
LEAST_SHARED = 32
"""Tokens that contexts must share, beyond what is kept already, before the state behind them is kept too."""


def log_likelihoods(
    known: TrainedModel, pairs: Sequence[tuple[Ids, Ids]], scored: Callable[[], None] = lambda: None
) -> list[tuple[float, bool]]:
    """Of each (context, continuation): the natural logarithm of its probability, and whether it is the likeliest one.

    A context has a token at least; its state is made once, whatever the number of continuations, and so are the states
    of beginnings that contexts share. How much of the past counts is the run's policy. The likeliest: every token is
    the one that greedy decoding takes. scored: called for each that is done.
    """
    by_context: defaultdict[Ids, list[int]] = defaultdict(list)
    for place, (context, _) in enumerate(pairs):
        by_context[context].append(place)
    found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    contexts = list(by_context)
    for which, past in remembered(known, contexts):
        places = sorted(by_context[contexts[which]], key=lambda place: len(pairs[place][1]))
        for first in range(0, len(places), ROWS):
            batch = places[first : first + ROWS]
            said = _scores(known, contexts[which][-1], [pairs[place][1] for place in batch], past)
            for place, score in zip(batch, said, strict=True):
                found[place] = score
                scored()
    return found


def remembered(known: TrainedModel, contexts: Sequence[Ids]) -> Iterator[tuple[int, Past]]:
    """The place of each context, in the order of their tokens, and what the model remembers of all but its last token.

    In that order contexts with a common beginning are neighbours, so that the states of the beginnings still shared are
    all that is kept.
    """
    order = sorted(range(len(contexts)), key=contexts.__getitem__)
    kept, shared = [Past(None, 0)], 0  # the longest beginning last
    for place, following in zip(order, [*order, None][1:], strict=True):
        context = contexts[place]
        while kept[-1].read > shared:
            kept.pop()
        shared = 0 if following is None else _common(context, contexts[following])
        end = len(context) - 1
        stop = min(shared, end)
        if stop - kept[-1].read >= LEAST_SHARED:
            kept.append(_read(known, context[:stop], kept[-1]))
        yield place, _read(known, context[:end], kept[-1])


@torch.inference_mode()
def _read(known: TrainedModel, tokens: Ids, past: Past) -> Past:
    """What is remembered of the tokens, of which `past` is a beginning."""
    state, rows = past.state, _row(known, tokens[past.read :])
    for _, behind in chunks(known.model, rows, CHUNK, known.policy, past.state, past.read):
        state = behind
    return Past(state, len(tokens))


@torch.inference_mode()
def _scores(known: TrainedModel, last: int, continuations: Sequence[Ids], past: Past) -> list[tuple[float, bool]]:
    """The log-likelihood of each continuation behind `past` and the token `last`, and whether it is the likeliest."""
    device, count = known.model.head.weight.device, len(continuations)
    targets = pad_sequence([torch.tensor(ids, dtype=torch.long) for ids in continuations], True, IGNORE).to(device)
    before = targets.roll(1, 1)
    inputs = before.masked_fill(before == IGNORE, 0)  # what follows a row's end reaches no score
    if inputs.shape[1] == 0:
        return [(0.0, True)] * count
    inputs[:, 0] = last
    state = map_tensors(lambda tensor: tensor.repeat_interleave(count, 0), past.state)
    nats = torch.zeros(count, dtype=torch.float64, device=device)
    greedy = torch.ones(count, dtype=torch.bool, device=device)
    start = 0
    for logits, _ in chunks(known.model, inputs, CHUNK, known.policy, state, past.read):
        here = targets[:, start : start + logits.shape[1]]
        nats += token_losses(logits, here).sum(1, dtype=torch.float64)
        greedy &= ((logits.argmax(-1) == here) | (here == IGNORE)).all(1)
        start += logits.shape[1]
    return [(-loss, likeliest) for loss, likeliest in zip(nats.tolist(), greedy.tolist(), strict=True)]


def _row(known: TrainedModel, tokens: Ids) -> torch.Tensor:
    return torch.tensor([tokens], dtype=torch.long, device=known.model.head.weight.device)


def _common(one: Ids, other: Ids) -> int:
    """How many tokens two sequences have in common at their beginning."""
    length = min(len(one), len(other))
    return next((place for place in range(length) if one[place] != other[place]), length)
