"""Mamba-2 (Dao and Gu 2024, arXiv:2405.21060, figure 6): state-space duality in a gated block of its own.

It is the gated block of Mamba-1 with two differences: B, C and the step sizes are projected beside x and pass, B and C,
through the same convolution; and what the gate leaves is normalised.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.mamba2.scan import SSD_SCAN, scan_step
from harness.config.errors import ConfigError
from harness.config.ranges import Dimension, Factor, StepSize, Taps
from harness.model.mixer import UNTIMED, Call, Flops, ProjectedMixer, step_operation
from harness.model.norm import RMSNorm
from harness.model.state import State
from harness.ops.causal_conv.conv import CAUSAL_CONV, step_reference
from harness.ops.registry import Choice
from harness.ops.samples import Draw, Sample, Samples, randomised

DT_FLOOR = 1e-4
A_RANGE = 1.0, 16.0


class Mamba2(ProjectedMixer):
    """z, xBC, dt = in_proj(u); x, B, C = silu(conv1d(xBC)); y = ssd(x, softplus(dt + dt_bias), A, B, C) + D x;

    out_proj(norm(y * silu(z))). Parameters have the names and shapes that they have in mamba-ssm's `Mamba2` with one
    group. d_state: N, states of a channel. head_dim: P, channels of a head. d_inner: channels, expand * d_model unless
    given. d_conv: taps of the convolution. dt_min, dt_max: range of the initial step sizes. d_out: given by the gated
    block, whose place it takes (one branch a layer). The state: `conv` (B, d_conv - 1, d_inner + 2 N), oldest first;
    `ssm` (B, N, heads, P), float32 or wider.
    """

    def __init__(
        self,
        d_model: int,
        layer: int = 0,
        n_layers: int = 1,
        *,
        d_state: Dimension = 128,
        head_dim: Dimension = 64,
        expand: Factor = 2,
        d_inner: int | None = None,
        d_conv: Taps = 4,
        dt_min: StepSize = 0.001,
        dt_max: StepSize = 0.1,
        kernel: Choice = "auto",
        d_out: int | None = None,
    ):
        super().__init__(d_model, layer, n_layers, d_out)
        self.d_inner = d_inner or expand * d_model
        if self.d_inner % head_dim:
            raise ConfigError(
                f"model.mixer.head_dim={head_dim} does not divide the {self.d_inner} channels of Mamba-2.",
                "channels (block.expand times d_model) that are a multiple of head_dim.",
                "change model.mixer.head_dim, or set model.width_multiple so that it divides.",
            )
        if dt_min > dt_max:
            raise ConfigError(
                f"model.mixer.dt_min={dt_min} exceeds model.mixer.dt_max={dt_max}.",
                "dt_min <= dt_max, the range of initial step sizes.",
                "swap them, or leave both out for 0.001 and 0.1.",
            )
        self.d_state, self.head_dim, self.n_heads = d_state, head_dim, self.d_inner // head_dim
        self.d_conv, self.channels, self.kernel = d_conv, self.d_inner + 2 * d_state, kernel
        self.in_proj = nn.Linear(d_model, self.d_inner + self.channels + self.n_heads, bias=False)
        self.conv1d = nn.Conv1d(self.channels, self.channels, d_conv, groups=self.channels)
        self.dt_bias = nn.Parameter(torch.empty(self.n_heads))
        self.A_log = nn.Parameter(torch.empty(self.n_heads))
        self.D = nn.Parameter(torch.ones(self.n_heads))
        for parameter in (self.dt_bias, self.A_log, self.D):
            parameter._no_weight_decay = True
        self.norm = RMSNorm(self.d_inner, 1e-5, kernel)
        self.out_proj = nn.Linear(self.d_inner, self.d_out, bias=False)
        self._reset(dt_min, dt_max)

    @torch.no_grad()
    def _reset(self, dt_min: float, dt_max: float) -> None:
        """A uniform in A_RANGE, step sizes log-uniform in [dt_min, dt_max], as mamba-ssm; output smaller by depth."""
        self.A_log.uniform_(*A_RANGE).log_()
        dt = self.dt_bias.uniform_(math.log(dt_min), math.log(dt_max)).exp_().clamp_(min=DT_FLOOR)
        dt.add_(torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        self.scale_projection()

    @property
    def projection(self) -> nn.Linear:
        return self.out_proj

    def taps(self) -> tuple[Tensor, Tensor]:
        """The convolution's weight (d_conv, channels) and bias (channels)."""
        return self.conv1d.weight.squeeze(1).t(), self.conv1d.bias

    def mix(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        state = state or self.init_state(x.shape[0], 0, x.device, x.dtype)
        z, xBC, dt = self._project(x)
        conv = CAUSAL_CONV.choose(self.kernel, xBC.device, xBC.dtype)
        xBC, kept = conv(xBC, *self.taps(), state["conv"], True)
        given = self._given(xBC, dt)
        scan = SSD_SCAN.choose(self.kernel, x.device, given[0].dtype)
        with torch.autocast(x.device.type, enabled=False):
            y, ssm = scan(*given, state["ssm"].to(given[0].dtype))
        return self._read(y, given[0], z), {"conv": kept, "ssm": ssm}

    def mix_step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        z, xBC, dt = self._project(x_t)
        xBC, kept = step_reference(xBC, *self.taps(), state["conv"], True)
        given = self._given(xBC, dt)
        with torch.autocast(x_t.device.type, enabled=False):
            y, ssm = scan_step(*given, state["ssm"].to(given[0].dtype))
        return self._read(y, given[0], z), {"conv": kept, "ssm": ssm}

    def frozen_step(self) -> Callable:
        return MAMBA2_STEP.choose(self.kernel, self.D.device, self.D.dtype)(self)

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> State:
        wide = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        conv = torch.zeros(batch, self.d_conv - 1, self.channels, device=device, dtype=dtype)
        ssm = torch.zeros(batch, self.d_state, self.n_heads, self.head_dim, device=device, dtype=wide)
        return {"conv": conv, "ssm": ssm}

    def flops_per_token(self, context: int) -> Flops:
        matmul = 2 * (self.in_proj.weight.numel() + self.out_proj.weight.numel() + self.d_state * self.d_inner)
        states = 3 * self.d_state * self.d_inner  # decay, input, sum
        # the convolution with silu; dt x, D x, gate with silu and norm of each channel; softplus, decay of each head
        other = states + self.channels * (2 * self.d_conv + 5) + self.d_inner * (3 + 6 + 5) + 6 * self.n_heads
        return Flops(matmul=matmul, other=other)

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (.., d_model) -> z (.., d_inner), xBC (.., channels), dt (.., heads)."""
        return self.in_proj(x).split([self.d_inner, self.channels, self.n_heads], dim=-1)

    def _given(self, xBC: Tensor, dt: Tensor) -> tuple[Tensor, ...]:
        """What the scan takes, float32 or wider: x (.., heads, P), dt (.., heads), A, B and C (.., N)."""
        wide = torch.promote_types(xBC.dtype, torch.float32)
        x, B, C = xBC.to(wide).split([self.d_inner, self.d_state, self.d_state], dim=-1)
        dt = F.softplus(dt.to(wide) + self.dt_bias.to(wide))
        return x.unflatten(-1, (self.n_heads, self.head_dim)), dt, -torch.exp(self.A_log.to(wide)), B, C

    def _read(self, y: Tensor, x: Tensor, z: Tensor) -> Tensor:
        """norm((y + D x) * silu(z)) of y, x (.., heads, P) and z (.., d_inner), in the type of z."""
        y = torch.addcmul(y, x, self.D.to(y.dtype).unsqueeze(-1)).flatten(-2)
        return self.norm(y.to(z) * F.silu(z))


def step_sample(draw: Draw, batch=2, width=6, heads=2, channels=3, states=4, taps=4) -> Sample:
    """A mixer of random weights, and one token behind a state."""
    mixer = Mamba2(width, d_state=states, head_dim=channels, d_inner=heads * channels, d_conv=taps)
    mixer = randomised(mixer, draw)
    conv, ssm = draw.normal(batch, taps - 1, mixer.channels), draw.normal(batch, states, heads, channels)
    return Sample((mixer,), token=(draw.normal(batch, width), {"conv": conv, "ssm": ssm}))


MAMBA2_STEP = step_operation(
    "mamba2_step",
    "baselines.mamba2.step_numba:mamba2_step",
    samples=Samples(
        step_sample,
        {"batch": (1, 3), "width": (1, 7, 33), "heads": (1, 3), "channels": (1, 16, 33), "states": (1, 5, 16)},
        ({}, {"taps": 1}),
    ),
)
