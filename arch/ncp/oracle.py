"""The oracles of the wired cells: the authors' own package, ncps."""

import torch
from torch import Tensor

from arch.cfc.scan import HEADS
from arch.ncp.cfc import WiredCfC
from arch.ncp.ltc import WiredLTC
from harness.checks.oracles import Oracle, oracle_of


@oracle_of(WiredLTC)
def ncps_ltc(mixer: WiredLTC) -> Oracle:
    """ncps' layer with its own wiring and these weights."""
    from ncps.torch import LTC

    layer = LTC(mixer.in_proj.out_features, ncps_wiring(mixer), ode_unfolds=mixer.ode_unfolds).to(mixer.cm)
    layer.rnn_cell.load_state_dict(ltc_weights(mixer, layer.rnn_cell.state_dict()))

    def forward(x: Tensor) -> Tensor:
        seen = torch.nn.functional.linear(x, mixer.in_proj.weight)  # the bias is the layer's
        return mixer.out_proj(layer(seen, seen.new_zeros(len(x), mixer.units))[0])

    return Oracle("ncps.torch.LTC, AutoNCP", forward, tolerance=1e-5)


def ncps_wiring(mixer):
    """The wiring that ncps makes of a mixer's options."""
    from ncps.wirings import AutoNCP

    return AutoNCP(mixer.units, mixer.motors, mixer.sparsity, mixer.seed)


def ltc_weights(mixer: WiredLTC, of_ncps: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mixer's weights under ncps' names; where there is no synapse, what ncps has there, behind its mask."""
    weights = dict(of_ncps) | {name: getattr(mixer, name) for name in ("gleak", "vleak", "cm")}
    weights |= {"input_b": mixer.in_proj.bias, "output_b": mixer.output_bias}
    for prefix, synapses in (("sensory_", mixer.sensory), ("", mixer.recurrent)):
        for name in ("w", "mu", "sigma", "erev"):
            dense = of_ncps[prefix + name].clone()
            dense[synapses.source, synapses.target] = getattr(synapses, name)
            weights[prefix + name] = dense
    return weights


@oracle_of(WiredCfC)
def ncps_cfc(mixer: WiredCfC) -> Oracle:
    """ncps' layer with its own wiring and these weights."""
    layer = ncps_cfc_layer(mixer)

    def forward(x: Tensor) -> Tensor:
        x = mixer.in_proj(x)
        h, c = x.new_zeros(2, len(x), mixer.units)
        return mixer.out_proj(layer(x, h if mixer.memory is None else (h, c))[0])

    return Oracle("ncps.torch.CfC, AutoNCP", forward, tolerance=1e-5)


def ncps_cfc_layer(mixer: WiredCfC) -> torch.nn.Module:
    """ncps' layer of a mixer's options, with its weights."""
    from ncps.torch import CfC

    options = {"mixed_memory": mixer.memory is not None, "mode": mixer.mode}
    layer = CfC(mixer.in_proj.out_features, ncps_wiring(mixer), **options)
    layer.load_state_dict(cfc_weights(mixer, layer.state_dict()))
    return layer.to(mixer.out_proj.weight)


def cfc_weights(mixer: WiredCfC, of_ncps: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mixer's weights under ncps' names; what is masked is zero."""
    names, weights, start = {"a": "ff1", "b": "ff2", "t_a": "time_a", "t_b": "time_b"}, dict(of_ncps), 0
    for number, cell in enumerate(mixer.cells):
        under, heads = f"rnn_cell.layer_{number}.", HEADS[mixer.mode]
        for head, weight, bias in zip(heads, *(part.chunk(len(heads)) for part in cell.heads(False)), strict=True):
            weights |= {f"{under}{names[head]}.weight": weight, f"{under}{names[head]}.bias": bias}
        if mixer.mode == "pure":
            own = slice(start, start + cell.n)
            weights |= {f"{under}w_tau": mixer.w_tau[None, own], f"{under}A": mixer.amplitude[None, own]}
        start += cell.n
    if mixer.memory is not None:
        weights |= {f"lstm.input_map.{name}": value for name, value in mixer.memory_input.named_parameters()}
        weights["lstm.recurrent_map.weight"] = mixer.memory
    return weights
