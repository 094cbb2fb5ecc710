"""Mamba-2: its paths against each other, its authors' listing and transformers' mixer, and its place in blocks."""

import functools
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from baselines.mamba.oracle import import_mamba_ssm
from baselines.mamba2 import scan
from baselines.mamba2.mixer import Mamba2
from harness.checks.oracles import find_oracle
from harness.config.errors import ConfigError
from harness.model.block import GatedBlock, TransformerBlock
from harness.model.state import map_tensors, tensors
from harness.ops.samples import Draw
from kernel_checks import check, values_and_gradients
from oracles import step_loop

SMALL = {"d_state": 5, "head_dim": 4}


def mamba2(d_model=6, **options) -> Mamba2:
    return Mamba2(d_model, **SMALL | options)


def mamba_ssm(name: str):
    if find_spec("mamba_ssm") is None:
        pytest.skip("mamba-ssm is not installed")
    return import_mamba_ssm(name)


def test_the_scan_equals_the_authors_listing():
    """Listing 1 of the paper, which takes dt x and dt A, whole blocks and a B and a C of each head."""
    listing = mamba_ssm("mamba_ssm.modules.ssd_minimal").ssd_minimal_discrete
    arguments = scan.sample(Draw(), length=96, heads=3).arguments

    def theirs(x, dt, A, B, C, h):
        B, C = (tensor.unsqueeze(2).expand(-1, -1, x.shape[2], -1) for tensor in (B, C))
        y, last = listing(x * dt.unsqueeze(-1), dt * A, B, C, 32, h.permute(0, 2, 3, 1).unsqueeze(1))
        return y, last.permute(0, 3, 1, 2)

    check(scan.by_chunks, theirs, arguments)


@pytest.mark.parametrize("options", [{}, {"d_conv": 1, "d_state": 1}, {"expand": 4, "head_dim": 3}, {"d_inner": 20}])
def test_forward_equals_the_loop_of_step_from_a_carried_state(options):
    mixer = mamba2(**options).double()
    x = torch.randn(2, 67, 6, dtype=torch.float64, requires_grad=True)
    state = map_tensors(lambda v: torch.randn_like(v).requires_grad_(), mixer.init_state(2, dtype=torch.float64))
    leaves, keys = [*mixer.parameters(), x, *tensors(state)], list(state)

    def run(function):
        def results(*_):
            y, last = function(x, state)
            return y, *(last[key] for key in keys)

        return values_and_gradients(results, leaves)

    stepped = run(functools.partial(step_loop, mixer))
    for got, expected in zip(run(mixer), stepped, strict=True):
        assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_short_chunks_and_steps_equal_the_whole():
    mixer = mamba2().double()
    x = torch.randn(3, 140, 6, dtype=torch.float64)
    whole, last = mixer(x)
    state, parts = None, []
    for part in x.split([1, 2, 65, 64, 8], dim=1):
        y, state = mixer(part, state)
        parts.append(y)
    assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-12)
    for a, b in zip(tensors(state), tensors(last), strict=True):
        assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"d_inner": 20}])
def test_the_mixer_equals_transformers(options):
    mixer = mamba2(8, layer=1, n_layers=3, **options)
    oracle = find_oracle(mixer)
    x = torch.randn(2, 75, 8, requires_grad=True)
    ours, theirs = (values_and_gradients(lambda x, f=f: [f(x)], [x]) for f in (lambda x: mixer(x)[0], oracle.forward))
    for got, expected in zip(ours, theirs, strict=True):
        assert_close(got, expected, rtol=1e-4, atol=oracle.tolerance)
    with torch.no_grad():
        mixer.A_log.add_(1.0)  # the comparison sees the weights
    assert not torch.allclose(mixer(x)[0], oracle.forward(x), atol=1e-3)


def test_parameters_are_those_of_mamba_ssm_by_name_shape_and_group():
    theirs = mamba_ssm("mamba_ssm.modules.mamba2").Mamba2(8, d_state=5, headdim=4, d_conv=3)
    ours = mamba2(8, d_conv=3)

    def seen(module):
        return {n: (p.shape, hasattr(p, "_no_weight_decay")) for n, p in module.named_parameters()}

    assert seen(ours) == seen(theirs)
    assert {n for n, (_, spared) in seen(ours).items() if spared} == {"dt_bias", "A_log", "D"}


def test_initial_values_are_the_authors():
    mixer = Mamba2(512, layer=1, n_layers=8, d_state=4, head_dim=2)
    A, dt = mixer.A_log.exp(), F.softplus(mixer.dt_bias)
    assert 0.99 < A.min() < 1.5
    assert 15.5 < A.max() < 16.01
    assert 0.00099 < dt.min() < 0.0012
    assert 0.08 < dt.max() < 0.1001
    assert dt.log().mean().item() == pytest.approx(torch.tensor([0.001, 0.1]).log().mean().item(), abs=0.3)


def test_it_is_its_own_gated_block_and_a_branch_among_two_beside_an_mlp():
    make, size = functools.partial(Mamba2, **SMALL), {"d_model": 8, "layer": 0, "n_layers": 4}
    torch.manual_seed(0)
    gated = GatedBlock(expand=3, d_conv=2).build(make, "auto", **size)
    torch.manual_seed(0)
    beside = TransformerBlock().build(functools.partial(make, expand=3, d_conv=2), "auto", **size)
    assert (type(gated), gated.d_inner, gated.d_conv) == (Mamba2, 24, 2)
    assert_close(gated.out_proj.weight, beside.out_proj.weight * 2**0.5)
    assert GatedBlock().build(make, "auto", **size, d_inner=12).d_inner == 12


def test_bfloat16_autocast_keeps_the_states_in_float32():
    mixer, x = mamba2(8), torch.randn(2, 70, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = mixer(x)
        again, stepped = step_loop(mixer, x)
    exact, _ = mixer(x)
    assert state["ssm"].dtype == stepped["ssm"].dtype == torch.float32
    for out in (y, again):
        assert ((out - exact).norm() / exact.norm()).item() < 0.02
    y.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in mixer.parameters())


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="head_dim=5"):
        mamba2(head_dim=5)
    with pytest.raises(ConfigError, match="dt_min"):
        mamba2(dt_min=0.5)
