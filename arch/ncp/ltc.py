"""The LTC cell of ncps under a sparse wiring: liquid neurons in the circuits of Lechner et al. (2020), tens a layer."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch.ncp.neurons import NEURON_SCAN, NEURON_STEP, Neurons, Synapses
from arch.ncp.wiring import auto_ncp
from harness.config.ranges import Dimension, Fraction, Seed, Steps
from harness.model.mixer import UNTIMED, Call, Flops, ProjectedMixer
from harness.model.state import State
from harness.ops.registry import Choice


class WiredSynapses(nn.Module):
    """What is learned of the synapses of a wiring, a number each: w, mu, sigma and the reversal potential.

    wiring: -1, 0 or 1 for each source (row) and neuron (column). Weights start as in ncps, potentials at the polarity;
    w counts through softplus.
    """

    def __init__(self, wiring: np.ndarray):
        super().__init__()
        source, target = wiring.nonzero()
        self.register_buffer("source", torch.tensor(source), persistent=False)
        self.register_buffer("target", torch.tensor(target), persistent=False)
        self.w, self.mu = _uniform(len(source), 0.001, 1.0), _uniform(len(source), 0.3, 0.8)
        self.sigma = _uniform(len(source), 3.0, 8.0)
        self.erev = nn.Parameter(torch.tensor(wiring[source, target], dtype=torch.get_default_dtype()))

    def synapses(self) -> Synapses:
        """As the operations take them."""
        w = F.softplus(self.w)
        return Synapses(self.source, self.target, self.mu, self.sigma, w, w * self.erev)


class WiredLTC(ProjectedMixer):
    """x -> inputs of sensory neurons -> liquid neurons wired as an NCP -> what motor neurons show -> projection.

    The neurons are those of `ncps.torch.LTC(inputs, AutoNCP(units, motors, sparsity, seed))`: see arch/ncp/neurons.py.
    Its maps of inputs and outputs lose their scales, which would stand beside a projection, and keep their biases. A
    synapse that the wiring leaves out has no parameters. The wiring follows from the options alone, and is the same in
    every layer. Of a token's time the cell takes `ode_unfolds` steps.
    """

    def __init__(
        self,
        d_model: int,
        layer: int = 0,
        n_layers: int = 1,
        *,
        inputs: Dimension = 32,
        units: Dimension = 48,
        motors: Dimension = 14,
        sparsity: Fraction = 0.5,
        seed: Seed = 22222,
        ode_unfolds: Steps = 6,
        kernel: Choice = "auto",
    ):
        super().__init__(d_model, layer, n_layers)
        wiring = auto_ncp(inputs, units, motors, sparsity, seed)
        self.units, self.motors, self.sparsity, self.seed = units, motors, sparsity, seed
        self.ode_unfolds, self.kernel = ode_unfolds, kernel
        self.in_proj = nn.Linear(d_model, inputs)
        self.sensory, self.recurrent = WiredSynapses(wiring.sensory), WiredSynapses(wiring.recurrent)
        self.gleak, self.vleak = _uniform(units, 0.001, 1.0), _uniform(units, -0.2, 0.2)
        self.cm = _uniform(units, 0.4, 0.6)
        self.output_bias = nn.Parameter(torch.zeros(motors))
        self.out_proj = nn.Linear(motors, self.d_out, bias=False)
        self.scale_projection()

    def neurons(self) -> Neurons:
        """As the operations take them."""
        leak = F.softplus(self.gleak)
        synapses = self.sensory.synapses(), self.recurrent.synapses()
        return Neurons(self.ode_unfolds, F.softplus(self.cm), leak, leak * self.vleak, *synapses)

    @property
    def projection(self) -> nn.Linear:
        return self.out_proj

    def mix(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        seen = self.in_proj(x).to(self.cm.dtype)
        v = state["v"] if state else seen.new_zeros(x.shape[0], self.units)
        elapsed = None if call.elapsed is None else call.elapsed.to(seen.dtype)
        with torch.autocast(x.device.type, enabled=False):
            run = NEURON_SCAN.choose(self.kernel, seen.device, seen.dtype)
            v = run(self.neurons(), seen, v, elapsed)
            y = v[..., : self.motors] + self.output_bias
        return y, {"v": v[:, -1].clone()}  # a view would keep every v alive

    def mix_step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        seen = self.in_proj(x_t).to(self.cm.dtype)
        elapsed = None if call.elapsed is None else call.elapsed.to(seen.dtype)[:, None]
        with torch.autocast(x_t.device.type, enabled=False):
            neurons = self.neurons()
            v = neurons.step(neurons.sense(seen), state["v"], elapsed)
            y = v[:, : self.motors] + self.output_bias
        return y, {"v": v}

    @torch.no_grad()
    def frozen_step(self) -> Callable:
        run = NEURON_STEP.choose(self.kernel, self.cm.device, self.cm.dtype)(self.neurons())
        entry, out = (self.in_proj.weight.clone(), self.in_proj.bias.clone()), self.out_proj.weight.clone()
        offset = out @ self.output_bias

        def step(x_t: Tensor, state: State, call: Call = UNTIMED):
            if call.elapsed is not None:
                return self.step(x_t, state, call)
            v = run(F.linear(x_t, *entry), state["v"])
            return F.linear(v[:, : self.motors], out, offset), {"v": v}

        return step

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> State:
        return {"v": torch.zeros(batch, self.units, device=device, dtype=dtype)}

    def flops_per_token(self, context: int) -> Flops:
        """A synapse takes four operations for its sigmoid, two before and four after it; a neuron eight a step."""
        synapses = len(self.sensory.w) + self.ode_unfolds * len(self.recurrent.w)
        matmul = 2 * self.d_model * self.in_proj.out_features + 2 * self.motors * self.d_out
        return Flops(matmul, 10 * synapses + 8 * self.ode_unfolds * self.units)


def _uniform(size: int, low: float, high: float) -> nn.Parameter:
    return nn.Parameter(torch.empty(size).uniform_(low, high))
