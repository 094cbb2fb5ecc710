"""The oracles of the wired cells: the authors' own package, ncps."""

import torch
from torch import Tensor

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
