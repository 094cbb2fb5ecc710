"""Gated DeltaNet (Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464, figure 1): Mamba-2's decay on the delta rule."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.gated_deltanet.scan import GATED_DELTA_SCAN, scan_step
from harness.config.ranges import Dimension, Factor, Taps
from harness.model.mixer import UNTIMED, Call, Flops, ProjectedMixer, step_operation
from harness.model.norm import RMSNorm
from harness.model.state import State
from harness.ops.causal_conv.conv import CAUSAL_CONV, step_reference
from harness.ops.registry import Choice
from harness.ops.samples import Draw, Sample, Samples, randomised

KEY_RATIO = 0.75
"""Keys of all heads / d_model: with values twice as wide the mixer has 6 d_model^2 parameters."""
LENGTH_EPS = 1e-6
A_RANGE = 0.0, 16.0
DT_RANGE, DT_FLOOR = (0.001, 0.1), 1e-4


class GatedDeltaNet(ProjectedMixer):
    """q, k, v, z, b, a = in_proj(x); q, k, v = silu(conv1d(q, k, v)), q and k of unit length in each head;

    g = -exp(A_log) softplus(a + dt_bias); y = gated_delta_rule(q / sqrt(K), k, v, g, sigmoid(b)); out_proj(norm(y)
    silu(z)), the norm of each head by itself. head_dim: K, keys of a head, whose values are expand_v as many. n_heads:
    None for as many as come nearest to KEY_RATIO d_model keys in all. d_conv: taps of the convolution. The state:
    `conv` (B, d_conv - 1, channels of q, k, v), oldest first; `memory` (B, heads, K, V), float32 or wider.
    """

    def __init__(
        self,
        d_model: int,
        layer: int = 0,
        n_layers: int = 1,
        *,
        head_dim: Dimension = 48,
        n_heads: Dimension | None = None,
        expand_v: Factor = 2,
        d_conv: Taps = 4,
        kernel: Choice = "auto",
    ):
        super().__init__(d_model, layer, n_layers)
        self.head_dim, self.value_dim, self.d_conv, self.kernel = head_dim, expand_v * head_dim, d_conv, kernel
        self.n_heads = n_heads or max(1, round(KEY_RATIO * d_model / head_dim))
        self.keys, self.values = self.n_heads * self.head_dim, self.n_heads * self.value_dim
        self.channels = 2 * self.keys + self.values
        self.in_proj = nn.Linear(d_model, self.channels + self.values + 2 * self.n_heads, bias=False)
        self.conv1d = nn.Conv1d(self.channels, self.channels, d_conv, groups=self.channels, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(self.n_heads))
        self.A_log = nn.Parameter(torch.empty(self.n_heads))
        self.dt_bias._no_weight_decay = self.A_log._no_weight_decay = True
        self.norm = RMSNorm(self.value_dim, 1e-5, kernel)
        self.out_proj = nn.Linear(self.values, d_model, bias=False)
        self._reset()

    @torch.no_grad()
    def _reset(self) -> None:
        """A uniform in A_RANGE and step sizes log-uniform in DT_RANGE, as the authors' `GatedDeltaNet`."""
        self.A_log.uniform_(*A_RANGE).clamp_(min=1e-4).log_()
        dt = self.dt_bias.uniform_(*map(math.log, DT_RANGE)).exp_().clamp_(min=DT_FLOOR)
        dt.add_(torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        self.scale_projection()

    @property
    def projection(self) -> nn.Linear:
        return self.out_proj

    def taps(self) -> tuple[Tensor, Tensor]:
        """The convolution's weight (d_conv, channels) and bias (channels), which is zero."""
        weight = self.conv1d.weight.squeeze(1).t()
        return weight, weight.new_zeros(self.channels)

    def mix(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        state = state or self.init_state(x.shape[0], 0, x.device, x.dtype)
        qkv, z, b, a = self._project(x)
        conv = CAUSAL_CONV.choose(self.kernel, qkv.device, qkv.dtype)
        qkv, kept = conv(qkv, *self.taps(), state["conv"], True)
        given = self._given(qkv, b, a)
        scan = GATED_DELTA_SCAN.choose(self.kernel, x.device, given[0].dtype)
        with torch.autocast(x.device.type, enabled=False):
            y, memory = scan(*given, state["memory"].to(given[0].dtype))
        return self._read(y, z), {"conv": kept, "memory": memory}

    def mix_step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        qkv, z, b, a = self._project(x_t)
        qkv, kept = step_reference(qkv, *self.taps(), state["conv"], True)
        given = self._given(qkv, b, a)
        with torch.autocast(x_t.device.type, enabled=False):
            y, memory = scan_step(*given, state["memory"].to(given[0].dtype))
        return self._read(y, z), {"conv": kept, "memory": memory}

    def frozen_step(self) -> Callable:
        return GATED_DELTANET_STEP.choose(self.kernel, self.A_log.device, self.A_log.dtype)(self)

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> State:
        wide = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        conv = torch.zeros(batch, self.d_conv - 1, self.channels, device=device, dtype=dtype)
        memory = torch.zeros(batch, self.n_heads, self.head_dim, self.value_dim, device=device, dtype=wide)
        return {"conv": conv, "memory": memory}

    def flops_per_token(self, context: int) -> Flops:
        memory = self.keys * self.value_dim
        matmul = 2 * (self.in_proj.weight.numel() + self.out_proj.weight.numel() + 2 * memory)
        # decay, write, sum; the convolution with silu; lengths of q and k; delta, norm, gate with silu; g and beta
        other = 3 * memory + self.channels * (2 * self.d_conv + 5) + 9 * self.keys + 13 * self.values
        return Flops(matmul=matmul, other=other + 12 * self.n_heads)

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (.., d_model) -> q, k, v in one (.., channels), z (.., values), b, a (.., heads)."""
        return self.in_proj(x).split([self.channels, self.values, self.n_heads, self.n_heads], dim=-1)

    def _given(self, qkv: Tensor, b: Tensor, a: Tensor) -> tuple[Tensor, ...]:
        """What the scan takes, float32 or wider: q, k (.., heads, K), v (.., heads, V), g, beta (.., heads)."""
        wide = torch.promote_types(qkv.dtype, torch.float32)
        parts = qkv.to(wide).split([self.keys, self.keys, self.values], dim=-1)
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)) for part in parts)
        g = -torch.exp(self.A_log.to(wide)) * F.softplus(a.to(wide) + self.dt_bias.to(wide))
        return _unit(q) * self.head_dim**-0.5, _unit(k), v, g, torch.sigmoid(b.to(wide))

    def _read(self, y: Tensor, z: Tensor) -> Tensor:
        """norm(y) silu(z) of y (.., heads, V) and z (.., values), in the type of z."""
        return self.norm(y.to(z)).flatten(-2) * F.silu(z)


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + LENGTH_EPS)


def step_sample(draw: Draw, batch=2, width=6, heads=2, keys=3, taps=4) -> Sample:
    """A mixer of random weights, and one token behind a state."""
    mixer = randomised(GatedDeltaNet(width, head_dim=keys, n_heads=heads, d_conv=taps), draw)
    conv, memory = draw.normal(batch, taps - 1, mixer.channels), draw.normal(batch, heads, keys, 2 * keys)
    return Sample((mixer,), token=(draw.normal(batch, width), {"conv": conv, "memory": memory}))


GATED_DELTANET_STEP = step_operation(
    "gated_deltanet_step",
    "baselines.gated_deltanet.step_numba:gated_deltanet_step",
    samples=Samples(
        step_sample,
        {"batch": (1, 3), "width": (1, 7, 33), "heads": (1, 3), "keys": (1, 8, 17)},
        ({}, {"taps": 1}),
    ),
)
