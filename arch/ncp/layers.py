"""The operations `wired_cfc_scan` and `wired_cfc_step`: the wired CfC of ncps, three layers and a memory.

Inter, command and motor neurons are CfC cells without a backbone (arch/cfc/scan.py), each of which sees the new state
of the layer before it and its own; with a mixed memory (Lechner and Hasani 2020, arXiv:2006.04418) an LSTM cell over
the token and all neurons first replaces their states: ncps, `CfC(..., mixed_memory=True)` and `WiredCfCCell`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from arch.cfc.scan import HEADS, Mode, closed_form
from harness.ops.registry import Kernel, Operation
from harness.ops.samples import Draw, Sample, Samples


@dataclass(frozen=True)
class Layers:
    """The weights of U neurons, inter, command and motor in this order; a layer of n has `heads` x n rows.

    heads: those of arch.cfc.scan.HEADS, or three where t_a and t_b are added up for unit steps of time. weights: of
    inter (rows, n), command (rows, n of inter + n) and motor (rows, n of command + n). biases: of command and motor.
    memory: of the LSTM (4 U, U), or None. w_tau, amplitude: (U), mode=pure only.
    """

    mode: Mode
    weights: tuple[Tensor, Tensor, Tensor]
    biases: tuple[Tensor, Tensor]
    memory: Tensor | None = None
    w_tau: Tensor | None = None
    amplitude: Tensor | None = None

    @property
    def sizes(self) -> list[int]:
        """Neurons of each layer."""
        inter, command, motor = (weight.shape[1] for weight in self.weights)
        return [inter, command - inter, motor - (command - inter)]

    def step(self, seen: tuple[Tensor | None, Tensor], h: Tensor, c: Tensor | None, time: Tensor | None):
        """One token: the new h (B, U) and c.

        seen: the token's products for the memory (B, 4 U), None without one, and for the inter layer (B, rows), biases
        in them. time: (B, 1), or None for 1.
        """
        if self.memory is not None:
            h, c = memory_cell(seen[0] + F.linear(h, self.memory), c)
        extras = [[None] * 3 if e is None else e.split(self.sizes) for e in (self.w_tau, self.amplitude)]
        below, states = None, []
        for layer, (own, weight) in enumerate(zip(h.split(self.sizes, dim=-1), self.weights, strict=True)):
            if layer == 0:
                g = seen[1] + F.linear(own, weight)
            else:
                g = F.linear(torch.cat([below, own], dim=-1), weight, self.biases[layer - 1])
            below = closed_form(self.mode, g, time, *(e[layer] for e in extras))
            states.append(below)
        return torch.cat(states, dim=-1), c

    def flat(self) -> list[Tensor | None]:
        """Every tensor, as a Function takes them."""
        return [*self.weights, *self.biases, self.memory, self.w_tau, self.amplitude]

    @classmethod
    def from_flat(cls, mode: Mode, tensors) -> "Layers":
        """The layers whose tensors, in the order of `flat`, are these."""
        return cls(mode, tuple(tensors[:3]), tuple(tensors[3:5]), *tensors[5:])


def memory_cell(z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The LSTM cell of ncps from its pre-activations (..., 4 U): the input, its gate, the forget and output gates."""
    i, input_gate, forget_gate, output_gate = z.chunk(4, dim=-1)
    c = c * (forget_gate + 1).sigmoid() + i.tanh() * input_gate.sigmoid()
    return c.tanh() * output_gate.sigmoid(), c


def reference(
    layers: Layers, seen: tuple[Tensor | None, Tensor], h: Tensor, c: Tensor | None, time: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The states h (B, T, U) and the last c, from h (B, U) and c (None without a memory).

    seen: the tokens' products, (B, T, 4 U) or None, and (B, T, rows), as Layers.step takes one token's. time: (B, T).
    """
    states = []
    for t, by_inter in enumerate(seen[1].unbind(1)):
        by_memory = None if seen[0] is None else seen[0][:, t]
        h, c = layers.step((by_memory, by_inter), h, c, None if time is None else time[:, t, None])
        states.append(h)
    return torch.stack(states, dim=1), c


def step_reference(entry: tuple[tuple[Tensor, Tensor] | None, tuple[Tensor, Tensor]], layers: Layers) -> Callable:
    """One token of unit time for these weights: x (B, inputs), h, c -> the new h and c.

    entry: weight and bias of the products for the memory (None without one) and for the inter layer.
    """

    def run(x: Tensor, h: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
        seen = [None if pair is None else F.linear(x, *pair) for pair in entry]
        return layers.step(tuple(seen), h, c, None)

    return run


def _sampled(draw: Draw, mode: Mode, heads: int, sizes: tuple[int, int, int], memory: bool) -> Layers:
    inter, command, motor = sizes
    widths = (inter, inter), (command, inter + command), (motor, command + motor)
    units = sum(sizes)
    weights = tuple(draw.weight(heads * n, width) for n, width in widths)
    biases = draw.normal(heads * command), draw.normal(heads * motor)
    extras = (draw.normal(units), draw.normal(units)) if mode == "pure" else (None, None)
    return Layers(mode, weights, biases, draw.weight(4 * units, units) if memory else None, *extras)


def sample(draw: Draw, batch=2, length=3, inter=4, command=3, motor=2, kind=("default", True), timed=False) -> Sample:
    """One call from a state that an earlier one left. kind: the mode, and whether there is a memory."""
    mode, memory = kind
    heads, units = 1 if mode == "pure" else 3 + timed, inter + command + motor
    layers = _sampled(draw, mode, heads, (inter, command, motor), memory)
    seen = draw.normal(batch, length, 4 * units) if memory else None, draw.normal(batch, length, heads * inter)
    time = draw.unit(batch, length) if timed else None
    c = draw.normal(batch, units) if memory else None
    return Sample((layers, seen, draw.normal(batch, units), c, time))


def step_sample(draw: Draw, batch=2, inter=4, command=3, motor=2, kind=("default", True)) -> Sample:
    """Weights, and one token of three inputs with its state."""
    mode, memory = kind
    heads, units = 1 if mode == "pure" else 3, inter + command + motor
    by_inter = draw.weight(heads * inter, 3), draw.normal(heads * inter)
    by_memory = (draw.weight(4 * units, 3), draw.normal(4 * units)) if memory else None
    layers = _sampled(draw, mode, heads, (inter, command, motor), memory)
    c = draw.normal(batch, units) if memory else None
    return Sample(((by_memory, by_inter), layers), token=(draw.normal(batch, 3), draw.normal(batch, units), c))


_SIZES = {"batch": (1, 3, 6), "inter": (1, 4, 17), "command": (1, 3, 11), "motor": (1, 2, 9)}
_KINDS = tuple({"kind": (mode, memory)} for mode in HEADS for memory in (True, False))
WIRED_CFC_SCAN = Operation(
    "wired_cfc_scan",
    reference,
    (
        Kernel("numba", "cpu", "arch.ncp.layers_numba:wired_cfc_scan", (torch.float32, torch.float64)),
        Kernel(
            "triton", "cuda", "arch.ncp.layers_triton:wired_cfc_scan", (torch.float32, torch.float64), needs=("triton",)
        ),
    ),
    samples=Samples(
        sample,
        {"length": (1, 2, 5), **_SIZES},
        tuple(kind | {"timed": timed} for kind in _KINDS for timed in (False, True)),
        ({"batch": 5, "length": 40, "inter": 21, "command": 13, "motor": 14},),
    ),
)
WIRED_CFC_STEP = Operation(
    "wired_cfc_step",
    step_reference,
    (Kernel("numba", "cpu", "arch.ncp.layers_numba:wired_cfc_step", (torch.float32,)),),
    optional=True,
    samples=Samples(step_sample, _SIZES, _KINDS),
)
