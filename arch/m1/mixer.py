"""M1's mixer: the streaming core and the fast weight side by side, as an adapter or in attention's place (ARR)."""

import copy
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from arch.m1.core import Selective, StreamingCore
from arch.m1.fast_weight import FastWeight, Rule
from harness.config.ranges import Dimension, Length, Scale, StepSize
from harness.model.mixer import UNTIMED, Call, Flops, Mixer
from harness.model.state import State
from harness.ops.registry import Choice


class MTv2s(Mixer):
    """y = s core(x) + s_f fast_weight(x): AwareLiquid/M1's MTResidualAdapterV2, or its MTRecurrentMixer.

    scale: where s and s_f, which are learned, start: an adapter beside attention; None: s = 1 and s_f = sigmoid(g), g
    from 0, the mixer that replaces attention (ARR). n_filaments, n_scales, d_filament: P, S, D of the core; D None for
    d_model / P, rounded up. rank: of its projections; None for 3/16 of d_model, rounded up. fast_weight: its rule, off
    for none. d_memory, n_heads: its size. chunk: tokens of a chunk; it changes no number.

    The authors' sizes for TinyLlama (d_model 2,048): P 13, S 5, and D 64, rank 128, d_memory 64 as an adapter or D 96,
    rank 384, d_memory 96 in attention's place. The state: h (B, P, S, D), F (B, n_heads, d_memory, d_memory) and
    z (B, n_heads, d_memory), float32 or wider. Where it replaces attention, both projections into the residual
    stream start smaller by depth, as every mixer's; the adapter's are small by its scale.
    """

    def __init__(
        self,
        d_model: int,
        layer: int = 0,
        n_layers: int = 1,
        *,
        scale: Scale | None = None,
        selective: Selective = "mamba",
        n_filaments: Dimension = 13,
        n_scales: Dimension = 5,
        d_filament: Dimension | None = None,
        rank: Dimension | None = None,
        tau_min: StepSize = 0.1,
        tau_max: StepSize = 100.0,
        fast_weight: Rule | Literal["off"] = "outer",
        d_memory: Dimension = 64,
        n_heads: Dimension = 1,
        chunk: Length = 64,
        kernel: Choice = "auto",
    ):
        super().__init__(d_model, layer, n_layers)
        D, rank = d_filament or -(-d_model // n_filaments), rank or -(-3 * d_model // 16)
        self.core = StreamingCore(d_model, n_filaments, D, n_scales, rank, selective, tau_min, tau_max, kernel)
        self.fast_weight = self.scale = self.fw_scale = self.fw_gate = None
        if scale is not None:
            self.scale = nn.Parameter(torch.tensor(float(scale)))
        if fast_weight != "off":
            self.fast_weight = FastWeight(d_model, d_memory, n_heads, fast_weight, chunk=chunk, kernel=kernel)
            if scale is None:
                self.fw_gate = nn.Parameter(torch.zeros(()))
            else:
                self.fw_scale = nn.Parameter(torch.tensor(float(scale)))
        if scale is None:
            last = [self.core.out_b, *([] if self.fast_weight is None else [self.fast_weight.W_o])]
            with torch.no_grad():
                for projection in last:
                    projection.weight.div_(math.sqrt(2 * n_layers))

    def forward(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        state = state or self.init_state(len(x), 0, x.device)
        y, h = self.core(x, state["h"], call.elapsed)
        return self._joined(y, h, self.fast_weight and self.fast_weight(x, state["F"], state["z"]))

    def _joined(self, y: Tensor, h: Tensor, read: tuple[Tensor, Tensor, Tensor] | None) -> tuple[Tensor, State]:
        """What the core and the fast weight give, the latter as (r, F, z), and their states in one."""
        y = y if self.scale is None else self.scale * y
        if read is None:
            return y, {"h": h}
        share = torch.sigmoid(self.fw_gate) if self.fw_scale is None else self.fw_scale
        return torch.addcmul(y, share.to(y), read[0]), {"h": h, "F": read[1], "z": read[2]}

    def step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        y, h = self.core.step(x_t, state["h"], call.elapsed)
        y, after = (1.0 if self.scale is None else self.scale) * y, {"h": h}
        if self.fast_weight is not None:
            r, after["F"], after["z"] = self.fast_weight.step(x_t, state["F"], state["z"])
            y = y + (self.fw_gate.sigmoid() if self.scale is None else self.fw_scale) * r
        return y, after

    def frozen_step(self) -> Callable:
        """The whole sequence's way with one token, and the maps made once: half of the operations of `step`."""
        mixer = copy.deepcopy(self).requires_grad_(False)
        maps, memory = mixer.core.maps(), mixer.fast_weight

        def step(x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
            elapsed = None if call.elapsed is None else call.elapsed.unsqueeze(1)
            y, h = mixer.core(x_t.unsqueeze(1), state["h"], elapsed, maps)
            return mixer._joined(y.squeeze(1), h, memory and memory.step(x_t, state["F"], state["z"]))

        return step

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> State:
        dtype = torch.promote_types(dtype or self.core.blend.dtype, torch.float32)
        state = {"h": self.core.init_state(batch, device, dtype)}
        if self.fast_weight is not None:
            state["F"], state["z"] = self.fast_weight.init_state(batch, device, dtype)
        return state

    def flops_per_token(self, context: int) -> Flops:
        flops = self.core.flops() + Flops(other=self.d_model)
        return flops if self.fast_weight is None else flops + self.fast_weight.flops() + Flops(other=2 * self.d_model)
