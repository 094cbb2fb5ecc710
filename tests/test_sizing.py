"""Every architecture meets the parameter budget by its width."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import configs
import run
from baselines.transformer.mixer import Attention
from harness.config.errors import ConfigError
from harness.model.backbone import ModelSpec
from harness.model.block import GatedBlock
from harness.model.mlp import SwiGLU
from harness.model.sizing import SizeConfig, count, solve


def mlp_spec(**options) -> ModelSpec:
    """A backbone whose mixers are MLPs: enough to size."""
    return ModelSpec("mlp", mixer=lambda d_model, **kw: SwiGLU(d_model, d_model, **kw), channel_mixer=SwiGLU, **options)


@pytest.mark.slow
@pytest.mark.parametrize("params", [250_000, 1_000_000, 4_000_000])
def test_every_architecture_meets_the_budget(architecture, params):
    spec = configs.spec(architecture)
    size = SizeConfig(params, n_layers=4)
    width = solve(spec, 256, size)
    with torch.device("meta"):
        counts = count(spec.build(256, size.n_layers, width))
    assert abs(counts.total - params) <= size.tolerance * params
    assert counts.total == counts.embedding + counts.non_embedding
    assert (width.d_inner or width.d_model) % spec.width_multiple == 0


LONG = pytest.mark.long


@pytest.mark.slow
@pytest.mark.parametrize("size", ["125k", "250k", pytest.param("500k", marks=LONG), pytest.param("1m", marks=LONG)])
def test_every_size_of_the_ladder_leaves_every_architecture_its_shape(architecture, size):
    """Within the budget, with an MLP of at least a quarter of its own width: whole heads may leave it almost none."""
    resolved = configs.resolved(f"model={architecture}", f"size={size}")
    spec, budget = run.build(resolved["model"]), run.build(resolved["size"])
    width = solve(spec, 256, budget)
    with torch.device("meta"):
        assert abs(count(spec.build(256, budget.n_layers, width)).total - budget.params) <= 0.02 * budget.params
    if spec.has_channel_mixer:
        assert width.d_ff / width.d_model > spec.d_ff_ratio / 4


SIZES = [(125_000, 2), (250_000, 3), pytest.param(500_000, 3, marks=LONG), pytest.param(1_000_000, 4, marks=LONG)]


@pytest.mark.slow
@pytest.mark.parametrize(("params", "n_layers"), SIZES)
@pytest.mark.parametrize("given", [*configs.mostly_long(configs.MODELS), "ltc model.mixer.coupling=heads"])
def test_every_architecture_that_can_be_gated_meets_the_budget(given, params, n_layers):
    tolerance = 0.03 if given == "m1" else 0.02  # its steps are whole filaments, of heads and of the adapter
    spec, size = configs.spec(*given.split(), "block=gated"), SizeConfig(params, n_layers, tolerance)
    try:
        width = solve(spec, 256, size)
    except ConfigError as error:
        assert "cannot stand in a gated block" in str(error)  # noqa: PT017
        return
    with torch.device("meta"):
        assert abs(count(spec.build(256, n_layers, width)).total - params) <= size.tolerance * params


def heads_of(width: int) -> ModelSpec:
    """A gated model whose mixer takes whole heads of that width alone."""
    attention = partial(Attention, head_dim=width)
    return ModelSpec("heads", attention, block=GatedBlock(), width_multiple=width)


@pytest.mark.slow
def test_where_heads_leave_no_width_d_inner_is_a_whole_number_of_them():
    spec, size = heads_of(64), SizeConfig(1_000_000, 2)
    width = solve(spec, 256, size)
    assert width.d_inner % 64 == 0
    assert (width.d_model, width.d_inner) == (196, 192)  # nearest to twice; 390 x 128 and 58 x 256 fit as well
    model = spec.build(256, 2, width)
    assert abs(count(model).total - 1_000_000) <= 20_000
    assert [block.mixer.d_inner for block in model.blocks] == [width.d_inner] * 4
    tokens = torch.randint(256, (1, 9))
    whole, _ = model(tokens)
    head, state = model(tokens[:, :5])
    assert torch.allclose(torch.cat([head, model(tokens[:, 5:], state)[0]], 1), whole, atol=1e-5)


@pytest.mark.slow
def test_a_width_that_needs_no_rounding_keeps_the_block_s_own_d_inner():
    assert solve(configs.spec("mamba"), 256, SizeConfig(1_000_000, 4)) == (130, 0, None)


def test_a_budget_beyond_this_machine_s_memory_is_refused_before_anything_is_built(monkeypatch):
    monkeypatch.setattr(ModelSpec, "build", lambda *_: pytest.fail("built"))
    with pytest.raises(ConfigError, match=r"size\.params=1000000000000 takes some 16,000 GB"):
        solve(mlp_spec(), 256, SizeConfig(10**12, 4))


def test_the_largest_size_that_the_memory_holds_is_named(monkeypatch):
    monkeypatch.setattr("harness.model.sizing.available_bytes", lambda device: 16_000_015)
    with pytest.raises(ConfigError, match=r"at most 1,000,000 parameters on this machine \(16 bytes each\)"):
        solve(mlp_spec(), 256, SizeConfig(1_000_001, 4))


@settings(max_examples=20, deadline=None)
@given(params=st.integers(60_000, 3_000_000), n_layers=st.integers(1, 6), multiple=st.sampled_from([1, 8, 32]))
def test_the_channel_mixer_takes_up_what_the_width_leaves(params, n_layers, multiple):
    spec = mlp_spec(width_multiple=multiple)
    size = SizeConfig(params, n_layers)
    width = solve(spec, 256, size)
    with torch.device("meta"):
        total = count(spec.build(256, n_layers, width)).total
    assert abs(total - params) <= 0.02 * params


def test_tied_embeddings_are_counted_once():
    counts = [
        count(mlp_spec(tie_embeddings=tied).build(256, 1, solve(mlp_spec(), 256, SizeConfig(99_000, 1))))
        for tied in (False, True)
    ]
    assert counts[0].non_embedding == counts[1].non_embedding
    assert counts[0].embedding == 2 * counts[1].embedding


def test_an_unreachable_size_names_the_nearest():
    with pytest.raises(ConfigError, match=r"size\.params=1000 cannot be met by model=mlp.*set size\.params=\d+"):
        solve(mlp_spec(width_multiple=32), 256, SizeConfig(1000, 4))
