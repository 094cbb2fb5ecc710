"""Kernels read and write by address: shapes that do not go together are told before one runs."""

import pytest
import torch

import configs
import tiny
from arch.liquid_scan import LIQUID_SCAN
from harness.model import Width
from harness.shapes import expect
from harness.state import tensors


def build(architecture: str, *overrides: str):
    spec = configs.spec(architecture, *overrides)
    return spec.build(tiny.VOCAB, 2, Width(64, 0 if spec.channel_mixer is None else 96)).eval()


def test_the_tensor_and_both_shapes_are_named():
    expect("scan", ("x", torch.zeros(2, 3), (2, 3)), ("nothing", None, (1,)))
    with pytest.raises(ValueError, match=r"scan: h has the shape \(2, 3\), where the other inputs ask for \(2, 4\)"):
        expect("scan", ("x", torch.zeros(2, 3), (2, 3)), ("h", torch.zeros(2, 3), (2, 4)))


def test_a_state_of_another_batch_is_refused_by_a_token(architecture):
    model = build(architecture)
    with torch.inference_mode(), pytest.raises((ValueError, RuntimeError), match=r"shape|size"):
        model.frozen_step()(torch.zeros(64, dtype=torch.long), model.init_state(1))


def test_a_state_of_another_batch_is_refused_by_a_sequence(architecture):
    model = build(architecture)
    with torch.no_grad():
        _, state = model(torch.zeros(1, 3, dtype=torch.long))
        with pytest.raises((ValueError, RuntimeError), match=r"shape|size"):
            model(torch.zeros(64, 3, dtype=torch.long), state)


@pytest.mark.parametrize("name", ["A", "inv_tau", "w", "h0", "elapsed"])
def test_the_liquid_scan_checks_every_tensor(name):
    batch, T, D = 2, 4, 5
    shapes = {"a": (batch, T, D), "A": (batch, T, D), "inv_tau": (D, 1), "omega": (D, 1), "w": (D,)}
    given = {key: torch.zeros(shape) for key, shape in shapes.items()} | {"B": None, "C": None}
    given |= {"h0": torch.zeros(batch, D, 1), "elapsed": torch.ones(batch, T)}
    run = LIQUID_SCAN.choose("fused", torch.device("cpu"), torch.float32, solver="rk4", coupling="diagonal", d_state=1)
    run("rk4", 1, "sigmoid", **given)
    short = given[name][..., :1] if name in ("A", "elapsed") else given[name][:1]
    with pytest.raises(ValueError, match=rf"{name} has the shape"):
        run("rk4", 1, "sigmoid", **(given | {name: short}))


def test_an_empty_batch_is_empty(architecture):
    model = build(architecture)
    tokens = torch.zeros(0, 3, dtype=torch.long)
    logits, state = model(tokens)
    assert logits.shape == (0, 3, tiny.VOCAB)
    logits.sum().backward()
    with torch.inference_mode():
        logits, state = model.frozen_step()(tokens[:, 0], state)
    assert logits.shape == (0, tiny.VOCAB)
    assert all(tensor.numel() == 0 for tensor in tensors(state))


def test_no_token_is_told(architecture):
    with pytest.raises(ValueError, match="at least one token"):
        build(architecture)(torch.zeros(2, 0, dtype=torch.long))


def test_no_token_passes_the_convolution():
    mixer = build("ltc").blocks[0].mixer
    state = mixer.init_state(2)
    state["conv"] += 1
    x, kept = mixer.convolve(torch.zeros(2, 0, 64), state)
    assert x.shape == (2, 0, 64)
    assert kept["conv"].equal(state["conv"])


def test_kernels_hold_the_weights_as_they_stood(architecture):
    model = build(architecture)
    state, token = model.init_state(2), torch.tensor([1, 2])
    with torch.inference_mode():
        step = model.frozen_step()
        before, _ = step(token, state)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    with torch.inference_mode():
        after, _ = step(token, state)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
