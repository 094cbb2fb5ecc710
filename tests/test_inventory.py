"""What a model holds beside its trainable parameters is found wherever it hides, and counted or refused."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

import configs
from faults import Decay
from harness.checks.runner import run_checks
from harness.checks.trained import Memory
from harness.model.backbone import ModelSpec, Width
from harness.model.inventory import inventory, irreproducible
from harness.model.mlp import SwiGLU
from harness.model.sizing import SizeConfig, count, solve

MANY = 1000
GLOBAL: dict = {}


def build(mixer, d_model=8):
    return ModelSpec("tiny", mixer, SwiGLU).build(11, 1, Width(d_model, 6))


class Buffer(Decay):
    """A table of zeros that training writes by hand."""

    def __init__(self, d_model, layer=0, n_layers=1):
        super().__init__(d_model, layer, n_layers)
        self.register_buffer("table", torch.zeros(MANY), persistent=False)

    def learn(self):
        self.table.copy_(torch.randn(MANY))


class Attribute(Decay):
    """A tensor that is no buffer."""

    def __init__(self, d_model, layer=0, n_layers=1):
        super().__init__(d_model, layer, n_layers)
        self.table = torch.zeros(MANY)

    def learn(self):
        self.table = torch.randn(MANY)


class Appears(Decay):
    """A tensor that training makes."""

    def learn(self):
        self.late = {"deep": [torch.randn(MANY)]}


class Array(Decay):
    def learn(self):
        self.array = (np.random.default_rng().random(MANY),)


class PythonNumbers(Decay):
    def learn(self):
        self.list = [0.5 * number for number in range(MANY)]


class ManyAttributes(Decay):
    def learn(self):
        for number in range(2 * MANY):
            setattr(self, f"weight{number}", number / 3)


class Text(Decay):
    def learn(self):
        self.text = "knowledge " * MANY


class HugeInteger(Decay):
    def learn(self):
        self.integer = int.from_bytes(np.random.default_rng().bytes(4 * MANY), "little")


class HiddenModule(Decay):
    """A layer in a list, which torch does not register."""

    def __init__(self, d_model, layer=0, n_layers=1):
        super().__init__(d_model, layer, n_layers)
        self.hidden = [nn.Linear(40, 25)]
        with torch.no_grad():
            for parameter in self.hidden[0].parameters():
                parameter.zero_()

    def learn(self):
        with torch.no_grad():
            self.hidden[0].weight.normal_()


class Closure(Decay):
    def learn(self):
        table = torch.randn(MANY)
        self.function = functools.partial(lambda x: x + table.sum(), 1)


class ModuleGlobal(Decay):
    def learn(self):
        GLOBAL["table"] = torch.randn(MANY)


class ClassAttribute(Decay):
    tables = [torch.zeros(MANY)]  # noqa: RUF012

    def learn(self):
        type(self).tables[0] = torch.randn(MANY)


class LateParameter(Decay):
    def learn(self):
        self.late = nn.Parameter(torch.randn(MANY))


class FrozenLate(Decay):
    def learn(self):
        self.late = nn.Parameter(torch.randn(MANY), requires_grad=False)


class Grows(Decay):
    """A buffer that the budget counts as one number."""

    def __init__(self, d_model, layer=0, n_layers=1):
        super().__init__(d_model, layer, n_layers)
        self.register_buffer("table", torch.randn(1))

    def learn(self):
        self.table = torch.zeros(MANY)


class Slice(Decay):
    """The rest of the storage that a parameter is the beginning of."""

    def __init__(self, d_model, layer=0, n_layers=1):
        super().__init__(d_model, layer, n_layers)
        self.storage = torch.zeros(MANY + d_model)
        self.gain = nn.Parameter(self.storage[:d_model])

    def learn(self):
        self.storage[self.d_model :] = torch.randn(MANY)


HIDDEN = [
    *(Buffer, Attribute, Appears, Array, PythonNumbers, ManyAttributes, Text, HugeInteger, HiddenModule, Closure),
    *(ModuleGlobal, ClassAttribute, LateParameter, FrozenLate, Grows, Slice),
]


@pytest.mark.parametrize("mixer", HIDDEN, ids=lambda mixer: mixer.__name__)
def test_what_training_writes_beside_the_parameters_is_found(mixer):
    model = build(mixer)
    before = Memory(model)
    assert before.hidden(model) == {}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)  # what training may change
    assert before.hidden(model) == {}
    model.mixers[0].learn()
    hidden = before.hidden(model)
    assert sum(held.numbers for held in hidden.values()) >= MANY, hidden


class Frozen(Decay):
    """Random numbers that are not trained and take part in forward."""

    def __init__(self, d_model, layer=0, n_layers=1):
        super().__init__(d_model, layer, n_layers)
        self.table = nn.Parameter(torch.randn(2048, d_model), requires_grad=False)

    def step(self, x_t, state, call=None):
        y, state = super().step(x_t, state)
        return y + self.table[0], state

    def forward(self, x, state=None, call=None):
        y, state = super().forward(x, state)
        return y + self.table[0], state


class RandomBuffer(Decay):
    def __init__(self, d_model, layer=0, n_layers=1):
        super().__init__(d_model, layer, n_layers)
        self.register_buffer("table", torch.randn(2048, d_model))


class RandomAttribute(Decay):
    def __init__(self, d_model, layer=0, n_layers=1):
        super().__init__(d_model, layer, n_layers)
        self.tables = {"table": torch.randn(2048, d_model)}


class Computed(Decay):
    """A table that any build computes alike, a few settings, and a name for a parameter."""

    def __init__(self, d_model, layer=0, n_layers=1):
        super().__init__(d_model, layer, n_layers)
        self.register_buffer("table", torch.arange(2048 * d_model, dtype=torch.float32).sin())
        self.settings, self.same = {"rate": 0.1, "names": ["a", "b"]}, [self.project.weight]


@pytest.mark.parametrize(
    ("mixer", "frozen", "buffers"),
    [
        (Decay, 0, 0),
        (Computed, 0, 0),
        (Frozen, 2048 * 8, 0),
        (RandomBuffer, 0, 2048 * 8),
        (RandomAttribute, 0, 2048 * 8),
    ],
)
def test_the_budget_counts_what_can_hold_knowledge(mixer, frozen, buffers):
    model = build(mixer)
    counts = count(model)
    assert (counts.frozen, counts.buffers) == (frozen, buffers)
    assert counts.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counts.total == counts.trainable + frozen + buffers == counts.embedding + counts.non_embedding
    assert count(model.double()) == counts


@pytest.mark.parametrize("mixer", [Frozen, RandomBuffer, RandomAttribute])
def test_a_model_sized_by_its_trainable_parameters_alone_fails_the_budget(mixer):
    model = build(mixer)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    checks = run_checks(model, model.spec, 11, SizeConfig(trainable, 1))
    assert "parameters" in {check.name for check in checks.results if check.passed is False}


def test_every_model_holds_nothing_but_its_parameters(architecture):
    spec = configs.spec(architecture)
    model = spec.build(256, 2, solve(spec, 256, SizeConfig(150_000, 2)))
    counts = count(model)
    assert (counts.frozen, counts.buffers) == (0, 0)
    before = Memory(model)
    model(torch.randint(256, (2, 40)))[0].square().mean().backward()
    with torch.inference_mode():
        step = model.eval().frozen_step()
        step(torch.tensor([1, 2]), model.init_state(2))
    assert before.hidden(model) == {}


def test_a_tensor_is_found_once_and_told_by_its_place():
    model = build(Attribute)
    model.mixers[0].again = [model.mixers[0].table]
    found = [path for path, held in inventory(model).items() if held.numbers == MANY and path.startswith("model.")]
    assert found == ["model.blocks.0.mixer.table"]
    assert irreproducible(model) == {}
