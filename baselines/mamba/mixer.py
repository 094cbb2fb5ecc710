"""The recurrence of Mamba-1 (Gu and Dao 2023, arXiv:2312.00752): a selective state-space model, S6.

Mamba itself is this recurrence in a gated block (harness/model/block.py), which holds its input projection, short
convolution and gate: conf/model/mamba.yaml.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.mamba.scan import SELECTIVE_SCAN, scan_step
from harness.config.errors import ConfigError
from harness.config.ranges import Dimension, StepSize
from harness.model.block import Gated
from harness.model.mixer import UNTIMED, Call, Flops, Mixer, ProjectedMixer, step_operation
from harness.model.state import State
from harness.ops.registry import Choice
from harness.ops.samples import Draw, Sample, Samples, randomised

DT_FLOOR = 1e-4


class Selective(ProjectedMixer):
    """dt, B, C = x_proj(x); y = scan(x, softplus(dt_proj(dt)), A, B, C) + D x; out_proj(y).

    Parameters have the names and shapes that they have in mamba-ssm's `Mamba`. d_state: N, states per channel. dt_rank:
    rank of the step size's projection, "auto" for a 16th of the model's width. dt_min, dt_max: range of the initial
    step sizes. The state: `ssm` (B, d_model, d_state), float32 or wider.
    """

    def __init__(
        self,
        d_model: int,
        layer: int = 0,
        n_layers: int = 1,
        *,
        d_state: Dimension = 16,
        dt_rank: Dimension | Literal["auto"] = "auto",
        dt_min: StepSize = 0.001,
        dt_max: StepSize = 0.1,
        kernel: Choice = "auto",
        d_out: int | None = None,
    ):
        super().__init__(d_model, layer, n_layers, d_out)
        if dt_min > dt_max:
            raise ConfigError(
                f"model.mixer.dt_min={dt_min} exceeds model.mixer.dt_max={dt_max}.",
                "dt_min <= dt_max, the range of initial step sizes.",
                "swap them, or leave both out for 0.001 and 0.1.",
            )
        self.d_state, self.kernel = d_state, kernel
        self.dt_rank = math.ceil(self.d_out / 16) if dt_rank == "auto" else dt_rank
        self.x_proj = nn.Linear(d_model, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, d_model)
        self.A_log = nn.Parameter(torch.arange(1, d_state + 1.0).log().repeat(d_model, 1))  # S4D-real
        self.D = nn.Parameter(torch.ones(d_model))
        self.A_log._no_weight_decay = self.D._no_weight_decay = True
        self.out_proj = nn.Linear(d_model, self.d_out, bias=False)
        self._reset(dt_min, dt_max)

    @torch.no_grad()
    def _reset(self, dt_min: float, dt_max: float) -> None:
        """Step sizes log-uniform in [dt_min, dt_max], as mamba-ssm; the output smaller by depth, as there."""
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        dt = torch.exp(torch.empty_like(self.D).uniform_(math.log(dt_min), math.log(dt_max))).clamp(min=DT_FLOOR)
        self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        self.scale_projection()

    @property
    def projection(self) -> nn.Linear:
        return self.out_proj

    def mix(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        h, given = None if state is None else state["ssm"], x.dtype
        x, dt, B, C = self._select(x)
        scan = SELECTIVE_SCAN.choose(self.kernel, x.device, x.dtype, d_state=self.d_state, carried=h is not None)
        y, ssm = scan(x, dt, *self._constants(x.dtype, B, C), None if h is None else h.to(x.dtype))
        return y.to(given), {"ssm": ssm}

    def mix_step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        x, dt, B, C = self._select(x_t)
        y, ssm = scan_step(x, dt, *self._constants(x.dtype, B, C), state["ssm"])
        return y.to(x_t), {"ssm": ssm}

    def frozen_gated_step(self, block: Mixer) -> Callable:
        return MAMBA_STEP.choose(self.kernel, self.D.device, self.D.dtype)(block)

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> State:
        wide = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        return {"ssm": torch.zeros(batch, self.d_model, self.d_state, device=device, dtype=wide)}

    def flops_per_token(self, context: int) -> Flops:
        linear = (self.x_proj, self.dt_proj, self.out_proj)
        # exponent, exp, decay, input and read-out of each state; D x; softplus
        other = self.d_model * (7 * self.d_state + 3 + 4)
        return Flops(matmul=2 * sum(layer.weight.numel() for layer in linear), other=other)

    def _select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (.., d_model) -> x, dt (.., d_model), B, C (.., d_state), float32 or wider."""
        wide = torch.promote_types(x.dtype, torch.float32)
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        dt = F.linear(dt, self.dt_proj.weight).to(wide) + self.dt_proj.bias.to(wide)
        return x.to(wide), F.softplus(dt), B.to(wide), C.to(wide)

    def _constants(self, dtype: torch.dtype, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A, B, C, D as the scan takes them."""
        return -torch.exp(self.A_log.to(dtype)), B, C, self.D.to(dtype)


def step_sample(draw: Draw, batch=2, width=6, states=3, rank=2, taps=4) -> Sample:
    """A gated block around S6, of random weights, and one token behind a state."""
    block = randomised(Gated(partial(Selective, d_state=states, dt_rank=rank), width, d_conv=taps), draw)
    inner = block.d_inner
    state = {"conv": draw.normal(batch, taps - 1, inner), "core": {"ssm": draw.normal(batch, inner, states)}}
    return Sample((block,), token=(draw.normal(batch, width), state))


MAMBA_STEP = step_operation(
    "mamba_step",
    "baselines.mamba.step_numba:mamba_step",
    samples=Samples(
        step_sample,
        {"batch": (1, 3), "width": (1, 7, 33), "states": (1, 5, 16), "rank": (1, 3), "taps": (1, 2, 4)},
        ({}, {"taps": 1}),
    ),
)
