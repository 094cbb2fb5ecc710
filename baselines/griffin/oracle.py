"""The oracles of Hawk and Griffin: the recurrent block and the gated MLP of Hugging Face's RecurrentGemma."""

from functools import partial

import torch
from torch import Tensor

from baselines.griffin.mixer import GeGLU, RecurrentBlock
from harness.checks.oracles import Oracle, oracle_of


@oracle_of(RecurrentBlock)
def recurrent_gemma_block(mixer: RecurrentBlock) -> Oracle:
    """transformers' block, which adds up in float32 unless told otherwise.

    Positions start at 1: at 0 it would leave the input unnormalised, as at the start of a document.
    """
    from transformers import RecurrentGemmaConfig
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRecurrentBlock

    sizes = {"lru_width": mixer.d_rnn, "num_attention_heads": mixer.n_blocks, "conv1d_width": mixer.d_conv}
    config = RecurrentGemmaConfig(hidden_size=mixer.d_model, **sizes)
    block = RecurrentGemmaRecurrentBlock(config, layer_idx=0).to(mixer.a_param)
    block.load_state_dict(recurrent_gemma_weights(mixer))
    block.rg_lru._rnn_scan = partial(block.rg_lru._rnn_scan, acc_dtype=mixer.a_param.dtype)

    def forward(x: Tensor) -> Tensor:
        positions = torch.arange(1, x.shape[1] + 1, device=x.device).expand(x.shape[:2])
        return block(x, positions, attention_mask=None, use_cache=False)[0]

    return Oracle("transformers RecurrentGemmaRecurrentBlock", forward)


def recurrent_gemma_weights(mixer: RecurrentBlock) -> dict[str, Tensor]:
    """The mixer's weights under transformers' names."""
    names = ("linear_x", "linear_y", "linear_out")
    weights = {name: value for name, value in mixer.state_dict().items() if name.partition(".")[0] in names}
    weights |= {"conv_1d.weight": mixer.conv_weight.t().unsqueeze(1), "conv_1d.bias": mixer.conv_bias}
    gates = {"weight": mixer.gate_weight, "bias": mixer.gate_bias.view(mixer.n_blocks, -1)}
    for name, value in gates.items():
        halves = zip(("recurrent", "input"), value.chunk(2, dim=-1), strict=True)
        weights |= {f"rg_lru.{gate}_gate_{name}": half for gate, half in halves}
    return weights | {"rg_lru.recurrent_param": mixer.a_param}


@oracle_of(GeGLU)
def recurrent_gemma_mlp(mixer: GeGLU) -> Oracle:
    """transformers' MLP without its biases; its configuration counts both of its branches."""
    from transformers import RecurrentGemmaConfig
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaMlp

    config = RecurrentGemmaConfig(hidden_size=mixer.d_model, intermediate_size=2 * mixer.d_ff)
    mlp = RecurrentGemmaMlp(config).to(mixer.down.weight)
    gate, up = mixer.gate_up.weight.chunk(2)
    weights = {"gate_proj": gate, "up_proj": up, "down_proj": mixer.down.weight}
    with torch.no_grad():
        for name, weight in weights.items():
            mlp.get_submodule(name).weight.copy_(weight)
            mlp.get_submodule(name).bias.zero_()
    return Oracle("transformers RecurrentGemmaMlp", mlp)
