"""Generation: the cache gives what recomputing gives, and a seed decides every draw."""

import pytest
import torch
from torch import nn

from harness.generation.generate import choose, generate, sample_text
from harness.model.backbone import ModelSpec, Width
from harness.model.context import FULL
from harness.model.mixer import Mixer


class Decay(Mixer):
    """A leaky sum of projected inputs: the smallest recurrence."""

    def __init__(self, d_model: int, layer: int = 0, n_layers: int = 1):
        super().__init__(d_model, layer, n_layers)
        self.project = nn.Linear(d_model, d_model)

    def forward(self, x, state=None, call=None):
        state = self.init_state(len(x), dtype=x.dtype) if state is None else state
        outputs = []
        for x_t in x.unbind(1):
            y_t, state = self.step(x_t, state)
            outputs.append(y_t)
        return torch.stack(outputs, 1), state

    def step(self, x_t, state, call=None):
        h = 0.8 * state["h"] + torch.tanh(self.project(x_t))
        return h, {"h": h}

    def init_state(self, batch, context=0, device=None, dtype=None):
        return {"h": torch.zeros(batch, self.d_model, device=device, dtype=dtype)}


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = ModelSpec("decay", Decay).build(256, 2, Width(16, 0)).double()
    nn.init.normal_(model.head.weight)
    return model


def test_the_cache_gives_what_recomputing_gives(model):
    tokens = torch.randint(256, (2, 5))
    made = generate(model, tokens, 12, temperature=0)
    for _ in range(12):
        logits, _ = model(tokens)
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
    assert made.equal(tokens[:, 5:])
    assert len(set(made.flatten().tolist())) > 2


def test_a_seed_decides_every_draw_and_disturbs_no_other(model):
    prompt = torch.randint(256, (1, 3))
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    first = generate(model, prompt, 20, seed=1)
    assert torch.rand(4).equal(expected)
    assert generate(model, prompt, 20, seed=1).equal(first)
    assert not generate(model, prompt, 20, seed=2).equal(first)
    assert generate(model, prompt, 0).shape == (1, 0)


def test_draws_follow_the_probabilities_that_are_left():
    logits = torch.tensor([0.1, 0.6, 0.3]).log().expand(20_000, 3)
    generator = torch.Generator().manual_seed(0)

    def shares(**how):
        settings = {"temperature": 1.0, "top_p": 1.0, "top_k": None} | how
        return torch.bincount(choose(logits, generator=generator, **settings), minlength=3) / 20_000

    assert torch.allclose(shares(), torch.tensor([0.1, 0.6, 0.3]), atol=0.02)
    assert torch.allclose(shares(top_k=2), torch.tensor([0.0, 2 / 3, 1 / 3]), atol=0.02)
    assert torch.allclose(shares(top_p=0.7), torch.tensor([0.0, 2 / 3, 1 / 3]), atol=0.02)
    assert shares(top_p=0.5).tolist() == [0.0, 1.0, 0.0]
    assert shares(temperature=0).tolist() == [0.0, 1.0, 0.0]
    squared = torch.tensor([0.01, 0.36, 0.09])
    assert torch.allclose(shares(temperature=0.5), squared / squared.sum(), atol=0.02)


def test_where_nothing_is_asked_for_draws_are_from_the_model_s_own_probabilities(model):
    prompt = torch.randint(256, (1, 3))
    own = generate(model, prompt, 20, temperature=1.0, top_p=1.0, top_k=None, seed=0, policy=FULL)
    assert generate(model, prompt, 20).equal(own)


def test_bytes_that_are_no_text_are_shown_as_such(model):
    with torch.no_grad():
        model.norm.weight.zero_()  # all logits are equal: the likeliest is token 0
    sample = sample_text(model, "é!".encode()[1:], 3, temperature=0, top_p=1.0, seed=0)
    assert sample == {"prompt": "�!", "text": "\0\0\0"}
