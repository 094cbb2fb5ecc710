"""The layers of xLSTM (Beck et al. 2024, arXiv:2405.04517): mLSTM, sLSTM, and the gated MLP beside the latter.

Computation, initialisation and parameter groups are those of the authors' package (NX-AI/xlstm, its `xlstm/blocks` and
`xlstm/components`). Norms, biases, the skip and the sLSTM's recurrent matrices do not decay there.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.xlstm.scan import (
    MLSTM_READ,
    MLSTM_SCAN,
    SLSTM_SCAN,
    mlstm_step,
    normed,
    read_reference,
    recurrent,
    slstm_step,
)
from harness.config.errors import ConfigError
from harness.config.ranges import Dimension, Factor, Taps
from harness.model.mixer import UNTIMED, Call, Flops, Mixer, ProjectedMixer, step_operation
from harness.model.state import State
from harness.ops.causal_conv.conv import CAUSAL_CONV, step_reference
from harness.ops.registry import Choice
from harness.ops.samples import Draw, Sample, Samples, randomised


def small_init(weight: Tensor, d_model: int) -> None:
    """N(0, 2 / (5 d_model)), whatever the width of the weight (Nguyen and Salazar 2019, arXiv:1910.05895)."""
    nn.init.normal_(weight, std=math.sqrt(2 / (5 * d_model)))


def wang_init(weight: Tensor, d_model: int, n_layers: int) -> None:
    """N(0, (2 / n_layers)^2 / d_model), of what goes into the residual stream (GPT-NeoX's `wang_init_method`)."""
    nn.init.normal_(weight, std=2 / n_layers / math.sqrt(d_model))


def taps(conv: nn.Conv1d) -> tuple[Tensor, Tensor]:
    """The weight (d_conv, channels) and the bias of a depthwise convolution, as `causal_conv` takes them."""
    return conv.weight.squeeze(1).t(), conv.bias


def kept_inputs(conv: nn.Conv1d, batch: int, device, dtype) -> Tensor:
    """What a convolution keeps of the tokens before the first: zeros (B, d_conv - 1, channels)."""
    return torch.zeros(batch, conv.kernel_size[0] - 1, conv.in_channels, device=device, dtype=dtype)


def widened(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors in the precision of the recurrences: float32 at least."""
    return tuple(t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors)


def per_head(weight: Tensor, heads: int) -> Tensor:
    """The block-diagonal map (blocks, out, in) as a matrix for each head, (H, in of a head, out of a head)."""
    blocks = weight.unflatten(0, (heads, -1)).permute(0, 3, 2, 1)  # (H, in, out, blocks)
    return torch.diag_embed(blocks, dim1=1, dim2=3).flatten(3).flatten(1, 2)


def by_blocks(x: Tensor, weight: Tensor) -> Tensor:
    """The block-diagonal map (blocks, out, in) of x (B, channels)."""
    return torch.einsum("bni,noi->bno", x.unflatten(1, (len(weight), -1)), weight).flatten(1)


def rows_of_heads(x: Tensor, heads: int) -> Tensor:
    """x (B, T, channels) -> (H, B T, channels of a head), a view."""
    return x.reshape(-1, x.shape[2]).unflatten(1, (heads, -1)).transpose(0, 1)


class MLSTM(ProjectedMixer):
    """x, z = proj_up(x); u = silu(conv1d(x)); h = mLSTM(q(u), k(u), v(x)); proj_down((norm(h) + skip u) silu(z)).

    The block of figure 10: q, k and v are block-diagonal in blocks of qkv_block channels; each head's input and forget
    gate see all of q, k and v; the norm is of each head. d_inner: width of x and z, by default expand * d_model rounded
    up to whole blocks in whole heads (the authors round it up to a multiple of 64). The state: the inputs that conv1d
    keeps, and the memory C (B, H, D, D), normaliser n (B, H, D) and stabiliser m (B, H), float32 or wider.
    """

    def __init__(
        self,
        d_model: int,
        layer: int = 0,
        n_layers: int = 1,
        *,
        expand: Factor = 2,
        n_heads: Dimension = 4,
        qkv_block: Dimension = 4,
        d_conv: Taps = 4,
        d_inner: Dimension | None = None,
        kernel: Choice = "auto",
    ):
        super().__init__(d_model, layer, n_layers)
        unit = n_heads * qkv_block
        self.d_inner = inner = d_inner or math.ceil(expand * d_model / unit) * unit
        if inner % unit:
            raise ConfigError(
                f"The mLSTM was given d_inner={inner}, which is not a multiple of {unit}.",
                "whole blocks of model.mixer.qkv_block channels in each of model.mixer.n_heads heads.",
                "leave d_inner out, or change one of them.",
            )
        self.n_heads, self.head_dim, self.qkv_block, self.kernel = n_heads, inner // n_heads, qkv_block, kernel
        self.proj_up = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner)
        self.q, self.k, self.v = (nn.Parameter(torch.empty(inner // qkv_block, qkv_block, qkv_block)) for _ in range(3))
        self.igate, self.fgate = nn.Linear(3 * inner, n_heads), nn.Linear(3 * inner, n_heads)
        self.gain, self.skip = nn.Parameter(torch.ones(inner)), nn.Parameter(torch.ones(inner))
        self.proj_down = nn.Linear(inner, d_model, bias=False)
        if not self.gain.is_meta:  # sizing only counts there
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As `mLSTMLayer` and `mLSTMCell` of the package: gates that see nothing at first, forget gates nearly open."""
        for weight in (self.proj_up.weight, self.q, self.k, self.v):
            small_init(weight, self.d_model)
        wang_init(self.proj_down.weight, self.d_model, self.n_layers)
        for gate in (self.igate, self.fgate):
            nn.init.zeros_(gate.weight)
        nn.init.normal_(self.igate.bias, std=0.1)
        self.fgate.bias.copy_(torch.linspace(3.0, 6.0, self.n_heads))

    @property
    def projection(self) -> nn.Linear:
        return self.proj_down

    def mix(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        x, z = self.proj_up(x).chunk(2, dim=-1)  # (B, T, d_inner) each
        state = state or self.init_state(len(x), 0, x.device, x.dtype)
        u, conv = CAUSAL_CONV.choose(self.kernel, x.device, x.dtype)(x, *taps(self.conv1d), state["conv"], True)
        with torch.autocast(x.device.type, enabled=False):  # gates and memory keep the precision of the weights
            x, u = x.to(self.gain), u.to(self.gain)
            inputs = widened(*self._inputs(x, u), *(state[key] for key in ("C", "n", "m")))
            where = self.kernel, x.device, inputs[0].dtype
            answer, m, C, n = MLSTM_SCAN.choose(*where)(*inputs)
            y = MLSTM_READ.choose(*where)(answer, m, *widened(u, z, self.gain, self.skip))
        return y.to(z), {"conv": conv, "C": C, "n": n, "m": m[..., -1].clone()}

    def mix_step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        x, z = self.proj_up(x_t).chunk(2, dim=-1)  # (B, d_inner) each
        u, conv = step_reference(x, *taps(self.conv1d), state["conv"], True)
        with torch.autocast(x.device.type, enabled=False):
            x, u = x.to(self.gain), u.to(self.gain)
            qkv = [by_blocks(given, weight) for given, weight in ((u, self.q), (u, self.k), (x, self.v))]
            i, f = (gate(torch.cat(qkv, dim=-1)) for gate in (self.igate, self.fgate))
            qkv = (t.unflatten(1, (self.n_heads, -1)) for t in qkv)
            i, f, C, n, m = widened(i, f, *(state[key] for key in ("C", "n", "m")))
            answer, (C, n, m) = mlstm_step(widened(*qkv), i, f, C, n, m)
            u, z_wide, gain, skip = widened(u, z, self.gain, self.skip)
            ways = answer.unsqueeze(2), m.unsqueeze(2), u.unsqueeze(1), z_wide.unsqueeze(1)
            y = read_reference(*ways, gain, skip).squeeze(1)
        return y.to(z), {"conv": conv, "C": C, "n": n, "m": m}

    def frozen_step(self) -> Callable:
        return MLSTM_STEP.choose(self.kernel, self.gain.device, self.gain.dtype)(self)

    def _inputs(self, x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        """q, k, v (B, H, T, D) and the gates i, f (B, H, T), before their activations, of x and u (B, T, d_inner).

        One product for each head in place of many small ones. Gates are linear in q, k and v, so each head's product
        gives its share of them too, by their weights as seen from x and u.
        """
        (B, T, _), H, D = x.shape, self.n_heads, self.head_dim
        q, k, v = (per_head(weight, H) for weight in (self.q, self.k, self.v))
        gates = torch.cat([self.igate.weight, self.fgate.weight]).unflatten(1, (3, H, D)).permute(1, 2, 3, 0)
        by_q, by_k, by_v = (torch.bmm(map_, gate) for map_, gate in zip((q, k, v), gates, strict=True))  # (H, D, 2 H)
        from_u = torch.bmm(rows_of_heads(u, H), torch.cat([q, k, by_q + by_k], dim=-1))
        from_x = torch.bmm(rows_of_heads(x, H), torch.cat([v, by_v], dim=-1))
        q, k, by_u = from_u.split([D, D, 2 * H], dim=-1)
        v, by_x = from_x.split([D, 2 * H], dim=-1)
        both = (by_u + by_x).sum(0) + torch.cat([self.igate.bias, self.fgate.bias])
        q, k, v = (t.unflatten(1, (B, T)).transpose(0, 1) for t in (q, k, v))
        i, f = both.view(B, T, 2, H).permute(2, 0, 3, 1)
        return q, k, v, i, f

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> State:
        wide = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        zeros = partial(torch.zeros, device=device, dtype=wide)
        rows, D = (batch, self.n_heads), self.head_dim
        conv = kept_inputs(self.conv1d, batch, device, dtype)
        return {"conv": conv, "C": zeros(*rows, D, D), "n": zeros(*rows, D), "m": zeros(*rows)}

    def flops_per_token(self, context: int) -> Flops:
        inner, D, H = self.d_inner, self.head_dim, self.n_heads
        projections = 3 * self.d_model * inner + 3 * self.qkv_block * inner + 6 * inner * H
        # the memory's decay, outer product and sum, the same of the normaliser and its answer; the convolution; two
        # silu, norm, gain, skip and gate
        other = inner * (3 * D + 6 + 2 * self.conv1d.kernel_size[0] + 2 * 5 + 7 + 5)
        return Flops(2 * (projections + inner * D), other)


class SLSTM(Mixer):
    """u = silu(conv1d(x)); i, f from u, z, o from x, all four from the last output too; norm(sLSTM(i, f, z, o)).

    The recurrence of the block of figure 9; it has no projection, and a gated MLP follows. Every map is block-diagonal,
    head by head. The state: the inputs that conv1d keeps, the last output y, cell c, normaliser n and stabiliser m
    (B, H, D), float32 or wider.
    """

    def __init__(
        self,
        d_model: int,
        layer: int = 0,
        n_layers: int = 1,
        *,
        n_heads: Dimension = 4,
        d_conv: Taps = 4,
        kernel: Choice = "auto",
    ):
        super().__init__(d_model, layer, n_layers)
        if d_model % n_heads:
            raise ConfigError(
                f"The sLSTM has {n_heads} heads, which do not divide d_model={d_model}.",
                "a d_model that is a multiple of its n_heads.",
                f"set model.width_multiple to a multiple of {n_heads}, or change n_heads.",
            )
        self.n_heads, self.head_dim, self.kernel = n_heads, d_model // n_heads, kernel
        D = self.head_dim
        self.conv1d = nn.Conv1d(d_model, d_model, d_conv, groups=d_model)
        self.igate, self.fgate, self.zgate, self.ogate = (nn.Parameter(torch.empty(n_heads, D, D)) for _ in range(4))
        self.recurrent = nn.Parameter(torch.empty(n_heads, D, 4 * D))
        self.bias = nn.Parameter(torch.empty(n_heads, 4 * D))
        self.gain = nn.Parameter(torch.ones(d_model))
        self.recurrent._no_weight_decay = self.bias._no_weight_decay = True
        if not self.gain.is_meta:  # sizing only counts there
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As `sLSTMLayer` and `sLSTMCell` of the package: no recurrence at first, and forget gates from open to closed.

        Their biases fall from 5 to -7 over the channels of a head, the later the layer the later (bias_init
        "powerlaw_blockdependent").
        """
        for weight in (self.igate, self.fgate, self.zgate, self.ogate):
            small_init(weight, self.d_model)
        nn.init.zeros_(self.recurrent)
        nn.init.zeros_(self.bias)
        depth = self.layer / max(1, self.n_layers - 1)
        place = torch.arange(self.head_dim) / max(1, self.head_dim - 1)
        self.bias[:, self.head_dim : 2 * self.head_dim] = 5 - 12 * place ** (0.3 + 1.3 * depth)

    def forward(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        (B, T, _), H, given = x.shape, self.n_heads, x.dtype
        state = state or self.init_state(B, 0, x.device, x.dtype)
        u, conv = CAUSAL_CONV.choose(self.kernel, x.device, x.dtype)(x, *taps(self.conv1d), state["conv"], True)
        with torch.autocast(x.device.type, enabled=False):  # the recurrence keeps its weights' precision
            x, u = x.to(self.gain), u.to(self.gain)
            pairs = ((u, self.igate, self.fgate), (x, self.zgate, self.ogate))
            by_token = [torch.bmm(rows_of_heads(t, H), torch.cat(maps, dim=1).mT) for t, *maps in pairs]
            raw = (torch.cat(by_token, dim=-1) + self.bias.unsqueeze(1)).unflatten(1, (B, T)).transpose(0, 1)
            inputs = widened(raw, self.recurrent, *(state[key] for key in ("y", "c", "n", "m")))
            y, c, n, m = SLSTM_SCAN.choose(self.kernel, x.device, inputs[0].dtype)(*inputs)
            out = normed(y.transpose(1, 2), self.gain.to(y))
        return out.to(given), {"conv": conv, "y": y[:, :, -1].clone(), "c": c, "n": n, "m": m}

    def step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        u, conv = step_reference(x_t, *taps(self.conv1d), state["conv"], True)
        with torch.autocast(x_t.device.type, enabled=False):
            x, u = x_t.to(self.gain), u.to(self.gain)
            pairs = ((u, self.igate), (u, self.fgate), (x, self.zgate), (x, self.ogate))
            raw = [by_blocks(t, weight).unflatten(1, (self.n_heads, -1)) for t, weight in pairs]
            raw, R, *held = widened(
                torch.cat(raw, dim=-1) + self.bias, self.recurrent, *(state[key] for key in ("y", "c", "n", "m"))
            )
            y, c, n, m = slstm_step(raw + recurrent(held[0], R), *held[1:])
        return normed(y, self.gain.to(y)).to(x_t), {"conv": conv, "y": y, "c": c, "n": n, "m": m}

    def frozen_step(self) -> Callable:
        return SLSTM_STEP.choose(self.kernel, self.gain.device, self.gain.dtype)(self)

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> State:
        wide = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        shape = batch, self.n_heads, self.head_dim
        empty = {key: torch.zeros(shape, device=device, dtype=wide) for key in ("y", "c", "n", "m")}
        return {"conv": kept_inputs(self.conv1d, batch, device, dtype), **empty}

    def flops_per_token(self, context: int) -> Flops:
        # biases and sums, five activations of four, stabiliser, cell, normaliser and output; convolution, silu, norm
        other = self.d_model * (8 + 20 + 10 + 2 * self.conv1d.kernel_size[0] + 5 + 6)
        return Flops(16 * self.d_model * self.head_dim, other)


class GatedMLP(Mixer):
    """proj_down(gelu(gate) * up), memoryless: the MLP behind an sLSTM (`GatedFeedForward` of the package)."""

    def __init__(self, d_model: int, d_ff: int, layer: int = 0, n_layers: int = 1):
        super().__init__(d_model, layer, n_layers)
        self.d_ff = d_ff
        self.proj_up = nn.Linear(d_model, 2 * d_ff, bias=False)
        self.proj_down = nn.Linear(d_ff, d_model, bias=False)
        small_init(self.proj_up.weight, d_model)
        wang_init(self.proj_down.weight, d_model, n_layers)

    def forward(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        gate, up = self.proj_up(x).chunk(2, dim=-1)
        return self.proj_down(F.gelu(gate) * up), {}

    def step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        return self.forward(x_t)

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> State:
        return {}

    def flops_per_token(self, context: int) -> Flops:
        return Flops(matmul=6 * self.d_model * self.d_ff, other=6 * self.d_ff)


def mlstm_sample(draw: Draw, batch=2, width=5, heads=2, taps=4) -> Sample:
    """An mLSTM of random weights, and one token behind a state."""
    mixer = randomised(MLSTM(width, n_heads=heads, qkv_block=2, d_conv=taps), draw)
    inner, D = mixer.d_inner, mixer.head_dim
    state = {"conv": draw.normal(batch, taps - 1, inner), "C": draw.normal(batch, heads, D, D)}
    state |= {"n": draw.normal(batch, heads, D), "m": draw.normal(batch, heads)}
    return Sample((mixer,), token=(draw.normal(batch, width), state))


def slstm_sample(draw: Draw, batch=2, head_dim=3, heads=2, taps=4, fresh=False) -> Sample:
    """An sLSTM of random weights, and one token behind a state or the first one."""
    width = heads * head_dim
    mixer = randomised(SLSTM(width, n_heads=heads, d_conv=taps), draw)
    shape = batch, heads, head_dim
    state = {key: draw.normal(*shape) for key in ("y", "c", "m")} | {"n": 1 + draw.unit(*shape)}
    state = {key: 0 * t for key, t in state.items()} if fresh else state
    return Sample((mixer,), token=(draw.normal(batch, width), {"conv": draw.normal(batch, taps - 1, width), **state}))


_STEPS, _ROWS = "baselines.xlstm.step_numba", {"batch": (1, 3), "heads": (1, 3), "taps": (1, 2, 4)}
MLSTM_STEP = step_operation(
    "mlstm_step", f"{_STEPS}:mlstm_step", samples=Samples(mlstm_sample, {**_ROWS, "width": (1, 7, 33)})
)
SLSTM_STEP = step_operation(
    "slstm_step",
    f"{_STEPS}:slstm_step",
    samples=Samples(slstm_sample, {**_ROWS, "head_dim": (1, 3, 17)}, ({}, {"fresh": True})),
)
