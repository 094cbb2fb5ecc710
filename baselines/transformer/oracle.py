"""The attention of Hugging Face's Llama with the weights of ours."""

import torch
from torch import Tensor

from baselines.transformer.mixer import Attention
from harness.checks.oracles import Oracle, oracle_of


@oracle_of(Attention)
def llama_attention(mixer: Attention) -> Oracle | None:
    """transformers' LlamaAttention behind its own rotary embedding, whose angles are float32 in any dtype."""
    if mixer.d_out != mixer.d_model:  # in a gated block: Llama's attention has one width
        return None
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=mixer.d_model,
        num_attention_heads=mixer.n_heads,
        num_key_value_heads=mixer.n_kv_heads,
        head_dim=mixer.head_dim,
        attention_bias=False,
        rope_parameters={"rope_type": "default", "rope_theta": mixer.rope_theta},
        attn_implementation="eager",
    )
    weight = mixer.qkv.weight
    attention = LlamaAttention(config, layer_idx=0).to(weight).eval()
    sizes = [mixer.n_heads * mixer.head_dim] + 2 * [mixer.n_kv_heads * mixer.head_dim]
    parts = dict(zip(("q_proj", "k_proj", "v_proj"), weight.detach().split(sizes), strict=True))
    parts["o_proj"] = mixer.out.weight.detach()
    attention.load_state_dict({f"{name}.weight": part for name, part in parts.items()})
    rotary = LlamaRotaryEmbedding(config).to(weight.device)

    def forward(x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device)[None]
        future = torch.full((x.shape[1], x.shape[1]), float("-inf"), dtype=x.dtype, device=x.device).triu(1)
        return attention(x, rotary(x, positions), attention_mask=future[None, None])[0]

    return Oracle("transformers LlamaAttention", forward)
