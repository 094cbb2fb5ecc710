"""Our Transformers as transformers' own Llama, or Mistral where attention has a window, and theirs as ours."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from baselines.transformer.mixer import NORM_EPS, Attention
from harness.config.errors import ConfigError
from harness.export import layout
from harness.export.layout import Entry, mlp, rows
from harness.export.pretrained import read_transformers
from harness.model.backbone import LanguageModel, ModelSpec, Width
from harness.model.mlp import SwiGLU

OUTSIDE = [
    Entry("embedding.weight", ("model.embed_tokens.weight",)),
    Entry("norm.weight", ("model.norm.weight",)),
    Entry("head.weight", ("lm_head.weight",)),
]
ROPE = {"rope_type": "default"}


def entries(model: LanguageModel) -> list[Entry]:
    """Where LlamaForCausalLM has the weights of a model of attention and SwiGLU."""
    found = list(OUTSIDE)
    for layer, block in enumerate(model.blocks):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        found += [
            Entry(f"{ours}norm.weight", (f"{theirs}input_layernorm.weight",)),
            *attention_entries(block.mixer, f"{ours}mixer.", f"{theirs}self_attn.", "o_proj"),
            Entry(f"{ours}channel_norm.weight", (f"{theirs}post_attention_layernorm.weight",)),
            *mlp(f"{ours}channel_mixer.", f"{theirs}mlp.", "gate_proj", "up_proj", "down_proj"),
        ]
    return found


def attention_entries(mixer: Attention, ours: str, theirs: str, out: str) -> Iterator[Entry]:
    """Where transformers has the projections of attention, `out` the last one."""
    sizes = [heads * mixer.head_dim for heads in (mixer.n_heads, mixer.n_kv_heads, mixer.n_kv_heads)]
    yield rows(f"{ours}qkv.weight", [f"{theirs}{part}_proj.weight" for part in "qkv"], sizes)
    yield Entry(f"{ours}out.weight", (f"{theirs}{out}.weight",))


def attention_config(mixer: Attention) -> dict[str, Any]:
    """What configurations of transformers call the sizes of attention."""
    return {
        "num_attention_heads": mixer.n_heads,
        "num_key_value_heads": mixer.n_kv_heads,
        "rope_parameters": ROPE | {"rope_theta": mixer.rope_theta},
    }


def write_llama(model: LanguageModel, folder: Path) -> None:
    """Writes what AutoModelForCausalLM reads, without liquidbench; raises ConfigError for a model that is no Llama."""
    attention = _attention(model)
    kind = "Llama" if attention.window is None else "Mistral"
    config = {
        "model_type": kind.lower(),
        **layout.backbone(model, kind),
        "intermediate_size": model.width.d_ff,
        **attention_config(attention),
        "head_dim": attention.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": NORM_EPS,
        **({} if attention.window is None else {"sliding_window": attention.window}),
    }
    layout.write(folder, config, layout.export(model, entries(model), kind))


def read_llama(folder: Path) -> LanguageModel:
    """The model of a folder of LlamaForCausalLM."""
    config, tensors = read_transformers(folder, "Llama")
    layout.require(config, attention_bias=False, mlp_bias=False)
    return _restore(config, tensors, None)


def read_mistral(folder: Path) -> LanguageModel:
    """The model of a folder of MistralForCausalLM, of one window in all layers."""
    config, tensors = read_transformers(folder, "Mistral")
    return _restore(config, tensors, config["sliding_window"])


def _restore(config: Mapping[str, Any], tensors: Mapping[str, Tensor], window: int | None) -> LanguageModel:
    layout.require(config, hidden_act="silu", rms_norm_eps=NORM_EPS)
    mixer = partial(Attention, **attention_options(config), window=window)
    tie = layout.is_tied(config["tie_word_embeddings"], tensors, "model.embed_tokens.weight")
    spec = ModelSpec("transformer", mixer, SwiGLU, tie_embeddings=tie)
    width = Width(config["hidden_size"], config["intermediate_size"])
    model = spec.build(config["vocab_size"], config["num_hidden_layers"], width)
    layout.load(model, entries(model), tensors)
    return model


def attention_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of attention in a configuration of transformers.

    Raises CheckpointError for scaled positions, and for heads that are not d_model wide together.
    """
    layout.require({"partial_rotary_factor": 1.0} | config["rope_parameters"], partial_rotary_factor=1.0, **ROPE)
    heads, d_model = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or d_model // heads
    layout.require({"num_attention_heads x head_dim": heads * head_dim}, **{"num_attention_heads x head_dim": d_model})
    theta = config["rope_parameters"]["rope_theta"]
    return {"rope_theta": theta, "head_dim": head_dim, "n_kv_heads": config["num_key_value_heads"]}


def _attention(model: LanguageModel) -> Attention:
    """The attention of the first block, as it is in all; raises ConfigError where the model has what Llama lacks."""
    mixers = [block.mixer for block in model.blocks]
    same = len(model.spec.pattern) == 1 and all(isinstance(mixer, Attention) and not mixer.norms for mixer in mixers)
    if not (same and layout.is_plain(model)):
        raise ConfigError(
            f"model={model.spec.name} as configured is neither Llama nor Mistral.",
            "attention and SwiGLU in block=transformer without a convolution, with RMSNorm and without qk_norm.",
            "export it with format=hf.",
        )
    return mixers[0]


FORMATS = {"transformers": write_llama}
"""What `python -m harness.export` writes."""
READERS = {"llama": read_llama, "mistral": read_mistral}
"""What `harness.load_checkpoint` reads."""
