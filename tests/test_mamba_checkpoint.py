"""Checkpoints of mamba-ssm, loaded into our model; tests/test_pretrained.py has those of transformers."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from baselines.mamba import oracle as mamba_oracle
from baselines.mamba.mixer import Selective
from baselines.mamba.weights import entries, write_mamba_ssm
from harness.config.errors import CheckpointError
from harness.export import layout
from harness.model.backbone import ModelSpec, Width
from harness.model.block import Gated, GatedBlock


def mamba_ssm(name: str):
    if find_spec("mamba_ssm") is None:
        pytest.skip("mamba-ssm is not installed")
    return mamba_oracle.import_mamba_ssm(name)


def small_model(vocab_size=40, n_layers=2):
    spec = ModelSpec("mamba", Selective, block=GatedBlock(depth_factor=1), tie_embeddings=True)
    return spec.build(vocab_size, n_layers, Width(16, 0))


def load(model, tensors, library="mamba_ssm"):
    layout.load(model, entries(model, library), tensors)


def test_a_checkpoint_of_mamba_ssm_gives_its_logits():
    head = mamba_ssm("mamba_ssm.models.mixer_seq_simple")
    config = mamba_ssm("mamba_ssm.models.config_mamba").MambaConfig(
        d_model=16, n_layer=2, vocab_size=40, ssm_cfg={"use_fast_path": False}, fused_add_norm=False
    )
    theirs = head.MambaLMHeadModel(config)
    for name, p in theirs.named_parameters():
        if "norm" in name:
            nn.init.uniform_(p, 0.5, 1.5)
    model = small_model()
    load(model, theirs.state_dict())
    _on_cpu(theirs)
    tokens = torch.randint(40, (2, 13))
    assert_close(model(tokens)[0], theirs(tokens).logits, rtol=1e-4, atol=1e-5)


def _on_cpu(theirs) -> None:
    """Puts torch's RMSNorm and mamba-ssm's reference scan in the place of what runs on a GPU only."""
    backbone = theirs.backbone
    for holder, name in [(backbone, "norm_f"), *((layer, "norm") for layer in backbone.layers)]:
        gpu = getattr(holder, name)
        cpu = nn.RMSNorm(gpu.weight.shape, eps=gpu.eps)
        cpu.weight = gpu.weight
        setattr(holder, name, cpu)
    for layer in backbone.layers:
        mixer, given = Gated(Selective, 16), layer.mixer.state_dict()
        mixer.load_state_dict({name: given[name.removeprefix("core.")] for name in mixer.state_dict()})
        oracle = mamba_oracle.mamba_ssm_mixer(mixer)
        layer.mixer.forward = lambda x, inference_params=None, oracle=oracle: oracle.forward(x)


def test_mamba_ssm_reads_what_is_exported(tmp_path):
    head, model = mamba_ssm("mamba_ssm.models.mixer_seq_simple"), small_model()
    write_mamba_ssm(model, tmp_path)
    theirs = head.MambaLMHeadModel.from_pretrained(str(tmp_path))
    assert {name for entry in entries(model, "mamba_ssm") for name in entry.theirs} == set(theirs.state_dict())
    other = small_model()
    load(other, theirs.state_dict())
    tokens = torch.randint(40, (2, 13))
    assert torch.equal(other(tokens)[0], model(tokens)[0])


@pytest.mark.parametrize("damage", ["missing", "unknown", "deeper", "shape"])
def test_a_checkpoint_that_does_not_fit_is_refused(damage):
    made = small_model()
    state_dict = layout.export(made, entries(made, "mamba_ssm"), "mamba-ssm")
    model = small_model(n_layers=4 if damage == "deeper" else 2, vocab_size=48 if damage == "shape" else 40)
    if damage == "missing":
        del state_dict["backbone.layers.1.mixer.A_log"]
    if damage == "unknown":
        state_dict["backbone.layers.0.norm2.weight"] = torch.ones(16)
    with pytest.raises(CheckpointError, match="Remedy"):
        load(model, state_dict)
