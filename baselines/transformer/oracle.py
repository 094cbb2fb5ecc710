"""The attention of Hugging Face's Llama, with a window of their Mistral, or with QK-norm of their LFM2."""

import torch
from torch import Tensor

from baselines.transformer.mixer import Attention
from harness.checks.oracles import Oracle, oracle_of


@oracle_of(Attention)
def llama_attention(mixer: Attention) -> Oracle | None:
    """transformers' attention behind its own rotary embedding, whose angles are float32 in any dtype, and its mask."""
    if mixer.d_out != mixer.d_model:  # in a gated block: Llama's attention has one width
        return None
    from transformers import Lfm2Config, LlamaConfig, MistralConfig, masking_utils
    from transformers.models.lfm2.modeling_lfm2 import Lfm2Attention, Lfm2RotaryEmbedding
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
    from transformers.models.mistral.modeling_mistral import MistralAttention, MistralRotaryEmbedding

    options = {
        "hidden_size": mixer.d_model,
        "num_attention_heads": mixer.n_heads,
        "num_key_value_heads": mixer.n_kv_heads,
        "rope_parameters": {"rope_type": "default", "rope_theta": mixer.rope_theta},
        "attn_implementation": "eager",
    }
    weight, out = mixer.qkv.weight, "o_proj"
    kind, rotary_kind, mask = LlamaAttention, LlamaRotaryEmbedding, masking_utils.create_causal_mask
    config: LlamaConfig | MistralConfig | Lfm2Config
    if mixer.norms:
        if mixer.window is not None:  # LFM2's has none
            return None
        config, out = (
            Lfm2Config(**options, num_hidden_layers=1, layer_types=["full_attention"], norm_eps=mixer.norms[0].eps),
            "out_proj",
        )
        kind, rotary_kind = Lfm2Attention, Lfm2RotaryEmbedding
    elif mixer.window is None:
        config = LlamaConfig(**options, head_dim=mixer.head_dim, attention_bias=False)
    else:
        config = MistralConfig(**options, head_dim=mixer.head_dim, sliding_window=mixer.window)
        kind, rotary_kind = MistralAttention, MistralRotaryEmbedding
        mask = masking_utils.create_sliding_window_causal_mask
    attention, rotary = kind(config, layer_idx=0).to(weight).eval(), rotary_kind(config).to(weight.device)
    sizes = [mixer.n_heads * mixer.head_dim] + 2 * [mixer.n_kv_heads * mixer.head_dim]
    parts = dict(zip(("q_proj", "k_proj", "v_proj"), weight.detach().split(sizes), strict=True))
    parts[out] = mixer.out.weight.detach()
    norms = zip(("q_layernorm", "k_layernorm"), mixer.norms, strict=False)  # none where there is no norm
    parts |= {name: norm.weight.detach() for name, norm in norms}
    attention.load_state_dict({f"{name}.weight": part for name, part in parts.items()})

    def forward(x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device)[None]
        seen = mask(config, x, attention_mask=None, past_key_values=None, position_ids=positions)
        return attention(x, rotary(x, positions), attention_mask=seen)[0]

    return Oracle(f"transformers {kind.__name__}", forward)
