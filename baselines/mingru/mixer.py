"""minGRU (Feng et al. 2024, "Were RNNs All We Needed?", arXiv:2410.01201): a GRU whose gate sees the token alone."""

import torch
from torch import Tensor, nn

from harness.config.ranges import Factor, TapsOrNone
from harness.model.mixer import UNTIMED, Call, Flops, ProjectedMixer
from harness.model.state import State
from harness.ops.causal_conv.conv import CAUSAL_CONV, step_reference
from harness.ops.linear_scan.scan import LINEAR_SCAN
from harness.ops.registry import Choice


class MinGRU(ProjectedMixer):
    """z = sigmoid(W_z x + b_z);  h' = (1 - z) h + z g(W_h x + b_h), then a projection (section 3.1 and appendix B).

    g(v) = v + 1/2 where v >= 0, else sigmoid(v), keeps every state positive, as the authors' scan over logarithms needs
    it; the scan here adds up the states themselves, which is the same map. expand: d_inner / d_model. d_conv: taps of a
    convolution that is added to x first, 0 for none; none in a gated block, which has its own. Weights start as torch's
    linear layers do and W_z and W_h do not decay, as in the authors' code (BorealisAI/minRNNs, `models/minRNNs.py` and
    `main.py`). State: `h` (B, d_inner), float32 or wider, and `conv` (B, d_conv - 1, d_model).
    """

    def __init__(
        self,
        d_model: int,
        layer: int = 0,
        n_layers: int = 1,
        *,
        expand: Factor = 1,
        d_conv: TapsOrNone = 4,
        kernel: Choice = "auto",
        d_out: int | None = None,
    ):
        super().__init__(d_model, layer, n_layers, d_out)
        self.d_inner, self.d_conv, self.kernel = expand * d_model, 0 if self.gated else d_conv, kernel
        self.hidden_and_gate = nn.Linear(d_model, 2 * self.d_inner)
        self.hidden_and_gate.weight._no_weight_decay = True
        self.out = nn.Linear(self.d_inner, self.d_out)
        self.scale_projection()
        if self.d_conv:
            self.conv_weight = nn.Parameter(torch.empty(d_conv, d_model).uniform_(-1, 1) / d_conv**0.5)
            self.conv_bias = nn.Parameter(torch.zeros(d_model))

    @property
    def projection(self) -> nn.Linear:
        return self.out

    def mix(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        state, given = self.init_state(x.shape[0], 0, x.device, x.dtype) if state is None else state, x
        new = {}
        if self.d_conv:
            convolve = CAUSAL_CONV.choose(self.kernel, x.device, x.dtype)
            y, new["conv"] = convolve(x, self.conv_weight, self.conv_bias, state["conv"], False)
            x = x + y
        keep, drive = self._coefficients(x)
        h = LINEAR_SCAN.choose(self.kernel, keep.device, keep.dtype)(keep, drive, state["h"])
        return h.to(given), new | {"h": h[:, -1].clone()}  # a view would keep every h alive

    def mix_step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        given, new = x_t, {}
        if self.d_conv:
            y, new["conv"] = step_reference(x_t, self.conv_weight, self.conv_bias, state["conv"], False)
            x_t = x_t + y
        keep, drive = self._coefficients(x_t)
        h = keep * state["h"] + drive
        return h.to(given), new | {"h": h}

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> State:
        wide = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        h = {"h": torch.zeros(batch, self.d_inner, device=device, dtype=wide)}
        if not self.d_conv:
            return h
        return {"conv": torch.zeros(batch, self.d_conv - 1, self.d_model, device=device, dtype=dtype)} | h

    def flops_per_token(self, context: int) -> Flops:
        matmul = 2 * (self.hidden_and_gate.weight.numel() + self.out.weight.numel())
        # of each channel: biases, sigmoid, 1 - z, g and its product, recurrence; then taps and sum, and out's bias
        other = self.d_inner * (2 + 4 + 1 + 5 + 1 + 2) + self.d_model * (2 * self.d_conv + 1 + 1)
        return Flops(matmul, other)

    def _coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (..., d_model) -> 1 - z and z g of the recurrence, (..., d_inner), float32 or wider."""
        hidden_and_gate = self.hidden_and_gate(x)
        wide = torch.promote_types(hidden_and_gate.dtype, torch.float32)
        hidden, gate = hidden_and_gate.to(wide).chunk(2, dim=-1)
        z = gate.sigmoid()
        return 1 - z, z * torch.where(hidden >= 0, hidden + 0.5, hidden.sigmoid())
