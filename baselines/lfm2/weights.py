"""LFM2 as transformers' own Lfm2, and theirs as ours."""

from functools import partial
from pathlib import Path

from baselines.lfm2.mixer import GatedConvolution
from baselines.transformer.mixer import NORM_EPS, Attention
from baselines.transformer.weights import attention_config, attention_entries, attention_options
from harness.config.errors import ConfigError
from harness.export import layout
from harness.export.layout import Entry, mlp, taps
from harness.export.pretrained import read_transformers
from harness.model.backbone import LanguageModel, ModelSpec, Width
from harness.model.mlp import SwiGLU

ATTENTION, CONVOLUTION = "full_attention", "conv"


def entries(model: LanguageModel) -> list[Entry]:
    """Where Lfm2ForCausalLM has the weights."""
    found = [
        Entry("embedding.weight", ("model.embed_tokens.weight",)),
        Entry("norm.weight", ("model.embedding_norm.weight",)),
        Entry("head.weight", ("lm_head.weight",)),
    ]
    for layer, block in enumerate(model.blocks):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        found += [
            Entry(f"{ours}norm.weight", (f"{theirs}operator_norm.weight",)),
            Entry(f"{ours}channel_norm.weight", (f"{theirs}ffn_norm.weight",)),
            *mlp(f"{ours}channel_mixer.", f"{theirs}feed_forward.", "w1", "w3", "w2"),
        ]
        if isinstance(block.mixer, Attention):
            found += attention_entries(block.mixer, f"{ours}mixer.", f"{theirs}self_attn.", "out_proj")
            for part, name in enumerate("qk"):
                found.append(Entry(f"{ours}mixer.norms.{part}.weight", (f"{theirs}self_attn.{name}_layernorm.weight",)))
        else:
            for part in ("in_proj", "out_proj"):
                found.append(Entry(f"{ours}mixer.{part}.weight", (f"{theirs}conv.{part}.weight",)))
            found.append(taps(f"{ours}mixer.conv_weight", f"{theirs}conv.conv.weight"))
    return found


def write_lfm2(model: LanguageModel, folder: Path) -> None:
    """Writes what Lfm2ForCausalLM reads; raises ConfigError for a model that it lacks."""
    attention, convolution = _parts(model)
    kinds = [ATTENTION if isinstance(block.mixer, Attention) else CONVOLUTION for block in model.blocks]
    config = {
        "model_type": "lfm2",
        **layout.backbone(model, "Lfm2"),
        "intermediate_size": model.width.d_ff,
        **(attention_config(attention) if attention else {"num_attention_heads": 1, "num_key_value_heads": 1}),
        "block_auto_adjust_ff_dim": False,
        "norm_eps": NORM_EPS,
        "layer_types": kinds,
        "conv_bias": False,
        **({"conv_L_cache": convolution.d_conv} if convolution else {}),
    }
    layout.write(folder, config, layout.export(model, entries(model), "transformers' Lfm2"))


def read_lfm2(folder: Path) -> LanguageModel:
    """The model of a folder of Lfm2ForCausalLM."""
    config, tensors = read_transformers(folder, "Lfm2")
    layout.require(config, conv_bias=False, norm_eps=NORM_EPS)
    attention = partial(Attention, qk_norm=True, **attention_options(config))
    mixers = {ATTENTION: attention, CONVOLUTION: partial(GatedConvolution, d_conv=config["conv_L_cache"])}
    pattern = [mixers[kind] for kind in config["layer_types"]]
    tie = layout.is_tied(config["tie_word_embeddings"], tensors, "model.embed_tokens.weight")
    spec = ModelSpec("lfm2", pattern, SwiGLU, tie_embeddings=tie)
    width = Width(config["hidden_size"], len(tensors["model.layers.0.feed_forward.w1.weight"]))
    model = spec.build(config["vocab_size"], len(pattern), width)
    layout.load(model, entries(model), tensors)
    return model


def _parts(model: LanguageModel) -> tuple[Attention | None, GatedConvolution | None]:
    """An attention and a convolution of the model, None for none; raises ConfigError where it has what LFM2 lacks."""
    mixers = [block.mixer for block in model.blocks]
    attention = [mixer for mixer in mixers if isinstance(mixer, Attention) and mixer.norms and mixer.window is None]
    convolutions = [mixer for mixer in mixers if isinstance(mixer, GatedConvolution)]
    whole = len(attention) + len(convolutions) == len(mixers)
    if not (whole and layout.is_plain(model)):
        raise ConfigError(
            f"model={model.spec.name} as configured is not LFM2 as its authors have it.",
            "gated convolutions, and attention with qk_norm and without a window, in block=transformer with RMSNorm.",
            "export it with format=hf.",
        )
    return attention[0] if attention else None, convolutions[0] if convolutions else None


FORMATS = {"transformers": write_lfm2}
"""What `python -m harness.export` writes."""
READERS = {"lfm2": read_lfm2}
"""What `harness.load_checkpoint` reads."""
