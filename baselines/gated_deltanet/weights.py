"""Gated DeltaNet as transformers' own Qwen3-Next, of linear attention and dense MLPs alone."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from baselines.gated_deltanet.mixer import GatedDeltaNet
from harness.config.errors import ConfigError
from harness.export import layout
from harness.export.layout import Entry, above_one, mlp
from harness.model.backbone import LanguageModel


def entries(model: LanguageModel) -> list[Entry]:
    """Where Qwen3NextForCausalLM has the weights."""
    found = [
        Entry("embedding.weight", ("model.embed_tokens.weight",)),
        above_one("norm.weight", "model.norm.weight"),
        Entry("head.weight", ("lm_head.weight",)),
    ]
    for layer, block in enumerate(model.blocks):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        found += [
            above_one(f"{ours}norm.weight", f"{theirs}input_layernorm.weight"),
            above_one(f"{ours}channel_norm.weight", f"{theirs}post_attention_layernorm.weight"),
            *mlp(f"{ours}channel_mixer.", f"{theirs}mlp.", "gate_proj", "up_proj", "down_proj"),
            *mixer_entries(block.mixer, f"{ours}mixer.", f"{theirs}linear_attn."),
        ]
    return found


def mixer_entries(mixer: GatedDeltaNet, ours: str, theirs: str) -> list[Entry]:
    """Where Qwen3NextGatedDeltaNet has the weights of a mixer: it lays out q, k, v and z, and b and a, head by head."""

    def split(tensor: Tensor) -> Sequence[Tensor]:
        sizes = [mixer.keys, mixer.keys, *[mixer.values] * 2, *[mixer.n_heads] * 2]
        heads = [part.unflatten(0, (mixer.n_heads, -1)) for part in tensor.split(sizes)]
        return [torch.cat(parts, dim=1).flatten(0, 1) for parts in (heads[:4], heads[4:])]

    names = (f"{theirs}in_proj_qkvz.weight", f"{theirs}in_proj_ba.weight")
    same = ("conv1d.weight", "dt_bias", "A_log", "norm.weight", "out_proj.weight")
    return [Entry(f"{ours}in_proj.weight", names, split), *(Entry(ours + name, (theirs + name,)) for name in same)]


def write_qwen3_next(model: LanguageModel, folder: Path) -> None:
    """Writes what Qwen3NextForCausalLM reads; raises ConfigError for a model that it lacks."""
    mixers = [block.mixer for block in model.blocks]
    if not (all(isinstance(mixer, GatedDeltaNet) for mixer in mixers) and layout.is_plain(model)):
        raise ConfigError(
            f"model={model.spec.name} as configured is no Qwen3-Next of linear attention and dense MLPs.",
            "Gated DeltaNet and SwiGLU in block=transformer with RMSNorm.",
            "export it with format=hf.",
        )
    mixer = mixers[0]
    config = {
        "model_type": "qwen3_next",
        **layout.backbone(model, "Qwen3Next"),
        "intermediate_size": model.width.d_ff,
        "hidden_act": "silu",
        "rms_norm_eps": mixer.norm.eps,
        "num_experts": 0,
        "layer_types": ["linear_attention"] * model.n_layers,
        "linear_num_key_heads": mixer.n_heads,
        "linear_num_value_heads": mixer.n_heads,
        "linear_key_head_dim": mixer.head_dim,
        "linear_value_head_dim": mixer.value_dim,
        "linear_conv_kernel_dim": mixer.d_conv,
    }
    layout.write(folder, config, layout.export(model, entries(model), "transformers' Qwen3-Next"))


FORMATS = {"transformers": write_qwen3_next}
"""What `python -m harness.export` writes."""
