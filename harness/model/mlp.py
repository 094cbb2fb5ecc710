"""The channel mixer of the backbone: SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.model.mixer import UNTIMED, Call, Flops, Mixer
from harness.model.state import State
from harness.ops.registry import Choice, Kernel, Operation


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of the halves of the last axis: (..., 2 F) -> (..., F)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


SWIGLU = Operation(
    "swiglu", swiglu, (Kernel("numba", "cpu", "harness.ops.elementwise.kernel_numba:swiglu"),), optional=True
)


def frozen_swiglu(gate_up: Tensor, down: Tensor) -> Callable[[Tensor], Tensor]:
    """The whole channel mixer for weights gate_up (2 F, D) and down (D, F), as a function of x (B, D)."""
    return lambda x: F.linear(swiglu(F.linear(x, gate_up)), down)


FROZEN_SWIGLU = Operation(
    "frozen_swiglu",
    frozen_swiglu,
    (Kernel("numba", "cpu", "harness.ops.elementwise.kernel_numba:frozen_swiglu", (torch.float32,)),),
    optional=True,
)


class SwiGLU(Mixer):
    """W_down(silu(W_gate x) * W_up x), memoryless: its state is empty."""

    def __init__(self, d_model: int, d_ff: int, layer: int = 0, n_layers: int = 1, *, kernel: Choice = "auto"):
        super().__init__(d_model, layer, n_layers)
        self.d_ff, self.kernel = d_ff, kernel
        self.gate_up = nn.Linear(d_model, 2 * d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        gate_up = self.gate_up(x)
        return self.down(SWIGLU.choose(self.kernel, gate_up.device, gate_up.dtype)(gate_up)), {}

    def step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        return self.forward(x_t)

    def frozen_step(self) -> Callable:
        weights = self.gate_up.weight, self.down.weight
        run = FROZEN_SWIGLU.choose(self.kernel, weights[0].device, weights[0].dtype)(*weights)
        return lambda x_t, state, call=UNTIMED: (run(x_t), state)

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> State:
        return {}

    def flops_per_token(self, context: int) -> Flops:
        return Flops(matmul=6 * self.d_model * self.d_ff, other=6 * self.d_ff)
