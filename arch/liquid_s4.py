"""Liquid-S4: a diagonal state-space model whose transition sees its input, to a finite order (Hasani et al. 2022).

Of each channel's bilinear recurrence x_t = (A + u_t B 1^T) x_{t-1} + B u_t, y_t = C x_t, in discrete A and B, the paper
(arXiv:2209.12951, section 3) keeps a convolution for each order p of products of inputs. With S = 1^T B:

    kb:  y = K * (u + sum_p S^(p-1) prod_{j<p} u_{t-j}),    K_s = C A^s B
    pb:  y = K * u + K_0 sum_p S^(p-1) prod_{j<p} u_{t-j},  p = 2..degree

kb's terms are those of the recurrence in which the factors u B 1^T directly follow the input they multiply; pb (the
paper's better one) sets A to the identity in them and keeps the last. Published are A as DPLR from HiPPO-LegS; here it
is diagonal, S4D-Lin (Gu et al. 2022, arXiv:2206.11893), under the same bilinear rule.
The published code (raminmh/liquid-s4, `ss/s4.py`) reverses the products in time and may take those of the sequence's
last inputs alone, so that an output sees later inputs; here they are the consecutive ones that end at the token.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.config.errors import ConfigError
from harness.config.ranges import Dimension, Factor, StepSize
from harness.model.mixer import UNTIMED, Call, Flops, Mixer
from harness.model.state import State
from harness.ops.shapes import expect_tokens

CHUNK = 64  # tokens whose outputs one product makes; a power of two


class Discrete(NamedTuple):
    """The system of each channel in discrete time, one of each pair of conjugate states: A, B, C (D, N / 2) complex.

    S, skip: (D). skip: what of an input passes by the states, D of the paper.
    """

    A: Tensor
    B: Tensor
    C: Tensor
    S: Tensor
    skip: Tensor

    def read(self, x: Tensor) -> Tensor:
        """What the states x (..., D, N / 2) show (..., D)."""
        return 2 * (self.C * x).real.sum(-1)


class LiquidS4(Mixer):
    """u = x, the channels' liquid convolutions, + D u, gelu, then a gated linear unit: the authors' S4 layer.

    A and B are one for all channels (n_ssm = 1), the step size and C each channel's own. The convolution is cut into
    chunks: products of matrices inside, the states between, so that a sequence gives what the recurrence gives, on
    torch's matrix products on every device; a convolution by FFT would leak rounding from later inputs to earlier
    outputs. State: the states and, for the products, the last degree - 1 inputs. degree=1 is S4D.
    """

    def __init__(
        self,
        d_model: int,
        layer: int = 0,
        n_layers: int = 1,
        *,
        d_state: Dimension = 64,
        liquid: Literal["pb", "kb"] = "pb",
        degree: Factor = 2,
        dt_min: StepSize = 0.001,
        dt_max: StepSize = 0.1,
    ):
        super().__init__(d_model, layer, n_layers)
        if d_state % 2:
            raise ConfigError(
                f"d_state={d_state} was given, but states are conjugate pairs.", "an even number.", "change d_state."
            )
        self.pairs, self.liquid, self.degree = d_state // 2, liquid, degree
        log_dt = torch.empty(d_model).uniform_(math.log(dt_min), math.log(dt_max))
        self.log_dt = _of_the_system(log_dt)
        self.log_decay = _of_the_system(torch.full((self.pairs,), math.log(0.5)), slow=True)  # A = -1/2 + i pi n
        self.frequency = _of_the_system(math.pi * torch.arange(float(self.pairs)), slow=True)
        self.B = _of_the_system(torch.tensor([1.0, 0.0]).repeat(self.pairs, 1), slow=True)
        self.C = nn.Parameter(torch.randn(d_model, self.pairs, 2) * 0.5**0.5)
        self.D = nn.Parameter(torch.randn(d_model))
        self.out = nn.Linear(d_model, 2 * d_model)
        with torch.no_grad():  # as ProjectedMixer.scale_projection, of the half that is no gate
            self.out.weight[:d_model].div_(math.sqrt(2 * n_layers))

    def discrete(self) -> Discrete:
        """By the bilinear rule, as the authors'."""
        dt = self.log_dt.exp().unsqueeze(1)
        half = dt * torch.complex(-self.log_decay.exp(), self.frequency) / 2  # (D, pairs)
        B = dt * torch.view_as_complex(self.B) / (1 - half)
        return Discrete((1 + half) / (1 - half), B, torch.view_as_complex(self.C), 2 * B.real.sum(1), self.D)

    def forward(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        state = state or self.init_state(len(x), 0, x.device, self.C.dtype)
        u = x.to(self.C.dtype)
        with torch.autocast(x.device.type, enabled=False):
            system = self.discrete()
            seen = torch.cat([state["inputs"], u], dim=1)
            products = self._products(system, seen, u)
            y, last = _convolve(system, u + products if self.liquid == "kb" else u, torch.view_as_complex(state["x"]))
            y = self._add(system, y, u, products)
        kept = seen[:, seen.shape[1] - self.degree + 1 :].clone()  # a view would keep the whole sequence alive
        return self._project(y), {"x": torch.view_as_real(last), "inputs": kept}

    def step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        y, state = self._token(self.discrete(), x_t, state)
        return self._project(y), state

    def frozen_step(self) -> Callable:
        with torch.no_grad():
            system = Discrete(*(part.clone() for part in self.discrete()))
        weight, bias = self.out.weight.detach().clone(), self.out.bias.detach().clone()

        def step(x_t: Tensor, state: State, call: Call = UNTIMED):
            y, state = self._token(system, x_t, state)
            return F.glu(F.linear(F.gelu(y), weight, bias)), state

        return step

    def _token(self, system: Discrete, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """The SSM for one token: y (B, D) and the new state."""
        u = x_t.to(self.C.dtype)
        with torch.autocast(x_t.device.type, enabled=False):
            seen = torch.cat([state["inputs"], u.unsqueeze(1)], dim=1)
            products = self._products(system, seen, u.unsqueeze(1)).squeeze(1)
            drive = u + products if self.liquid == "kb" else u
            x = system.A * torch.view_as_complex(state["x"]) + system.B * drive.unsqueeze(-1)
            y = self._add(system, system.read(x), u, products)
        return y, {"x": torch.view_as_real(x), "inputs": seen[:, 1:].clone()}

    def _products(self, system: Discrete, seen: Tensor, u: Tensor) -> Tensor:
        """sum_p S^(p-1) u_t ... u_{t-p+1} of the last tokens of `seen`, u (B, T, D), by Horner's rule."""
        length, inner = u.shape[1], torch.zeros_like(u)
        for back in range(self.degree - 1, 0, -1):
            start = self.degree - 1 - back
            inner = system.S * seen[:, start : start + length] * (1 + inner)
        return u * inner

    def _add(self, system: Discrete, y: Tensor, u: Tensor, products: Tensor) -> Tensor:
        """Adds what passes by the states."""
        y = y + system.skip * u
        return y + system.read(system.B) * products if self.liquid == "pb" else y

    def _project(self, y: Tensor) -> Tensor:
        return F.glu(self.out(F.gelu(y)))

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> State:
        dtype = torch.promote_types(dtype or self.C.dtype, torch.float32)  # complex numbers have no half precision
        x = torch.zeros(batch, self.d_model, self.pairs, 2, device=device, dtype=dtype)
        return {"x": x, "inputs": torch.zeros(batch, self.degree - 1, self.d_model, device=device, dtype=dtype)}

    def flops_per_token(self, context: int) -> Flops:
        """As the recurrence: a state pair's update of eight operations, its drive of two and its reading of four."""
        other = self.d_model * (14 * self.pairs + 4 * self.degree + 16)
        return Flops(4 * self.d_model**2, other)


def _of_the_system(value: Tensor, slow: bool = False) -> nn.Parameter:
    """A parameter of A, B or the step size: no decay, and A and B at the authors' part of the rate for text.

    raminmh/liquid-s4, `configs/experiment/lra/s4-lra-imdb.yaml`: 0.0009 of 0.003.
    """
    parameter = nn.Parameter(value)
    parameter._no_weight_decay = True
    if slow:
        parameter._lr_multiplier = 0.3
    return parameter


def _convolve(system: Discrete, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """y_t = C x_t of x_t = A x_{t-1} + B u_t, for u (B, T, D) from the states x (B, D, pairs); and the last states."""
    powers, ahead = torch.ones_like(system.A).unsqueeze(2), system.A.unsqueeze(2)
    while powers.shape[2] <= min(u.shape[1], CHUNK):  # by squaring: few roundings a power
        powers, ahead = torch.cat([powers, powers * ahead], dim=2), ahead * ahead
    expect_tokens("LiquidS4", u.shape[1])
    full = u.shape[1] // CHUNK * CHUNK
    outputs = []
    for part in (u[:, :full], u[:, full:]):
        if part.shape[1]:
            size = min(CHUNK, part.shape[1])
            y, x = _chunks(system, powers, part.unflatten(1, (part.shape[1] // size, size)), x)
            outputs.append(y)
    return torch.cat(outputs, dim=1), x


def _chunks(system: Discrete, powers: Tensor, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The same for u (B, n, L, D), n chunks of L tokens. powers: A^s for s = 0..L and more, (D, pairs, ...)."""
    batch, n, length, width = u.shape
    rows = u.permute(3, 2, 0, 1).reshape(width, length, batch * n)  # (D, L, B n)
    B, C, decay = system.B.unsqueeze(2), system.C.unsqueeze(2), powers[:, :, length]
    kernel = 2 * (C * B * powers[:, :, :length]).real.sum(1)  # (D, L)
    lag = torch.arange(length, device=u.device)
    lag = lag.unsqueeze(1) - lag  # of output i behind input j
    inside = torch.where(lag >= 0, kernel[:, lag.clamp_min(0)], 0.0) @ rows
    into = torch.view_as_real((B * powers[:, :, :length].flip(2)).transpose(1, 2)).flatten(2)  # (D, L, 2 pairs)
    pairs = x.shape[2]
    added = (into.mT @ rows).view(width, pairs, 2, batch, n).permute(4, 3, 0, 1, 2)  # (n, B, D, pairs, 2)
    starts = []
    for more in torch.complex(added[..., 0], added[..., 1]).unbind(0):
        starts.append(x)
        x = decay * x + more
    before = torch.view_as_real(torch.stack(starts)).permute(2, 3, 4, 1, 0).reshape(width, 2 * pairs, batch * n)
    out = (2 * C * powers[:, :, 1 : length + 1]).transpose(1, 2)  # (D, L, pairs)
    y = inside + torch.stack([out.real, -out.imag], dim=-1).flatten(2) @ before
    return y.view(width, length, batch, n).permute(2, 3, 1, 0).reshape(batch, n * length, width), x
