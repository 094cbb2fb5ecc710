"""Checkpoints of mamba-ssm's and Hugging Face's Mamba-1 language models into ours, and ours into mamba-ssm's."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from baselines.mamba.mixer import Selective
from harness.config.errors import CheckpointError, ConfigError
from harness.model.backbone import LanguageModel
from harness.model.block import Gated
from harness.records import weights

_NAMES = (
    (r"backbone\.embeddings?\.weight", "embedding.weight"),  # Hugging Face writes the plural
    (r"backbone\.layers\.(\d+)\.norm\.weight", r"blocks.\1.norm.weight"),
    (r"backbone\.layers\.(\d+)\.mixer\.((?:in_proj|conv1d)\..+)", r"blocks.\1.mixer.\2"),
    (r"backbone\.layers\.(\d+)\.mixer\.(.+)", r"blocks.\1.mixer.core.\2"),
    (r"backbone\.norm_f\.weight", "norm.weight"),
    (r"lm_head\.weight", "head.weight"),
)


def translate(name: str) -> str:
    """The name in a LanguageModel of a tensor of a Mamba checkpoint; raises CheckpointError for any other."""
    for pattern, ours in _NAMES:
        if match := re.fullmatch(pattern, name):
            return match.expand(ours)
    raise CheckpointError(
        f"The checkpoint holds a tensor that no Mamba-1 language model has: {name}.",
        "backbone.embedding, backbone.layers.*.norm and .mixer, backbone.norm_f and lm_head.",
        "give the state dict of mamba-ssm's MambaLMHeadModel with Mamba-1 layers and RMSNorm.",
    )


def load_mamba_checkpoint(model: LanguageModel, state_dict: Mapping[str, Tensor]) -> None:
    """Copies every tensor of a checkpoint into a model of conf/model/mamba.yaml's kind.

    Raises CheckpointError when a name is unknown or missing or a shape differs. A tied head may be left out.
    """
    tensors = {translate(name): tensor for name, tensor in state_dict.items()}
    if model.spec.tie_embeddings and "embedding.weight" in tensors:
        tensors.setdefault("head.weight", tensors["embedding.weight"])
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"The checkpoint does not fit this model: {error}",
            "the vocabulary (padded, as saved), width, depth and mixer options that the checkpoint was made with.",
            "build the model with those; see the checkpoint's config.json.",
        ) from error


def export_mamba_ssm(model: LanguageModel) -> dict[str, Tensor]:
    """The weights of a Mamba-1 model under the names of mamba-ssm."""
    first = {"embedding": "backbone.embedding", "norm": "backbone.norm_f", "head": "lm_head"}
    tensors = {}
    for name, tensor in model.state_dict().items():
        part, rest = name.split(".", 1)
        renamed = f"{first.get(part, 'backbone.layers')}.{rest.replace('mixer.core.', 'mixer.')}"
        tensors[renamed] = tensor.clone()
    return tensors


def write_mamba_ssm(model: LanguageModel, folder: Path) -> None:
    """Writes what mamba-ssm's MambaLMHeadModel.from_pretrained reads; raises ConfigError for a model that it lacks."""
    block, core = _mamba(model)
    expand = block.d_inner / block.d_model
    expand += 0.5 / block.d_model if int(expand * block.d_model) != block.d_inner else 0  # it rounds down
    config = {
        "d_model": block.d_model,
        "n_layer": model.n_layers,
        "vocab_size": model.head.out_features,
        "ssm_cfg": {"d_state": core.d_state, "d_conv": block.d_conv, "expand": expand, "dt_rank": core.dt_rank},
        "pad_vocab_size_multiple": 1,
        "tie_embeddings": model.spec.tie_embeddings,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    torch.save(export_mamba_ssm(model), folder / "pytorch_model.bin")


def write_transformers(model: LanguageModel, folder: Path) -> None:
    """Writes what transformers' MambaForCausalLM reads; raises ConfigError for a model that it lacks."""
    block, core = _mamba(model)
    if block.d_inner % block.d_model:
        raise ConfigError(
            f"The block has {block.d_inner} channels inside, no multiple of d_model={block.d_model}.",
            "a whole expansion, which is all that transformers' Mamba takes.",
            "export it with format=mamba_ssm or format=hf.",
        )
    config = {
        "architectures": ["MambaForCausalLM"],
        "model_type": "mamba",
        "vocab_size": model.head.out_features,
        "hidden_size": block.d_model,
        "state_size": core.d_state,
        "num_hidden_layers": model.n_layers,
        "layer_norm_epsilon": 1e-5,
        "expand": block.d_inner // block.d_model,
        "conv_kernel": block.d_conv,
        "time_step_rank": core.dt_rank,
        "tie_word_embeddings": model.spec.tie_embeddings,
        "dtype": "float32",
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    tensors = export_mamba_ssm(model)
    tensors["backbone.embeddings.weight"] = tensors.pop("backbone.embedding.weight")
    weights.save(folder / "model.safetensors", tensors)


def _mamba(model: LanguageModel) -> tuple[Gated, Selective]:
    """The block that the model repeats and its recurrence; raises ConfigError where it is not Mamba-1."""
    block = model.blocks[0].mixer
    if not (isinstance(block, Gated) and isinstance(block.core, Selective) and model.spec.norm == "rmsnorm"):
        raise ConfigError(
            f"model={model.spec.name} as configured is not Mamba-1 as its authors have it.",
            "the selective recurrence in the gated block (block=gated), with RMSNorm.",
            "export it with format=hf.",
        )
    return block, block.core


FORMATS = {"mamba_ssm": write_mamba_ssm, "transformers": write_transformers}
"""What `python -m harness.export` writes."""
