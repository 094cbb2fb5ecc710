"""Blocks and layer patterns: every recurrence in every block keeps the contract, and Mamba is what it was."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import configs
from baselines.mamba.mixer import Selective
from baselines.mamba.scan import SELECTIVE_SCAN
from baselines.recurrent.mixer import GRU, LSTM
from baselines.transformer.mixer import Attention
from harness.checks.runner import run_checks
from harness.config.errors import ConfigError
from harness.model.backbone import ModelSpec, Width
from harness.model.block import CanonBlock, Gated, GatedBlock, ShortConvolution, TransformerBlock
from harness.model.mlp import SwiGLU
from harness.model.sizing import SizeConfig, count, solve
from harness.model.state import state_bytes, tensors
from harness.ops.causal_conv.conv import CAUSAL_CONV
from oracles import step_loop


def test_the_gated_block_around_the_selective_scan_is_mamba_to_the_bit():
    """The draws of its weights in their order, and the forward pass, written out as mamba-ssm's module has them."""
    torch.manual_seed(5)
    block, expected_next = Gated(Selective, 24, layer=1, n_layers=4), torch.rand(1)
    torch.manual_seed(5)
    in_proj, conv = nn.Linear(24, 96, bias=False), nn.Conv1d(48, 48, 4, groups=48)
    x_proj, dt_proj, out_proj = nn.Linear(48, 2 + 32, bias=False), nn.Linear(2, 48), nn.Linear(48, 24, bias=False)
    nn.init.uniform_(dt_proj.weight, -(2**-0.5), 2**-0.5)
    torch.empty(48).uniform_()  # the step sizes
    assert torch.equal(torch.rand(1), expected_next)
    pairs = [(in_proj, block.in_proj), (conv, block.conv1d), (x_proj, block.core.x_proj)]
    assert all(torch.equal(a.weight, b.weight) for a, b in pairs)
    assert torch.equal(dt_proj.weight, block.core.dt_proj.weight)
    assert torch.equal(out_proj.weight / 4**0.5, block.core.out_proj.weight)

    u, core = torch.randn(2, 19, 24), block.core
    x, z = in_proj(u).chunk(2, dim=-1)
    convolve = CAUSAL_CONV.choose("auto", x.device, x.dtype)
    x, _ = convolve(x, conv.weight.squeeze(1).t(), conv.bias, torch.zeros(2, 3, 48), True)
    dt, B, C = x_proj(x).split([2, 16, 16], dim=-1)
    dt = F.softplus(F.linear(dt, core.dt_proj.weight) + core.dt_proj.bias)
    scan = SELECTIVE_SCAN.choose("auto", x.device, x.dtype, d_state=16, carried=False)
    y, last = scan(x, dt, -torch.exp(core.A_log), B, C, core.D, None)
    made, state = block(u)
    assert torch.equal(made, core.out_proj(y * F.silu(z)))
    assert torch.equal(state["core"]["ssm"], last)


COMBINATIONS = {
    "ltc gated": ["ltc", "block=gated"],
    "ltc of states, gated": ["ltc", "block=gated", "model.mixer.d_state=2", "solver=rk4"],
    "gru gated": ["gru", "block=gated"],
    "lstm gated": ["lstm", "block=gated", "block.d_conv=1", "block.expand=1"],
    "cfc gated": ["cfc", "block=gated"],
    "attention gated": ["transformer", "block=gated", "model.mixer.head_dim=8"],
    "attention after a residual convolution": ["transformer", "block=canon", "model.mixer.head_dim=8"],
    "mamba with an MLP": ["mamba", "block=transformer"],
    "mamba2 with an MLP": ["mamba2", "block=transformer", "model.mixer.d_state=16"],
    "convolution before attention": ["transformer", "block.d_conv=4"],
    "convolution before rwkv": ["rwkv", "block.d_conv=3"],
}
COMPARED = ("ltc gated", "gru gated", "attention gated", "convolution before attention")
"""What the tables of the verdict put beside the architectures as they come."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "combination",
    [name if name in COMPARED else pytest.param(name, marks=pytest.mark.long) for name in COMBINATIONS],
)
def test_every_combination_is_sized_and_passes_the_checks(combination):
    spec = configs.spec(*COMBINATIONS[combination])
    size = SizeConfig(260_000, 2, tolerance=0.1)
    model = spec.build(64, size.n_layers, solve(spec, 64, size))
    checks = run_checks(model, spec, 64, size)
    assert checks.passed, [check for check in checks.results if check.passed is False]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (GRU, {}),
        (LSTM, {}),
        (partial(Attention, head_dim=4), {"expand": 3, "d_conv": 2}),
        (Selective, {"expand": 1, "d_conv": 1}),
    ],
)
def test_a_gated_mixer_is_the_loop_of_its_step_from_a_carried_state(kind, options):
    mixer = Gated(kind, 8, **options).double()
    x = torch.randn(2, 13, 8, dtype=torch.float64)
    whole, last = mixer(x)
    head, state = mixer(x[:, :5])
    tail, stepped = step_loop(mixer, x[:, 5:], state)
    assert_close(torch.cat([head, tail], 1), whole, rtol=0, atol=1e-12)
    for a, b in zip(tensors(stepped), tensors(last), strict=True):
        assert_close(a, b, rtol=0, atol=1e-12)
    assert state_bytes(mixer.init_state(2, 13, dtype=torch.float64)) == state_bytes(last)


def test_the_frozen_step_of_a_block_owns_its_weights():
    for mixer in (Gated(GRU, 8), ShortConvolution(GRU, 8), ShortConvolution(GRU, 8, residual=True)):
        x, state = torch.randn(2, 8), mixer.init_state(2)
        with torch.no_grad():
            expected, frozen = mixer.step(x, state)[0], mixer.frozen_step()
            for parameter in mixer.parameters():
                parameter.zero_()
            assert_close(frozen(x, state)[0], expected, rtol=1e-5, atol=1e-6)


def test_a_mixer_that_brings_its_own_shift_and_gate_cannot_be_gated():
    spec = configs.spec("rwkv", "block=gated")
    with pytest.raises(ConfigError, match=r"block=gated was given, but TimeMix cannot.*block=transformer"):
        solve(spec, 256, SizeConfig(1_000_000, 4))


def test_a_gated_mixer_keeps_the_width_of_the_gate():
    with pytest.raises(ConfigError, match=r"model\.mixer\.expand=1"):
        Gated(partial(GRU, expand=2), 8)


def test_a_pattern_is_cycled_over_the_blocks():
    spec = ModelSpec("pattern", [GRU, GRU, partial(Attention, head_dim=4)], SwiGLU)
    mixers = [type(block.mixer) for block in spec.build(16, 5, Width(8, 8)).blocks]
    assert mixers == [GRU, GRU, Attention, GRU, GRU]
    gated = ModelSpec("pattern", [GRU, LSTM], SwiGLU, block=GatedBlock())
    model = gated.build(16, 2, Width(8, 0))
    assert [type(block.mixer.core) for block in model.blocks] == [GRU, LSTM, GRU, LSTM]
    assert all(block.channel_mixer is None for block in model.blocks)


def test_a_pattern_of_channel_mixers_leaves_out_blocks():
    spec = ModelSpec("pattern", [GRU, LSTM], [None, SwiGLU])
    model = spec.build(16, 3, Width(8, 8))
    assert [block.channel_mixer is None for block in model.blocks] == [True, False, True]
    assert [block.channel_norm is None for block in model.blocks] == [True, False, True]
    tokens = torch.randint(16, (1, 5))
    assert_close(model(tokens)[0], model.scan(tokens)[0], rtol=0, atol=1e-5)
    assert solve(replace(spec, channel_mixer=[None, None]), 16, SizeConfig(10_400, 2)).d_model == 24


def test_the_hybrid_holds_constant_states_and_states_that_grow():
    spec = configs.spec("hybrid")
    model = spec.build(256, 4, Width(32, 48))
    assert [block.mixer.constant_state for block in model.blocks] == [True, False, True, False]
    assert not model.constant_state


@pytest.mark.slow
def test_without_a_channel_mixer_a_finer_width_meets_the_budget():
    spec = ModelSpec("gated", GRU, SwiGLU, block=GatedBlock(), width_multiple=32)
    size = SizeConfig(1_000_000, 4)
    width = solve(spec, 256, size)
    assert width.d_model % 32
    with torch.device("meta"):
        assert abs(count(spec.build(256, 4, width)).total - 1_000_000) <= 20_000


@pytest.mark.parametrize("block", [TransformerBlock(d_conv=3), CanonBlock(d_conv=3)])
def test_a_convolution_in_the_block_is_one_before_the_mixer(block):
    torch.manual_seed(1)
    mixer = block.build(GRU, "auto", d_model=8, layer=0, n_layers=1).double()
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    padded = F.pad(x, (0, 0, 2, 0))
    seen = mixer.conv_bias + sum(mixer.conv_weight[k] * padded[:, k : k + 9] for k in range(3))
    seen = seen + x if isinstance(block, CanonBlock) else seen
    assert_close(mixer(x)[0], mixer.core(seen)[0], rtol=0, atol=1e-12)
