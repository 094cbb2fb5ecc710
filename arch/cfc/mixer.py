"""CfC, the closed-form continuous-time cell (Hasani et al., Nature Machine Intelligence 4, 2022, arXiv:2106.13898)."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from arch.cfc.scan import CFC_SCAN, CFC_STEP, HEADS, Cell, Mode
from harness.config.ranges import Dimension, Factor
from harness.model.mixer import UNTIMED, Call, Flops, ProjectedMixer
from harness.model.state import State
from harness.ops.registry import Choice


class CfC(ProjectedMixer):
    """The hidden state at time t in closed form, after a backbone that sees the token and the state, then a projection.

    z = backbone([x, h]), a, b, t_a, t_b linear in z (signs and names of the authors' package, ncps):
    default: h' = (1 - s) tanh(a) + s tanh(b), s = sigmoid(t_a elapsed + t_b); no_gate: h' = tanh(a) + s tanh(b);
    pure: h' = A - A a exp(-elapsed (|w_tau| + |a|)).
    expand: d_inner / d_model. backbone_units: None for d_model. Weights start as ncps starts them (Xavier uniform,
    which reaches A and w_tau too: at w_tau = 0 the gradient of |w_tau| would vanish).
    """

    def __init__(
        self,
        d_model: int,
        layer: int = 0,
        n_layers: int = 1,
        *,
        mode: Mode = "default",
        expand: Factor = 1,
        backbone_units: Dimension | None = None,
        backbone_layers: Factor = 1,
        backbone_activation: Literal["lecun_tanh", "tanh", "relu", "gelu", "silu"] = "lecun_tanh",
        kernel: Choice = "auto",
        d_out: int | None = None,
    ):
        super().__init__(d_model, layer, n_layers, d_out)
        self.mode, self.activation, self.kernel = mode, backbone_activation, kernel
        self.d_inner, self.units = expand * d_model, backbone_units or d_model
        # The first layer's product is split: the token's part leaves the loop over time.
        self.input = nn.Linear(d_model, self.units)
        self.recurrent = nn.Parameter(torch.empty(self.units, self.d_inner))
        self.hidden = nn.ModuleList(nn.Linear(self.units, self.units) for _ in range(backbone_layers - 1))
        self.heads = nn.Linear(self.units, len(HEADS[mode]) * self.d_inner)
        self.out = nn.Linear(self.d_inner, self.d_out, bias=False)
        self.scale_projection()
        self.w_tau = self.amplitude = None
        if mode == "pure":
            self.w_tau = nn.Parameter(torch.empty(self.d_inner))
            self.amplitude = nn.Parameter(torch.empty(self.d_inner))
        self._initialise()

    def _initialise(self) -> None:
        """Xavier uniform for each matrix as ncps holds it: [input, recurrent] joined, the heads apart."""
        bound = (6 / (self.units + self.d_model + self.d_inner)) ** 0.5
        nn.init.uniform_(self.input.weight, -bound, bound)
        nn.init.uniform_(self.recurrent, -bound, bound)
        for weight in [*(layer.weight for layer in self.hidden), *self.heads.weight.chunk(len(HEADS[self.mode]))]:
            nn.init.xavier_uniform_(weight)
        if self.mode == "pure":
            for vector in (self.w_tau, self.amplitude):
                nn.init.xavier_uniform_(vector[None])
                vector._no_weight_decay = True
        for bias in (self.input.bias, self.heads.bias, *(layer.bias for layer in self.hidden)):
            bias._no_weight_decay = True

    def _cell(self, merged: bool) -> Cell:
        """The recurrence's weights; `merged` adds up the two heads of the gate, which unit steps of time allow."""
        weight, bias = self.heads.weight, self.heads.bias
        if merged and self.mode != "pure":
            split = 2 * self.d_inner
            weight = torch.cat([weight[:split], sum(weight[split:].chunk(2))])
            bias = torch.cat([bias[:split], sum(bias[split:].chunk(2))])
        layers = [(layer.weight, layer.bias) for layer in self.hidden]
        return Cell(self.mode, self.activation, self.recurrent, layers, (weight, bias), self.w_tau, self.amplitude)

    def _scan(self, device: torch.device, dtype: torch.dtype) -> Callable:
        facts = {"mode": self.mode, "activation": self.activation, "layers": len(self.hidden) + 1}
        return CFC_SCAN.choose(self.kernel, device, dtype, units=self.units, d_inner=self.d_inner, **facts)

    @property
    def projection(self) -> nn.Linear:
        return self.out

    def mix(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        u = self.input(x).to(self.recurrent.dtype).transpose(0, 1)  # (B, T, units) -> (T, B, units)
        h = state["h"] if state else u.new_zeros(x.shape[0], self.d_inner)
        times = None if call.elapsed is None else call.elapsed.to(u.dtype).t()[..., None]  # (B, T) -> (T, B, 1)
        with torch.autocast(u.device.type, enabled=False):
            h = self._scan(u.device, u.dtype)(self._cell(merged=call.elapsed is None), u, h, times)  # (T, B, d_inner)
        return h.transpose(0, 1), {"h": h[-1].clone()}  # a view would keep every h alive

    def mix_step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        u = self.input(x_t).to(self.recurrent.dtype)
        time = torch.ones_like(u[:, :1]) if call.elapsed is None else call.elapsed.to(u.dtype)[:, None]  # (B, 1)
        with torch.autocast(u.device.type, enabled=False):
            h = self._cell(merged=False).step(u, state["h"], time)
        return h, {"h": h}

    def frozen_step(self) -> Callable:
        weight = self.recurrent
        with torch.no_grad():
            make = CFC_STEP.choose(self.kernel, weight.device, weight.dtype)
            run = make((self.input.weight, self.input.bias), self._cell(merged=True), self.out.weight)

        def step(x_t: Tensor, state: State, call: Call = UNTIMED):
            if call.elapsed is not None:  # its heads are not merged
                return self.step(x_t, state, call)
            y, h = run(x_t, state["h"])
            return y, {"h": h}

        return step

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> State:
        return {"h": torch.zeros(batch, self.d_inner, device=device, dtype=dtype)}

    def flops_per_token(self, context: int) -> Flops:
        heads = len(HEADS[self.mode])
        products = self.units * (self.d_model + self.d_inner * (1 + heads) + self.units * len(self.hidden))
        matmul = 2 * (products + self.d_inner * self.d_out)
        other = 8 * self.units * (1 + len(self.hidden)) + (heads + 16) * self.d_inner
        return Flops(matmul, other)
