"""The liquid mixer: a language model's token mixer whose state obeys a liquid time-constant ODE (see arch/field.py)."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from arch.field import Coupling, Field, Gate
from arch.gradients import Checkpoint, Gradient
from arch.ltc.recurrence import Recurrence
from arch.ltc.scan import Kind
from arch.newton import Parallel, Sequential
from arch.solvers import FIXED, SemiImplicit, Solver, make_solver
from harness.config.errors import ConfigError
from harness.config.ranges import Dimension, Factor, Fraction, Rate, StepSize, TapsOrNone, TimeConstant
from harness.model.mixer import UNTIMED, Call, Flops, ProjectedMixer, step_operation
from harness.model.state import State
from harness.ops.causal_conv.conv import CAUSAL_CONV, step_reference
from harness.ops.registry import Choice
from harness.ops.samples import Draw, Sample, Samples, randomised

DEFAULT_SOLVER, DEFAULT_GRADIENT, SEQUENTIAL = SemiImplicit(), Checkpoint(), Sequential()

SHARPNESS = 12.0
"""How steep a sharp gate starts: a = w x of a normalised x has then a deviation of 12 / sqrt(3), about 7."""


class LTC(ProjectedMixer):
    """x -> short convolution -> (a, A[, B, C]) -> the flow of h over each token's elapsed time -> y -> out projection.

    Options, beside the solver, the gradient and how a sequence's tokens are run (parallel): coupling (what of the state
    the gate sees; `head_dim` is the block of `heads`), reversal (A from the token, or one learned constant per
    channel), gate, leak (whether 1/tau is there at all), omega (the gate's rate over f; those of several states are
    learned from multiples of it), d_state (states per channel), d_conv (taps of the convolution, 0 for none; none in a
    gated block, which has its own), conv_start (whether it starts from any taps or passes each token on), expand
    (d_inner / d_model), tau_max (the longest time constant at the start, in tokens), horizon (the time that a token
    takes, by which elapsed times are multiplied), sharp (the share of the channels, spread over the time constants,
    whose gate starts without a bias and SHARPNESS times as steep, so that a token opens it or shuts it: where a step
    can change a sign, its multiplier starts near 1 or near -1), kernel (fused, reference, or fused where it serves).
    coupling=dense, reversal=constant, d_conv=0 is the published cell, eq. 1 of Hasani et al. (2021).

    Time constants start log-spaced over the channels, in the leak and in the gate alike: the gate's bias starts where
    f = 1 / (1 + tau), since f = 1/2 everywhere would let no channel remember beyond two tokens. They run from one token
    to tau_max for the fastest state of a channel (omega = d_state), so tau starts from d_state: a rate above 2 a token
    would start the explicit solvers outside their region of stability.
    """

    def __init__(
        self,
        d_model: int,
        layer: int = 0,
        n_layers: int = 1,
        *,
        solver: Solver = DEFAULT_SOLVER,
        gradient: Gradient = DEFAULT_GRADIENT,
        parallel: Parallel = SEQUENTIAL,
        coupling: Coupling = "diagonal",
        reversal: Literal["input", "constant"] = "input",
        gate: Gate = "sigmoid",
        leak: bool = True,
        omega: Rate = 1.0,
        d_state: Dimension = 1,
        d_conv: TapsOrNone = 4,
        conv_start: Literal["uniform", "identity"] = "uniform",
        expand: Factor = 1,
        head_dim: Dimension = 32,
        tau_max: TimeConstant = 4096.0,
        horizon: StepSize = 1.0,
        sharp: Fraction = 0.0,
        kernel: Choice = "auto",
        d_out: int | None = None,
    ):
        super().__init__(d_model, layer, n_layers, d_out)
        d_conv = d_conv if d_out is None else 0
        self.solver, self.gradient, self.coupling, self.gate, self.kernel = solver, gradient, coupling, gate, kernel
        self.d_state, self.d_conv, self.d_inner = d_state, d_conv, expand * d_model
        self.leak, self.head_dim, self.horizon = leak, head_dim, horizon
        self._check()
        self.capturable = not solver.adaptive and gradient.name != "adjoint"  # torchdiffeq asks the device
        self.recurrence = Recurrence(solver, gradient, parallel, coupling, d_state, head_dim, kernel)
        if parallel.name == "newton":  # the error left is of the order of the last update's square
            self.inexact = "newton_iterations"
        if solver.adaptive:  # the rows of a batch share their step sizes, so each moves within the solver's tolerance
            self.inexact, self.data_dependent_flops = "adaptive_steps", True
        from_token = {"a": self.d_inner}
        from_token |= {"A": self.d_inner} if reversal == "input" else {}
        from_token |= {"B": d_state, "C": d_state} if d_state > 1 else {}
        self.from_token = from_token
        self.in_proj = nn.Linear(d_model, sum(from_token.values()), bias=False)
        self.out_proj = nn.Linear(self.d_inner, self.d_out, bias=False)
        self.scale_projection()
        self.reversal = None if reversal == "input" else _undecayed(torch.randn(self.d_inner))
        if d_conv:
            taps = torch.empty(d_conv, d_model).uniform_(-1, 1) / math.sqrt(d_conv)
            self.conv_weight = nn.Parameter(taps if conv_start == "uniform" else torch.zeros_like(taps))
            if conv_start == "identity":
                nn.init.ones_(self.conv_weight[-1])
            self.conv_bias = _undecayed(torch.zeros(d_model))
        self._init_rates(tau_max, omega)
        self._init_sharp(sharp)
        self._init_coupling()

    def _check(self) -> None:
        if self.coupling == "heads" and self.d_inner % self.head_dim:
            raise ConfigError(
                f"coupling=heads cannot cut {self.d_inner} channels into heads of head_dim={self.head_dim}.",
                "a head_dim that divides expand * d_model.",
                "change head_dim, or set the model's width_multiple to a multiple of it.",
            )

    def _init_rates(self, tau_max: float, omega: float) -> None:
        fastest, slowest = float(self.d_state), max(tau_max, self.d_state)
        log_tau = torch.linspace(math.log(fastest), math.log(slowest), self.d_inner)  # (D,)
        f = 1 / (1 + log_tau.exp())
        bias = torch.logit(f) if self.gate == "sigmoid" else f.expm1().log()
        self.gate_bias = _undecayed(bias)
        if self.leak:
            self.log_tau = _undecayed(log_tau[:, None].repeat(1, self.d_state))
        self.register_buffer("no_leak", torch.zeros(self.d_inner, self.d_state), persistent=False)
        self.register_buffer("omega", torch.full((self.d_inner, 1), omega), persistent=False)
        if self.d_state > 1:  # 1..N times omega in every channel, as the rates of S4D-real and Mamba start
            self.log_omega = _undecayed((omega * torch.arange(1.0, self.d_state + 1)).log().repeat(self.d_inner, 1))

    @torch.no_grad()
    def _init_sharp(self, share: float) -> None:
        steps = (share * torch.arange(self.d_inner + 1)).floor()
        chosen = steps.diff() > 0  # (D,)
        self.gate_bias.mul_(torch.where(chosen, 0.0, 1.0))
        self.in_proj.weight[: self.d_inner].mul_(torch.where(chosen, SHARPNESS, 1.0)[:, None])

    def _init_coupling(self) -> None:
        """The gate starts nearly blind to the state, with either sign."""
        D, P = self.d_inner, self.head_dim
        shape = {"none": None, "diagonal": (D,), "heads": (D // P, P, P), "dense": (D, D)}[self.coupling]
        self.coupling_weight = None
        if shape is not None:
            weight = 0.1 * torch.randn(shape) / math.sqrt(shape[-1] if len(shape) > 1 else 1)
            self.coupling_weight = _undecayed(weight) if len(shape) == 1 else nn.Parameter(weight)

    def field(self, x: Tensor) -> Field:
        """The token's field, or the sequence's: x (..., d_model), convolved; recurrences compute in at least float32.

        log_tau and log_omega are exponents, so both rates stay positive: the flow contracts whatever is learned.
        """
        dtype = torch.promote_types(x.dtype, torch.float32)
        parts = self.in_proj(x).to(dtype).split(list(self.from_token.values()), dim=-1)
        token = dict(zip(self.from_token, parts, strict=True))
        a = token["a"] + self.gate_bias
        A = token["A"] if self.reversal is None else self.reversal.to(dtype).expand_as(a)
        inv_tau = torch.exp(-self.log_tau.to(dtype)) if self.leak else self.no_leak.to(dtype)
        omega = self.log_omega.to(dtype).exp() if self.d_state > 1 else self.omega.to(dtype)
        weight = None if self.coupling_weight is None else self.coupling_weight.to(dtype)
        return Field(a, A, token.get("B"), token.get("C"), inv_tau, omega, weight, self.gate)

    @property
    def projection(self) -> nn.Linear:
        return self.out_proj

    def mix(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        state = state or self.init_state(x.shape[0], device=x.device, dtype=x.dtype)
        x, conv = self.convolve(x, state)
        return self._run(self.recurrence.sequence, x, state["h"], self.across(call, x.shape[:2]), conv)

    def mix_step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        x, conv = x_t, {}
        if self.d_conv:
            x, conv["conv"] = step_reference(x_t, self.conv_weight, self.conv_bias, state["conv"], False)
        elapsed = self.across(call, x_t.shape[:1])
        elapsed = None if elapsed is None else elapsed.unsqueeze(1)
        y, state = self._run(self.recurrence.token, x.unsqueeze(1), state["h"], elapsed, conv)
        return y.squeeze(1), state

    def across(self, call: Call, shape: torch.Size) -> Tensor | None:
        """The time that the flow crosses at each token, of a call of this shape; None for 1."""
        if self.horizon == 1:
            return call.elapsed
        weight = self.out_proj.weight
        return self.horizon * (weight.new_ones(shape) if call.elapsed is None else call.elapsed)

    def frozen_step(self) -> Callable:
        weight = self.out_proj.weight
        fixed = self.recurrence.served("cpu", torch.float32)
        return LIQUID_STEP.choose(self.kernel, weight.device, weight.dtype, fixed=fixed)(self)

    def convolve(self, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """Causal depthwise convolution of x (B, T, d_model) after the inputs kept in the state, and those to keep."""
        if not self.d_conv:
            return x, {}
        run = CAUSAL_CONV.choose(self.kernel, x.device, x.dtype)
        x, kept = run(x, self.conv_weight, self.conv_bias, state["conv"], False)
        return x, {"conv": kept}

    def _run(self, run: Callable, x: Tensor, h: Tensor, elapsed: Tensor | None, conv: dict) -> tuple[Tensor, State]:
        field = self.field(x)
        with torch.autocast(x.device.type, enabled=False):
            elapsed = None if elapsed is None else elapsed.to(field.a.dtype)
            y, h = run(field, h.to(field.a.dtype), elapsed)
        return y.to(x.dtype), {"h": h, **conv}

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> State:
        dtype = dtype or self.in_proj.weight.dtype
        flow = torch.promote_types(dtype, torch.float32)
        state = {"h": torch.zeros(batch, self.d_inner, self.d_state, device=device, dtype=flow)}
        if self.d_conv:
            state["conv"] = torch.zeros(batch, self.d_conv - 1, self.d_model, device=device, dtype=dtype)
        return state

    def flops_per_token(self, context: int) -> Flops:
        """The same at any context. An adaptive solver is counted at its least, one accepted step a token."""
        D, N = self.d_inner, self.d_state
        evals = self.solver.substeps * self.solver.evals_per_step
        per_channel = {"none": 0, "diagonal": 2 * D, "heads": 2 * D * self.head_dim, "dense": 2 * D * D}[self.coupling]
        products = 2 * self.d_model * sum(self.from_token.values()) + 2 * D * self.d_out
        coupled = evals * per_channel
        matrix = self.coupling in ("heads", "dense")
        # gate 4, f A 1, rate 2, drive 1, derivative 2, read-out 2 and the solver's combination 3 operations
        other = evals * D * (5 + 10 * N) + 2 * D * N + 2 * self.d_conv * self.d_model
        return Flops(products + coupled * matrix, other + coupled * (not matrix))

    def counts(self) -> dict[str, int]:
        """How Newton's method converged: calls, iterations in all, and sequences left to the sequential scan."""
        tally = self.recurrence.tally
        names = ("calls", "iterations", "fallbacks") if tally.calls else ()
        return {f"newton_{name}": getattr(tally, name) for name in names}


def _undecayed(value: Tensor) -> nn.Parameter:
    """A parameter that weight decay would pull towards a meaningless value."""
    parameter = nn.Parameter(value)
    parameter._no_weight_decay = True
    return parameter


def _step_refuses(fixed: bool) -> str | None:
    return None if fixed else "it computes only what the fused scan computes"


def step_sample(
    draw: Draw, batch=2, width=6, states=3, taps=4, kind: Kind = ("semi_implicit", "sigmoid", "diagonal"),
    reversal="input", elapsed=False,
) -> Sample:  # fmt: skip
    """An LTC of random weights, and one token behind a state. kind: as the samples of `liquid_scan` (scan.py)."""
    solver, gate, coupling = kind
    head_dim = coupling if isinstance(coupling, int) else 1
    width += -width % head_dim
    options = {"solver": make_solver(solver, 2), "gate": gate, "reversal": reversal, "head_dim": head_dim}
    options |= {"coupling": "heads" if isinstance(coupling, int) else coupling, "d_state": states, "d_conv": taps}
    state = {"h": draw.normal(batch, width, states)}
    state |= {"conv": draw.normal(batch, taps - 1, width)} if taps else {}
    call = Call(elapsed=draw.unit(batch).detach()) if elapsed else UNTIMED
    mixer = randomised(LTC(width, **options), draw)
    return Sample((mixer,), {"fixed": True}, (draw.normal(batch, width), state, call))


LIQUID_STEP = step_operation(
    "liquid_step",
    "arch.ltc.step_numba:liquid_step",
    _step_refuses,
    Samples(
        step_sample,
        {"batch": (1, 3), "width": (1, 7, 65), "states": (1, 2, 5), "taps": (0, 1, 4)},
        (
            {},
            *({"states": 1, "kind": (solver, "sigmoid", "diagonal")} for solver in FIXED),
            *({"kind": ("exponential", "softplus", coupling)} for coupling in ("none", 4)),
            {"taps": 0, "reversal": "constant"},
            {"elapsed": True},
        ),
    ),
)
