"""One token for the weights as they stand: the kernels that a generation calls against the step they stand for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import configs
from harness.model.backbone import LanguageModel, Width
from harness.model.state import map_tensors, tensors
from kernel_checks import poison

VOCAB = 16


def model(spec, d_model: int, d_ff: int) -> LanguageModel:
    """Two layers, every parameter away from the starts at zero that would hide a mistake."""
    made = spec.build(VOCAB, 2, Width(d_model, 0 if spec.channel_mixer is None else d_ff))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def assert_frozen_is_the_step(made: LanguageModel, batch: int) -> None:
    """Four tokens behind three, the kernels' fresh memory poisoned; with gradients `step` keeps to the torch code."""
    ids = torch.randint(VOCAB, (batch, 7))
    state = map_tensors(torch.detach, made(ids[:, :3])[1])
    frozen, held = made.frozen_step(), state
    for token in ids[:, 3:].unbind(1):
        before = map_tensors(torch.clone, held)
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            poison(patch)
            logits, after = frozen(token, held)
        expected, state = made.step(token, state)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        for got, want in zip(tensors(after), tensors(state), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        assert all(map(torch.equal, tensors(held), tensors(before)))
        held = after


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(multiple=st.integers(1, 3), d_ff=st.integers(1, 100), batch=st.integers(1, 3))
def test_the_frozen_model_is_the_step(architecture, multiple, d_ff, batch):
    spec = configs.spec(architecture)
    assert_frozen_is_the_step(model(spec, multiple * spec.width_multiple, d_ff), batch)


VARIANTS = {  # overrides of the mixer, and what the width is a multiple of
    "ltc": (["d_state=3", "d_conv=0"], 1),
    "ltc of heads": (["coupling=heads", "head_dim=8", "d_state=2"], 8),
    "ltc of wide heads, no convolution": (["coupling=heads", "head_dim=32", "d_conv=0", "d_state=3"], 32),
    "cfc": (["mode=pure"], 1),
    "cfc of two layers": (["mode=no_gate", "backbone_layers=2"], 1),
    "gru": ([], 1),
    "lstm": ([], 1),
    "mamba": (["d_state=3"], 1),
    "rwkv of small heads": (["head_dim=8"], 8),
    "transformer of grouped queries": (["head_dim=8", "n_kv_heads=2"], 16),
    "transformer of one key-value head": (["head_dim=8", "n_kv_heads=1"], 8),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=5, deadline=None)
@given(multiple=st.integers(1, 4), batch=st.integers(1, 3), data=st.data())
def test_the_frozen_variant_is_the_step(variant, multiple, batch, data):
    overrides, unit = VARIANTS[variant]
    spec = configs.spec(variant.split()[0], *(f"model.mixer.{override}" for override in overrides))
    width = data.draw(st.integers(1, 70)) if unit == 1 else multiple * unit
    assert_frozen_is_the_step(model(spec, width, 24), batch)
