"""The embedding and the head: what their weights start from, what decays, and what the configurations give."""

import math
from functools import partial

import pytest
import torch

import configs
import tiny
from harness.config.errors import ConfigError
from harness.model.backbone import LanguageModel, ModelSpec, Width
from harness.model.ends import End
from harness.model.interface import Classes, Interface, Tokens, Vectors
from harness.model.mlp import SwiGLU
from harness.training import optimizer

STARTS = ("normal", "small", "uniform", "orthogonal", "zero")


def weight(end: End, rows: int = 512, columns: int = 64) -> torch.Tensor:
    parameter = torch.nn.Parameter(torch.full((rows, columns), math.nan))
    end.initialise(parameter)
    return parameter.detach()


def test_each_start_has_its_scale():
    normal, uniform = weight(End("normal", 0.3)), weight(End("uniform", 0.3))
    assert normal.std().item() == pytest.approx(0.3, rel=0.02)
    assert normal.abs().max() > 0.9
    assert weight(End("small", 2.0)).std().item() == pytest.approx(2 * math.sqrt(2 / (5 * 64)), rel=0.02)
    assert 0.299 < uniform.abs().max() <= 0.3
    assert uniform.std().item() == pytest.approx(0.3 / math.sqrt(3), rel=0.02)
    assert abs(uniform.mean().item()) < 0.01
    assert not weight(End("zero", 5.0)).any()


@pytest.mark.parametrize(("rows", "gain"), [(512, 0.5 * math.sqrt(512 / 64)), (64, 0.5), (16, 0.5)])
def test_an_orthogonal_start_has_rows_of_its_scale_at_any_vocabulary(rows, gain):
    """RWKV-7's head: gain 0.5, times sqrt(vocabulary / d_model) where the vocabulary is larger."""
    made = weight(End("orthogonal", 0.5), rows)
    torch.testing.assert_close(torch.linalg.svdvals(made), torch.full((min(rows, 64),), gain), rtol=1e-5, atol=1e-5)
    assert made.square().sum(1).mean().sqrt().item() == pytest.approx(0.5, rel=1e-5)


def model(tie_embeddings: bool = False, interface: Interface | int = tiny.VOCAB, **ends: End) -> LanguageModel:
    spec = ModelSpec("tiny", partial(tiny.LeakySum), SwiGLU, tie_embeddings=tie_embeddings, **ends)
    return spec.build(interface, 2, Width(8, 12))


def decayed(net: LanguageModel) -> set[str]:
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    groups = {group["name"]: group for group in optimizer.parameter_groups(net, 0.1)}
    return {names[id(parameter)] for parameter in groups["decay"]["params"]}


def test_a_model_starts_from_its_ends():
    net = model(embedding=End("uniform", 1e-4), head=End("zero"))
    assert 0 < net.embedding.weight.abs().max() <= 1e-4
    assert not net.head.weight.any()
    tied = model(True, embedding=End("uniform", 1e-4), head=End("zero"))
    assert tied.head.weight is tied.embedding.weight
    assert 0 < tied.head.weight.abs().max() <= 1e-4


def test_an_end_says_whether_it_decays():
    ends = {"embedding.weight", "head.weight"}
    assert ends & decayed(model()) == {"head.weight"}
    assert ends & decayed(model(embedding=End(decay=True), head=End(decay=False))) == {"embedding.weight"}
    assert ends & decayed(model(True)) == set()
    assert ends & decayed(model(True, embedding=End(decay=True), head=End(decay=False))) == {"embedding.weight"}


@pytest.mark.parametrize("interface", [Interface(Vectors(3), Vectors(2)), Interface(Tokens(5), Classes(4))])
def test_a_head_of_vectors_or_classes_is_never_tied_and_starts_as_it_is_told(interface):
    net = model(True, interface, head=End("zero"))
    assert not net.head.weight.any()
    assert net.head.bias is not None


@pytest.mark.parametrize("start", STARTS)
def test_a_start_is_drawn_from_torch_s_generator_and_sizing_draws_nothing(start):
    torch.manual_seed(1)
    first = model(head=End(start, 0.5)).state_dict()
    with torch.device("meta"):
        assert model(head=End(start, 0.5)).head.weight.is_meta
    torch.manual_seed(1)
    for name, tensor in model(head=End(start, 0.5)).state_dict().items():
        assert torch.equal(tensor, first[name]), name


def test_the_ends_are_keys_of_the_configuration():
    made = configs.spec("transformer", "model.head.start=orthogonal", "model.head.scale=0.5", "model.embedding.scale=1")
    assert (made.head, made.embedding) == (End("orthogonal", 0.5), End("normal", 1.0, decay=False))
    for bad in ("model.head.start=xavier", "model.head.scale=-1", "model.embedding.decay=1", "+model.head.gain=1"):
        with pytest.raises(ConfigError, match=bad.split("=")[0].lstrip("+").replace(".", r"\.")):
            configs.spec("transformer", bad)


OWN_ENDS = {
    "rwkv": (End("uniform", 1e-4, decay=True), End("orthogonal", 0.5, decay=True)),
    **dict.fromkeys(("mlstm", "xlstm"), (End("small", 1.0, decay=False), End("small", 1.0))),
    **dict.fromkeys(("hawk", "griffin"), (End("small", 1.58114, decay=False), End())),
}
UNTIED = {"rwkv", "mlstm", "xlstm"}
"""By their authors; whoever says nothing has the shared rule."""


def test_a_model_has_its_authors_ends_or_the_shared_ones(architecture):
    made = configs.spec(architecture)
    assert (made.embedding, made.head) == OWN_ENDS.get(architecture, (End(decay=False), End()))
    assert made.tie_embeddings == (architecture not in UNTIED)


def test_a_channel_mixer_writes_into_the_residual_stream_by_less_the_more_branches_there_are():
    torch.manual_seed(0)
    plain = SwiGLU(8, 12, n_layers=8, residual_scaling=False)
    torch.manual_seed(0)
    scaled = SwiGLU(8, 12, n_layers=8)
    torch.testing.assert_close(scaled.down.weight, plain.down.weight / 4)
    torch.testing.assert_close(scaled.gate_up.weight, plain.gate_up.weight)
