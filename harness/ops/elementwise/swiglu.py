"""The operations `swiglu`, the gate of SwiGLU (Shazeer 2020, arXiv:2002.05202), and `swiglu_step`, all of it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.ops.registry import Kernel, Operation
from harness.ops.samples import Draw, Sample, Samples


def reference(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of the halves of the last axis: (..., 2 F) -> (..., F)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def step_reference(gate_up: Tensor, down: Tensor) -> Callable[[Tensor], Tensor]:
    """The whole channel mixer for weights gate_up (2 F, D) and down (D, F), as a function of x (B, D)."""
    return lambda x: F.linear(reference(F.linear(x, gate_up)), down)


def sample(draw: Draw, batch=2, rows=3, hidden=5) -> Sample:
    """One call, on rows that are grouped."""
    return Sample((draw.normal(batch, rows, 2 * hidden),))


def step_sample(draw: Draw, batch=2, width=6, hidden=5) -> Sample:
    """Weights, and one token."""
    return Sample((draw.weight(2 * hidden, width), draw.weight(width, hidden)), token=(draw.normal(batch, width),))


_SIZES = {"batch": (1, 3), "hidden": (1, 7, 33)}
_NUMBA = "harness.ops.elementwise.swiglu_numba"
SWIGLU = Operation(
    "swiglu",
    reference,
    (Kernel("numba", "cpu", f"{_NUMBA}:swiglu"),),
    optional=True,
    samples=Samples(sample, {"rows": (1, 2, 129, 150), **_SIZES}, large=({"rows": 200, "hidden": 48},)),
)
SWIGLU_STEP = Operation(
    "swiglu_step",
    step_reference,
    (Kernel("numba", "cpu", f"{_NUMBA}:swiglu_step", (torch.float32,)),),
    optional=True,
    samples=Samples(step_sample, {"width": (1, 5, 70), **_SIZES}),
)
