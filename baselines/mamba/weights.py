"""Mamba-1 as mamba-ssm's and transformers' own models, and theirs as ours."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from baselines.mamba.mixer import Selective
from harness.config.errors import ConfigError
from harness.export import layout
from harness.export.layout import Entry
from harness.export.pretrained import CONFIG, layers, read_config, read_tensors, read_transformers
from harness.model.backbone import LanguageModel, ModelSpec, Width
from harness.model.block import Gated, GatedBlock

LIBRARIES = {"mamba_ssm": "embedding", "transformers": "embeddings"}
"""What each calls the embedding, their one difference."""
WEIGHTS = "pytorch_model.bin"
PLAIN = {"hidden_act": "silu", "layer_norm_epsilon": 1e-5, "use_bias": False, "use_conv_bias": True}
"""Of transformers' configuration, which must stand."""
DEFAULTS = {"attn_layer_idx": [], "d_intermediate": 0, "rms_norm": True}
"""Of mamba-ssm's configuration, which must stand."""
OPTIONS = {
    **{"bias": False, "conv_bias": True, "ngroups": 1, "d_ssm": None, "D_has_hdim": False, "rmsnorm": True},
    **{"norm_before_gate": False, "dt_limit": [0.0, float("inf")]},
}
"""Of a layer's, likewise: its own defaults."""
FREE = {
    *("layer", "d_state", "d_conv", "expand", "dt_rank", "headdim"),  # which the shapes tell
    *("dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "conv_init", "A_init_range"),
    *("use_fast_path", "use_mem_eff_path", "chunk_size"),
}
"""Of a layer's, what changes no figure of trained weights."""


def entries(model: LanguageModel, library: str) -> list[Entry]:
    """Where a library has the weights of a Mamba or Mamba-2."""
    outside = {"embedding": f"backbone.{LIBRARIES[library]}", "norm": "backbone.norm_f", "head": "lm_head"}
    found = []
    for name in model.state_dict():
        part, rest = name.split(".", 1)
        found.append(Entry(name, (f"{outside.get(part, 'backbone.layers')}.{rest.replace('mixer.core.', 'mixer.')}",)))
    return found


def write_mamba_ssm(model: LanguageModel, folder: Path) -> None:
    """Writes what mamba-ssm's MambaLMHeadModel.from_pretrained reads; raises ConfigError for a model that it lacks."""
    block, core = _mamba(model)
    sizes = {"d_state": core.d_state, "d_conv": block.d_conv, "dt_rank": core.dt_rank}
    save_mamba_ssm(model, folder, block.d_inner, sizes)


def save_mamba_ssm(model: LanguageModel, folder: Path, d_inner: int, options: Mapping[str, Any]) -> None:
    """Writes the folder of a model of that library's, whose layers have `options`."""
    d_model = model.width.d_model
    expand = d_inner / d_model
    expand += 0.5 / d_model if int(expand * d_model) != d_inner else 0  # it rounds down
    config = {
        "d_model": d_model,
        "n_layer": model.n_layers,
        "vocab_size": model.head.out_features,
        "ssm_cfg": {**options, "expand": expand},
        "pad_vocab_size_multiple": 1,
        "tie_embeddings": model.spec.tie_embeddings,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    torch.save(layout.export(model, entries(model, "mamba_ssm"), "mamba-ssm"), folder / WEIGHTS)


def write_transformers(model: LanguageModel, folder: Path) -> None:
    """Writes what transformers' MambaForCausalLM reads; raises ConfigError for a model that it lacks."""
    block, core = _mamba(model)
    config = {"state_size": core.d_state, "conv_kernel": block.d_conv, "time_step_rank": core.dt_rank}
    save_transformers(model, folder, "Mamba", block.d_inner, config)


def save_transformers(model: LanguageModel, folder: Path, kind: str, d_inner: int, options: Mapping[str, Any]) -> None:
    """Writes the folder of transformers' Mamba or Mamba2, whose layers have `options`."""
    if d_inner % model.width.d_model:
        raise ConfigError(
            f"The block has {d_inner} channels inside, no multiple of d_model={model.width.d_model}.",
            f"a whole expansion, which is all that transformers' {kind} takes.",
            "export it with format=mamba_ssm or format=hf.",
        )
    config = {
        "model_type": kind.lower(),
        **layout.backbone(model, kind),
        **PLAIN,
        "expand": d_inner // model.width.d_model,
        **options,
    }
    layout.write(folder, config, layout.export(model, entries(model, "transformers"), f"transformers' {kind}"))


def read_mamba_ssm(folder: Path, make: Callable[..., LanguageModel] | None = None) -> LanguageModel:
    """The model of a folder of mamba-ssm's. make: as `restore` takes it, for layers other than Mamba-1's.

    Raises CheckpointError for an option of the layers that ours do not have.
    """
    config = DEFAULTS | {"tie_embeddings": True} | read_config(folder)
    layout.require(config, **DEFAULTS)
    options = OPTIONS | {name: value for name, value in config["ssm_cfg"].items() if name not in FREE}
    layout.require(options, **OPTIONS | {name: None for name in options if name not in OPTIONS})
    tensors = read_tensors(folder / WEIGHTS)
    return restore(tensors, "mamba_ssm", make or mamba1, config["tie_embeddings"])


def read_transformers_mamba(folder: Path) -> LanguageModel:
    """The model of a folder of transformers' MambaForCausalLM."""
    config, tensors = read_transformers(folder, "Mamba")
    layout.require(config, **PLAIN)
    return restore(tensors, "transformers", mamba1, config["tie_word_embeddings"])


def restore(
    tensors: Mapping[str, Tensor], library: str, make: Callable[..., LanguageModel], tie: bool
) -> LanguageModel:
    """The model that a library's weights belong to, carrying them; its sizes are read from their shapes.

    make: a function of the vocabulary, the layers, the shapes of the first layer's tensors and of whether the head is
    tied. tie: whether the configuration says so.
    """
    count, embedding = layers(tensors, "backbone.layers."), f"backbone.{LIBRARIES[library]}.weight"
    shapes = {name.removeprefix("backbone.layers.0.mixer."): tensor.shape for name, tensor in tensors.items()}
    model = make(len(tensors[embedding]), count, shapes, layout.is_tied(tie, tensors, embedding))
    layout.load(model, entries(model, library), tensors)
    return model


def mamba1(vocab_size: int, n_layers: int, shapes: Mapping[str, tuple[int, ...]], tie: bool) -> LanguageModel:
    """An untrained Mamba-1 whose mixers have tensors of these shapes."""
    d_inner, d_state = shapes["A_log"]
    mixer = partial(Selective, d_state=d_state, dt_rank=shapes["dt_proj.weight"][1])
    block = GatedBlock(d_conv=shapes["conv1d.weight"][2], depth_factor=1)
    width = Width(shapes["in_proj.weight"][1], 0, d_inner)
    return ModelSpec("mamba", mixer, block=block, tie_embeddings=tie).build(vocab_size, n_layers, width)


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
READERS = {"mamba_ssm Mamba1": read_mamba_ssm, "mamba": read_transformers_mamba}
"""What `harness.load_checkpoint` reads."""
