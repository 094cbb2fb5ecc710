"""The oracle of minGRU: Phil Wang's minGRU-pytorch, on which the authors' code builds."""

import torch.nn.functional as F
from torch import Tensor

from baselines.mingru.mixer import MinGRU
from harness.checks.oracles import Oracle, oracle_of


@oracle_of(MinGRU)
def mingru_pytorch(mixer: MinGRU) -> Oracle:
    """Its scan over logarithms with our linear layers, which have the authors' biases, behind torch's convolution."""
    from minGRU_pytorch import minGRU

    cell = minGRU(mixer.d_model, expansion_factor=mixer.d_inner / mixer.d_model)
    cell.to_hidden_and_gate, cell.to_out = mixer.hidden_and_gate, mixer.out

    def forward(x: Tensor) -> Tensor:
        if mixer.d_conv:
            padded = F.pad(x.transpose(1, 2), (mixer.d_conv - 1, 0))
            filters = mixer.conv_weight.t().unsqueeze(1)
            x = x + F.conv1d(padded, filters, mixer.conv_bias, groups=mixer.d_model).transpose(1, 2)
        return cell(x)

    return Oracle("minGRU_pytorch.minGRU", forward)
