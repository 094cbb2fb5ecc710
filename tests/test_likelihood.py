"""Log-likelihoods of continuations against the model's own logits over the whole text."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import configs
from harness.evaluation import likelihood
from harness.evaluation.likelihood import log_likelihoods, remembered
from harness.generation.library import TrainedModel, build_model
from harness.model.context import FULL, ContextPolicy
from harness.model.sizing import SizeConfig, solve

WINDOW = 16


@pytest.fixture(scope="module", params=["gru", "transformer"])
def known(request):
    """A small untrained model, whose state is cut where it grows."""
    config, spec = configs.resolved(f"model={request.param}", "kernel=reference"), configs.spec(request.param)
    width = solve(spec, 256, SizeConfig(30_000, 2, tolerance=0.1))
    model = build_model(config["model"], 256, 2, width).eval()
    return TrainedModel(model, config, {}, ContextPolicy(WINDOW), reads_text=True, path=Path("nowhere"))


def by_single_tokens(known, context, continuation):
    """The same from one token at a time, the state cut where the run's policy cuts it."""
    policy = FULL if known.model.constant_state else known.policy
    state, nats, greedy, tokens = None, 0.0, True, [*context, *continuation]
    for place, token in enumerate(tokens[:-1]):
        with torch.inference_mode():
            logits, state = known.model(torch.tensor([[token]]), policy.cut(known.model, state, place))
        if place + 1 >= len(context):
            says = logits[0, -1].log_softmax(-1)
            nats += says[tokens[place + 1]].item()
            greedy &= int(says.argmax()) == tokens[place + 1]
    return nats, greedy


def test_continuations_score_as_the_logits_of_the_whole_text_say(known):
    shots = b"the quick brown fox jumps over the lazy dog. "
    context = tuple(shots + b"the ")
    with torch.inference_mode():
        likeliest = tuple(known.generate(list(context), 5, temperature=0))
    pairs = [(context, tuple(text)) for text in (b"quick brown", b"slow", b"")] + [(context, likeliest)]
    pairs += [(tuple(shots), b"the quick"), ((10,), tuple(b"fox")), (tuple(shots + b"another one"), tuple(b" is"))]
    pairs = [(context, tuple(continuation)) for context, continuation in pairs]
    done = []
    found = log_likelihoods(known, pairs, lambda: done.append(1))
    expected = [by_single_tokens(known, *pair) for pair in pairs]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], rel=1e-5, abs=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert found[3][1]
    assert found[2] == (0.0, True)
    assert len(done) == len(pairs)


def test_a_shared_beginning_is_read_once(known, monkeypatch):
    read = []
    reads = likelihood.chunks
    monkeypatch.setattr(likelihood, "chunks", lambda *call: read.append(call[1].shape) or reads(*call))
    shots = tuple(range(100))
    log_likelihoods(known, [((*shots, question, 7), (answer, 9)) for question in range(3) for answer in range(4)])
    assert sum(length for rows, length in read if rows == 1) == 100 + 3
    assert [shape for shape in read if shape[0] > 1] == [(4, 2)] * 3


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=9).map(tuple), max_size=8, unique=True))
def test_what_is_remembered_is_of_all_but_the_last_token(contexts):
    """Whatever beginnings are shared: the model's state here is the tokens that it has read."""

    class Reads:
        constant_state, head = True, torch.nn.Linear(1, 1)

        def __call__(self, tokens, state):
            return tokens[..., None], (state or ()) + tuple(tokens[0].tolist())

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(likelihood, "LEAST_SHARED", 2)
        model = TrainedModel(Reads(), {}, {}, FULL, True, Path())
        found = {place: (past.read, past.state or ()) for place, past in remembered(model, contexts)}
    assert found == {place: (len(context) - 1, context[:-1]) for place, context in enumerate(contexts)}
