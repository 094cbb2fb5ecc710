"""LFM2: its convolution, and a whole model with the weights of ours, against Hugging Face's."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import configs
from baselines.lfm2.mixer import GatedConvolution
from baselines.lfm2.weights import write_lfm2
from baselines.transformer.mixer import Attention
from harness.checks.oracles import find_oracle
from harness.config.errors import ConfigError
from harness.model.backbone import Width
from harness.model.state import tensors
from oracles import step_loop

VOCAB = 19


@pytest.mark.parametrize(("batch", "length", "d_conv"), [(2, 13, 3), (1, 1, 3), (1, 7, 1), (3, 2, 4)])
def test_both_paths_equal_transformers_convolution_in_values_and_gradients(batch, length, d_conv):
    mixer = GatedConvolution(8, d_conv=d_conv).double()
    x = torch.randn(batch, length, 8, dtype=torch.float64, requires_grad=True)
    expected = find_oracle(mixer).forward(x)
    (wanted,) = torch.autograd.grad(expected.sin().sum(), x)
    grads = []
    for path in (lambda: mixer(x)[0], lambda: step_loop(mixer, x)[0]):
        y = path()
        assert_close(y, expected, rtol=0, atol=1e-12)
        grads.append(torch.autograd.grad(y.sin().sum(), [x, *mixer.parameters()]))
        assert_close(grads[-1][0], wanted, rtol=0, atol=1e-12)
    for forward, stepped in zip(*grads, strict=True):
        assert_close(forward, stepped, rtol=0, atol=1e-12)


def test_chunks_carry_the_last_inputs():
    mixer, x = GatedConvolution(8).double(), torch.randn(2, 9, 8, dtype=torch.float64, requires_grad=True)
    whole, last = mixer(x)
    first, state = mixer(x[:, :1])
    rest, state = mixer(x[:, 1:], state)
    assert_close(torch.cat([first, rest], 1), whole, rtol=0, atol=1e-12)
    for a, b in zip(tensors(state), tensors(last), strict=True):
        assert_close(a, b, rtol=0, atol=1e-12)
    by_rest, by_whole = (torch.autograd.grad(y[:, 1].sum(), x)[0] for y in (rest, whole[:, 1:]))
    assert_close(by_rest, by_whole, rtol=0, atol=1e-12)


def test_queries_and_keys_are_normed_as_in_transformers():
    mixer = Attention(32, head_dim=8, n_kv_heads=2, qk_norm=True, rope_theta=1e6).double()
    with torch.no_grad():
        for norm in mixer.norms:
            norm.weight.add_(0.3 * torch.randn_like(norm.weight))
    oracle, x = find_oracle(mixer), torch.randn(2, 31, 32, dtype=torch.float64)
    assert "Lfm2Attention" in oracle.name
    assert_close(mixer(x)[0], oracle.forward(x), rtol=0, atol=1e-6)  # theirs norms in float32
    assert find_oracle(Attention(32, head_dim=8, qk_norm=True, window=4)) is None


def test_a_whole_model_gives_the_logits_of_transformers_and_goes_on_giving_them(tmp_path):
    """Read as a sequence, and after a prefix in 64 single tokens."""
    model = configs.spec("lfm2").build(VOCAB, 4, Width(64, 48))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        ids = torch.randint(VOCAB, (2, 80))
        write_lfm2(model, tmp_path)
        expected = AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits
        whole, _ = model(ids)
        _, state = model(ids[:, :16])
        steps = []
        for token in ids[:, 16:].unbind(1):
            logits, state = model.step(token, state)
            steps.append(logits)
    scale = expected.abs().max().item()
    assert_close(whole, expected, rtol=0, atol=1e-5 * scale)
    assert_close(torch.stack(steps, 1), expected[:, 16:], rtol=0, atol=1e-5 * scale)


def test_the_convolution_brings_its_gates_and_so_is_not_gated():
    with pytest.raises(ConfigError, match="GatedConvolution cannot stand in a gated block"):
        configs.spec("lfm2", "block=gated").build(16, 1, Width(32, 0))
