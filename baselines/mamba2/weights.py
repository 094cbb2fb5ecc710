"""Mamba-2 as mamba-ssm's and transformers' own models, and theirs as ours."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from baselines.mamba.weights import PLAIN, read_mamba_ssm, restore, save_mamba_ssm, save_transformers
from baselines.mamba2.mixer import Mamba2
from harness.config.errors import ConfigError
from harness.export import layout
from harness.export.pretrained import read_transformers
from harness.model.backbone import LanguageModel, ModelSpec, Width
from harness.model.block import GatedBlock


def write_mamba_ssm(model: LanguageModel, folder: Path) -> None:
    """Writes what mamba-ssm's MambaLMHeadModel.from_pretrained reads; raises ConfigError for a model that it lacks."""
    mixer = _mamba2(model)
    sizes = {"d_state": mixer.d_state, "d_conv": mixer.d_conv, "headdim": mixer.head_dim}
    save_mamba_ssm(model, folder, mixer.d_inner, {"layer": "Mamba2", **sizes})


def write_transformers(model: LanguageModel, folder: Path) -> None:
    """Writes what transformers' Mamba2ForCausalLM reads; raises ConfigError for a model that it lacks."""
    mixer = _mamba2(model)
    sizes = {"state_size": mixer.d_state, "conv_kernel": mixer.d_conv, "head_dim": mixer.head_dim, "n_groups": 1}
    save_transformers(model, folder, "Mamba2", mixer.d_inner, {**sizes, "num_heads": mixer.n_heads})


def read_mamba2_ssm(folder: Path) -> LanguageModel:
    """The model of a folder of mamba-ssm's whose layers are Mamba-2's."""
    return read_mamba_ssm(folder, mamba2)


def read_transformers_mamba2(folder: Path) -> LanguageModel:
    """The model of a folder of transformers' Mamba2ForCausalLM; raises CheckpointError for more groups than one."""
    config, tensors = read_transformers(folder, "Mamba2")
    layout.require(config, **PLAIN, n_groups=1, time_step_limit=[0.0, float("inf")])
    return restore(tensors, "transformers", mamba2, config["tie_word_embeddings"])


def mamba2(vocab_size: int, n_layers: int, shapes: Mapping[str, tuple[int, ...]], tie: bool) -> LanguageModel:
    """An untrained Mamba-2 whose mixers have tensors of these shapes, B and C of one group."""
    (d_inner,), (n_heads,) = shapes["norm.weight"], shapes["A_log"]
    channels, _, d_conv = shapes["conv1d.weight"]
    mixer = partial(Mamba2, d_state=(channels - d_inner) // 2, head_dim=d_inner // n_heads)
    width = Width(shapes["in_proj.weight"][1], 0, d_inner)
    spec = ModelSpec("mamba2", mixer, block=GatedBlock(d_conv=d_conv, depth_factor=1), tie_embeddings=tie)
    return spec.build(vocab_size, n_layers, width)


def _mamba2(model: LanguageModel) -> Mamba2:
    """The mixer of the first block, as it is in all; raises ConfigError where the model has what Mamba-2 lacks."""
    mixer = model.blocks[0].mixer
    if not (isinstance(mixer, Mamba2) and model.spec.norm == "rmsnorm"):
        raise ConfigError(
            f"model={model.spec.name} as configured is not Mamba-2 as its authors have it.",
            "block=gated, with RMSNorm.",
            "export it with format=hf.",
        )
    return mixer


FORMATS = {"mamba_ssm": write_mamba_ssm, "transformers": write_transformers}
"""What `python -m harness.export` writes."""
READERS = {"mamba_ssm Mamba2": read_mamba2_ssm, "mamba2": read_transformers_mamba2}
"""What `harness.load_checkpoint` reads."""
