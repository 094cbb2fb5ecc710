"""The attention of Hugging Face's Llama, or with a window of their Mistral, with the weights of ours."""

import torch
from torch import Tensor

from baselines.transformer.mixer import Attention
from harness.checks.oracles import Oracle, oracle_of


@oracle_of(Attention)
def llama_attention(mixer: Attention) -> Oracle | None:
    """transformers' attention behind its own rotary embedding, whose angles are float32 in any dtype, and its mask."""
    if mixer.d_out != mixer.d_model:  # in a gated block: Llama's attention has one width
        return None
    from transformers import LlamaConfig, MistralConfig, masking_utils
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
    from transformers.models.mistral.modeling_mistral import MistralAttention, MistralRotaryEmbedding

    options = {
        "hidden_size": mixer.d_model,
        "num_attention_heads": mixer.n_heads,
        "num_key_value_heads": mixer.n_kv_heads,
        "head_dim": mixer.head_dim,
        "rope_parameters": {"rope_type": "default", "rope_theta": mixer.rope_theta},
        "attn_implementation": "eager",
    }
    weight = mixer.qkv.weight
    config: LlamaConfig | MistralConfig
    if mixer.window is None:
        config = LlamaConfig(**options, attention_bias=False)
        kind, rotary, mask = LlamaAttention, LlamaRotaryEmbedding(config), masking_utils.create_causal_mask
    else:
        config = MistralConfig(**options, sliding_window=mixer.window)
        kind, rotary = MistralAttention, MistralRotaryEmbedding(config)
        mask = masking_utils.create_sliding_window_causal_mask
    attention = kind(config, layer_idx=0).to(weight).eval()
    sizes = [mixer.n_heads * mixer.head_dim] + 2 * [mixer.n_kv_heads * mixer.head_dim]
    parts = dict(zip(("q_proj", "k_proj", "v_proj"), weight.detach().split(sizes), strict=True))
    parts["o_proj"] = mixer.out.weight.detach()
    attention.load_state_dict({f"{name}.weight": part for name, part in parts.items()})
    rotary = rotary.to(weight.device)

    def forward(x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device)[None]
        seen = mask(config, x, attention_mask=None, past_key_values=None, position_ids=positions)
        return attention(x, rotary(x, positions), attention_mask=seen)[0]

    return Oracle(f"transformers {kind.__name__}", forward)
