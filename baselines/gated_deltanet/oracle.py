"""The oracle of Gated DeltaNet: the mixer of transformers' Qwen3-Next on its torch path, which scans in float32."""

import inspect

from torch import Tensor

from baselines.gated_deltanet.mixer import GatedDeltaNet
from baselines.gated_deltanet.weights import mixer_entries
from harness.checks.oracles import Oracle, oracle_of, replaced


def transformers_in_torch():
    """While open, transformers' Qwen3-Next computes in torch; else it takes fla's kernels where it finds them."""
    from transformers.models.qwen3_next import modeling_qwen3_next

    names = ("causal_conv1d_fn", "torch_chunk_gated_delta_rule")
    functions = {name: inspect.unwrap(getattr(modeling_qwen3_next, name)) for name in names}
    return replaced(modeling_qwen3_next, **functions)


@oracle_of(GatedDeltaNet)
def transformers_gated_deltanet(mixer: GatedDeltaNet) -> Oracle:
    """Qwen3NextGatedDeltaNet with our weights, its heads of keys and of values as many."""
    from transformers import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    config = Qwen3NextConfig(
        hidden_size=mixer.d_model,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        linear_num_key_heads=mixer.n_heads,
        linear_num_value_heads=mixer.n_heads,
        linear_key_head_dim=mixer.head_dim,
        linear_value_head_dim=mixer.value_dim,
        linear_conv_kernel_dim=mixer.d_conv,
        rms_norm_eps=mixer.norm.eps,
    )
    other = Qwen3NextGatedDeltaNet(config, layer_idx=0).to(mixer.A_log).eval()
    weights: dict[str, Tensor] = {}
    for entry in mixer_entries(mixer, "", ""):
        weights |= entry.place(mixer.state_dict())
    other.load_state_dict(weights)

    def forward(x: Tensor) -> Tensor:
        with transformers_in_torch():
            return other(x)

    return Oracle("transformers Qwen3NextGatedDeltaNet", forward)
