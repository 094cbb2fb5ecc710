"""Gated recurrent baselines: LSTM (Hochreiter & Schmidhuber 1997; Gers et al. 2000) and GRU (Cho et al. 2014)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.recurrent.scan import GRU_SCAN, GRU_STEP, LSTM_SCAN, LSTM_STEP, gru_cell, lstm_cell
from harness.config.ranges import Factor
from harness.model.mixer import UNTIMED, Call, Flops, ProjectedMixer
from harness.model.state import State
from harness.ops.registry import Choice, Operation


class Recurrent(ProjectedMixer):
    """One layer of the recurrence, then a projection to d_model.

    A subclass names torch's module, which holds the weights under their usual names, the operations that
    run the recurrence, and the tensors its state keeps, the output h first; it writes out one token. expand: d_inner /
    d_model. kernel: see harness/ops/registry.py.
    """

    module: type[nn.RNNBase]
    scan: Operation
    one_token: Operation
    gates: int
    keys: tuple[str, ...]
    other_flops_per_channel: int

    def __init__(
        self,
        d_model: int,
        layer: int = 0,
        n_layers: int = 1,
        *,
        expand: Factor = 1,
        kernel: Choice = "auto",
        d_out: int | None = None,
    ):
        super().__init__(d_model, layer, n_layers, d_out)
        self.d_inner, self.kernel = expand * d_model, kernel
        self.rnn = self.module(d_model, self.d_inner, batch_first=True)
        self.out = nn.Linear(self.d_inner, self.d_out, bias=False)
        self.scale_projection()
        for bias in (self.rnn.bias_ih_l0, self.rnn.bias_hh_l0):
            bias._no_weight_decay = True
        if not self.out.weight.is_meta:  # sizing only counts there
            self.initialise()

    def initialise(self) -> None:
        """What the recurrence starts from where it is not what torch gives it, U(+-1/sqrt(d_inner)) throughout."""

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """The recurrence's, as its operations take them."""
        return self.rnn.weight_ih_l0, self.rnn.weight_hh_l0, self.rnn.bias_ih_l0, self.rnn.bias_hh_l0

    def run(self, scan: Callable, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The recurrence over x (B, T, d_model): h (B, T, d_inner) and the state after the last token."""
        raise NotImplementedError

    def cell_step(self, by_x: Tensor, by_h: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The new state from the products of the token and of h, biases in them (B, gates x d_inner each)."""
        raise NotImplementedError

    @property
    def projection(self) -> nn.Linear:
        return self.out

    def mix(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        with torch.autocast(x.device.type, enabled=False):  # the recurrence keeps its weights' precision
            x = x.to(self.out.weight.dtype)
            state = state or self.init_state(x.shape[0], 0, x.device, x.dtype)
            h, last = self.run(self.scan.choose(self.kernel, x.device, x.dtype), x, state)  # h: (B, T, d_inner)
        return h, last

    def mix_step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        weight_ih, weight_hh, bias_ih, bias_hh = self.weights
        with torch.autocast(x_t.device.type, enabled=False):
            by_x = F.linear(x_t.to(weight_ih.dtype), weight_ih, bias_ih)
            state = self.cell_step(by_x, F.linear(state["h"], weight_hh, bias_hh), state)
        return state["h"], state

    def frozen_step(self) -> Callable:
        weight = self.out.weight
        make = self.one_token.choose(self.kernel, weight.device, weight.dtype)
        run, keys = make(weight.detach(), *(w.detach() for w in self.weights)), self.keys

        def step(x_t: Tensor, state: State, call: Call = UNTIMED):
            y, *new = run(x_t, *(state[key] for key in keys))
            return y, dict(zip(keys, new, strict=True))

        return step

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> State:
        return {key: torch.zeros(batch, self.d_inner, device=device, dtype=dtype) for key in self.keys}

    def flops_per_token(self, context: int) -> Flops:
        matmul = 2 * self.d_inner * (self.gates * (self.d_model + self.d_inner) + self.d_out)
        return Flops(matmul, self.other_flops_per_channel * self.d_inner)


class LSTM(Recurrent):
    """i, f, g, o = W_x x + W_h h + b;  c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c').

    The forget gate's bias starts at 1 (Jozefowicz et al. 2015), the rest as torch starts it: at a width of 100 within
    the [-0.1, 0.1] of Hochreiter & Schmidhuber.
    """

    module, scan, one_token, gates, keys = nn.LSTM, LSTM_SCAN, LSTM_STEP, 4, ("h", "c")
    other_flops_per_channel = 28  # four sums of two products and a bias, five activations of four, four to combine

    @torch.no_grad()
    def initialise(self) -> None:
        forget = slice(self.d_inner, 2 * self.d_inner)
        self.rnn.bias_ih_l0[forget] = 1.0
        self.rnn.bias_hh_l0[forget] = 0.0

    def run(self, scan: Callable, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        h, c = scan(x, state["h"], state["c"], *self.weights)
        return h, {"h": h[:, -1].clone(), "c": c}  # a view would keep every h alive

    def cell_step(self, by_x: Tensor, by_h: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        h, c = lstm_cell(by_x + by_h, state["c"])
        return {"h": h, "c": c}


class GRU(Recurrent):
    """r, z = sigmoid(W_x x + W_h h + b);  n = tanh(W_n x + b_n + r (U_n h + b_u));  h' = (1 - z) n + z h.

    Each recurrent matrix starts orthogonal, the others as N(0, 0.01^2), biases at zero, as the authors' code starts
    them (`prototype_phrase_state` in experiments/nmt/state.py of pascanur/GroundHog: the paper's configuration).
    """

    module, scan, one_token, gates, keys = nn.GRU, GRU_SCAN, GRU_STEP, 3, ("h",)
    other_flops_per_channel = 25  # six biases, three activations of four, two sums, and five to combine

    @torch.no_grad()
    def initialise(self) -> None:
        for matrix in self.rnn.weight_hh_l0.chunk(3):
            nn.init.orthogonal_(matrix)
        nn.init.normal_(self.rnn.weight_ih_l0, std=0.01)
        nn.init.zeros_(self.rnn.bias_ih_l0)
        nn.init.zeros_(self.rnn.bias_hh_l0)

    def run(self, scan: Callable, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        h = scan(x, state["h"], *self.weights)
        return h, {"h": h[:, -1].clone()}

    def cell_step(self, by_x: Tensor, by_h: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"h": gru_cell(by_x, by_h, state["h"])}
