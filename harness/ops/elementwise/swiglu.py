"""The operations `swiglu` and `geglu`, the gates of gated MLPs (Shazeer 2020, arXiv:2002.05202), and `swiglu_step` and
`geglu_step`, all of one. gelu is the approximation by tanh (Hendrycks and Gimpel 2016, arXiv:1606.08415).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.ops.registry import FLOATS, Kernel, Operation
from harness.ops.samples import Draw, Sample, Samples


def reference(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of the halves of the last axis: (..., 2 F) -> (..., F)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def geglu_reference(gate_up: Tensor) -> Tensor:
    """gelu(gate) * up, likewise."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh") * up


def step_reference(gate_up: Tensor, down: Tensor) -> Callable[[Tensor], Tensor]:
    """The whole channel mixer for weights gate_up (2 F, D) and down (D, F), as a function of x (B, D)."""
    return lambda x: F.linear(reference(F.linear(x, gate_up)), down)


def geglu_step_reference(gate_up: Tensor, down: Tensor) -> Callable[[Tensor], Tensor]:
    """The same with gelu."""
    return lambda x: F.linear(geglu_reference(F.linear(x, gate_up)), down)


def sample(draw: Draw, batch=2, rows=3, hidden=5) -> Sample:
    """One call, on rows that are grouped."""
    return Sample((draw.normal(batch, rows, 2 * hidden),))


def step_sample(draw: Draw, batch=2, width=6, hidden=5) -> Sample:
    """Weights, and one token."""
    return Sample((draw.weight(2 * hidden, width), draw.weight(width, hidden)), token=(draw.normal(batch, width),))


_SIZES = {"batch": (1, 3), "hidden": (1, 7, 33)}
_GATES = Samples(sample, {"rows": (1, 2, 129, 150), **_SIZES}, large=({"rows": 200, "hidden": 48},))
_STEPS = Samples(step_sample, {"width": (1, 5, 70), **_SIZES})


def _operation(name: str, reference: Callable, samples: Samples, *dtypes: torch.dtype) -> Operation:
    kernel = Kernel("numba", "cpu", f"harness.ops.elementwise.swiglu_numba:{name}", dtypes or FLOATS)
    return Operation(name, reference, (kernel,), optional=True, samples=samples)


SWIGLU = _operation("swiglu", reference, _GATES)
GEGLU = _operation("geglu", geglu_reference, _GATES)
SWIGLU_STEP = _operation("swiglu_step", step_reference, _STEPS, torch.float32)
GEGLU_STEP = _operation("geglu_step", geglu_step_reference, _STEPS, torch.float32)
