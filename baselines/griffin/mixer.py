"""The recurrent block and the gated MLP of Hawk and Griffin (De et al. 2024, arXiv:2402.19427).

Weights start as in the authors' code (google-deepmind/recurrentgemma, `torch/layers.py` and `torch/modules.py`).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.griffin.scan import RG_LRU, step
from harness.config.ranges import Dimension, Ratio, Taps
from harness.model.mixer import UNTIMED, Call, Flops, ProjectedMixer
from harness.model.mlp import SwiGLU
from harness.model.state import State
from harness.ops.causal_conv.conv import CAUSAL_CONV, step_reference
from harness.ops.registry import Choice

C = 8.0
RADII = 0.9, 0.999  # of exp(-softplus(a_param)) at the start


class RecurrentBlock(ProjectedMixer):
    """linear_out(gelu(linear_y x) * h), h the RG-LRU of linear_x x after a short convolution (sections 2.3 and 2.4).

    r, i = sigmoid(W u + b), each W of n_blocks blocks on its diagonal;  a = exp(-8 softplus(a_param) r);
    h' = a h + sqrt(1 - a^2) i u. rnn_ratio: d_rnn / d_model, d_rnn being rounded to a multiple of n_blocks. d_conv:
    taps. State: `conv` (B, d_conv - 1, d_rnn), the convolution's last inputs, and `h` (B, d_rnn), float32 or wider.

    The paper's equation holds at every token; the authors' code leaves the root out at the first of a document. The
    block has a convolution and a gate of its own, and so does not stand in a gated block.
    """

    def __init__(
        self,
        d_model: int,
        layer: int = 0,
        n_layers: int = 1,
        *,
        rnn_ratio: Ratio = 4 / 3,
        n_blocks: Dimension = 16,
        d_conv: Taps = 4,
        kernel: Choice = "auto",
    ):
        super().__init__(d_model, layer, n_layers)
        self.n_blocks, self.d_conv, self.kernel = n_blocks, d_conv, kernel
        width = max(1, round(rnn_ratio * d_model / n_blocks))
        self.d_rnn = n_blocks * width
        self.linear_x, self.linear_y = (nn.Linear(d_model, self.d_rnn) for _ in range(2))
        self.conv_weight = nn.Parameter(torch.empty(d_conv, self.d_rnn))
        self.conv_bias = nn.Parameter(torch.zeros(self.d_rnn))
        self.gate_weight = nn.Parameter(torch.empty(n_blocks, width, 2 * width))  # r's columns, then i's
        self.gate_bias = nn.Parameter(torch.zeros(2 * self.d_rnn))  # likewise, block by block
        self.a_param = nn.Parameter(torch.empty(self.d_rnn))
        self.linear_out = nn.Linear(self.d_rnn, d_model)
        self._reset()

    @torch.no_grad()
    def _reset(self) -> None:
        """Variances of 1 / inputs, on the way out 2 / layers of that, 0.01 of it in the convolution; no biases."""
        for linear, variance in ((self.linear_x, 1), (self.linear_y, 1), (self.linear_out, 2 / self.n_layers)):
            start(linear, variance)
        nn.init.normal_(self.conv_weight, std=math.sqrt(0.01 / self.d_conv))
        nn.init.normal_(self.gate_weight, std=self.gate_weight.shape[1] ** -0.5)
        squares = torch.empty_like(self.a_param).uniform_(RADII[0] ** 2, RADII[1] ** 2)  # even over a ring's area
        self.a_param.copy_((squares**-0.5 - 1).log())  # softplus(a_param) = -log(radius)

    @property
    def projection(self) -> nn.Linear:
        return self.linear_out

    def mix(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        state = self.init_state(x.shape[0], 0, x.device, x.dtype) if state is None else state
        u, z = self.linear_x(x), self.linear_y(x)  # (B, T, d_rnn) each
        convolve = CAUSAL_CONV.choose(self.kernel, u.device, u.dtype)
        u, conv = convolve(u, self.conv_weight, self.conv_bias, state["conv"], False)
        inputs = self._inputs(u, z)
        y, h = RG_LRU.choose(self.kernel, u.device, inputs[0].dtype)(*inputs, state["h"].to(inputs[0]))
        return y.to(x), {"conv": conv, "h": h}

    def mix_step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        u, z = self.linear_x(x_t), self.linear_y(x_t)
        u, conv = step_reference(u, self.conv_weight, self.conv_bias, state["conv"], False)
        y, h = step(*self._inputs(u, z), state["h"])
        return y.to(x_t), {"conv": conv, "h": h}

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> State:
        wide = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        conv = torch.zeros(batch, self.d_conv - 1, self.d_rnn, device=device, dtype=dtype)
        return {"conv": conv, "h": torch.zeros(batch, self.d_rnn, device=device, dtype=wide)}

    def flops_per_token(self, context: int) -> Flops:
        matrices = (self.linear_x.weight, self.linear_y.weight, self.gate_weight, self.linear_out.weight)
        # of each channel: biases, taps, two sigmoids, a, root, input, recurrence, gelu and gate
        other = self.d_rnn * (4 + 2 * self.d_conv + 8 + 2 + 4 + 2 + 2 + 8 + 1) + self.d_model
        return Flops(matmul=2 * sum(matrix.numel() for matrix in matrices), other=other)

    def _inputs(self, u: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        """u, z (..., d_rnn) -> u, r, i (before their sigmoids), z and the rate (d_rnn), float32 or wider."""
        wide = torch.promote_types(u.dtype, torch.float32)
        rows = u.reshape(-1, self.n_blocks, self.d_rnn // self.n_blocks).transpose(0, 1)  # (n_blocks, N, width)
        bias = self.gate_bias.view(self.n_blocks, 1, -1)
        gates = torch.baddbmm(bias, rows, self.gate_weight).transpose(0, 1)  # (N, n_blocks, 2 width)
        r, i = (gate.to(wide).reshape(u.shape) for gate in gates.chunk(2, dim=-1))
        return u.to(wide), r, i, z.to(wide), C * F.softplus(self.a_param.to(wide))


class GeGLU(SwiGLU):
    """The gated MLP of section 2.2, down(gelu(gate x) * up x), with the authors' start; they give it biases as well."""

    def __init__(self, d_model: int, d_ff: int, layer: int = 0, n_layers: int = 1, *, kernel: Choice = "auto"):
        super().__init__(d_model, d_ff, layer, n_layers, activation="gelu", kernel=kernel)
        start(self.gate_up, 1)
        start(self.down, 2 / n_layers)


@torch.no_grad()
def start(linear: nn.Linear, variance: float) -> None:
    """Normal weights of variance / inputs, no bias."""
    nn.init.normal_(linear.weight, std=math.sqrt(variance / linear.in_features))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
