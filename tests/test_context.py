"""One definition of context: evaluation, decoder, prompt and measurement hold the same tokens."""

import math

import numpy as np
import pytest
import torch

import configs
from harness.evaluation.evaluate import EvaluateConfig
from harness.evaluation.text import stream_loss, stream_rows, token_losses
from harness.generation.decode import Decoder
from harness.generation.generate import generate, read
from harness.measurement.measure import MeasureConfig, measure
from harness.model.backbone import Width
from harness.model.context import FULL, ContextPolicy
from harness.model.state import state_bytes, tensors

WINDOWS = [None, 1, 2, 7, 16]
GROWING = ["transformer", "transformer_gqa", "hybrid"]
ROWS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 50)).astype(np.int16))


def build(architecture: str, dtype: torch.dtype = torch.float32):
    spec = configs.spec(architecture)
    model = spec.build(256, 2, Width(64, 0 if spec.channel_mixer is None else 96)).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("window", [*WINDOWS, 13, 512])
def test_a_prediction_sees_between_a_half_and_a_whole_window(window):
    class Tokens:
        """A state that is the list of the tokens held."""

        constant_state = False

        def truncate_state(self, state, keep):
            return state[max(0, len(state) - keep) :]

    policy, state = ContextPolicy(window), []
    for token in range(100):
        assert policy.held(token) == len(state)
        state = [*policy.cut(Tokens(), state, token), token]
        assert state == list(range(token + 1))[-len(state) :]
        if window is None or token < window // 2:
            assert len(state) == token + 1
        else:
            assert min(token + 1, window - max(1, window // 2) + 1) <= len(state) <= window


def test_a_configuration_names_the_policy():
    assert EvaluateConfig().policy(512) == ContextPolicy(512)
    assert EvaluateConfig(context="full").policy(512) == FULL
    assert EvaluateConfig(context=100).policy(512) == ContextPolicy(100)
    growing, constant = build("transformer"), build("transformer_window")
    assert ContextPolicy(9).describe(growing) == {"kind": "window", "tokens": 9}
    assert FULL.describe(growing) == {"kind": "full", "tokens": None}
    assert ContextPolicy(9).describe(constant) == {"kind": "state", "tokens": None}


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", [*GROWING, "transformer_window"])
@torch.inference_mode()
def test_evaluation_and_decoder_agree_token_by_token(name, window):
    model, policy = build(name), ContextPolicy(window)
    seen = []
    model.head.register_forward_hook(lambda module, inputs, logits: seen.append(logits))
    nats, scored = stream_loss(model, ROWS, policy, chunk=8)
    evaluated = token_losses(torch.cat(seen, 1), ROWS[:, 1:].long())
    decoder = Decoder(model, model.init_state(3), policy)
    decoded = torch.stack([decoder.step(tokens) for tokens in ROWS[:, :-1].long().unbind(1)], 1)
    losses = token_losses(decoded, ROWS[:, 1:].long())
    torch.testing.assert_close(losses, evaluated, rtol=1e-3, atol=1e-3)
    assert nats == pytest.approx(losses.double().sum().item(), rel=1e-4)
    assert scored == 3 * 49


@pytest.mark.parametrize("window", [1, 2, 7, 16])
@torch.inference_mode()
def test_the_decoder_holds_no_more_than_the_window(window):
    model, policy = build("transformer"), ContextPolicy(window)
    decoder, a_token = Decoder(model, model.init_state(1), policy), 2 * 2 * 64 * 4
    for count in range(1, 60):
        decoder.step(torch.tensor([count]))
        assert state_bytes(decoder.state) == a_token * policy.held(count)
        allocated = sum(t.untyped_storage().nbytes() for t in tensors(decoder.state))
        assert allocated <= a_token * (1.25 * window + 64)  # KVCache's spare room


@pytest.mark.parametrize("name", [*GROWING, "gru"])
@pytest.mark.parametrize("chunk", [3, 8, 100])
@torch.inference_mode()
def test_a_prompt_is_read_as_the_decoder_reads_it(name, chunk):
    model, policy, tokens = build(name, torch.float64), ContextPolicy(10), ROWS[:, :33].long()
    logits, state = read(model, tokens, chunk, policy)
    decoder = Decoder(model, model.init_state(3), policy)
    for token in tokens.unbind(1):
        stepped = decoder.step(token)
    torch.testing.assert_close(logits, stepped, rtol=0, atol=1e-9)
    assert state_bytes(state) == state_bytes(decoder.state)
    following = Decoder(model, state, policy, 33).step(tokens[:, 0])
    torch.testing.assert_close(following, decoder.step(tokens[:, 0]), rtol=0, atol=1e-9)


def test_a_generation_forgets_what_the_policy_forgets():
    model, prompt = build("transformer", torch.float64), ROWS[:1, :8].long()
    whole = generate(model, prompt, 40, temperature=0)
    short = generate(model, prompt, 40, temperature=0, policy=ContextPolicy(8))
    assert whole[0, 0] == short[0, 0]  # nothing is cut before the window is full
    assert not torch.equal(whole, short)
    with torch.inference_mode():
        _, state = read(model, prompt, 8, ContextPolicy(8))
        decoder, token, made = Decoder(model, state, ContextPolicy(8), 8), short[:, 0], [int(short[0, 0])]
        while len(made) < 40:
            token = decoder.step(token).argmax(-1)
            made.append(int(token))
    assert short[0].tolist() == made


@pytest.mark.parametrize("window", [None, 48])
def test_the_measurement_is_of_the_policy(window):
    model = build("transformer")
    config = MeasureConfig(contexts=[32, 96], warmup=1, decode_tokens=4, repeats=1)
    rows = measure(model, config, ContextPolicy(window))["contexts"]
    a_token = 2 * 2 * 64 * 4
    assert [row["state_bytes"] for row in rows] == [a_token * 32, a_token * (window or 96)]
    assert all(row["first_token_ms"] > 0 and row["decode_ms_p50"] > 0 for row in rows)


@torch.inference_mode()
def test_a_longer_window_than_the_training_length_is_used():
    model = build("transformer")
    rows = stream_rows(np.arange(200, dtype=np.uint8), 2, train_length=8)
    short, _ = stream_loss(model, rows, ContextPolicy(8), 4)
    longer, _ = stream_loss(model, rows, ContextPolicy(64), 4)
    whole, scored = stream_loss(model, rows, FULL, 4)
    assert scored == 198
    assert len({round(nats, 4) for nats in (short, longer, whole)}) == 3
    assert math.isfinite(whole)
