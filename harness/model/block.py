"""What surrounds a mixer in a layer: the block, an axis of its own, so that every recurrence can stand in each.

Each block is a configuration that puts the mixer it is given into another mixer with the same contract.
"""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.config.errors import ConfigError
from harness.config.ranges import DepthFactor, Factor, Taps, TapsOrNone
from harness.model.mixer import UNTIMED, Call, Flops, Mixer, ProjectedMixer
from harness.model.state import State
from harness.ops.causal_conv.conv import CAUSAL_CONV, step_reference
from harness.ops.registry import Choice

Factory = Callable[..., Mixer]
"""Makes a mixer from d_model, layer and n_layers."""


class NoMixer(Mixer):
    """Stands for no token mixer, and no norm before one, where the channel mixer holds the state. Never called."""

    def __init__(self, d_model: int, layer: int = 0, n_layers: int = 1, *, kernel: Choice = "auto"):
        super().__init__(d_model, layer, n_layers)


@dataclass(frozen=True)
class TransformerBlock:
    """norm, mixer, norm, channel mixer (a Transformer's). d_conv: taps of a convolution before the mixer, 0 for none.

    depth_factor: blocks per layer of the size; "half" is its name where there are two, for blocks half as large.
    """

    name: Literal["transformer", "half"] = "transformer"
    d_conv: TapsOrNone = 0
    depth_factor: DepthFactor = 1

    has_channel_mixer = True

    def build(self, mixer: Factory, kernel: Choice, **size: int) -> Mixer:
        """The mixer as it stands in this block. size: d_model, layer and n_layers."""
        if not self.d_conv:
            return mixer(**size)
        return ShortConvolution(mixer, **size, d_conv=self.d_conv, residual=False, kernel=kernel)


@dataclass(frozen=True)
class CanonBlock:
    """A Transformer's block whose mixer sees each input with those just before it added: Canon-A of Allen-Zhu 2025.

    arXiv:2512.17351: in the Transformer's block as above, a convolution of d_conv taps in a residual branch of its own.
    depth_factor: blocks per layer of the size.
    """

    name: Literal["canon"] = "canon"
    d_conv: Taps = 4
    depth_factor: DepthFactor = 1

    has_channel_mixer = True

    def build(self, mixer: Factory, kernel: Choice, **size: int) -> Mixer:
        """The mixer as it stands in this block. size: d_model, layer and n_layers."""
        return ShortConvolution(mixer, **size, d_conv=self.d_conv, residual=True, kernel=kernel)


@dataclass(frozen=True)
class GatedBlock:
    """norm, then Mamba's gated block around the mixer (see `Gated`), and no channel mixer.

    expand: d_inner / d_model. d_conv: taps of the convolution. depth_factor: blocks per layer of the size.
    """

    name: Literal["gated"] = "gated"
    expand: Factor = 2
    d_conv: Taps = 4
    depth_factor: DepthFactor = 2

    has_channel_mixer = False

    def build(self, mixer: Factory, kernel: Choice, **size: int) -> Mixer:
        """The mixer as it stands in this block; raises ConfigError for one that cannot be gated.

        size: as above, and d_inner where it is not expand * d_model. A mixer that takes d_inner is such a block itself
        (Mamba-2's, whose convolution and gate are its own) and is made as one.
        """
        parameters = inspect.signature(mixer).parameters
        if "d_out" not in parameters:
            name = getattr(getattr(mixer, "func", mixer), "__name__", "this mixer")
            raise ConfigError(
                f"block=gated was given, but {name} cannot stand in a gated block.",
                "a mixer that ends in a linear projection, and leaves convolution and gate to the block.",
                "choose block=transformer, or another model.",
            )
        if "d_inner" in parameters:
            return mixer(**size, d_out=size["d_model"], expand=self.expand, d_conv=self.d_conv)
        return Gated(mixer, **size, expand=self.expand, d_conv=self.d_conv, kernel=kernel)


class Surrounded(Mixer):
    """A mixer around another, the core, whose claims it makes its own. The state: {"conv": ..., "core": ...}.

    conv: the last d_conv - 1 inputs of the convolution before the core (B, d_conv - 1, channels), oldest first.
    """

    core: Mixer
    d_conv: int
    channels: int
    kernel: Choice

    def adopt(self, core: Mixer) -> None:
        """Takes the core and what it claims."""
        self.core = core
        self.constant_state, self.inexact, self.capturable = core.constant_state, core.inexact, core.capturable
        self.data_dependent_flops = core.data_dependent_flops

    def taps(self) -> tuple[Tensor, Tensor]:
        """The convolution's weight (d_conv, channels) and bias (channels)."""
        raise NotImplementedError

    def convolve(self, x: Tensor, state: State, silu: bool) -> tuple[Tensor, Tensor]:
        """x (B, T, channels) convolved after the inputs kept in the state, and the inputs to keep."""
        kept = self._no_inputs(x.shape[0], x.device, x.dtype) if state is None else state["conv"]
        return CAUSAL_CONV.choose(self.kernel, x.device, x.dtype)(x, *self.taps(), kept, silu)

    def _no_inputs(self, batch: int, device, dtype) -> Tensor:
        return torch.zeros(batch, self.d_conv - 1, self.channels, device=device, dtype=dtype)

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> State:
        conv = self._no_inputs(batch, device, dtype)
        return {"conv": conv, "core": self.core.init_state(batch, context, device=device, dtype=dtype)}

    def truncate_state(self, state: State, keep: int) -> State:
        return state | {"core": self.core.truncate_state(state["core"], keep)}

    def fixed_state(self, state: State, room: int) -> State:
        return {"conv": state["conv"].clone(), "core": self.core.fixed_state(state["core"], room)}

    def counts(self) -> dict[str, int]:
        return self.core.counts()


class ShortConvolution(Surrounded):
    """A causal depthwise convolution over time, then the core.

    d_conv: taps, the token's own the last. residual: whether the input is added to what the convolution makes of it.
    """

    def __init__(
        self,
        core: Factory,
        d_model: int,
        layer: int = 0,
        n_layers: int = 1,
        *,
        d_conv: int = 4,
        residual: bool = False,
        kernel: Choice = "auto",
    ):
        super().__init__(d_model, layer, n_layers)
        self.d_conv, self.channels, self.residual, self.kernel = d_conv, d_model, residual, kernel
        self.conv_weight = nn.Parameter(torch.empty(d_conv, d_model).uniform_(-1, 1) / d_conv**0.5)
        self.conv_bias = nn.Parameter(torch.zeros(d_model))
        self.adopt(core(d_model=d_model, layer=layer, n_layers=n_layers))

    def taps(self) -> tuple[Tensor, Tensor]:
        if not self.residual:
            return self.conv_weight, self.conv_bias
        return torch.cat([self.conv_weight[:-1], 1 + self.conv_weight[-1:]]), self.conv_bias

    def forward(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        x, conv = self.convolve(x, state, silu=False)
        y, core = self.core(x, None if state is None else state["core"], call)
        return y, {"conv": conv, "core": core}

    def step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        x, conv = step_reference(x_t, *self.taps(), state["conv"], False)
        y, core = self.core.step(x, state["core"], call)
        return y, {"conv": conv, "core": core}

    def frozen_step(self) -> Callable:
        weight, bias = (tensor.detach().clone() for tensor in self.taps())
        run = self.core.frozen_step()

        def step(x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
            x, conv = step_reference(x_t, weight, bias, state["conv"], False)
            y, core = run(x, state["core"], call)
            return y, {"conv": conv, "core": core}

        return step

    def flops_per_token(self, context: int) -> Flops:
        return self.core.flops_per_token(context) + Flops(other=2 * self.d_conv * self.d_model)


class Gated(Surrounded):
    """x, z = in_proj(u); x = silu(conv1d(x)); y = core(x); projection(y * silu(z)): the block of Mamba-1.

    Gu and Dao 2023, arXiv:2312.00752, figure 3. d_inner: the width of x, y and z, expand * d_model unless given;
    d_conv: taps of the convolution. The core is made with d_model = d_inner and d_out = d_model, and its projection
    follows the gate.
    Around the selective scan this is Mamba, bit for bit, with mamba-ssm's names of in_proj and conv1d.
    """

    core: ProjectedMixer

    def __init__(
        self,
        core: Factory,
        d_model: int,
        layer: int = 0,
        n_layers: int = 1,
        *,
        expand: int = 2,
        d_inner: int | None = None,
        d_conv: int = 4,
        kernel: Choice = "auto",
    ):
        super().__init__(d_model, layer, n_layers)
        self.expand, self.d_conv, self.kernel = expand, d_conv, kernel
        self.d_inner = self.channels = d_inner or expand * d_model
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner)
        self.adopt(core(d_model=self.d_inner, layer=layer, n_layers=n_layers, d_out=d_model))
        if self.core.projection.in_features != self.d_inner:
            raise ConfigError(
                f"The mixer in a gated block has {self.core.projection.in_features} channels, the gate {self.d_inner}.",
                "a mixer that keeps the width it is given (model.mixer.expand=1): the block expands.",
                "set model.mixer.expand=1, and block.expand to the expansion.",
            )

    def taps(self) -> tuple[Tensor, Tensor]:
        return self.conv1d.weight.squeeze(1).t(), cast(Tensor, self.conv1d.bias)

    def forward(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        x, z = self.in_proj(x).chunk(2, dim=-1)  # (B, T, d_inner) each
        x, conv = self.convolve(x, state, silu=True)
        y, core = self.core.mix(x, None if state is None else state["core"], call)
        return self.core.projection(y.to(z) * F.silu(z)), {"conv": conv, "core": core}

    def step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        x, z = self.in_proj(x_t).chunk(2, dim=-1)  # (B, d_inner) each
        x, conv = step_reference(x, *self.taps(), state["conv"], True)
        y, core = self.core.mix_step(x, state["core"], call)
        return self.core.projection(y.to(z) * F.silu(z)), {"conv": conv, "core": core}

    def frozen_step(self) -> Callable:
        return self.core.frozen_gated_step(self) or copy.deepcopy(self).requires_grad_(False).step

    def flops_per_token(self, context: int) -> Flops:
        other = self.d_inner * (2 * self.d_conv + 2 * 5 + 1)  # the convolution, two silu and the gate
        return self.core.flops_per_token(context) + Flops(2 * self.in_proj.weight.numel(), other)
