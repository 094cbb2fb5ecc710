"""The oracles of xLSTM: the authors' package, in torch."""

from functools import partial

import torch
from torch import Tensor

from baselines.xlstm.mixer import MLSTM, SLSTM, GatedMLP
from harness.checks.oracles import Oracle, oracle_of


@oracle_of(MLSTM)
def package_mlstm(mixer: MLSTM) -> Oracle:
    """The package's `mLSTMLayer`, over its own chunkwise form with the sequence for one chunk.

    That form begins at m = 0, as the package's step does; its parallel form has no state to begin with, and differs by
    what 1e-6 in the divisor comes to.
    """
    from xlstm.blocks.mlstm.backends import chunkwise_simple
    from xlstm.blocks.mlstm.layer import mLSTMLayer, mLSTMLayerConfig

    config = mLSTMLayerConfig(
        embedding_dim=mixer.d_model,
        num_heads=mixer.n_heads,
        qkv_proj_blocksize=mixer.qkv_block,
        conv1d_kernel_size=mixer.conv1d.kernel_size[0],
        context_length=1,
        _num_blocks=mixer.n_layers,
    )
    config._inner_embedding_dim = mixer.d_inner
    layer = mLSTMLayer(config).to(mixer.gain)
    cell = {f"mlstm_cell.{gate}": value for gate, value in mixer.state_dict().items() if "gate" in gate}
    maps = {f"{name}_proj.weight": getattr(mixer, name) for name in "qkv"}
    ends = {f"{name}.weight": getattr(mixer, name).weight for name in ("proj_up", "proj_down")}
    norm = {"mlstm_cell.outnorm.weight": mixer.gain - 1, "learnable_skip": mixer.skip}
    layer.load_state_dict(cell | maps | ends | norm | _convolution(mixer))

    def forward(x: Tensor) -> Tensor:
        layer.mlstm_cell.backend_fn = partial(chunkwise_simple, chunk_size=x.shape[1])
        return layer(x)

    return Oracle("xlstm mLSTMLayer", forward)


@oracle_of(SLSTM)
def package_slstm(mixer: SLSTM) -> Oracle:
    """The package's `sLSTMLayer` on its loop in torch; of its gates the names i and f are exchanged."""
    from xlstm.blocks.slstm.layer import sLSTMLayer, sLSTMLayerConfig

    config = sLSTMLayerConfig(
        embedding_dim=mixer.d_model,
        num_heads=mixer.n_heads,
        conv1d_kernel_size=mixer.conv1d.kernel_size[0],
        backend="vanilla",
        _block_idx=mixer.layer,
        _num_blocks=mixer.n_layers,
    )
    layer = sLSTMLayer(config).to(mixer.gain)
    names = {"igate": "fgate", "fgate": "igate", "zgate": "zgate", "ogate": "ogate"}
    gates = {f"{theirs}.weight": getattr(mixer, ours) for ours, theirs in names.items()}
    recurrent = mixer.recurrent.mT  # (H, 4 D, D)
    bias = mixer.bias.unflatten(1, (4, -1)).transpose(0, 1).flatten()  # by gates, then by heads
    cell = {"slstm_cell._recurrent_kernel_": recurrent, "slstm_cell._bias_": bias}
    layer.load_state_dict(gates | cell | {"group_norm.weight": mixer.gain - 1} | _convolution(mixer))
    return Oracle("xlstm sLSTMLayer", layer)


@oracle_of(GatedMLP)
def package_mlp(mixer: GatedMLP) -> Oracle:
    """The package's `GatedFeedForward`."""
    from xlstm.components.feedforward import FeedForwardConfig, GatedFeedForward

    config = FeedForwardConfig(embedding_dim=mixer.d_model, _num_blocks=mixer.n_layers)
    config._proj_up_dim = mixer.d_ff
    mlp = GatedFeedForward(config).to(mixer.proj_up.weight)
    mlp.load_state_dict(mixer.state_dict())
    return Oracle("xlstm GatedFeedForward", mlp)


def _convolution(mixer: MLSTM | SLSTM) -> dict[str, torch.Tensor]:
    return {f"conv1d.conv.{name}": value for name, value in mixer.conv1d.state_dict().items()}
