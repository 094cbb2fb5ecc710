"""Gated recurrent baselines: LSTM (Hochreiter & Schmidhuber 1997; Gers et al. 2000) and GRU (Cho et al. 2014)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from harness.mixer import Flops, Mixer, Trusted
from harness.state import State


class Recurrent(Mixer):
    """One layer of torch's fused recurrence (oneDNN or cuDNN where they serve it), then a projection to d_model.

    A subclass names the module and its cell, writes the cell out for `step`, and lists the tensors its state keeps.
    expand: d_inner / d_model.
    """

    fused: type[nn.RNNBase]
    cell: type[nn.RNNCellBase]
    gates: int
    keys: tuple[str, ...]
    other_flops_per_channel: int

    def __init__(self, d_model: int, layer: int = 0, n_layers: int = 1, *, expand: PositiveInt = 1):
        super().__init__(d_model, layer, n_layers)
        self.d_inner = expand * d_model
        self.rnn = self.fused(d_model, self.d_inner, batch_first=True)
        self.out = nn.Linear(self.d_inner, d_model, bias=False)
        for bias in (self.rnn.bias_ih_l0, self.rnn.bias_hh_l0):
            bias._no_weight_decay = True

    def cell_step(self, x_t: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """One token of the recurrence. x_t: (B, d_model). Returns the new state, whose h is the output (B, d_inner)."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, state: State = None, elapsed: Tensor | None = None, shared: dict | None = None
    ) -> tuple[Tensor, State]:
        with torch.autocast(x.device.type, enabled=False):  # the recurrence keeps its weights' precision
            x = x.to(self.out.weight.dtype)
            state = state or self.init_state(x.shape[0], 0, x.device, x.dtype)
            carried = tuple(state[key][None].contiguous() for key in self.keys)  # (1, B, d_inner) each
            h, last = self.rnn(x, carried if len(carried) > 1 else carried[0])  # h: (B, T, d_inner)
        last = last if isinstance(last, tuple) else (last,)
        return self.out(h), {key: tensor[0] for key, tensor in zip(self.keys, last, strict=True)}

    def step(
        self, x_t: Tensor, state: State, elapsed: Tensor | None = None, shared: dict | None = None
    ) -> tuple[Tensor, State]:
        with torch.autocast(x_t.device.type, enabled=False):
            state = self.cell_step(x_t.to(self.out.weight.dtype), state)
        return self.out(state["h"]), state

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> State:
        return {key: torch.zeros(batch, self.d_inner, device=device, dtype=dtype) for key in self.keys}

    def flops_per_token(self, context: int) -> Flops:
        matmul = 2 * self.d_inner * (self.gates * (self.d_model + self.d_inner) + self.d_model)
        return Flops(matmul, self.other_flops_per_channel * self.d_inner)

    def trusted(self) -> Trusted:
        """torch's own cell, one token at a time: independent of the fused kernel of `forward` and of `step`."""
        cell = self.cell(self.d_model, self.d_inner).to(self.out.weight)
        cell.load_state_dict({name.removesuffix("_l0"): value for name, value in self.rnn.state_dict().items()})
        return Trusted(f"torch.nn.{self.cell.__name__}", lambda x: self.out(_loop(cell, x)), tolerance=1e-5)


class LSTM(Recurrent):
    """i, f, g, o = W_x x + W_h h + b;  c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c').

    The forget gate's bias starts at 1 (Jozefowicz et al. 2015), the rest as torch starts it.
    """

    fused, cell, gates, keys = nn.LSTM, nn.LSTMCell, 4, ("h", "c")
    other_flops_per_channel = 28  # four sums of two products and a bias, five activations of four, four to combine

    def __init__(self, d_model: int, layer: int = 0, n_layers: int = 1, *, expand: PositiveInt = 1):
        super().__init__(d_model, layer, n_layers, expand=expand)
        forget = slice(self.d_inner, 2 * self.d_inner)
        with torch.no_grad():
            self.rnn.bias_ih_l0[forget] = 1.0
            self.rnn.bias_hh_l0[forget] = 0.0

    def cell_step(self, x_t: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        rnn = self.rnn
        gates = F.linear(x_t, rnn.weight_ih_l0, rnn.bias_ih_l0) + F.linear(state["h"], rnn.weight_hh_l0, rnn.bias_hh_l0)
        i, f, g, o = gates.chunk(4, dim=-1)  # (B, 4 d_inner) -> (B, d_inner) each
        c = f.sigmoid() * state["c"] + i.sigmoid() * g.tanh()
        return {"h": o.sigmoid() * c.tanh(), "c": c}


class GRU(Recurrent):
    """r, z = sigmoid(W_x x + W_h h + b);  n = tanh(W_n x + b_n + r (U_n h + b_u));  h' = (1 - z) n + z h."""

    fused, cell, gates, keys = nn.GRU, nn.GRUCell, 3, ("h",)
    other_flops_per_channel = 25  # six biases, three activations of four, two sums, and five to combine

    def cell_step(self, x_t: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        rnn, h = self.rnn, state["h"]
        r_x, z_x, n_x = F.linear(x_t, rnn.weight_ih_l0, rnn.bias_ih_l0).chunk(3, dim=-1)
        r_h, z_h, n_h = F.linear(h, rnn.weight_hh_l0, rnn.bias_hh_l0).chunk(3, dim=-1)
        z, n = (z_x + z_h).sigmoid(), (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
        return {"h": n + z * (h - n)}


def _loop(cell: Callable, x: Tensor) -> Tensor:
    """Runs a torch cell over x (B, T, d_model) from a zero state; returns h (B, T, d_inner)."""
    hidden, outputs = None, []
    for x_t in x.unbind(1):
        hidden = cell(x_t, hidden)
        outputs.append(hidden[0] if isinstance(hidden, tuple) else hidden)
    return torch.stack(outputs, dim=1)
