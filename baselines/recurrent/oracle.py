"""The oracles of LSTM and GRU: torch's own cells."""

import torch
from torch import Tensor, nn

from baselines.recurrent.mixer import GRU, LSTM, Recurrent
from harness.checks.oracles import Oracle, oracle_of

CELLS = {LSTM: nn.LSTMCell, GRU: nn.GRUCell}


@oracle_of(LSTM, GRU)
def torch_cell(mixer: Recurrent) -> Oracle:
    """torch's own cell, one token at a time: independent of the fused kernel of `forward` and of `step`."""
    kind = CELLS[type(mixer)]
    cell = kind(mixer.d_model, mixer.d_inner).to(mixer.out.weight)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in mixer.rnn.state_dict().items()})

    def forward(x: Tensor) -> Tensor:
        hidden, outputs = None, []
        for x_t in x.unbind(1):
            hidden = cell(x_t, hidden)
            outputs.append(hidden[0] if isinstance(hidden, tuple) else hidden)
        return mixer.out(torch.stack(outputs, dim=1))

    return Oracle(f"torch.nn.{kind.__name__}", forward, tolerance=1e-5)
