"""The continuous-time baselines that LTC was published against: CT-RNN, the Neural ODE and CT-GRU.

Hasani et al. (2021, arXiv:2006.04439), table 3. Sizes of steps, their numbers and starts are those of the authors' code
(raminmh/liquid_time_constant_networks, `experiments_with_ltcs/ctrnn_model.py`, as its scripts call it).
"""

import math

import torch
from torch import Tensor, nn

from harness.config.ranges import Dimension, Factor, Steps, StepSize, TimeScale
from harness.model.mixer import UNTIMED, Call, Flops, ProjectedMixer
from harness.model.state import State
from harness.ops.shapes import expect_tokens


class Continuous(ProjectedMixer):
    """A recurrence over irregular time, then a projection.

    A subclass says how large the state of a channel is and takes one token. expand: d_inner / d_model. Matrices that
    read the token and the state start Xavier uniform as the joined matrix that the authors hold, biases at 0.
    `gates`: how many vectors of d_inner a token gives.
    """

    gates: int = 1

    def __init__(self, d_model: int, layer: int, n_layers: int, expand: int, d_out: int | None):
        super().__init__(d_model, layer, n_layers, d_out)
        self.d_inner = expand * d_model
        self.input = nn.Linear(d_model, self.gates * self.d_inner)
        self.recurrent = nn.Parameter(torch.empty(self.gates * self.d_inner, self.d_inner))
        self.out = nn.Linear(self.d_inner, self.d_out, bias=False)
        self.scale_projection()
        bound = math.sqrt(6 / (d_model + 2 * self.d_inner))
        for matrix in (self.input.weight, self.recurrent):
            nn.init.uniform_(matrix, -bound, bound)
        nn.init.zeros_(self.input.bias)
        self.input.bias._no_weight_decay = True

    def token(self, u: Tensor, h: Tensor, elapsed: Tensor | None) -> tuple[Tensor, Tensor]:
        """The output (B, d_inner) and the new state, from the token's product u (B, gates x d_inner).

        elapsed: (B, 1), or None for 1.
        """
        raise NotImplementedError

    @property
    def projection(self) -> nn.Linear:
        return self.out

    def mix(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        expect_tokens(type(self).__name__, x.shape[1])
        state = state or self.init_state(x.shape[0], 0, x.device, self.recurrent.dtype)
        h, outputs = state["h"], []
        with torch.autocast(x.device.type, enabled=False):  # the recurrence keeps its weights' precision
            u = self.input(x.to(self.recurrent.dtype)).unbind(1)
            times = [None] * len(u) if call.elapsed is None else call.elapsed.to(h.dtype)[..., None].unbind(1)
            for u_t, time in zip(u, times, strict=True):
                y, h = self.token(u_t, h, time)
                outputs.append(y)
        return torch.stack(outputs, 1), {"h": h}

    def mix_step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        with torch.autocast(x_t.device.type, enabled=False):
            time = None if call.elapsed is None else call.elapsed.to(self.recurrent.dtype)[:, None]
            y, h = self.token(self.input(x_t.to(self.recurrent.dtype)), state["h"], time)
        return y, {"h": h}

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> State:
        return {"h": torch.zeros(batch, self.d_inner, device=device, dtype=dtype)}


class NeuralODE(Continuous):
    """dh/dt = tanh(W x + U h + b) by the classic Runge-Kutta rule (Chen et al. 2018, as a recurrent cell).

    The token stands while its time lasts, `unfolds` steps of `delta_t` for an elapsed time of 1: the authors' token
    takes 0.6 units of the equation's time.
    """

    evaluations = 4
    other_flops_per_evaluation = 7
    """Of a channel: the token's sum, a tanh of four, and the step's multiply-add."""

    def __init__(
        self,
        d_model: int,
        layer: int = 0,
        n_layers: int = 1,
        *,
        unfolds: Steps = 6,
        delta_t: StepSize = 0.1,
        expand: Factor = 1,
        d_out: int | None = None,
    ):
        super().__init__(d_model, layer, n_layers, expand, d_out)
        self.unfolds, self.delta_t = unfolds, delta_t

    def token(self, u: Tensor, h: Tensor, elapsed: Tensor | None) -> tuple[Tensor, Tensor]:
        dt = self.delta_t if elapsed is None else self.delta_t * elapsed
        for _ in range(self.unfolds):
            h = self.advance(u, h, dt)
        return h, h

    def drive(self, u: Tensor, h: Tensor) -> Tensor:
        """tanh(W x + U h + b)."""
        return torch.addmm(u, h, self.recurrent.t()).tanh()

    def advance(self, u: Tensor, h: Tensor, dt: float | Tensor) -> Tensor:
        """One step of dt, a number or (B, 1)."""
        k1 = self.drive(u, h)
        k2 = self.drive(u, h + dt / 2 * k1)
        k3 = self.drive(u, h + dt / 2 * k2)
        k4 = self.drive(u, h + dt * k3)
        return h + dt / 6 * (k1 + 2 * (k2 + k3) + k4)

    def flops_per_token(self, context: int) -> Flops:
        evaluations = self.unfolds * self.evaluations
        matmul = 2 * self.d_inner * (self.d_model + evaluations * self.d_inner + self.d_out)
        return Flops(matmul, self.d_inner * (1 + evaluations * self.other_flops_per_evaluation))


class CTRNN(NeuralODE):
    """dh/dt = tanh(W x + U h + b) - h / tau by explicit Euler steps (Funahashi & Nakamura 1993).

    tau: one for all channels, not learned, 1 as the authors leave it.
    """

    evaluations = 1
    other_flops_per_evaluation = 9  # the leak's multiply-add besides

    def __init__(
        self,
        d_model: int,
        layer: int = 0,
        n_layers: int = 1,
        *,
        tau: TimeScale = 1.0,
        unfolds: Steps = 6,
        delta_t: StepSize = 0.1,
        expand: Factor = 1,
        d_out: int | None = None,
    ):
        super().__init__(d_model, layer, n_layers, unfolds=unfolds, delta_t=delta_t, expand=expand, d_out=d_out)
        self.tau = tau

    def advance(self, u: Tensor, h: Tensor, dt: float | Tensor) -> Tensor:
        return h + dt * (self.drive(u, h) - h / self.tau)


class CTGRU(Continuous):
    """A GRU of which each channel remembers at several time scales (Mozer et al. 2017, arXiv:1710.04110, section 3).

    A channel holds M traces that decay at tau_i = sqrt(10)^i tokens, h = sum_i trace_i; W, U of x and h. ln tau_R and
    ln tau_S are learned functions of both, and weigh the traces by softmax_i(-(ln tau - ln tau_i)^2), r and s:
    q = tanh(W_q x + U_q sum_i r_i trace_i + b_q),   trace_i' = (1 - s_i) trace_i + s_i q.
    The traces decay by exp(-elapsed / tau_i) when the next token comes, since its time is known only then; the paper
    writes the same decay behind the update, for a next event whose time is given. The authors of LTC decay by
    exp(-1 / ln tau_i), which forgets the first scale at once, and learn an ln tau for each trace; the paper's equations
    are built here. State: h (B, d_inner, M).
    """

    gates = 3

    def __init__(
        self,
        d_model: int,
        layer: int = 0,
        n_layers: int = 1,
        *,
        scales: Dimension = 8,
        expand: Factor = 1,
        d_out: int | None = None,
    ):
        super().__init__(d_model, layer, n_layers, expand, d_out)
        self.scales = scales

    def token(self, u: Tensor, h: Tensor, elapsed: Tensor | None) -> tuple[Tensor, Tensor]:
        log_tau = torch.arange(self.scales, dtype=u.dtype, device=u.device) * (math.log(10) / 2)
        rates = torch.exp(-log_tau)
        split = 2 * self.d_inner
        traces = h * torch.exp(-rates if elapsed is None else -rates * elapsed[..., None])
        by_scale = torch.addmm(u[:, :split], traces.sum(-1), self.recurrent[:split].t())
        weights = torch.softmax(-((by_scale[..., None] - log_tau) ** 2), -1)  # (B, 2 d_inner, M)
        retrieve, store = weights.chunk(2, dim=1)
        q = torch.addmm(u[:, split:], (retrieve * traces).sum(-1), self.recurrent[split:].t()).tanh()
        traces = torch.lerp(traces, q[..., None], store)
        return traces.sum(-1), traces

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> State:
        return {"h": torch.zeros(batch, self.d_inner, self.scales, device=device, dtype=dtype)}

    def flops_per_token(self, context: int) -> Flops:
        matmul = 2 * self.d_inner * (3 * (self.d_model + self.d_inner) + self.d_out)
        # of each trace: the decay, two sums, two weights of nine, the weighed sum of two, and the update of three; of
        # each channel: three biases, three sums and a tanh of four
        return Flops(matmul, self.d_inner * (self.scales * (1 + 2 + 18 + 2 + 3) + 3 + 3 + 4))
