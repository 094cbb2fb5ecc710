"""Third parties' Mamba mixers with the weights of ours: mamba-ssm's, and Hugging Face's where that is missing."""

import importlib
import inspect
import sys
from types import ModuleType

from torch import Tensor

from baselines.mamba.mixer import Selective
from harness.checks.oracles import Oracle, oracle_of, replaced
from harness.model.block import Gated


def import_mamba_ssm(name: str) -> ModuleType:
    """Imports a module of mamba-ssm, on a machine without its CUDA half too.

    There the module that holds the compiled kernels is replaced by an empty one, after which mamba-ssm's torch
    references work. Raises ImportError where mamba-ssm is not installed.
    """
    try:
        importlib.import_module("selective_scan_cuda")
    except ImportError:
        stand_in = ModuleType("selective_scan_cuda")
        stand_in.fwd = stand_in.bwd = None
        sys.modules["selective_scan_cuda"] = stand_in
    return importlib.import_module(name)


def transformers_in_torch():
    """While open, transformers' Mamba computes in torch; else it takes mamba-ssm's kernels where it finds them."""
    from transformers.models.mamba import modeling_mamba

    names = ("mamba_inner_fn", "mamba_selective_scan", "causal_conv1d_fn")
    return replaced(modeling_mamba, **{name: inspect.unwrap(getattr(modeling_mamba, name)) for name in names})


@oracle_of(Selective, gated=True)
def mamba_oracle(mixer: Gated) -> Oracle:
    """mamba-ssm's mixer, or transformers' where mamba-ssm is not installed."""
    try:
        return mamba_ssm_mixer(mixer)
    except ImportError:
        return transformers_mixer(mixer)


def mamba_weights(mixer: Gated) -> dict[str, Tensor]:
    """The block's weights under the names that mamba-ssm and transformers give them in one module."""
    return {name.removeprefix("core."): tensor for name, tensor in mixer.state_dict().items()}


def mamba_ssm_mixer(mixer: Gated) -> Oracle:
    """mamba-ssm's `Mamba` over its `selective_scan_ref`, which computes in float32 whatever the weights are."""
    core = mixer.core
    simple = import_mamba_ssm("mamba_ssm.modules.mamba_simple")
    reference = import_mamba_ssm("mamba_ssm.ops.selective_scan_interface").selective_scan_ref
    other = simple.Mamba(
        mixer.d_model, core.d_state, mixer.d_conv, mixer.expand, dt_rank=core.dt_rank, use_fast_path=False
    ).to(core.D)
    other.load_state_dict(mamba_weights(mixer))

    def forward(x: Tensor) -> Tensor:
        with replaced(simple, selective_scan_fn=reference, causal_conv1d_fn=None):
            return other(x)

    return Oracle("mamba-ssm Mamba", forward)


def transformers_mixer(mixer: Gated) -> Oracle:
    """transformers' MambaMixer on its loop over time."""
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    core = mixer.core
    config = MambaConfig(
        hidden_size=mixer.d_model,
        state_size=core.d_state,
        conv_kernel=mixer.d_conv,
        expand=mixer.expand,
        time_step_rank=core.dt_rank,
        num_hidden_layers=1,
        use_bias=False,
        use_conv_bias=True,
    )
    other = MambaMixer(config, layer_idx=0).to(core.D).eval()
    other.load_state_dict(mamba_weights(mixer))

    def forward(x: Tensor) -> Tensor:
        with transformers_in_torch():
            return other(x)

    return Oracle("transformers MambaMixer", forward)
