"""The operations `swiglu`, the gate of SwiGLU (Shazeer 2020, arXiv:2002.05202), and `swiglu_step`, all of it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.ops.registry import Kernel, Operation


def reference(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of the halves of the last axis: (..., 2 F) -> (..., F)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def step_reference(gate_up: Tensor, down: Tensor) -> Callable[[Tensor], Tensor]:
    """The whole channel mixer for weights gate_up (2 F, D) and down (D, F), as a function of x (B, D)."""
    return lambda x: F.linear(reference(F.linear(x, gate_up)), down)


_NUMBA = "harness.ops.elementwise.swiglu_numba"
SWIGLU = Operation("swiglu", reference, (Kernel("numba", "cpu", f"{_NUMBA}:swiglu"),), optional=True)
SWIGLU_STEP = Operation(
    "swiglu_step",
    step_reference,
    (Kernel("numba", "cpu", f"{_NUMBA}:swiglu_step", (torch.float32,)),),
    optional=True,
)
