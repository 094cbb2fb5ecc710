"""Our Transformers as transformers' own Llama, or Mistral where attention has a window."""

import json
from pathlib import Path

from torch import Tensor

from baselines.transformer.mixer import Attention
from harness.config.errors import ConfigError
from harness.model.backbone import LanguageModel
from harness.model.mlp import SwiGLU
from harness.records import weights

OUTSIDE = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
INSIDE = {
    "norm": ("input_layernorm",),
    "mixer.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mixer.out": ("self_attn.o_proj",),
    "channel_norm": ("post_attention_layernorm",),
    "channel_mixer.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "channel_mixer.down": ("mlp.down_proj",),
}
"""What the parts of a block are called there; of two or three, ours has the rows of all, in this order."""


def export_llama(model: LanguageModel) -> dict[str, Tensor]:
    """The weights under the names of LlamaForCausalLM; raises ConfigError for a model that is no Llama."""
    attention = _attention(model)
    heads = [attention.n_heads, attention.n_kv_heads, attention.n_kv_heads]
    tensors = {}
    for name, tensor in model.state_dict().items():
        part, rest = name.removesuffix(".weight"), tensor
        if not part.startswith("blocks."):
            tensors[f"{OUTSIDE[part]}.weight"] = rest
            continue
        _, layer, inside = part.split(".", 2)
        theirs = INSIDE[inside]
        sizes = [count * attention.head_dim for count in heads] if len(theirs) == 3 else len(rest) // len(theirs)
        for their, own in zip(theirs, rest.split(sizes), strict=True):
            tensors[f"model.layers.{layer}.{their}.weight"] = own
    return tensors


def write_llama(model: LanguageModel, folder: Path) -> None:
    """Writes what AutoModelForCausalLM reads, without liquidbench; raises ConfigError for a model that is no Llama."""
    attention, windowed = _attention(model), _attention(model).window is not None
    kind = "Mistral" if windowed else "Llama"
    config = {
        "architectures": [f"{kind}ForCausalLM"],
        "model_type": kind.lower(),
        "vocab_size": model.head.out_features,
        "hidden_size": model.width.d_model,
        "intermediate_size": model.width.d_ff,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_kv_heads,
        "head_dim": attention.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": attention.rope_theta},
        "tie_word_embeddings": model.spec.tie_embeddings,
        "dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": None,
        **({"sliding_window": attention.window} if windowed else {}),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    weights.save(folder / "model.safetensors", export_llama(model))


def _attention(model: LanguageModel) -> Attention:
    """The attention of the first block, as it is in all; raises ConfigError where the model has what Llama lacks."""
    spec = model.spec
    plain = all(
        isinstance(block.mixer, Attention)
        and not block.mixer.norms
        and isinstance(block.channel_mixer, SwiGLU)
        and block.adapter is None
        for block in model.blocks
    )
    alike = len(spec.pattern) == 1 and spec.norm == "rmsnorm" and not spec.embedding_norm and not spec.scale_embedding
    first = model.blocks[0].mixer
    if not (plain and alike and isinstance(first, Attention)):
        raise ConfigError(
            f"model={spec.name} as configured is neither Llama nor Mistral.",
            "attention and SwiGLU in block=transformer without a convolution, with RMSNorm and without qk_norm.",
            "export it with format=hf.",
        )
    return first


FORMATS = {"transformers": write_llama}
"""What `python -m harness.export` writes."""
