"""Every architecture meets the parameter budget by its width."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import configs
from harness.errors import ConfigError
from harness.model.backbone import ModelSpec
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
    assert width.d_model % spec.width_multiple == 0


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
