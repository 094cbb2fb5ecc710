"""The oracle of LFM2's gated short convolution, that of Hugging Face's Lfm2."""

from baselines.lfm2.mixer import GatedConvolution
from harness.checks.oracles import Oracle, oracle_of


@oracle_of(GatedConvolution)
def lfm2_convolution(mixer: GatedConvolution) -> Oracle:
    """transformers' layer with these weights."""
    from transformers import Lfm2Config
    from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

    config = Lfm2Config(hidden_size=mixer.d_model, conv_L_cache=mixer.d_conv, num_hidden_layers=1, layer_types=["conv"])
    layer = Lfm2ShortConv(config, layer_idx=0).to(mixer.conv_weight)
    weights = {"in_proj": mixer.in_proj.weight, "out_proj": mixer.out_proj.weight}
    weights["conv"] = mixer.conv_weight.t().unsqueeze(1)
    layer.load_state_dict({f"{name}.weight": weight for name, weight in weights.items()})
    return Oracle("transformers Lfm2ShortConv", layer)
