"""The wired CfC of ncps: closed-form liquid neurons in the circuits of Lechner et al. (2020), and an LSTM's memory."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch.cfc.scan import HEADS, Mode
from arch.ncp.layers import WIRED_CFC_SCAN, WIRED_CFC_STEP, Layers
from arch.ncp.wiring import auto_ncp
from harness.config.ranges import Dimension, Fraction, Seed
from harness.model.mixer import UNTIMED, Call, Flops, ProjectedMixer
from harness.model.state import State
from harness.ops.registry import Choice


class WiredCell(nn.Module):
    """The weights of one layer: a CfC cell without a backbone whose heads a and b see what the wiring lets them.

    mask: (n, sources + n), 1 where a head of a neuron sees a source or a neuron of its own layer. wired: what a and b
    weigh, (heads, ones of the mask); gates: t_a and t_b, which no wiring masks in ncps. Weights start as there, Xavier
    uniform for each head as a whole matrix, biases as torch's linear layers.
    """

    def __init__(self, mask: np.ndarray, mode: Mode):
        super().__init__()
        n, width = mask.shape
        self.mode, gates = mode, len(HEADS[mode]) - 2 if mode != "pure" else 0
        wired = len(HEADS[mode]) - gates
        rows, columns = mask.nonzero()
        self.register_buffer("places", torch.tensor(rows * width + columns), persistent=False)
        whole = torch.empty(wired + gates, n, width)
        for head in whole:
            nn.init.xavier_uniform_(head)
        self.wired = nn.Parameter(whole[:wired].flatten(1)[:, self.places].clone())
        self.gates = nn.Parameter(whole[wired:].clone()) if gates else None
        self.bias = nn.Parameter(torch.empty((wired + gates) * n).uniform_(-1, 1) / width**0.5)
        self.n, self.width = n, width

    def heads(self, merged: bool) -> tuple[Tensor, Tensor]:
        """Weight (heads x n, sources + n) and bias; `merged` adds up the gates' heads, as unit steps of time allow."""
        whole = self.wired.new_zeros(len(self.wired), self.n * self.width).index_copy(1, self.places, self.wired)
        weight, bias = whole.view(-1, self.width), self.bias
        if self.gates is not None:
            gates = self.gates.sum(0) if merged else self.gates.flatten(0, 1)
            weight = torch.cat([weight, gates])
            if merged:
                bias = torch.cat([bias[: 2 * self.n], sum(bias[2 * self.n :].chunk(2))])
        return weight, bias


class WiredCfC(ProjectedMixer):
    """x -> inputs -> [memory ->] inter -> command -> motor neurons, each layer a CfC -> projection of the motor ones.

    The cell is `ncps.torch.CfC(inputs, AutoNCP(units, motors, sparsity, seed), mixed_memory=..., mode=...)`: see
    arch/ncp/layers.py. What the wiring masks has no parameters. The wiring follows from the options alone, and is the
    same in every layer of the model.
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
        mode: Mode = "default",
        mixed_memory: bool = True,
        kernel: Choice = "auto",
    ):
        super().__init__(d_model, layer, n_layers)
        wiring = auto_ncp(inputs, units, motors, sparsity, seed)
        self.units, self.motors, self.sparsity, self.seed = units, motors, sparsity, seed
        self.mode, self.kernel = mode, kernel
        self.in_proj = nn.Linear(d_model, inputs)
        self.cells = nn.ModuleList(WiredCell(mask, mode) for mask in wiring.masks())
        self.memory_input = self.memory = self.w_tau = self.amplitude = None
        if mixed_memory:
            self.memory_input = nn.Linear(inputs, 4 * units)
            nn.init.xavier_uniform_(self.memory_input.weight)
            nn.init.uniform_(self.memory_input.bias, -0.1, 0.1)
            self.memory = nn.Parameter(torch.empty(4 * units, units))
            if not self.memory.is_meta:  # sizing only counts there
                nn.init.orthogonal_(self.memory)
        if mode == "pure":  # Xavier uniform as ncps': each layer's is a row of its neurons
            bounds = torch.tensor([(6 / (1 + cell.n)) ** 0.5 for cell in self.cells for _ in range(cell.n)])
            self.w_tau = nn.Parameter(torch.empty(units).uniform_(-1, 1) * bounds)
            self.amplitude = nn.Parameter(torch.empty(units).uniform_(-1, 1) * bounds)
        self.out_proj = nn.Linear(motors, self.d_out, bias=False)
        self.scale_projection()

    def _weights(self, merged: bool) -> tuple[tuple, Layers]:
        """The products of a token, (weight, bias) for the memory and for the inter layer, and the layers.

        merged: whether the gates' heads are added up.
        """
        (first, bias), *others = [cell.heads(merged) for cell in self.cells]
        inputs = self.in_proj.out_features
        weights = first[:, inputs:], *(weight for weight, _ in others)
        layers = Layers(self.mode, weights, tuple(b for _, b in others), self.memory, self.w_tau, self.amplitude)
        entry = None if self.memory_input is None else (self.memory_input.weight, self.memory_input.bias)
        return (entry, (first[:, :inputs], bias)), layers

    @property
    def projection(self) -> nn.Linear:
        return self.out_proj

    def mix(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        state = state or self.init_state(len(x), 0, x.device, self.out_proj.weight.dtype)
        x = self.in_proj(x).to(self.out_proj.weight.dtype)
        time = None if call.elapsed is None else call.elapsed.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            entry, layers = self._weights(merged=time is None)
            seen = tuple(None if pair is None else F.linear(x, *pair) for pair in entry)
            run = WIRED_CFC_SCAN.choose(self.kernel, x.device, x.dtype)
            h, c = run(layers, seen, state["h"], state.get("c"), time)
        return h[..., -self.motors :], self._state(h[:, -1].clone(), c)  # a view would keep every h alive

    def mix_step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        x = self.in_proj(x_t).to(self.out_proj.weight.dtype)
        time = torch.ones_like(x[:, :1]) if call.elapsed is None else call.elapsed.to(x.dtype)[:, None]
        with torch.autocast(x.device.type, enabled=False):
            entry, layers = self._weights(merged=False)
            seen = tuple(None if pair is None else F.linear(x, *pair) for pair in entry)
            h, c = layers.step(seen, state["h"], state.get("c"), time)
        return h[:, -self.motors :], self._state(h, c)

    @staticmethod
    def _state(h: Tensor, c: Tensor | None) -> State:
        return {"h": h} if c is None else {"h": h, "c": c}

    @torch.no_grad()
    def frozen_step(self) -> Callable:
        make = WIRED_CFC_STEP.choose(self.kernel, self.out_proj.weight.device, self.out_proj.weight.dtype)
        run, motors = make(*self._weights(merged=True)), self.motors
        into, out = (self.in_proj.weight.clone(), self.in_proj.bias.clone()), self.out_proj.weight.clone()

        def step(x_t: Tensor, state: State, call: Call = UNTIMED):
            if call.elapsed is not None:  # its heads are not merged
                return self.step(x_t, state, call)
            h, c = run(F.linear(x_t, *into), state["h"], state.get("c"))
            return F.linear(h[:, -motors:], out), self._state(h, c)

        return step

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> State:
        keys = ("h",) if self.memory is None else ("h", "c")
        return {key: torch.zeros(batch, self.units, device=device, dtype=dtype) for key in keys}

    def flops_per_token(self, context: int) -> Flops:
        """Products are dense, whatever the wiring masks."""
        inputs, heads = self.in_proj.out_features, len(HEADS[self.mode])
        memory = 0 if self.memory is None else 4 * self.units * (inputs + self.units)
        cells = sum(heads * cell.n * cell.width for cell in self.cells)
        matmul = 2 * (self.d_model * inputs + memory + cells + self.motors * self.d_out)
        return Flops(matmul, self.units * (heads + 16 + (0 if self.memory is None else 28)))
