"""Models in other libraries' own classes, ours written there and theirs read here."""

import copy
import json
import re
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    Lfm2Config,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
)

import configs
import harness
from baselines.gated_deltanet.oracle import transformers_in_torch as qwen3_next_in_torch
from baselines.lfm2.weights import write_lfm2
from baselines.mamba.oracle import transformers_in_torch as mamba_in_torch
from baselines.mamba2.oracle import transformers_in_torch as mamba2_in_torch
from harness.config.errors import CheckpointError, ConfigError
from harness.export.formats import formats
from harness.export.pretrained import readers
from harness.model.backbone import LanguageModel, Width
from test_export import model_of
from test_library import Malicious

OWN = ["transformer", "transformer_gqa", "transformer_window", "mamba", "mamba2", "lfm2", "gated_deltanet"]
WHOLE = {"mamba2": Width(64, 0)}
"""Where a small model would else have no whole expansion, which is all that theirs takes."""
SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "rms_norm_eps": 1e-5}
PUBLISHED = {
    "llama": LlamaConfig(**SMALL, **HEADS, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0}),
    "mistral": MistralConfig(**SMALL, **HEADS, sliding_window=8),
    "mistral without a window": MistralConfig(**SMALL, **HEADS, sliding_window=None),
    "mamba": MambaConfig(**SMALL, state_size=5, time_step_rank=3, tie_word_embeddings=True),
    "mamba2": Mamba2Config(**SMALL, num_heads=8, head_dim=8, state_size=6, n_groups=1, conv_kernel=3),
    "lfm2": Lfm2Config(
        **SMALL, num_attention_heads=4, num_key_value_heads=2, layer_types=["conv", "full_attention", "conv"]
    ),
}
"""As their authors publish them, but small."""


@pytest.fixture
def in_torch():
    with ExitStack() as stack:
        for replaced in (mamba_in_torch, mamba2_in_torch, qwen3_next_in_torch):
            stack.enter_context(replaced())
        yield


@torch.no_grad()
def published(config: PreTrainedConfig, folder: Path, **options):
    """A model of theirs, every weight away from where it starts, as they save it."""
    theirs = AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()
    for parameter in theirs.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.05)
    theirs.save_pretrained(folder, **options)
    return theirs


@torch.no_grad()
def assert_same_logits(ours: LanguageModel, theirs) -> None:
    tokens = torch.randint(50, (2, 150))  # beyond every window
    expected = theirs(tokens, use_cache=False).logits
    assert_close(ours(tokens)[0], expected, rtol=1e-5, atol=1e-5 * max(1.0, float(expected.abs().max())))


def assert_equal_weights(one: LanguageModel, other: LanguageModel) -> None:
    weights = other.state_dict()
    assert one.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in one.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("model", OWN)
def test_transformers_own_class_gives_the_same_logits_and_is_read_back_to_the_bit(model, tmp_path, in_torch):
    ours = model_of(model, width=WHOLE.get(model))
    formats(ours)["transformers"](ours, tmp_path)
    theirs, notes = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(notes.values())
    assert type(theirs).__module__.startswith("transformers.")
    assert_same_logits(ours.model, theirs)
    if json.loads((tmp_path / "config.json").read_text())["model_type"] not in readers():
        assert model == "gated_deltanet"  # its authors' checkpoints are mixtures of experts
        return
    assert_equal_weights(harness.load_checkpoint(tmp_path), ours.model)


def test_convolutions_alone_are_an_lfm2_too(tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    published(Lfm2Config(**SMALL, num_attention_heads=4, num_key_value_heads=2, layer_types=["conv"] * 3), there)
    ours = harness.load_checkpoint(there)
    here.mkdir()
    write_lfm2(ours, here)
    assert_same_logits(ours, AutoModelForCausalLM.from_pretrained(here))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_checkpoint_gives_its_logits(name, tmp_path, in_torch):
    theirs = published(PUBLISHED[name], tmp_path)
    assert_same_logits(harness.load_checkpoint(tmp_path), theirs)


def test_a_checkpoint_in_parts_of_half_precision_and_of_an_older_version_is_read(tmp_path):
    theirs = published(PUBLISHED["llama"], tmp_path).bfloat16()
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    edit(tmp_path, rope_parameters=None, rope_theta=500_000.0, rope_scaling=None, torch_dtype="bfloat16", dtype=None)
    ours = harness.load_checkpoint(tmp_path)
    assert ours.head.weight.dtype == torch.float32
    assert_same_logits(ours, theirs.float())


@pytest.mark.parametrize(
    ("name", "changes"), [("llama", {"sliding_window": 8}), ("mamba", {"ssm_cfg": {}}), ("llama", {"model_max": 3})]
)
def test_keys_that_its_class_does_not_read_change_nothing(name, changes, tmp_path, in_torch):
    theirs = published(PUBLISHED[name], tmp_path)
    edit(tmp_path, **changes)
    assert_same_logits(harness.load_checkpoint(tmp_path), theirs)


def test_a_head_that_is_another_matrix_is_not_tied_whatever_the_configuration_says(tmp_path):
    published(PUBLISHED["llama"], tmp_path)
    edit(tmp_path, tie_word_embeddings=True)
    ours = harness.load_checkpoint(tmp_path)
    assert ours.head.weight is not ours.embedding.weight
    assert_same_logits(ours, AutoModelForCausalLM.from_pretrained(tmp_path))


def test_weights_of_several_precisions_are_read_as_they_are(tmp_path):
    ours = model_of("rwkv")
    formats(ours)["rwkv"](ours, tmp_path)
    tensors = torch.load(tmp_path / "model.pth", weights_only=True)
    tensors["emb.weight"] = tensors["emb.weight"].bfloat16()
    torch.save(tensors, tmp_path / "model.pth")
    read = harness.load_checkpoint(tmp_path / "model.pth")
    assert torch.equal(read.blocks[0].mixer.w0, ours.model.blocks[0].mixer.w0)
    assert read.embedding.weight.dtype == torch.float32


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_a_folder_of_mamba_ssm_is_read(name, tmp_path):
    ours = model_of(name)
    formats(ours)["mamba_ssm"](ours, tmp_path)
    assert_equal_weights(harness.load_checkpoint(tmp_path), ours.model)
    settings = json.loads((tmp_path / "config.json").read_text())
    edit(tmp_path, ssm_cfg=settings["ssm_cfg"] | {"layer": "Mamba3"})
    with pytest.raises(CheckpointError, match="mamba_ssm Mamba3"):
        harness.load_checkpoint(tmp_path)
    for option in ({"ngroups": 2}, {"norm_before_gate": True}, {"dt_limit": [0.0, 0.1]}, {"activation": "x"}):
        edit(tmp_path, ssm_cfg=settings["ssm_cfg"] | option)
        with pytest.raises(CheckpointError, match=re.escape(f"{next(iter(option))}={next(iter(option.values()))}")):
            harness.load_checkpoint(tmp_path)
    edit(tmp_path, **settings, attn_layer_idx=[1])
    with pytest.raises(CheckpointError, match=r"attn_layer_idx=\[1\]"):
        harness.load_checkpoint(tmp_path)


def test_a_file_of_rwkv_is_read(tmp_path):
    ours = model_of("rwkv")
    formats(ours)["rwkv"](ours, tmp_path)
    assert_equal_weights(harness.load_checkpoint(tmp_path / "model.pth"), ours.model)


def edit(folder: Path, **changes) -> None:
    """Sets keys of config.json; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


ROPE = {"rope_theta": 1e4, "factor": 8.0, "rope_type": "linear"}


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("llama", {"rope_parameters": ROPE}, "rope_type=linear"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act=gelu"),
        ("llama", {"rms_norm_eps": 1e-6}, "rms_norm_eps=1e-06"),
        ("mamba", {"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon=1e-06"),
        ("mamba", {"model_type": "rwkv"}, "checkpoint of 'rwkv'"),
        ("mamba", {"model_type": "liquid", "architectures": None}, "checkpoint of 'liquid'"),
        ("mamba2", {"time_step_limit": [0.0, 0.1]}, "time_step_limit"),
        ("lfm2", {"norm_eps": 1e-6}, "norm_eps=1e-06"),
        ("lfm2", {"layer_types": ["conv", "sliding_attention", "conv"]}, "cannot be read"),
        ("mistral", {"layer_types": ["full_attention"] * 3}, "transformers makes a Ministral"),
    ],
)
def test_a_checkpoint_of_what_is_not_ours_is_refused(name, changes, named, tmp_path):
    published(PUBLISHED[name], tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=named):
        harness.load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (LlamaConfig(**SMALL, **HEADS, attention_bias=True), "attention_bias=True"),
        (LlamaConfig(**SMALL, **HEADS, head_dim=16), "num_attention_heads x head_dim=64"),
        (Mamba2Config(**SMALL, num_heads=8, head_dim=8, n_groups=2), "n_groups=2"),
        (MambaConfig(**SMALL, use_bias=True, layer_norm_epsilon=1e-5), "use_bias=True"),
        (Lfm2Config(**SMALL, **HEADS, conv_bias=True, layer_types=["conv"] * 3), "conv_bias=True"),
    ],
)
def test_a_checkpoint_with_weights_that_ours_lacks_is_refused(config, named, tmp_path):
    published(config, tmp_path)
    with pytest.raises(CheckpointError, match=named):
        harness.load_checkpoint(tmp_path)


def test_what_cannot_be_read_is_refused_without_running_its_code(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        harness.load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds no table"):
        harness.load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"ssm_cfg": {}, "d_model": 8, "n_layer": 1, "vocab_size": 9}))
    torch.save({"backbone.embedding.weight": Malicious(tmp_path / "touched")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin cannot be read"):
        harness.load_checkpoint(tmp_path)
    torch.save({"backbone.layers.3000.norm.weight": torch.ones(8)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be read: its tensors are of 1 layers"):
        harness.load_checkpoint(tmp_path)
    for damaged in (b"hello", b"\x80\x02.", b""):
        (tmp_path / "model.pth").write_bytes(damaged)
        with pytest.raises(CheckpointError, match="cannot be read"):
            harness.load_checkpoint(tmp_path / "model.pth")
    for tensors in ({1: torch.ones(2)}, {"a": torch.ones(2).int()}, {"a": torch.ones(2, device="meta")}, [1]):
        torch.save(tensors, tmp_path / "model.pth")
        with pytest.raises(CheckpointError, match="cannot be read"):
            harness.load_checkpoint(tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        harness.load_checkpoint(tmp_path / ("long" * 100))
    published(PUBLISHED["llama"], tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="cannot be read"):
        harness.load_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").unlink()
    torch.save({"lm_head.weight": Malicious(tmp_path / "touched")}, tmp_path / "pytorch_model.bin")
    edit(tmp_path, auto_map={"AutoModelForCausalLM": "theirs.Theirs"})
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'touched')!r}, 'w')")
    with pytest.raises(CheckpointError, match="cannot be read"):
        harness.load_checkpoint(tmp_path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("model", "override"),
    [
        ("transformer", "block.d_conv=4"),
        ("mamba", "block=transformer"),
        ("gated_deltanet", "block.d_conv=4"),
        ("lfm2", "+model.scale_embedding=true"),
    ],
)
def test_a_model_that_their_class_lacks_is_not_written(model, override, tmp_path):
    ours = model_of(model, override)
    with pytest.raises(ConfigError, match=f"model={model} as configured"):
        formats(ours)["transformers"](ours, tmp_path)


def test_a_weight_without_a_place_is_named():
    from baselines.transformer.weights import entries
    from harness.export import layout

    model = configs.spec("transformer").build(16, 1, Width(32, 16))
    with pytest.raises(ConfigError, match=r"has norm\.weight, for which Llama has no place"):
        layout.export(model, [entry for entry in entries(model) if entry.ours != "norm.weight"], "Llama")
