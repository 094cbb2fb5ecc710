"""The oracle of CfC: the authors' own package, ncps."""

import torch
from torch import Tensor

from arch.cfc.mixer import CfC
from arch.cfc.scan import HEADS
from harness.checks.oracles import Oracle, oracle_of


@oracle_of(CfC)
def ncps_cell(mixer: CfC) -> Oracle:
    """ncps' cell with these weights, called token by token with times (B, 1)."""
    from ncps.torch.cfc_cell import CfCCell

    size = (mixer.d_model, mixer.d_inner, mixer.mode, mixer.activation, mixer.units)
    cell = CfCCell(*size, backbone_layers=len(mixer.hidden) + 1).to(mixer.recurrent)
    cell.load_state_dict(ncps_weights(mixer))

    def forward(x: Tensor) -> Tensor:
        h, times, outputs = x.new_zeros(x.shape[0], mixer.d_inner), x.new_ones(x.shape[0], 1), []
        for x_t in x.unbind(1):
            h, _ = cell(x_t, h, times)
            outputs.append(h)
        return mixer.out(torch.stack(outputs, dim=1))

    return Oracle("ncps.torch.CfCCell", forward, tolerance=1e-5)


def ncps_weights(mixer: CfC) -> dict[str, Tensor]:
    """The mixer's weights under ncps' names."""
    names = {"a": "ff1", "b": "ff2", "t_a": "time_a", "t_b": "time_b"}
    first = torch.cat([mixer.input.weight, mixer.recurrent], dim=1)
    weights = {"backbone.0.weight": first, "backbone.0.bias": mixer.input.bias}
    for index, layer in enumerate(mixer.hidden, start=1):
        weights |= {f"backbone.{2 * index}.{name}": value for name, value in layer.named_parameters()}
    for part, rows in mixer.heads.named_parameters():
        chunks = zip(HEADS[mixer.mode], rows.chunk(len(HEADS[mixer.mode])), strict=True)
        weights |= {f"{names[head]}.{part}": chunk for head, chunk in chunks}
    if mixer.mode == "pure":
        weights |= {"w_tau": mixer.w_tau[None], "A": mixer.amplitude[None]}
    return weights
