"""Mamba-1: its paths against each other, third parties' implementations and their checkpoints."""

from functools import partial
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import configs
from baselines.mamba import oracle as mamba_oracle
from baselines.mamba.mixer import Selective
from harness.checks.oracles import find_oracle
from harness.config.errors import ConfigError
from harness.model.block import Gated
from harness.model.sizing import SizeConfig, count, solve
from harness.model.state import map_tensors, tensors
from oracles import step_loop


def mamba(d_model, layer=0, n_layers=1, *, expand=2, d_conv=4, **selective):
    """Mamba: the gated block around the selective recurrence."""
    return Gated(partial(Selective, **selective), d_model, layer, n_layers, expand=expand, d_conv=d_conv)


def mamba_ssm(name: str):
    if find_spec("mamba_ssm") is None:
        pytest.skip("mamba-ssm is not installed")
    return mamba_oracle.import_mamba_ssm(name)


def load(mixer, theirs):
    """Copies the weights of mamba-ssm's mixer into ours."""
    given = theirs.state_dict()
    mixer.load_state_dict({name: given[name.removeprefix("core.")] for name in mixer.state_dict()})


def results(function, mixer, x, state):
    """Outputs, and gradients of a sum of them by every parameter, the input and the carried-in state."""
    y, last = function(x, state)
    total = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()
    total = total + sum((tensor**2).sum() for tensor in tensors(last))
    leaves = [*mixer.parameters(), x, *tensors(state)]
    return [y, *tensors(last), *torch.autograd.grad(total, leaves)]


@pytest.mark.parametrize(
    "options",
    [{}, {"d_conv": 1, "d_state": 3}, {"d_conv": 2, "expand": 1}, {"expand": 3, "dt_rank": 5, "d_state": 1}],
)
def test_forward_equals_the_loop_of_step_from_a_carried_state(options):
    mixer = mamba(6, **options).double()
    x = torch.randn(2, 21, 6, dtype=torch.float64, requires_grad=True)
    state = map_tensors(lambda v: torch.randn_like(v).requires_grad_(), mixer.init_state(2, dtype=torch.float64))
    fused = results(mixer, mixer, x, state)
    stepped = results(lambda x, s: step_loop(mixer, x, s), mixer, x, state)
    for a, b in zip(fused, stepped, strict=True):
        assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_short_chunks_and_steps_equal_the_whole():
    mixer = mamba(6).double()
    x = torch.randn(3, 11, 6, dtype=torch.float64)
    whole, last = mixer(x)
    state, parts = None, []
    for part in x.split([1, 2, 1, 4, 3], dim=1):
        y, state = mixer(part, state)
        parts.append(y)
    assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-12)
    prefix, state = mixer(x[:, :2])
    rest, state = step_loop(mixer, x[:, 2:], state)
    assert_close(torch.cat([prefix, rest], dim=1), whole, rtol=0, atol=1e-12)
    for a, b in zip(tensors(state), tensors(last), strict=True):
        assert_close(a, b, rtol=0, atol=1e-12)


def test_no_token_sees_the_future():
    mixer = mamba(6).double()
    x = torch.randn(1, 9, 6, dtype=torch.float64, requires_grad=True)
    y, _ = mixer(x)
    for t in range(8):
        (grad,) = torch.autograd.grad(y[:, t].sum(), x, retain_graph=True)
        assert grad[:, t + 1 :].count_nonzero() == 0
        assert grad[:, t].count_nonzero() > 0


def test_the_state_holds_its_own_bytes_and_step_leaves_it_alone():
    mixer = mamba(6)
    for length in (1, 2, 50):
        _, state = mixer(torch.randn(1, length, 6))
        for held, stated in zip(tensors(state), tensors(mixer.init_state(1, context=length)), strict=True):
            assert held.shape == stated.shape
            assert held.dtype == stated.dtype
            assert held.untyped_storage().nbytes() == held.numel() * held.element_size()
    before = [t.clone() for t in tensors(state)]
    mixer.step(torch.randn(1, 6), state)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(state), strict=True))


def test_matmul_flops_are_those_of_one_step():
    mixer = mamba(10, d_state=5, dt_rank=3)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        mixer.step(torch.randn(1, 10), mixer.init_state(1, 7))
    assert mixer.flops_per_token(8).matmul == counter.get_total_flops()
    assert mixer.flops_per_token(8) == mixer.flops_per_token(10_000)


def test_initial_values_are_those_of_the_paper():
    torch.manual_seed(0)
    mixer = mamba(64, layer=1, n_layers=16, dt_min=0.01, dt_max=0.2)
    steps = F.softplus(mixer.core.dt_proj.bias)
    assert steps.min() > 0.0099
    assert steps.max() < 0.2001
    assert steps.log().mean().item() == pytest.approx((torch.tensor([0.01, 0.2]).log().mean()).item(), abs=0.3)
    assert_close(-mixer.core.A_log.exp(), -torch.arange(1, 17.0).expand(128, 16))
    assert mixer.core.out_proj.weight.abs().max() <= 128**-0.5 / 4 + 1e-6
    flagged = {name for name, p in mixer.named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert flagged == {"core.A_log", "core.D"}


def test_impossible_step_sizes_are_refused():
    with pytest.raises(ConfigError, match="dt_min"):
        Selective(8, dt_min=0.5, dt_max=0.1)


def test_bfloat16_autocast_keeps_the_recurrence_in_float32():
    mixer = mamba(16)
    x = torch.randn(2, 12, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = mixer(x)
        again, stepped = step_loop(mixer, x)
    exact, _ = mixer(x)
    assert state["core"]["ssm"].dtype == stepped["core"]["ssm"].dtype == torch.float32
    for out in (y, again):
        assert ((out - exact).norm() / exact.norm()).item() < 0.02
    y.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in mixer.parameters())


def test_mixer_equals_mamba_ssm_and_its_state_dict_loads():
    theirs = mamba_ssm("mamba_ssm.modules.mamba_simple").Mamba(24, d_state=8, d_conv=3)
    mixer = mamba(24, d_state=8, d_conv=3)
    ours = {name: tensor.shape for name, tensor in mamba_oracle.mamba_weights(mixer).items()}
    assert ours == {name: p.shape for name, p in theirs.named_parameters()}
    load(mixer, theirs)
    oracle = mamba_oracle.mamba_ssm_mixer(mixer)
    x = torch.randn(2, 19, 24)
    assert_close(mixer(x)[0], oracle.forward(x), rtol=1e-4, atol=oracle.tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mixer_equals_transformers_where_mamba_ssm_is_absent(monkeypatch, dtype):
    def absent(mixer):
        raise ImportError("mamba_ssm")

    monkeypatch.setattr(mamba_oracle, "mamba_ssm_mixer", absent)
    if find_spec("mamba_ssm"):  # whose import transformers notices
        mamba_oracle.import_mamba_ssm("mamba_ssm")
    mixer = mamba(24, d_state=8, d_conv=3, dt_rank=4).to(dtype)
    oracle = find_oracle(mixer)
    assert "transformers" in oracle.name
    x = torch.randn(2, 19, 24, dtype=dtype)
    assert_close(mixer(x)[0], oracle.forward(x), rtol=1e-4, atol=oracle.tolerance)


@pytest.mark.parametrize(("params", "n_layers"), [(250_000, 3), (1_000_000, 4)])
def test_sizing_meets_the_budget(params, n_layers):
    width = solve(configs.spec("mamba"), 256, SizeConfig(params, n_layers))
    with torch.device("meta"):
        model = configs.spec("mamba").build(256, n_layers, width)
    assert len(model.blocks) == 2 * n_layers
    assert abs(count(model).total - params) <= 0.02 * params
