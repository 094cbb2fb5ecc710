"""The decoder gives what a loop of steps gives, and a fixed state can stand where a CUDA graph would keep it."""

import copy

import pytest
import torch

import configs
from harness.generation.decode import ROOM, Decoder, keep
from harness.model.backbone import Width
from harness.model.state import map_tensors, tensors

TOKENS = torch.randint(256, (9, 2), generator=torch.Generator().manual_seed(3))


def build(architecture: str, dtype: torch.dtype = torch.float32):
    spec = configs.spec(architecture)
    return spec.build(256, 2, Width(64, 0 if spec.channel_mixer is None else 96)).to(dtype).eval()


def randomised(model):
    """Parameters away from the starts at zero that would hide a mistake."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def prefilled(model, length: int = 5):
    with torch.inference_mode():
        return model(TOKENS[:length].t())[1]


def loop(model, state):
    outputs = []
    with torch.inference_mode():
        for tokens in TOKENS:
            logits, state = model.step(tokens, state)
            outputs.append(logits)
    return torch.stack(outputs)


def test_the_decoder_gives_what_a_loop_of_steps_gives(architecture):
    model = randomised(build(architecture))
    state = prefilled(model)
    before = map_tensors(torch.clone, state)
    decoder = Decoder(model, state)
    made = torch.stack([decoder.step(tokens).clone() for tokens in TOKENS])
    torch.testing.assert_close(made, loop(model, state), rtol=1e-4, atol=1e-4)
    assert all(a.equal(b) for a, b in zip(tensors(before), tensors(state), strict=True))


def test_the_decoder_is_the_loop_of_steps_in_float64(architecture):
    """In float32 on the CPU the decoder takes one-token kernels, in float64 a step is the reference."""
    model = randomised(build(architecture))
    exact = copy.deepcopy(model).double()
    decoder = Decoder(model, prefilled(model))
    made = torch.stack([decoder.step(tokens) for tokens in TOKENS])
    torch.testing.assert_close(made.double(), loop(exact, prefilled(exact)), rtol=2e-4, atol=2e-4)


def test_a_decoder_takes_the_weights_as_they_stand_when_it_is_made(architecture):
    model = build(architecture)
    Decoder(model, prefilled(model)).step(TOKENS[0])
    model = randomised(model)  # in place, as training changes them
    state = prefilled(model)
    made = Decoder(model, state).step(TOKENS[0])
    with torch.inference_mode():
        torch.testing.assert_close(made, model.step(TOKENS[0], state)[0], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_fixed_state_steps_in_place(architecture):
    """What the captured graph does, done by hand: one state, written over after every token."""
    model = randomised(build(architecture, torch.float64))
    state = prefilled(model)
    fixed = model.fixed_state(state, ROOM)
    places = [tensor.data_ptr() for tensor in tensors(fixed)]
    made = []
    for tokens in TOKENS:
        logits, new = model.step(tokens, fixed)
        made.append(logits.clone())
        keep(fixed, new)
    torch.testing.assert_close(torch.stack(made), loop(model, state), rtol=1e-10, atol=1e-10)
    assert places == [tensor.data_ptr() for tensor in tensors(fixed)]


@torch.inference_mode()
def test_a_fixed_state_can_be_given_more_room(architecture):
    model = randomised(build(architecture, torch.float64))
    state = prefilled(model)
    fixed, made = model.fixed_state(state, 4), []
    for number, tokens in enumerate(TOKENS):
        if number and number % 4 == 0:
            fixed = model.fixed_state(fixed, 4)
        logits, new = model.step(tokens, fixed)
        made.append(logits.clone())
        keep(fixed, new)
    torch.testing.assert_close(torch.stack(made), loop(model, state), rtol=1e-10, atol=1e-10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_captured_graph_gives_what_a_loop_of_steps_gives(architecture):
    model = randomised(build(architecture)).cuda()
    with torch.inference_mode():
        _, state = model(torch.randint(256, (2, 5), device="cuda"))
    decoder = Decoder(model, state)
    made = torch.stack([decoder.step(tokens.cuda()).clone() for tokens in TOKENS])
    with torch.inference_mode():
        for tokens, logits in zip(TOKENS, made, strict=True):
            expected, state = model.step(tokens.cuda(), state)
            torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
