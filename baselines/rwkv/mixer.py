"""RWKV-7 "Goose" (x070): time mixing by a generalised delta rule, and channel mixing.

Peng et al. 2025, arXiv:2503.14456, with the initialisation of the authors' training code. Parameters carry the names
of the official x070 files, so that weights travel (baselines/rwkv/weights.py).
"""

import math
from collections.abc import Callable
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from baselines.rwkv import scan as rwkv_scan
from harness.config.errors import ConfigError
from harness.config.ranges import Dimension
from harness.model.mixer import UNTIMED, Call, Flops, Mixer, step_operation
from harness.model.state import State
from harness.ops.registry import Choice
from harness.ops.samples import Draw, Sample, Samples, randomised
from harness.ops.shapes import expect_tokens

DECAY_SCALE = math.exp(-0.5)
"""The decay is exp(-DECAY_SCALE sigmoid(.)): no channel forgets faster than 0.545 a token."""
LARGEST_REMOVAL = 1 + math.exp(-DECAY_SCALE)
"""Up to there the eigenvalues of a transition stay within -1 and 1."""
Removal = Annotated[float, Field(gt=0, le=LARGEST_REMOVAL)]
GROUP_NORM_EPS = 64e-5
MIXES = "rwkvag"
"""What the token shift feeds: receptance, decay (w), key, value, in-context learning rate (a), gate."""


def auto_rank(d_model: int, factor: float) -> int:
    """The official rank of a low-rank projection: factor x sqrt(d_model) to the nearest 32, at least 32."""
    return max(32, round(factor * d_model**0.5 / 32) * 32)


def shifted(x: Tensor, state: State) -> Tensor:
    """The previous token's x (B, T, C), the carried one (zero in a fresh state) before the first."""
    expect_tokens("rwkv", x.shape[1])
    first = x.new_zeros(x.shape[0], 1, x.shape[2]) if state is None else state["shift"].unsqueeze(1)
    return torch.cat([first, x[:, :-1]], dim=1)


def widened(x: Tensor) -> Tensor:
    """x in the precision of the recurrence: float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def prescribe_groups(module: nn.Module) -> None:
    """The official groups: weight decay for the full matrices alone, and twice the learning rate for the decay's bias.

    No decay for low-rank matrices, mixes, gains and biases. Source: `configure_optimizers` in src/model.py of
    BlinkDL/RWKV-LM, RWKV-v7/train_temp; embedding and head decay too there, which conf/model/rwkv.yaml says.
    """
    full = {id(child.weight) for child in module.modules() if isinstance(child, nn.Linear)}
    for parameter in module.parameters():
        if id(parameter) not in full:
            parameter._no_weight_decay = True
    if isinstance(module, TimeMix):
        module.w0._lr_multiplier = 2.0


class TimeMix(Mixer):
    """The token mixer of RWKV-7: a state of one N x N matrix per head, N = `head_dim`.

    A token's transition is diag(w) - removal (a u) u^T, where u has unit length and the rates a lie in (0, 1). Its
    eigenvalues are those of diag(w) - removal z z^T with z = sqrt(a) u, so between min(w) - removal and 1. The authors'
    `removal` is 1: as w is 0.545 at least, -0.455 is the least, and a sign that changes fades. LARGEST_REMOVAL reaches
    -1, where it stays (Grazzi et al. 2024, arXiv:2411.12537, double the delta rule's rate for the same end).

    Layer 0 leaves its value in shared["v_first"], and every layer above blends its own value with it. The ranks of
    the low-rank projections follow `auto_rank` where they are None. Raises ConfigError where head_dim does not divide
    d_model, and on a call above layer 0 without shared["v_first"].
    """

    def __init__(
        self,
        d_model: int,
        layer: int = 0,
        n_layers: int = 1,
        *,
        head_dim: Dimension = 64,
        removal: Removal = 1.0,
        decay_rank: Dimension | None = None,
        rate_rank: Dimension | None = None,
        value_rank: Dimension | None = None,
        gate_rank: Dimension | None = None,
        kernel: Choice = "auto",
    ):
        super().__init__(d_model, layer, n_layers)
        if d_model % head_dim:
            raise ConfigError(
                f"model.mixer.head_dim={head_dim} does not divide d_model={d_model}.",
                "a d_model that is a multiple of head_dim.",
                f"set model.width_multiple to a multiple of {head_dim}, or change head_dim.",
            )
        self.head_dim, self.n_heads, self.kernel = head_dim, d_model // head_dim, kernel
        self.removal = removal
        ranks = {"w": decay_rank or auto_rank(d_model, 2.5), "a": rate_rank or auto_rank(d_model, 2.5)}
        if layer > 0:
            ranks["v"] = value_rank or auto_rank(d_model, 1.7)
        self.ranks = ranks | {"g": gate_rank or auto_rank(d_model, 5.0)}
        for name in MIXES:
            self.register_parameter(f"x_{name}", nn.Parameter(torch.empty(d_model)))
        for name, rank in self.ranks.items():
            if name != "g":  # the gate has no bias
                self.register_parameter(f"{name}0", nn.Parameter(torch.empty(d_model)))
            self.register_parameter(f"{name}1", nn.Parameter(torch.empty(d_model, rank)))
            self.register_parameter(f"{name}2", nn.Parameter(torch.empty(rank, d_model)))
        self.k_k = nn.Parameter(torch.empty(d_model))
        self.k_a = nn.Parameter(torch.empty(d_model))
        self.r_k = nn.Parameter(torch.empty(self.n_heads, head_dim))
        self.receptance = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)
        self.ln_x = nn.GroupNorm(self.n_heads, d_model, eps=GROUP_NORM_EPS)
        self.reset_parameters()
        prescribe_groups(self)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The official initialisation, by layer and by channel; the output starts at zero."""
        if self.x_k.is_meta:
            return  # sizing only counts there, and arithmetic on the meta device is slow
        C, N = self.d_model, self.head_dim
        channel = torch.arange(C, device=self.x_r.device, dtype=self.x_r.dtype)
        above, depth = 1 - self.layer / self.n_layers, self.layer / max(1, self.n_layers - 1)
        for name, power in zip(MIXES, (0.2, 0.9, 0.7, 0.7, 0.9, 0.2), strict=True):
            getattr(self, f"x_{name}").copy_(1 - (channel / C) ** (power * above))
        ramp = channel / max(1, C - 1)
        zigzag = 2 * (channel % N) / max(1, N - 1) - 1  # -1 to 1 within each head
        zigzag = zigzag * zigzag.abs()
        self.w0.copy_(6 * ramp ** (1 + depth**0.3) - 5.5 + 2.5 * zigzag)
        self.a0.copy_(0.4 * (ramp - 0.5) + 0.3 * zigzag - 0.19)
        if self.layer > 0:
            self.v0.copy_(0.73 - 0.4 * (ramp - 0.5))
        for name, rank in self.ranks.items():
            nn.init.zeros_(getattr(self, f"{name}1"))
            nn.init.orthogonal_(getattr(self, f"{name}2"), gain=0.1 * max(1.0, rank / C) ** 0.5)
        self.k_k.copy_(0.71 - 0.1 * (ramp - 0.5))
        self.k_a.fill_(1.02)
        self.r_k.fill_(-0.04)
        for linear, gain in ((self.receptance, 1.0), (self.key, 0.1), (self.value, 1.0)):
            nn.init.orthogonal_(linear.weight, gain=gain)
        nn.init.zeros_(self.output.weight)
        self.ln_x.weight.fill_(((1 + self.layer) / self.n_layers) ** 0.7)

    def forward(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        vectors, gate = self._vectors(x, shifted(x, state), call.shared)
        wkv = self.init_state(len(x), device=x.device, dtype=x.dtype)["wkv"] if state is None else state["wkv"]
        r = vectors[0]
        scan = rwkv_scan.RWKV_SCAN.choose(self.kernel, r.device, r.dtype, head_dim=self.head_dim)
        with torch.autocast(r.device.type, enabled=False):
            y, wkv = scan(*vectors, wkv.to(r.dtype))
        return self._read(y, vectors, gate), {"shift": x[:, -1].clone(), "wkv": wkv}

    def step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        vectors, gate = self._vectors(x_t, state["shift"], call.shared)
        y, wkv = rwkv_scan.step(*vectors, state["wkv"].to(vectors[0].dtype))
        return self._read(y, vectors, gate), {"shift": x_t, "wkv": wkv}

    def frozen_step(self) -> Callable:
        return TIME_MIX_STEP.choose(self.kernel, self.w0.device, self.w0.dtype)(self)

    def _vectors(self, x: Tensor, previous: Tensor, shared: dict | None) -> tuple[tuple[Tensor, ...], Tensor]:
        """x (..., C) -> the recurrence's r, w, k, v, a, b (..., H, N), in float32 at least, and the gate (..., C)."""
        mix = torch.stack([getattr(self, f"x_{name}") for name in MIXES])
        mix = mix.view(len(MIXES), *[1] * (x.dim() - 1), self.d_model)
        xr, xw, xk, xv, xa, xg = (x + (previous - x) * mix).unbind(0)
        decay = torch.exp(-DECAY_SCALE * torch.sigmoid(widened(self.w0 + torch.tanh(xw @ self.w1) @ self.w2)))
        rate = torch.sigmoid(self.a0 + xa @ self.a1 @ self.a2)
        gate = torch.sigmoid(xg @ self.g1) @ self.g2
        r, k, v = self.receptance(xr), self.key(xk), self._value(xv, shared)
        unit = F.normalize(self._heads(k * self.k_k), dim=-1)
        k = k * (1 + (rate - 1) * self.k_a)
        r, decay, k, v = (self._heads(z) for z in (r, decay, k, v))
        return (r, decay, k, v, -unit, unit * self._heads(rate * self.removal)), gate

    def _value(self, x: Tensor, shared: dict | None) -> Tensor:
        """The value, blended with layer 0's by a learned gate in the layers above it."""
        v = self.value(x)
        if self.layer == 0:
            if shared is not None:
                shared["v_first"] = v
            return v
        return v + (self.first_value(shared) - v) * torch.sigmoid(self.v0 + x @ self.v1 @ self.v2)

    def first_value(self, shared: dict | None) -> Tensor:
        """What layer 0 left; raises ConfigError where there is none."""
        if shared is None or "v_first" not in shared:
            raise ConfigError(
                f"The RWKV-7 time mixing of layer {self.layer} found no value of layer 0.",
                "a stack whose layer 0 is RWKV-7 too and leaves it in shared['v_first'].",
                "call it within such a model, or build it with layer=0.",
            )
        return shared["v_first"]

    def _heads(self, x: Tensor) -> Tensor:
        return widened(x).unflatten(-1, (self.n_heads, self.head_dim))  # (..., C) -> (..., H, N)

    def _read(self, y: Tensor, vectors: tuple[Tensor, ...], gate: Tensor) -> Tensor:
        """Normalises each head of y (..., H, N), adds the current token's own bonus, gates and projects to (..., C)."""
        r, _, k, v, _, _ = vectors
        gain, shift = (parameter.to(y.dtype) for parameter in (self.ln_x.weight, self.ln_x.bias))
        normed = F.group_norm(y.reshape(-1, self.d_model), self.n_heads, gain, shift, GROUP_NORM_EPS).view_as(y)
        bonus = (r * k * self.r_k).sum(dim=-1, keepdim=True) * v
        return self.output(((normed + bonus).flatten(-2) * gate).to(self.output.weight.dtype))

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> State:
        dtype = dtype or torch.get_default_dtype()
        wide = torch.promote_types(dtype, torch.float32)
        wkv = torch.zeros(batch, self.n_heads, self.head_dim, self.head_dim, device=device, dtype=wide)
        return {"shift": torch.zeros(batch, self.d_model, device=device, dtype=dtype), "wkv": wkv}

    def flops_per_token(self, context: int) -> Flops:
        C, N = self.d_model, self.head_dim
        low_rank = sum(self.ranks.values())
        # the state's decay and its two outer products; about 60 elementwise operations a channel around them
        return Flops(matmul=8 * C * C + 4 * C * low_rank + 4 * C * N, other=5 * C * N + 60 * C)


class ChannelMix(Mixer):
    """The channel mixer of RWKV-7: value(relu(key(x + (x_prev - x) x_k))^2)."""

    def __init__(self, d_model: int, d_ff: int, layer: int = 0, n_layers: int = 1, *, kernel: Choice = "auto"):
        super().__init__(d_model, layer, n_layers)
        self.d_ff, self.kernel = d_ff, kernel
        self.x_k = nn.Parameter(torch.empty(d_model))
        self.key = nn.Linear(d_model, d_ff, bias=False)
        self.value = nn.Linear(d_ff, d_model, bias=False)
        self.reset_parameters()
        prescribe_groups(self)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The official initialisation; the output starts at zero."""
        if self.x_k.is_meta:
            return  # sizing only counts there, and arithmetic on the meta device is slow
        channel = torch.arange(self.d_model, device=self.x_k.device, dtype=self.x_k.dtype) / self.d_model
        self.x_k.copy_(1 - channel ** ((1 - self.layer / self.n_layers) ** 4))
        nn.init.orthogonal_(self.key.weight)
        nn.init.zeros_(self.value.weight)

    def forward(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        return self._mix(x, shifted(x, state)), {"shift": x[:, -1].clone()}

    def step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        return self._mix(x_t, state["shift"]), {"shift": x_t}

    def frozen_step(self) -> Callable:
        return CHANNEL_MIX_STEP.choose(self.kernel, self.x_k.device, self.x_k.dtype)(self)

    def _mix(self, x: Tensor, previous: Tensor) -> Tensor:
        return self.value(F.relu(self.key(x + (previous - x) * self.x_k)).square())

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> State:
        return {"shift": torch.zeros(batch, self.d_model, device=device, dtype=dtype)}

    def flops_per_token(self, context: int) -> Flops:
        return Flops(matmul=4 * self.d_model * self.d_ff, other=2 * self.d_ff + 3 * self.d_model)


def time_sample(draw: Draw, batch=2, heads=2, head_dim=4, layer=0, removal=1.0) -> Sample:
    """A time mixing of random weights, and one token behind a state."""
    mixer = randomised(TimeMix(heads * head_dim, layer, 2, head_dim=head_dim, removal=removal), draw)
    width = heads * head_dim
    state = {"shift": draw.normal(batch, width), "wkv": draw.normal(batch, heads, head_dim, head_dim)}
    call = Call(shared={"v_first": draw.normal(batch, width)} if layer else None)
    return Sample((mixer,), token=(draw.normal(batch, width), state, call))


def channel_sample(draw: Draw, batch=2, width=6, hidden=9) -> Sample:
    """A channel mixing of random weights, and one token behind a state."""
    mixer = randomised(ChannelMix(width, hidden), draw)
    return Sample((mixer,), token=(draw.normal(batch, width), {"shift": draw.normal(batch, width)}))


_STEPS = "baselines.rwkv.step_numba"
TIME_MIX_STEP = step_operation(
    "time_mix_step",
    f"{_STEPS}:time_mix_step",
    samples=Samples(
        time_sample, {"batch": (1, 3), "heads": (1, 3), "head_dim": (2, 8, 17)}, ({}, {"layer": 1}, {"removal": 1.5})
    ),
)
CHANNEL_MIX_STEP = step_operation(
    "channel_mix_step",
    f"{_STEPS}:channel_mix_step",
    samples=Samples(channel_sample, {"batch": (1, 3), "width": (1, 33), "hidden": (1, 70)}),
)
