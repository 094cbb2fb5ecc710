"""The channel mixer of the backbone: SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from harness.model.mixer import UNTIMED, Call, Flops, Mixer
from harness.model.state import State
from harness.ops.elementwise.swiglu import GEGLU, GEGLU_STEP, SWIGLU, SWIGLU_STEP
from harness.ops.registry import Choice

GATES = {"silu": (SWIGLU, SWIGLU_STEP), "gelu": (GEGLU, GEGLU_STEP)}


class SwiGLU(Mixer):
    """W_down(silu(W_gate x) * W_up x), memoryless: its state is empty. activation=gelu makes it GeGLU.

    Weights start as torch's linear layers do. residual_scaling: the one into the residual stream starts smaller by
    sqrt(2 n_layers), for there are two such branches a layer (GPT-2: Radford et al. 2019, section 2.3).
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        layer: int = 0,
        n_layers: int = 1,
        *,
        activation: Literal["silu", "gelu"] = "silu",
        residual_scaling: bool = True,
        kernel: Choice = "auto",
    ):
        super().__init__(d_model, layer, n_layers)
        self.d_ff, self.kernel = d_ff, kernel
        self.gate, self.one_token = GATES[activation]
        self.gate_up = nn.Linear(d_model, 2 * d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)
        if residual_scaling:
            with torch.no_grad():
                self.down.weight.div_(math.sqrt(2 * n_layers))

    def forward(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        gate_up = self.gate_up(x)
        return self.down(self.gate.choose(self.kernel, gate_up.device, gate_up.dtype)(gate_up)), {}

    def step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        return self.forward(x_t)

    def frozen_step(self) -> Callable:
        weights = self.gate_up.weight, self.down.weight
        run = self.one_token.choose(self.kernel, weights[0].device, weights[0].dtype)(*weights)
        return lambda x_t, state, call=UNTIMED: (run(x_t), state)

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> State:
        return {}

    def flops_per_token(self, context: int) -> Flops:
        return Flops(matmul=6 * self.d_model * self.d_ff, other=6 * self.d_ff)
