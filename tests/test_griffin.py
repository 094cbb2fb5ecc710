"""Hawk and Griffin: the recurrent block against the authors' equations and Hugging Face's, its start, and its state."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import configs
from baselines.griffin.mixer import GeGLU, RecurrentBlock
from baselines.griffin.scan import RG_LRU, composed, reference
from baselines.transformer.mixer import Attention
from harness.checks.case import CHECKS
from harness.checks.oracles import find_oracle
from harness.checks.runner import run_checks
from harness.config.errors import ConfigError
from harness.model.backbone import Width
from harness.model.interface import Interface, Tokens, Vectors
from harness.model.sizing import SizeConfig, count
from harness.model.state import state_bytes, tensors
from harness.ops.samples import Draw
from oracles import step_loop


def block(**options) -> RecurrentBlock:
    """Every parameter away from where it starts."""
    made = RecurrentBlock(12, n_layers=2, **{"n_blocks": 4} | options).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randn(batch, length, 12, dtype=torch.float64, requires_grad=True)


def spelt_out(mixer: RecurrentBlock, x: torch.Tensor) -> torch.Tensor:
    """Equations 1 to 4 of the paper, channel by channel of the gates' dense matrices."""
    r_weight, i_weight = (torch.block_diag(*w) for w in mixer.gate_weight.chunk(2, dim=-1))
    r_bias, i_bias = (b.flatten() for b in mixer.gate_bias.view(mixer.n_blocks, -1).chunk(2, dim=-1))
    inputs = F.pad(mixer.linear_x(x), (0, 0, mixer.d_conv - 1, 0))
    u = sum(inputs[:, k : k + x.shape[1]] * mixer.conv_weight[k] for k in range(mixer.d_conv)) + mixer.conv_bias
    r, i = torch.sigmoid(u @ r_weight + r_bias), torch.sigmoid(u @ i_weight + i_bias)
    a = torch.sigmoid(-mixer.a_param) ** (8 * r)  # the paper's Lambda is -a_param
    h, states = torch.zeros_like(u[:, 0]), []
    for t in range(x.shape[1]):
        h = a[:, t] * h + torch.sqrt(1 - a[:, t] ** 2) * i[:, t] * u[:, t]
        states.append(h)
    return mixer.linear_out(F.gelu(mixer.linear_y(x), approximate="tanh") * torch.stack(states, 1))


@pytest.mark.parametrize(("batch", "length", "d_conv"), [(2, 19, 4), (1, 1, 4), (3, 2, 3), (1, 70, 1)])
def test_the_block_is_the_paper_s_equations_in_values_and_gradients(batch, length, d_conv):
    mixer, x = block(d_conv=d_conv), tokens(batch, length)
    paths = (lambda x: mixer(x)[0], lambda x: step_loop(mixer, x)[0])
    expected = spelt_out(mixer, x)
    grads = torch.autograd.grad(expected.sin().sum(), [x, *mixer.parameters()])
    for path in paths:
        made = path(x)
        assert_close(made, expected, rtol=0, atol=1e-12)
        for grad, wanted in zip(torch.autograd.grad(made.sin().sum(), [x, *mixer.parameters()]), grads, strict=True):
            assert_close(grad, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mixer", [block, lambda: GeGLU(12, 10, n_layers=3).double()])
def test_equals_recurrent_gemma_in_values_and_gradients(mixer):
    mixer, x = mixer(), tokens(2, 23)
    oracle = find_oracle(mixer)
    assert oracle.name.startswith("transformers RecurrentGemma")
    made, expected = mixer(x)[0], oracle.forward(x)
    assert_close(made, expected, rtol=0, atol=1e-12)
    (grad,), (wanted,) = (torch.autograd.grad(y.sin().sum(), x) for y in (made, expected))
    assert_close(grad, wanted, rtol=0, atol=1e-12)


def test_chunks_carry_the_state_and_its_gradient():
    mixer, x = block(), tokens(2, 11)
    whole, last = mixer(x)
    first, state = mixer(x[:, :2])
    second, state = mixer(x[:, 2:3], state)
    third, state = mixer(x[:, 3:], state)
    assert_close(torch.cat([first, second, third], 1), whole, rtol=0, atol=1e-12)
    for a, b in zip(tensors(state), tensors(last), strict=True):
        assert_close(a, b, rtol=0, atol=1e-12)
    by_parts, by_whole = (torch.autograd.grad(y[:, -1].sum(), x)[0] for y in (third, whole))
    assert_close(by_parts, by_whole, rtol=0, atol=1e-12)
    assert by_parts[:, 0].abs().min() > 0


def test_cuda_s_composition_is_the_loop_in_values_and_gradients():
    arguments = RG_LRU.samples.make(Draw(), batch=2, length=9, width=5).arguments
    results = []
    for run in (reference, composed):
        y, h = run(*arguments)
        results.append((y, h, *torch.autograd.grad(y.sin().sum() + h.cos().sum(), arguments)))
    for a, b in zip(*results, strict=True):
        assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", ["reference", "fused"])
def test_a_decay_that_rounds_to_one_leaves_finite_gradients(kernel):
    u, r, i, z = torch.randn(4, 2, 5, 3).unbind()
    inputs = [x.requires_grad_() for x in (u, r - 150, i, z, torch.full((3,), 1e-3), torch.randn(2, 3))]
    y, h = RG_LRU.choose(kernel, u.device, u.dtype)(*inputs)
    assert_close(h, inputs[-1])  # what the state forgets and takes in is too little for float32
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(y.sum(), inputs))


def test_weights_start_as_the_authors_start_them():
    mixer, mlp = RecurrentBlock(192, n_layers=8), GeGLU(192, 600, n_layers=8)
    assert mixer.d_rnn == 256
    radii = torch.exp(-F.softplus(mixer.a_param))
    assert 0.9 <= radii.min() < 0.91
    assert 0.99 < radii.max() <= 0.999
    stds = {
        mixer.linear_x.weight: 192**-0.5,
        mixer.linear_y.weight: 192**-0.5,
        mixer.linear_out.weight: math.sqrt(2 / 8 / 256),
        mixer.conv_weight: 0.05,
        mixer.gate_weight: 0.25,
        mlp.gate_up.weight: 192**-0.5,
        mlp.down.weight: math.sqrt(2 / 8 / 600),
    }
    for weight, std in stds.items():
        assert weight.std().item() == pytest.approx(std, rel=0.05)
    biases = [bias for name, bias in mixer.named_parameters() if name.endswith("bias")]
    assert len(biases) == 5
    assert not any(bias.any() for bias in biases)


def test_the_width_of_the_recurrence_is_a_whole_number_of_blocks():
    widths = {d_model: RecurrentBlock(d_model).d_rnn for d_model in (8, 64, 72, 96, 136)}
    assert widths == {8: 16, 64: 80, 72: 96, 96: 128, 136: 176}


@pytest.mark.parametrize("name", ["griffin", "hybrid_window"])
def test_the_window_bounds_the_state_and_the_check_says_so(name, monkeypatch):
    spec = configs.spec(name)
    model = spec.build(16, 3, Width(spec.width_multiple, 16))
    assert any(isinstance(mixer, Attention) for mixer in model.mixers)
    assert model.constant_state
    assert state_bytes(model.init_state(1, 1)) == state_bytes(model.init_state(1, 1_000_000))
    monkeypatch.setattr("harness.checks.runner.CHECKS", {"state_growth": CHECKS["state_growth"]})
    checks = run_checks(model, spec, 16, SizeConfig(count(model).total, 3))
    assert checks.passed
    assert any(check.detail.startswith("claimed constant") for check in checks.results)


def test_griffin_has_two_recurrent_layers_before_each_of_attention():
    model = configs.spec("griffin").build(16, 7, Width(32, 8))
    assert [type(layer.mixer).__name__[0] for layer in model.blocks] == list("RRARRAR")
    assert {layer.mixer.n_kv_heads for layer in (model.blocks[2], model.blocks[5])} == {1}


def test_the_block_brings_its_gate_and_so_is_not_gated():
    with pytest.raises(ConfigError, match="RecurrentBlock cannot stand in a gated block"):
        configs.spec("hawk", "block=gated").build(16, 1, Width(8, 0))


def test_an_embedding_is_read_times_the_root_of_the_width_and_a_vector_is_not():
    spec, read = configs.spec("hawk"), []
    for inputs in (Tokens(5), Vectors(5)):
        model = spec.build(Interface(inputs, Tokens(5)), 1, Width(16, 8))
        hook = model.blocks[0].norm.register_forward_pre_hook(lambda _, given: read.append(given[0]))
        given = inputs.random(2, 3, torch.Generator())
        model(given)
        hook.remove()
        assert_close(read.pop(), model.embedding(given) * (4.0 if isinstance(inputs, Tokens) else 1.0))
