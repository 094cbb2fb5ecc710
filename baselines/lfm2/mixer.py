"""The gated short convolution of LFM2 (Liquid AI 2025, arXiv:2511.23404); its attention is that of the Transformer."""

import torch
from torch import Tensor, nn

from harness.config.ranges import Taps
from harness.model.mixer import UNTIMED, Call, Flops, ProjectedMixer
from harness.model.state import State
from harness.ops.causal_conv.conv import CAUSAL_CONV
from harness.ops.registry import Choice


class GatedConvolution(ProjectedMixer):
    """B, C, v = in_proj(x);  out_proj(C * conv(B * v)), the convolution causal and depthwise, without bias.

    d_conv: taps. State: the last d_conv - 1 of B * v, (B, d_conv - 1, d_model). The layer has its own gates and
    convolution, and so does not stand in a gated block.
    """

    def __init__(self, d_model: int, layer: int = 0, n_layers: int = 1, *, d_conv: Taps = 3, kernel: Choice = "auto"):
        super().__init__(d_model, layer, n_layers)
        self.d_conv, self.kernel = d_conv, kernel
        self.in_proj = nn.Linear(d_model, 3 * d_model, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(d_conv, d_model).uniform_(-1, 1) / d_conv**0.5)
        self.register_buffer("no_bias", torch.zeros(d_model), persistent=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)
        self.scale_projection()

    @property
    def projection(self) -> nn.Linear:
        return self.out_proj

    def mix(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        state = self.init_state(x.shape[0], 0, x.device, x.dtype) if state is None else state
        B, C, v = self.in_proj(x).chunk(3, dim=-1)  # (B, T, d_model) each
        convolve = CAUSAL_CONV.choose(self.kernel, v.device, v.dtype)
        y, conv = convolve(B * v, self.conv_weight, self.no_bias, state["conv"], False)
        return C * y, {"conv": conv}

    def mix_step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        B, C, v = self.in_proj(x_t).chunk(3, dim=-1)
        window = torch.cat([state["conv"].to(v.dtype), (B * v).unsqueeze(1)], dim=1)  # (B, d_conv, d_model)
        y = (window * self.conv_weight.to(v.dtype)).sum(1)
        return C * y, {"conv": window[:, 1:].clone()}  # a view would keep what it leaves out

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> State:
        return {"conv": torch.zeros(batch, self.d_conv - 1, self.d_model, device=device, dtype=dtype)}

    def flops_per_token(self, context: int) -> Flops:
        return Flops(8 * self.d_model**2, (2 * self.d_conv + 2) * self.d_model)
