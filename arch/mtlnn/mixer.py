"""MT-LNN's layer: a bank of leaky averages, mixed across its filaments, in the place of a Transformer's MLP.

From the authors' repositories AwareLiquid/M1 (96860e3) and everest-an/O1 (01f3716), package mt_lnn, whose names the
parameters keep. Although they call it liquid, no ODE is solved: docs/mtlnn.md says what it is.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch.mtlnn.scan import FILAMENTS
from harness.config.errors import ConfigError
from harness.config.ranges import Dimension, TimeScale
from harness.model.mixer import UNTIMED, Call, Flops, Mixer, step_operation
from harness.model.state import State
from harness.ops.registry import Choice
from harness.ops.samples import Draw, Sample, Samples, randomised
from harness.ops.shapes import expect_tokens

PERIOD = 256
"""Tokens after which the clock of the lateral coupling begins anew."""
LEAST_RATE = 1e-4
LEAST_SUM = 1e-6
"""What the authors keep the clock's rate and the sum of the blend's weights from falling below."""
STD, OUT_STD, LATERAL_STD = 0.02, 0.01, 0.005
"""Of the normal distributions that weights start from in a model: all, out_proj's, and those of W_lat about 1."""
SLOW, FAST, LESS_DECAYED = 0.33, 1.67, 0.33
"""Learning rates over the shared one, of time constants, polarity and W_lat (make_param_groups, mt_lnn/utils.py)."""

Transition = Literal["stock", "signed", "tanh", "exp"]


class Resonance(nn.Module):
    """The bank: S leaky averages in each of P filaments of D channels, and the weights that blend the S into one.

    h_t = lambda h_{t-1} + (1 - a) sigmoid(u W + b), a = exp(-elapsed / tau). lambda, by transition: stock a; signed
    a tanh(c); tanh a tanh(u v + c); exp 2 exp(-softplus(u v + c) elapsed / tau) - 1.
    """

    def __init__(self, shape: tuple, taus: tuple, transition: Transition, mixed_signs: bool, gated: bool):
        super().__init__()
        P, S, D = shape
        self.transition, (self.tau_min, self.tau_max) = transition, taus
        self.W_in = nn.Parameter(torch.empty(P, S, D, D).normal_(std=STD))
        self.b_in = nn.Parameter(torch.zeros(P, S, D))
        start = [self.tau_min * (self.tau_max / self.tau_min) ** (s / max(1, S - 1)) for s in range(S)]
        raw = torch.tensor([math.log(math.expm1(max(tau - self.tau_min, 1e-6))) for tau in start])
        self.log_tau = own_rate(raw.repeat(P, 1), SLOW)
        self.blend_weights = nn.Parameter(torch.zeros(P, S))
        if transition == "signed":
            signs = torch.empty(P, S).uniform_(-2, 2) if mixed_signs else torch.full((P, S), 3.0)
            self.decay_sign_raw = nn.Parameter(signs)
        elif transition != "stock":
            self.sel_w = nn.Parameter(torch.empty(P, S, D).normal_(std=STD))
            self.sel_b = nn.Parameter(torch.full((P, S), 1.0 if transition == "tanh" else 0.0))
        self.kappa_gate = nn.Linear(D, S) if gated else None
        if self.kappa_gate is not None:
            nn.init.constant_(self.kappa_gate.bias, 2.0)

    def products(self, u: Tensor) -> Tensor:
        """What the averages are of, before its sigmoid, (P, N, S, D), from the filaments' inputs u (P, N, D)."""
        z = torch.baddbmm(self.b_in.flatten(1).unsqueeze(1), u, self.W_in.transpose(1, 2).flatten(2))
        return z.unflatten(2, self.b_in.shape[1:])

    def taus(self, dtype: torch.dtype) -> Tensor:
        """The time constants (P, S), in tokens."""
        return (F.softplus(self.log_tau.to(dtype)) + self.tau_min).clamp(self.tau_min, self.tau_max)

    def rates(self, u: Tensor, elapsed: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """lambda and 1 - a, each (P, N or 1, S). elapsed (N): the time since the token before, None for 1."""
        tau = self.taus(dtype).unsqueeze(1)
        rate = 1 / tau if elapsed is None else elapsed.to(dtype)[:, None] / tau
        a = torch.exp(-rate)
        return self._carried(u, rate, a), 1 - a

    def _carried(self, u: Tensor, rate: Tensor, a: Tensor) -> Tensor:
        if self.transition == "stock":
            return a
        if self.transition == "signed":
            return a * self.decay_sign_raw.to(a.dtype).tanh().unsqueeze(1)
        seen = torch.bmm(u, self.sel_w.transpose(1, 2)).to(a.dtype) + self.sel_b.to(a.dtype).unsqueeze(1)
        return a * seen.tanh() if self.transition == "tanh" else 2 * torch.exp(-F.softplus(seen) * rate) - 1

    def weights(self, u: Tensor, dtype: torch.dtype) -> Tensor:
        """What the averages of each time scale weigh in the blend, (P, N, S)."""
        w = self.blend_weights.to(dtype).softmax(1).unsqueeze(1).expand(-1, u.shape[1], -1)
        if self.kappa_gate is not None:
            w = w * self.kappa_gate(u).to(dtype).sigmoid()
        return w / w.sum(2, keepdim=True).clamp(min=LEAST_SUM)


class LateralCoupling(nn.Module):
    """What the filaments make of one another: a matrix over them, their neighbours in a ring, attention among them."""

    def __init__(self, P: int, D: int):
        super().__init__()
        self.W_lat = own_rate(torch.eye(P), LESS_DECAYED)
        self.nn_eta = nn.Parameter(torch.tensor(0.1))
        self.rmc_gate = nn.Parameter(torch.zeros(()))
        for name in ("W_left", "W_right", "q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nn.Linear(D, D, bias=False))

    def forward(self, m: Tensor) -> Tensor:
        """m (P, N, D) -> the same shape."""
        D = m.shape[2]
        mixed = (self.W_lat.t() @ m.flatten(1)).view(m.shape)
        linears = (self.W_left, self.W_right, self.q_proj, self.k_proj, self.v_proj)
        left, right, qkv = F.linear(m, torch.cat([linear.weight for linear in linears])).split([D, D, 3 * D], 2)
        ring = (left.roll(1, 0) + right.roll(-1, 0)).tanh()
        q, k, v = qkv.transpose(0, 1).chunk(3, 2)  # (N, P, D) each
        scores = torch.bmm(k, q.transpose(1, 2)) * D**-0.5
        attended = torch.bmm(scores.softmax(1).transpose(1, 2), v).transpose(0, 1)  # rows of 13 are slow the other way
        return mixed + self.nn_eta * ring + self.rmc_gate.sigmoid() * self.out_proj(attended)


class MAPGate(nn.Module):
    """One gate for each filament: a network of one hidden layer that sees its average and its input."""

    def __init__(self, P: int, D: int, hidden: int):
        super().__init__()
        self.fc1_weight = nn.Parameter(torch.empty(P, 2 * D, hidden).normal_(std=STD))
        self.fc1_bias = nn.Parameter(torch.zeros(P, hidden))
        self.fc2_weight = nn.Parameter(torch.empty(P, hidden, 1).normal_(std=STD))
        self.fc2_bias = nn.Parameter(torch.full((P, 1), 2.0))

    def forward(self, m: Tensor, u: Tensor) -> Tensor:
        """m, u (P, N, D) -> (P, N, 1)."""
        seen = torch.baddbmm(self.fc1_bias.unsqueeze(1), u, self.fc1_weight[:, u.shape[2] :])
        hidden = torch.baddbmm(seen, m, self.fc1_weight[:, : u.shape[2]]).relu()
        return torch.baddbmm(self.fc2_bias.unsqueeze(1), hidden, self.fc2_weight).sigmoid()


class MTLNN(Mixer):
    """x -> P filaments of D channels -> S leaky averages of each -> blend -> lateral coupling -> gates -> y.

    d_ff: P D, rounded up to whole filaments; the authors' is d_model, likewise. n_filaments: P. n_scales: S.
    map_hidden: hidden units of a filament's gate, D where None (the authors' 64 at D = 64). tau_min, tau_max: bounds of
    the time constants, in tokens, which start log-spaced between them. recurrence: whether an average goes on from the
    token before. transition: see Resonance; mixed_signs starts those of `signed` evenly between -2 and 2, not at 3.
    scale_gates: whether the blend sees the token. lateral, map_gate: whether there is a coupling, a gate. start: of the
    weights, as the authors start a whole model, or the layer alone (for their battery, parity and A5).
    timed: an option of ours: decay over the token's elapsed time, where the authors' is always 1.

    The state: h (B, P, S, D), and the clock, the tokens read, by which the coupling fades over PERIOD of them.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        layer: int = 0,
        n_layers: int = 1,
        *,
        n_filaments: Dimension = 13,
        n_scales: Dimension = 5,
        map_hidden: Dimension | None = None,
        tau_min: TimeScale = 0.01,
        tau_max: TimeScale = 10.0,
        recurrence: bool = True,
        transition: Transition = "stock",
        mixed_signs: bool = False,
        scale_gates: bool = True,
        lateral: bool = True,
        map_gate: bool = True,
        start: Literal["model", "standalone"] = "model",
        timed: bool = False,
        kernel: Choice = "auto",
    ):
        super().__init__(d_model, layer, n_layers)
        if tau_min >= tau_max:
            raise ConfigError(
                f"tau_min={tau_min} is not below tau_max={tau_max}.",
                "bounds of the time constants, the lesser first.",
                "lower model.channel_mixer.tau_min, or raise tau_max.",
            )
        P, D = n_filaments, -(-d_ff // n_filaments)
        self.shape = P, n_scales, D
        self.hidden = (map_hidden or D) if map_gate else 0
        self.recurrence, self.timed, self.kernel = recurrence, timed, kernel
        self.in_proj, self.out_proj = nn.Linear(d_model, P * D), nn.Linear(P * D, d_model)
        self.resonance = Resonance(self.shape, (tau_min, tau_max), transition, mixed_signs, scale_gates)
        self.lateral = LateralCoupling(P, D) if lateral else None
        self.gtp_gamma = own_rate(torch.tensor(0.1), SLOW) if lateral else None
        self.map_gates = MAPGate(P, D, self.hidden) if map_gate else None
        if start == "model":
            self._start_in_a_model()

    @torch.no_grad()
    def _start_in_a_model(self) -> None:
        """As the authors' init_weights and init_mt_params (mt_lnn/utils.py)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=STD)
        nn.init.normal_(self.out_proj.weight, std=OUT_STD)
        for linear in (self.in_proj, self.out_proj):
            nn.init.zeros_(linear.bias)
        if self.lateral is not None:
            self.lateral.W_lat += LATERAL_STD * torch.randn_like(self.lateral.W_lat)
            self.lateral.rmc_gate.fill_(-3.0)

    def forward(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        batch, length, _ = x.shape
        expect_tokens("MTLNN", length)
        P, S, D = self.shape
        state = state or self.init_state(batch, device=x.device, dtype=x.dtype)
        elapsed = call.elapsed if self.timed else None
        u, z, carried, fresh, w = self._enter(x.flatten(0, 1), None if elapsed is None else elapsed.flatten())
        h = state["h"].to(w.dtype).transpose(0, 1).flatten(0, 1) if self.recurrence else w.new_zeros(P * batch, S, D)
        rates = (_rows(rate, batch, length) for rate in (carried, fresh))
        run = FILAMENTS.choose(self.kernel, x.device, w.dtype)
        m, h = run(_rows(z, batch, length), *rates, _rows(w, batch, length), h)
        y = self._leave(m.view(P, batch * length, D), u, self._strength(state, batch, length))
        h = h.view(P, batch, S, D).transpose(0, 1).contiguous()
        return y.unflatten(0, (batch, length)), self.after(h, state, length)

    def step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        u, z, carried, fresh, w = self._enter(x_t, call.elapsed if self.timed else None)
        h = fresh.unsqueeze(3) * z.to(w.dtype).sigmoid()
        if self.recurrence:
            h = h + carried.unsqueeze(3) * state["h"].to(h.dtype).transpose(0, 1)
        y = self._leave((w.unsqueeze(3) * h).sum(2), u, self._strength(state, 1, 1))
        return y, self.after(h.transpose(0, 1).contiguous(), state, 1)

    def frozen_step(self) -> Callable:
        return MTLNN_STEP.choose(self.kernel, self.out_proj.weight.device, self.out_proj.weight.dtype)(self)

    def _enter(self, x: Tensor, elapsed: Tensor | None) -> tuple[Tensor, ...]:
        """Of N tokens x (N, d_model): u (P, N, D), and z, lambda, fresh and w of `filaments`, each (P, N or 1, ...)."""
        bank, dtype = self.resonance, torch.promote_types(self.in_proj.weight.dtype, torch.float32)
        u = self.in_proj(x).unflatten(1, self.shape[::2]).transpose(0, 1)
        carried, fresh = bank.rates(u, elapsed, dtype)
        carried = carried if self.recurrence else torch.zeros_like(carried)
        return u, bank.products(u), carried, fresh.expand_as(carried), bank.weights(u, dtype)

    def _leave(self, m: Tensor, u: Tensor, strength: Tensor | None) -> Tensor:
        """y (N, d_model) of the blend m (P, N, D). strength (N or 1, 1): of the lateral coupling."""
        m = m.to(u.dtype)
        if self.lateral is not None:
            m = torch.lerp(m, self.lateral(m), strength.to(m.dtype))
        if self.map_gates is not None:
            m = m * self.map_gates(m, u)
        return self.out_proj(m.transpose(0, 1).flatten(1))

    def _strength(self, state: State, batch: int, length: int) -> Tensor | None:
        """Of the lateral coupling at each token (batch length, 1): the clock counts from the first token ever read."""
        if self.lateral is None:
            return None
        clock = (state["clock"] + torch.arange(length, device=state["clock"].device)) % PERIOD
        return torch.exp(-self.gtp_gamma.clamp(min=LEAST_RATE) * clock).repeat(batch)[:, None]

    def after(self, h: Tensor, state: State, length: int) -> State:
        """The state after `length` more tokens. h (B, P, S, D): the averages after the last."""
        kept = {"h": h} if self.recurrence else {}
        return kept | ({"clock": state["clock"] + length} if self.lateral is not None else {})

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> State:
        wide = torch.promote_types(dtype or self.in_proj.weight.dtype, torch.float32)
        kept = {"h": torch.zeros(batch, *self.shape, device=device, dtype=wide)} if self.recurrence else {}
        return kept | ({"clock": torch.full((1,), context, device=device)} if self.lateral is not None else {})

    def flops_per_token(self, context: int) -> Flops:
        P, S, D = self.shape
        H, bank = self.hidden, P * S * D
        selective, gated = hasattr(self.resonance, "sel_w"), self.resonance.kappa_gate is not None
        products = 2 * self.d_model * P * D + bank * (D + selective + gated)
        other = 10 * bank + 8 * P * S * (1 + selective) + P * H + 2 * P * D
        if self.lateral is not None:
            products += P * D * (3 * P + 6 * D)
            other += 10 * P * D + 6 * P * P
        return Flops(2.0 * (products + P * H * (2 * D + 1)), float(other))


def _rows(values: Tensor, batch: int, length: int) -> Tensor:
    """Of (P, batch T, ...) the rows (P batch, T, ...); what all tokens share, (P, 1, ...), is the same in each row."""
    if values.shape[1] == 1:
        return values.repeat_interleave(batch, 0)
    return values.unflatten(1, (batch, length)).flatten(0, 1)


def own_rate(value: Tensor, multiplier: float) -> nn.Parameter:
    """A parameter that the authors spare from weight decay and train at another rate."""
    parameter = nn.Parameter(value)
    parameter._no_weight_decay = True
    parameter._lr_multiplier = multiplier
    return parameter


def step_sample(draw: Draw, batch=2, width=10, d_ff=12, filaments=3, scales=2, clock=5, options=()) -> Sample:
    """An MTLNN of random weights and these further options, and one token behind `clock` of them."""
    mixer = randomised(MTLNN(width, d_ff, n_filaments=filaments, n_scales=scales, **dict(options)), draw)
    state = {
        name: draw.normal(*t.shape) if t.is_floating_point() else t
        for name, t in mixer.init_state(batch, clock).items()
    }
    return Sample((mixer,), token=(draw.normal(batch, width), state))


MTLNN_STEP = step_operation(
    "mtlnn_step",
    "arch.mtlnn.step_numba:mtlnn_step",
    samples=Samples(
        step_sample,
        {"batch": (1, 3), "width": (1, 7, 33), "d_ff": (1, 12, 40), "filaments": (1, 2, 5), "scales": (1, 3)},
        (
            *({"options": (("transition", name),)} for name in ("stock", "signed", "tanh", "exp")),
            {"clock": 300, "options": (("map_hidden", 7),)},
            *({"options": ((part, False),)} for part in ("recurrence", "scale_gates", "lateral", "map_gate")),
        ),
    ),
)
