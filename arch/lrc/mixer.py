"""LrcSSM: liquid-resistance liquid-capacitance neurons with a diagonal Jacobian (Farsang et al. 2025, NeurIPS)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch.lrc.newton import Way, newton_scan
from arch.lrc.scan import LRC_SCAN, LRC_STEP, Neurons
from arch.newton import Parallel, Sequential, Tally
from harness.config.ranges import Factor
from harness.model.mixer import UNTIMED, Call, Flops, ProjectedMixer
from harness.model.state import State
from harness.ops.registry import Choice

SEQUENTIAL = Sequential()


class LRC(ProjectedMixer):
    """x -> sensory synapses -> (p, q) -> the neurons' recurrence -> out projection.

    s = sigmoid(sigma_x (x - mu_x)), p = gleak + W s, q = gleak + U s; then arch/lrc/scan.py. expand: d_inner / d_model.
    parallel: sequential, one fused kernel on the CPU, or newton, the authors' way, of torch operations and a linear
    scan, on a GPU too. The time of a token is the step of their explicit Euler rule, which is stable up to 2.
    """

    def __init__(
        self,
        d_model: int,
        layer: int = 0,
        n_layers: int = 1,
        *,
        parallel: Parallel = SEQUENTIAL,
        expand: Factor = 1,
        kernel: Choice = "auto",
        d_out: int | None = None,
    ):
        super().__init__(d_model, layer, n_layers, d_out)
        self.d_inner, self.parallel, self.kernel, self.tally = expand * d_model, parallel, kernel, Tally()
        if parallel.name == "newton":
            self.inexact = "newton_iterations"
        bound = self.d_inner**-0.5  # the authors' for every weight

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

        self.sensory_mu, self.sensory_sigma = weight(d_model), weight(d_model)
        self.sensory = weight(2 * self.d_inner, d_model)  # W, then U
        self.gleak = weight(self.d_inner)
        self.neurons = nn.ParameterDict({name: weight(self.d_inner) for name in Neurons._fields})
        self.out_proj = nn.Linear(self.d_inner, self.d_out, bias=False)
        self.scale_projection()

    @property
    def projection(self) -> nn.Linear:
        return self.out_proj

    def _cells(self) -> Neurons:
        return Neurons(**self.neurons)

    def _sense(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """p and q (..., d_inner) of tokens."""
        s = torch.sigmoid(self.sensory_sigma * (x - self.sensory_mu))
        return F.linear(s, self.sensory, self.gleak.repeat(2)).to(self.gleak.dtype).chunk(2, dim=-1)

    def _run(self) -> Callable:
        if self.parallel.name == "newton":
            way = Way(self.parallel, self.kernel, self.tally.add)
            return lambda *call: newton_scan(way, *call)
        return LRC_SCAN.choose(self.kernel, self.gleak.device, self.gleak.dtype)

    def mix(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        p, q = self._sense(x)
        h = state["h"] if state else p.new_zeros(len(x), self.d_inner)
        elapsed = None if call.elapsed is None else call.elapsed.to(p.dtype)
        with torch.autocast(x.device.type, enabled=False):
            h = self._run()(self._cells(), p, q, h, elapsed)
        return h, {"h": h[:, -1].clone()}  # a view would keep every h alive

    def mix_step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        p, q = self._sense(x_t)
        with torch.autocast(x_t.device.type, enabled=False):
            dt = None if call.elapsed is None else call.elapsed.to(p.dtype)[:, None]
            h = self._cells().step(p, q, state["h"], dt)
        return h, {"h": h}

    @torch.no_grad()
    def frozen_step(self) -> Callable:
        run = LRC_STEP.choose(self.kernel, self.gleak.device, self.gleak.dtype)(self._cells())
        sigma, mu, weight, out = (
            w.clone() for w in (self.sensory_sigma, self.sensory_mu, self.sensory, self.out_proj.weight)
        )
        gleak = self.gleak.repeat(2)

        def step(x_t: Tensor, state: State, call: Call = UNTIMED):
            if call.elapsed is not None:
                return self.step(x_t, state, call)
            p, q = F.linear(torch.sigmoid(sigma * (x_t - mu)), weight, gleak).chunk(2, dim=-1)
            h = run(p, q, state["h"])
            return F.linear(h, out), {"h": h}

        return step

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> State:
        return {"h": torch.zeros(batch, self.d_inner, device=device, dtype=dtype)}

    def flops_per_token(self, context: int) -> Flops:
        """Of four operations each: a sensory neuron's sigmoid, and a neuron's four activations beside 16 others."""
        return Flops(2 * self.d_inner * (2 * self.d_model + self.d_out), 6 * self.d_model + 32 * self.d_inner)

    def counts(self) -> dict[str, int]:
        """How Newton's method converged: calls, iterations in all, and sequences left to the sequential scan."""
        names = ("calls", "iterations", "fallbacks") if self.tally.calls else ()
        return {f"newton_{name}": getattr(self.tally, name) for name in names}
