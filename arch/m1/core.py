"""M1's streaming core (mt_v2, mt_v2s): filaments of decaying channels at several time scales, blended and gated."""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch.m1.scan import SCALES_SCAN
from harness.config.errors import ConfigError
from harness.model.mixer import Flops
from harness.ops.registry import Choice

Selective = Literal["off", "mamba", "exp"]
TAUS = (0.5, 2.0, 8.0, 32.0, 90.0)
"""Time constants at the start, in tokens, the authors'; further scales start beyond, at 0.9 tau_max at most."""
LEAST = 1e-6
"""What the sum of the blend's weights is at least."""


class Maps(NamedTuple):
    """What the core's weights make before they meet a token, for P filaments, S scales and D channels of each.

    drive (P, D, S D), weight (P, D, D + S or D + 2 S) and their biases (P, 1, ..): from a filament's u to the scales'
    drives, and to its gate, openness and step. tau, blend (P, 1, S). The attention over filaments, of rows m: scores
    m pairs m' and values m outs, (D, D).
    """

    drive: Tensor
    drive_bias: Tensor
    weight: Tensor
    bias: Tensor
    tau: Tensor
    blend: Tensor
    pairs: Tensor
    outs: Tensor


class StreamingCore(nn.Module):
    """u = in_b in_a x, in filaments of D channels; y = out_b out_a m, where m blends what the scales remember of u.

    A_ps = sigmoid(gain_ps (u_p W_mix_p) + bias_ps); a_ps = exp(-dt_ps / tau_ps), dt = 1 (selective=off) or
    softplus(u_p W_dt_p + b_dt_p); h_ps = lambda_ps h_ps + (1 - a_ps) A_ps, lambda = a (off, mamba) or 2 a - 1 (exp);
    m_p = sum_s w_ps h_ps with w = softmax_s(blend) sigmoid(kappa_gate(u)), divided by its sum; m + sigmoid(rmc_gate)
    rmc_o(attention over the filaments of one token); m silu(u_p W_gate_p).

    AwareLiquid/M1, mt_lnn/mt_lnn_v2.py, whose names, shapes and starts the parameters have. `elapsed` multiplies dt:
    ours, theirs knows no time. The state h: (B, P, S, D).
    """

    def __init__(
        self,
        d_model: int,
        n_filaments: int = 13,
        d_filament: int = 64,
        n_scales: int = 5,
        rank: int = 128,
        selective: Selective = "mamba",
        tau_min: float = 0.1,
        tau_max: float = 100.0,
        kernel: Choice = "auto",
    ):
        super().__init__()
        if tau_min >= tau_max:
            raise ConfigError(
                f"tau_min={tau_min} is not below tau_max={tau_max}.",
                "tau_min < tau_max, the range of time constants in tokens.",
                "swap them, or leave both out for 0.1 and 100.",
            )
        self.n_filaments, self.d_filament, self.n_scales = n_filaments, d_filament, n_scales
        self.selective, self.tau_min, self.tau_max, self.kernel = selective, tau_min, tau_max, kernel
        P, S, D = n_filaments, n_scales, d_filament
        self.in_a, self.in_b = nn.Linear(d_model, rank, bias=False), nn.Linear(rank, P * D, bias=False)
        self.out_a, self.out_b = nn.Linear(P * D, rank, bias=False), nn.Linear(rank, d_model, bias=False)
        self.W_mix, self.W_gate = (nn.Parameter(0.02 * torch.randn(P, D, D)) for _ in range(2))
        self.scale_gain, self.scale_bias = nn.Parameter(torch.ones(P, S, D)), nn.Parameter(torch.zeros(P, S, D))
        starts = [*TAUS, *(min(TAUS[-1] * 4.0**n, 0.9 * tau_max) for n in range(1, S))][:S]
        self.log_tau = nn.Parameter(
            torch.tensor([math.log(math.expm1(max(t - tau_min, LEAST))) for t in starts]).repeat(P, 1)
        )
        self.W_dt = self.b_dt = None
        if selective != "off":
            self.W_dt = nn.Parameter(0.02 * torch.randn(P, D, S))
            self.b_dt = nn.Parameter(torch.full((P, S), math.log(math.e - 1)))  # dt starts at 1
        self.blend, self.kappa_gate = nn.Parameter(torch.zeros(P, S)), nn.Linear(D, S)
        nn.init.constant_(self.kappa_gate.bias, 2.0)
        self.rmc_q, self.rmc_k, self.rmc_v, self.rmc_o = (nn.Linear(D, D, bias=False) for _ in range(4))
        self.rmc_gate = nn.Parameter(torch.tensor(-1.0))
        for parameter in (self.scale_gain, self.scale_bias, self.log_tau, self.blend, self.b_dt):
            if parameter is not None:
                parameter._no_weight_decay = True

    @property
    def tau(self) -> Tensor:
        """Time constants (P, S), in tokens."""
        return (F.softplus(self.log_tau) + self.tau_min).clamp(self.tau_min, self.tau_max)

    def maps(self) -> Maps:
        """The maps as the weights stand."""
        drive = (self.W_mix[:, :, None] * self.scale_gain[:, None]).flatten(2)
        openness = self.kappa_gate.weight.t().expand(self.n_filaments, -1, -1)
        weights, biases = [self.W_gate, openness], [torch.zeros_like(self.W_gate[:, 0])]
        biases.append(self.kappa_gate.bias.expand(self.n_filaments, -1))
        if self.W_dt is not None:
            weights, biases = [*weights, self.W_dt], [*biases, self.b_dt]
        made = drive, self.scale_bias.flatten(1)[:, None], torch.cat(weights, 2), torch.cat(biases, 1)[:, None]
        pairs = self.rmc_q.weight.t() @ self.rmc_k.weight / math.sqrt(self.d_filament)
        outs = self.rmc_gate.sigmoid() * (self.rmc_o.weight @ self.rmc_v.weight).t()
        return Maps(*made, self.tau[:, None], self.blend.softmax(1)[:, None], pairs, outs)

    def forward(
        self, x: Tensor, h: Tensor, elapsed: Tensor | None = None, maps: Maps | None = None
    ) -> tuple[Tensor, Tensor]:
        """x (B, T, d_model), elapsed (B, T) -> y (B, T, d_model) and the state after the last token.

        Filaments come first, so that what is linear in u is two products a filament. maps: where they are at hand.
        """
        batch, length, _ = x.shape
        P, S, D = self.n_filaments, self.n_scales, self.d_filament
        u = self.in_b(self.in_a(x))
        with torch.autocast(x.device.type, enabled=False):
            maps = maps or self.maps()
            u = u.to(self.blend).view(-1, P, D).transpose(0, 1)  # (P, N, D), N = B T
            drive = torch.baddbmm(maps.drive_bias, u, maps.drive)
            gate, openness, step = torch.baddbmm(maps.bias, u, maps.weight).tensor_split((D, D + S), dim=2)
            dt = torch.ones_like(openness) if self.W_dt is None else F.softplus(step)
            if elapsed is not None:
                dt = dt * elapsed.to(dt).reshape(1, -1, 1)
            weights = maps.blend * openness.sigmoid()
            weights = weights / weights.sum(2, keepdim=True).clamp_min(LEAST)  # (P, N, S)
            by_row = [t.reshape(P * batch, length, *t.shape[2:]) for t in (drive, torch.exp(-dt / maps.tau), weights)]
            by_row[0] = by_row[0].unflatten(2, (S, D))
            before = h.transpose(0, 1).reshape(P * batch, S, D)
            scan = SCALES_SCAN.choose(self.kernel, x.device, h.dtype)
            m, last = scan(*by_row, before, self.selective == "exp")
            m, last = m.to(u).view(P, -1, D), last.view(P, batch, S, D).transpose(0, 1).contiguous()
            slots = m.transpose(0, 1)
            scores = slots @ (m @ maps.pairs).transpose(0, 1).mT  # (N, keys, queries)
            seen = torch.softmax(scores, dim=1).mT @ slots  # torch is faster along an axis that is not the last
            m = (m + seen.transpose(0, 1) @ maps.outs) * F.silu(gate)
            m = m.transpose(0, 1).reshape(batch, length, P * D)
        return self.out_b(self.out_a(m.to(x.dtype))), last

    def step(self, x_t: Tensor, h: Tensor, elapsed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One token, spelt out as above: x_t (B, d_model), elapsed (B,) -> y_t (B, d_model) and the new state."""
        u = self.in_b(self.in_a(x_t))
        with torch.autocast(x_t.device.type, enabled=False):
            u = u.to(self.blend).view(-1, self.n_filaments, self.d_filament)  # (B, P, D)
            mixed = _by_filament(u, self.W_mix).unsqueeze(2)
            drive = torch.sigmoid(self.scale_gain * mixed + self.scale_bias)  # (B, P, S, D)
            dt = torch.ones_like(drive[..., 0])
            if self.W_dt is not None:
                dt = F.softplus(_by_filament(u, self.W_dt) + self.b_dt)
            if elapsed is not None:
                dt = dt * elapsed.to(dt)[:, None, None]
            a = torch.exp(-dt / self.tau).unsqueeze(3)
            h = (2 * a - 1 if self.selective == "exp" else a) * h + (1 - a) * drive
            weights = torch.softmax(self.blend, 1) * torch.sigmoid(self.kappa_gate(u))
            weights = weights / weights.sum(2, keepdim=True).clamp_min(LEAST)
            m = torch.sum(weights.unsqueeze(3) * h, 2).to(u)
            scores = self.rmc_q(m) @ self.rmc_k(m).mT / math.sqrt(self.d_filament)
            m = m + torch.sigmoid(self.rmc_gate) * self.rmc_o(torch.softmax(scores, 2) @ self.rmc_v(m))
            m = m * F.silu(_by_filament(u, self.W_gate))
        return self.out_b(self.out_a(m.flatten(1).to(x_t))), h

    def init_state(self, batch: int, device, dtype: torch.dtype) -> Tensor:
        """The empty state."""
        return torch.zeros(batch, self.n_filaments, self.n_scales, self.d_filament, device=device, dtype=dtype)

    def flops(self) -> Flops:
        """Of one token, its matrix products as `step` performs them."""
        P, S, D = self.n_filaments, self.n_scales, self.d_filament
        projections = sum(layer.weight.numel() for layer in (self.in_a, self.in_b, self.out_a, self.out_b))
        steps = 0 if self.W_dt is None else S
        filament = D * (2 * D + S + steps) + D * 4 * D + 2 * P * D  # maps of u, slots, scores and what they weigh
        # a sigmoid of 4 a channel and scale, with gain, bias, recurrence and blend; steps, decays and openness; gates
        other = P * (S * D * (2 + 4 + 3 + 1 + 2) + S * (5 + 5 + 2) + 5 * P + 9 * D)
        return Flops(2 * (projections + P * filament), other)


def _by_filament(u: Tensor, weight: Tensor) -> Tensor:
    """Each filament by its own matrix: u (B, P, D), weight (P, D, E) -> (B, P, E)."""
    return (u.transpose(0, 1) @ weight).transpose(0, 1)
