"""The oracle of Mamba-2: transformers' Mamba2Mixer on its torch path, which scans in float32."""

import inspect

from torch import Tensor, nn

from baselines.mamba2.mixer import Mamba2
from harness.checks.oracles import Oracle, oracle_of, replaced


def transformers_in_torch():
    """While open, transformers' Mamba-2 computes in torch; else it takes mamba-ssm's kernels where it finds them."""
    from transformers.models.mamba2 import modeling_mamba2

    names = ("causal_conv1d_fn", "mamba2_chunk_scan")
    return replaced(modeling_mamba2, **{name: inspect.unwrap(getattr(modeling_mamba2, name)) for name in names})


@oracle_of(Mamba2)
def transformers_mamba2(mixer: Mamba2) -> Oracle:
    """The mixer with our weights, which have the same names."""
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = Mamba2Config(
        hidden_size=mixer.d_inner,
        expand=1,
        num_heads=mixer.n_heads,
        head_dim=mixer.head_dim,
        state_size=mixer.d_state,
        conv_kernel=mixer.d_conv,
        n_groups=1,
        num_hidden_layers=1,
        use_bias=False,
        use_conv_bias=True,
        layer_norm_epsilon=mixer.norm.eps,
        chunk_size=32,
    )
    other = Mamba2Mixer(config, layer_idx=0)
    # It knows whole multiples of d_model alone; ours may have other widths in a gated block.
    for name in ("in_proj", "out_proj"):
        rows, columns = getattr(mixer, name).weight.shape
        setattr(other, name, nn.Linear(columns, rows, bias=False))
    other = other.to(mixer.D).eval()
    other.load_state_dict(mixer.state_dict())

    def forward(x: Tensor) -> Tensor:
        with transformers_in_torch():
            return other(x)

    return Oracle("transformers Mamba2Mixer", forward)
