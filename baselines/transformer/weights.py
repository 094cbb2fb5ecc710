"""Our Transformers as transformers' own Llama, or Mistral where attention has a window, and theirs as ours."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

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
    """The model of a folder of LlamaForCausalLM or MistralForCausalLM."""
    config, tensors = read_transformers(folder)
    layout.require(config, hidden_act="silu", rms_norm_eps=NORM_EPS)
    attention = {name: config[name] for name in ("attention_bias", "mlp_bias") if name in config}  # Mistral has none
    layout.require(attention, **dict.fromkeys(attention, False))
    mixer = partial(Attention, **rotary(config), head_dim=config["head_dim"], window=config.get("sliding_window"))
    spec = ModelSpec("transformer", mixer, SwiGLU, tie_embeddings=config["tie_word_embeddings"])
    width = Width(config["hidden_size"], config["intermediate_size"])
    model = spec.build(config["vocab_size"], config["num_hidden_layers"], width)
    layout.load(model, entries(model), tensors)
    return model


def rotary(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of attention in a configuration of transformers; raises CheckpointError for scaled positions."""
    layout.require({"partial_rotary_factor": 1.0} | config["rope_parameters"], partial_rotary_factor=1.0, **ROPE)
    return {"rope_theta": config["rope_parameters"]["rope_theta"], "n_kv_heads": config["num_key_value_heads"]}


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
READERS = {"llama": read_llama, "mistral": read_llama}
"""What `harness.load_checkpoint` reads."""
