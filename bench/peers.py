"""Other packages' Mamba as mixers of the backbone, and the rwkv package as a decoder: peers of the bench."""

import tempfile
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor

from baselines.mamba.oracle import transformers_in_torch
from baselines.rwkv.oracle import rwkv_package
from baselines.rwkv.weights import export_x070
from harness.model.backbone import LanguageModel
from harness.model.mixer import UNTIMED, Call, Mixer
from harness.model.state import State


class MambaPy(Mixer):
    """mambapy's MambaBlock at Mamba's own sizes, its scan the parallel one of Blelloch in torch; training only."""

    def __init__(self, d_model: int, layer: int = 0, n_layers: int = 1):
        super().__init__(d_model, layer, n_layers)
        from mambapy.mamba import MambaBlock, MambaConfig

        self.block = MambaBlock(MambaConfig(d_model=d_model, n_layers=n_layers))

    def forward(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        return self.block(x), {}


class TransformersMamba(Mixer):
    """transformers' MambaMixer at Mamba's own sizes by its fastest path: mambapy's scan on the CPU, its own on CUDA."""

    use_mambapy = True

    def __init__(self, d_model: int, layer: int = 0, n_layers: int = 1):
        super().__init__(d_model, layer, n_layers)
        from transformers import MambaConfig
        from transformers.models.mamba.modeling_mamba import MambaMixer

        config = MambaConfig(hidden_size=d_model, num_hidden_layers=n_layers, use_mambapy=self.use_mambapy)
        self.block = MambaMixer(config, layer_idx=layer)

    def forward(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        with nullcontext() if x.is_cuda else transformers_in_torch():
            return self.block(x), {}


class TransformersMambaLoop(TransformersMamba):
    """The same without mambapy and mamba-ssm: its default loop over time."""

    use_mambapy = False


def rwkv_package_decoder(model: LanguageModel) -> Callable[[int], Tensor]:
    """The rwkv package with this model's weights, in float32 on the CPU: token -> logits (V), its state carried."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        path = Path(folder) / "weights"
        torch.save(export_x070(model), path.with_suffix(".pth"))
        net = rwkv_package().RWKV_x070(model=str(path), strategy="cpu fp32")
    state = None

    def step(token: int) -> Tensor:
        nonlocal state
        logits, state = net.forward([token], state)
        return logits

    return step
