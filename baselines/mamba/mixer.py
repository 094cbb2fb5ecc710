"""Mamba-1 (Gu and Dao 2023, arXiv:2312.00752): a gated block around a short convolution and a selective scan."""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from baselines.mamba.scan import SELECTIVE_SCAN, scan_step
from harness.errors import ConfigError
from harness.model.mixer import UNTIMED, Call, Flops, Mixer, step_operation
from harness.model.state import State
from harness.ops.causal_conv.conv import CAUSAL_CONV, step_reference
from harness.ops.registry import Choice

DT_FLOOR = 1e-4


class Mamba(Mixer):
    """x, z = in_proj(u); x = silu(conv1d(x)); y = scan(x); out_proj(y * silu(z)).

    Parameters have the names and shapes of mamba-ssm's `Mamba`, so that its state dicts load. d_state: N, states per
    channel. d_conv: taps of the convolution. expand: d_inner / d_model. dt_rank: rank of the step size's projection,
    "auto" for d_model / 16. dt_min, dt_max: range of the initial step sizes. The state: `conv`, the last d_conv - 1
    inputs of the convolution (B, d_conv - 1, d_inner), and `ssm` (B, d_inner, d_state), float32 or wider.
    """

    def __init__(
        self,
        d_model: int,
        layer: int = 0,
        n_layers: int = 1,
        *,
        d_state: PositiveInt = 16,
        d_conv: PositiveInt = 4,
        expand: PositiveInt = 2,
        dt_rank: PositiveInt | Literal["auto"] = "auto",
        dt_min: PositiveFloat = 0.001,
        dt_max: PositiveFloat = 0.1,
        kernel: Choice = "auto",
    ):
        super().__init__(d_model, layer, n_layers)
        if dt_min > dt_max:
            raise ConfigError(
                f"model.mixer.dt_min={dt_min} exceeds model.mixer.dt_max={dt_max}.",
                "dt_min <= dt_max, the range of initial step sizes.",
                "swap them, or leave both out for 0.001 and 0.1.",
            )
        self.d_state, self.d_conv, self.expand = d_state, d_conv, expand
        self.d_inner, self.kernel = expand * d_model, kernel
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.A_log = nn.Parameter(torch.arange(1, d_state + 1.0).log().repeat(self.d_inner, 1))  # S4D-real
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.A_log._no_weight_decay = self.D._no_weight_decay = True
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)
        self._reset(dt_min, dt_max)

    @torch.no_grad()
    def _reset(self, dt_min: float, dt_max: float) -> None:
        """Step sizes log-uniform in [dt_min, dt_max], as mamba-ssm; the output smaller by sqrt(n_layers), as there."""
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        dt = torch.exp(torch.empty_like(self.D).uniform_(math.log(dt_min), math.log(dt_max))).clamp(min=DT_FLOOR)
        self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        self.out_proj.weight.div_(math.sqrt(self.n_layers))

    def forward(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        h = None if state is None else state["ssm"]
        state = state or self.init_state(x.shape[0], device=x.device, dtype=x.dtype)
        x, z = self.in_proj(x).chunk(2, dim=-1)  # (B, T, d_inner) each
        convolve = CAUSAL_CONV.choose(self.kernel, x.device, x.dtype)
        x, conv = convolve(x, *self._taps(), state["conv"], True)
        x, dt, B, C = self._select(x)
        scan = SELECTIVE_SCAN.choose(self.kernel, x.device, x.dtype, d_state=self.d_state, carried=h is not None)
        y, ssm = scan(x, dt, *self._constants(x.dtype, B, C), None if h is None else h.to(x.dtype))
        return self.out_proj(y.to(z) * F.silu(z)), {"conv": conv, "ssm": ssm}

    def step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        x, z = self.in_proj(x_t).chunk(2, dim=-1)  # (B, d_inner) each
        x, conv = step_reference(x, *self._taps(), state["conv"], True)
        x, dt, B, C = self._select(x)
        y, ssm = scan_step(x, dt, *self._constants(x.dtype, B, C), state["ssm"])
        return self.out_proj(y.to(z) * F.silu(z)), {"conv": conv, "ssm": ssm}

    def frozen_step(self) -> Callable:
        return MAMBA_STEP.choose(self.kernel, self.D.device, self.D.dtype)(self)

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> State:
        wide = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        return {
            "conv": torch.zeros(batch, self.d_conv - 1, self.d_inner, device=device, dtype=dtype),
            "ssm": torch.zeros(batch, self.d_inner, self.d_state, device=device, dtype=wide),
        }

    def flops_per_token(self, context: int) -> Flops:
        linear = (self.in_proj, self.x_proj, self.dt_proj, self.out_proj)
        scan = self.d_inner * (7 * self.d_state + 3)  # exponent, exp, decay, input and read-out of each state; D x
        others = self.d_inner * (2 * self.d_conv + 1 + 2 * 5 + 4)  # convolution, two silu and the gate, softplus
        return Flops(matmul=2 * sum(layer.weight.numel() for layer in linear), other=scan + others)

    def _taps(self) -> tuple[Tensor, Tensor]:
        """The convolution's weight (d_conv, d_inner) and bias (d_inner)."""
        return self.conv1d.weight.squeeze(1).t(), self.conv1d.bias

    def _select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (.., d_inner) -> x, dt (.., d_inner), B, C (.., d_state), float32 or wider."""
        wide = torch.promote_types(x.dtype, torch.float32)
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        dt = F.linear(dt, self.dt_proj.weight).to(wide) + self.dt_proj.bias.to(wide)
        return x.to(wide), F.softplus(dt), B.to(wide), C.to(wide)

    def _constants(self, dtype: torch.dtype, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A, B, C, D as the scan takes them."""
        return -torch.exp(self.A_log.to(dtype)), B, C, self.D.to(dtype)


MAMBA_STEP = step_operation("mamba_step", "baselines.mamba.step_numba:mamba_step")
