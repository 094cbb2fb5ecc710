"""The operation `cfc_scan`: the CfC recurrence over time, its reference in torch and the kernels that serve it.

Every implementation has the signature of `reference` and is differentiable in u, h, time and every tensor of the cell.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.ops.registry import Kernel, Operation
from harness.ops.samples import Draw, Sample, Samples

Mode = Literal["default", "pure", "no_gate"]
HEADS = {"default": ("a", "b", "t_a", "t_b"), "no_gate": ("a", "b", "t_a", "t_b"), "pure": ("a",)}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "lecun_tanh": lambda z: 1.7159 * torch.tanh(0.666 * z),
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": F.gelu,
    "silu": F.silu,
}


@dataclass(frozen=True)
class Cell:
    """One token of the recurrence: h' = combine(heads(backbone(u + R h)), time).

    recurrent: R (units, d_inner). layers: weight and bias of the backbone's further layers. heads: weight and bias of
    a, b, t_a, t_b stacked, or a, b, t_a + t_b for unit steps of time. w_tau, amplitude: (d_inner), mode=pure only.
    """

    mode: Mode
    activation: str
    recurrent: Tensor
    layers: list[tuple[Tensor, Tensor]]
    heads: tuple[Tensor, Tensor]
    w_tau: Tensor | None = None
    amplitude: Tensor | None = None

    def step(self, u: Tensor, h: Tensor, time: Tensor | None) -> Tensor:
        """u (B, units), h (B, d_inner), time (B, 1) or None for unit steps -> the new h."""
        activate = ACTIVATIONS[self.activation]
        z = activate(torch.addmm(u, h, self.recurrent.t()))
        for weight, bias in self.layers:
            z = activate(F.linear(z, weight, bias))
        return self.combine(F.linear(z, *self.heads), time)

    def flat(self) -> list[Tensor]:
        """Every tensor, as a Function takes them: R, each layer's weight and bias, the heads', w_tau, amplitude."""
        pairs = [tensor for pair in (*self.layers, self.heads) for tensor in pair]
        return [self.recurrent, *pairs, self.w_tau, self.amplitude]

    @classmethod
    def from_flat(cls, mode: Mode, activation: str, tensors: Sequence[Tensor | None]) -> "Cell":
        """The cell of that kind whose tensors, in the order of `flat`, are these."""
        recurrent, *pairs, w_tau, amplitude = tensors
        pairs = list(zip(pairs[::2], pairs[1::2], strict=True))
        return cls(mode, activation, recurrent, pairs[:-1], pairs[-1], w_tau, amplitude)

    def combine(self, g: Tensor, time: Tensor | None) -> Tensor:
        """The closed form, elementwise in the channel. g: (..., heads x d_inner) -> h (..., d_inner)."""
        return closed_form(self.mode, g, time, self.w_tau, self.amplitude)


def closed_form(
    mode: Mode, g: Tensor, time: Tensor | None, w_tau: Tensor | None = None, amplitude: Tensor | None = None
) -> Tensor:
    """The state (..., d_inner) at `time` (..., 1), None for 1, from the heads g (..., heads x d_inner)."""
    if mode == "pure":
        rate = w_tau.abs() + g.abs()
        return amplitude - amplitude * g * torch.exp(-rate if time is None else -rate * time)
    width = g.shape[-1] // (3 if time is None else 4)
    a, b = g[..., : 2 * width].tanh().chunk(2, dim=-1)
    gate = g[..., 2 * width :]
    if time is not None:
        t_a, t_b = gate.chunk(2, dim=-1)
        gate = torch.addcmul(t_b, t_a, time)
    gate = gate.sigmoid()
    return torch.addcmul(a, gate, b) if mode == "no_gate" else torch.lerp(a, b, gate)


def reference(cell: Cell, u: Tensor, h: Tensor, time: Tensor | None) -> Tensor:
    """Runs the cell over u (T, B, units) from h (B, d_inner) with time (T, B, 1), or None for 1: h (T, B, d_inner)."""
    outputs = []
    for t, u_t in enumerate(u.unbind(0)):
        h = cell.step(u_t, h, None if time is None else time[t])
        outputs.append(h)
    return torch.stack(outputs)


def step_reference(entry: tuple[Tensor, Tensor], cell: Cell, out: Tensor) -> Callable[[Tensor, Tensor], tuple]:
    """One token of unit time for these weights, between projections: x (B, D), h (B, d_inner) -> y (B, D), the new h.

    entry: weight (units, D) and bias of u. cell: with its heads merged. out: (D, d_inner).
    """

    def run(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = cell.step(F.linear(x, *entry), h, None)
        return F.linear(h, out), h

    return run


def _sampled_cell(draw: Draw, kind: tuple[Mode, str], heads: int, sizes: tuple[int, int, int]) -> Cell:
    (mode, activation), (units, width, layers) = kind, sizes
    deeper = [(draw.weight(units, units), draw.normal(units)) for _ in range(layers - 1)]
    extras = (draw.normal(width), draw.normal(width)) if mode == "pure" else ()
    last = draw.weight(heads * width, units), draw.normal(heads * width)
    return Cell(mode, activation, draw.weight(units, width), deeper, last, *extras)


def sample(
    draw: Draw, batch=2, length=3, units=5, width=4, layers=1, kind=("default", "lecun_tanh"), timed=True
) -> Sample:
    """One call from a state that an earlier one left. kind: mode, activation. timed: with a time for each token."""
    mode, activation = kind
    cell = _sampled_cell(draw, kind, 1 if mode == "pure" else 4 if timed else 3, (units, width, layers))
    time = draw.unit(length, batch, 1) if timed else None
    facts = {"mode": mode, "activation": activation, "layers": layers, "units": units, "d_inner": width}
    return Sample((cell, draw.normal(length, batch, units), draw.normal(batch, width), time), facts)


def step_sample(draw: Draw, batch=2, units=5, width=4, layers=1, kind=("default", "silu")) -> Sample:
    """Weights between projections of width 3, and one token with its state."""
    cell = _sampled_cell(draw, kind, 1 if kind[0] == "pure" else 3, (units, width, layers))
    entry, out = (draw.weight(units, 3), draw.normal(units)), draw.weight(3, width)
    return Sample((entry, cell, out), token=(draw.normal(batch, 3), draw.normal(batch, width)))


_VARIANTS = tuple({"kind": (mode, "lecun_tanh"), "layers": layers} for mode in HEADS for layers in (1, 2))
_WIDTHS = {"batch": (1, 3, 6), "units": (1, 5, 33), "width": (1, 4, 31)}


def _triton_refuses(layers: int, **options) -> str | None:
    return f"backbone_layers={layers}: its tokens are of one layer and the heads" if layers > 1 else None


CFC_SCAN = Operation(
    "cfc_scan",
    reference,
    (
        Kernel("numba", "cpu", "arch.cfc.scan_numba:cfc_scan", (torch.float32, torch.float64)),
        Kernel(
            "triton",
            "cuda",
            "arch.cfc.scan_triton:cfc_scan",
            (torch.float32, torch.float64),
            _triton_refuses,
            ("triton",),
        ),
        Kernel("torch", "cuda", "arch.cfc.scan_torch:cfc_scan", (torch.float32, torch.float64)),
    ),
    samples=Samples(
        sample,
        {"length": (1, 2, 5), **_WIDTHS},
        (
            *(variant | {"timed": timed} for variant in _VARIANTS for timed in (True, False)),
            {"layers": 3},
            *({"kind": ("default", activation), "timed": False} for activation in ACTIVATIONS),
        ),
        ({"batch": 5, "length": 40, "units": 33, "width": 40}, {"batch": 19, "length": 40, "units": 96, "width": 130}),
    ),
)
CFC_STEP = Operation(
    "cfc_step",
    step_reference,
    (Kernel("numba", "cpu", "arch.cfc.step_numba:cfc_step", (torch.float32,)),),
    optional=True,
    samples=Samples(step_sample, _WIDTHS, _VARIANTS),
)
