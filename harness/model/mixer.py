"""The contract every architecture lives behind: a causal map over time that can also run one token at a time."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from harness.model.state import State, map_tensors
from harness.ops.registry import Kernel, Operation, always
from harness.ops.samples import Samples


class Flops(NamedTuple):
    """Floating-point operations of one token's forward pass; a multiply-add counts as two.

    matmul: in matrix products, as `step` performs them (cross-checked against torch's FlopCounterMode).
    other: in recurrences, activations and other elementwise work, stated by hand.
    """

    matmul: float = 0.0
    other: float = 0.0

    def __add__(self, more: "Flops") -> "Flops":  # type: ignore[override]  # a tuple's would concatenate
        return Flops(self.matmul + more.matmul, self.other + more.other)

    @property
    def total(self) -> float:
        return self.matmul + self.other


@dataclass(frozen=True)
class Call:
    """What one call through the model carries beside the tokens.

    elapsed: the time since the previous token, (B, T) or in `step` (B,); None for 1, as in text. shared: a dict that
    lives for this call, where a layer may leave tensors for the layers above (RWKV-7's value residual), shaped as the
    call's (B, T, ...) or, in `step`, (B, ...); None where a mixer is called by itself.
    """

    elapsed: Tensor | None = None
    shared: dict | None = None


UNTIMED = Call()

Inexactness = Literal["adaptive_steps", "newton_iterations"]
"""Why a mixer's paths may differ by more than rounding; harness/checks/tolerances.py says by how much."""


class Mixer(nn.Module):
    """Causal map (B, T, d_model) -> (B, T, d_model) with a state that one token can advance.

    Token mixers and channel mixers (the MLP's place) keep the same contract; a memoryless one has the state {}.
    """

    constant_state: bool = True
    """Claims that the bytes of the state do not depend on the context."""
    inexact: Inexactness | None = None
    """Why the mixer's own paths (whole sequence, prefill + step, chunks) differ by more than rounding, if they do."""

    capturable: bool = True
    """Whether `step` neither waits for the device nor reads its numbers, so that a CUDA graph can hold it."""

    data_dependent_flops: bool = False
    """Declares that the operations depend on the data (adaptive steps): `flops_per_token` then states the least."""

    def __init__(self, d_model: int, layer: int = 0, n_layers: int = 1):
        super().__init__()
        self.d_model, self.layer, self.n_layers = d_model, layer, n_layers

    def forward(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        """Maps a whole sequence on the fast path.

        x: (B, T, d_model). state: from a previous call, or None for a fresh one. Returns y (B, T, d_model) and
        the state after the last token.
        """
        raise NotImplementedError

    def step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        """Maps one token; pure. x_t: (B, d_model). Returns y_t (B, d_model) and the new state."""
        raise NotImplementedError

    def frozen_step(self) -> Callable:
        """`step` for the weights as they stand, without gradients: what a generation calls at every token.

        A mixer may resolve here once what does not depend on the token. Signature and state are those of `step`.
        """
        return copy.deepcopy(self).requires_grad_(False).step

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> State:
        """Returns the state held after `context` tokens, zero-filled: all that generation must keep."""
        raise NotImplementedError

    def truncate_state(self, state: State, keep: int) -> State:
        """Forgets all but the last `keep` tokens of a state that grows; a constant state is returned as it is."""
        return state

    def fixed_state(self, state: State, room: int) -> State:
        """A copy of `state` that `step` takes too and whose tensors keep their shapes for `room` more tokens.

        A CUDA graph can be captured over it. A constant state is fixed already.
        """
        return map_tensors(lambda tensor: tensor.clone(), state)

    def flops_per_token(self, context: int) -> Flops:
        """Forward floating-point operations of one token that sees `context` tokens, itself included."""
        raise NotImplementedError

    def counts(self) -> dict[str, int]:
        """What the mixer has counted of its own work since it was made, for the record; most count nothing."""
        return {}


class ProjectedMixer(Mixer):
    """A mixer that ends in a linear projection, and can therefore stand in a gated block: the gate comes before it.

    A subclass writes `mix`, `mix_step` and `projection`. d_out: the width it projects to, d_model where None; given,
    the mixer stands in a gated block, is as wide as that block's inner channels before the projection too, and brings
    no short convolution of its own.
    """

    def __init__(self, d_model: int, layer: int = 0, n_layers: int = 1, d_out: int | None = None):
        super().__init__(d_model, layer, n_layers)
        self.d_out, self.gated = d_out or d_model, d_out is not None

    @property
    def projection(self) -> nn.Linear:
        """The last layer."""
        raise NotImplementedError

    @torch.no_grad()
    def scale_projection(self) -> None:
        """Makes the start of what goes into the residual stream smaller by sqrt(residual branches), for GPT-2's reason.

        Radford et al. 2019, section 2.3. A Transformer's block has two branches, a gated block one (as mamba-ssm).
        """
        self.projection.weight.div_(math.sqrt(self.n_layers if self.gated else 2 * self.n_layers))

    def mix(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        """`forward` without the projection."""
        raise NotImplementedError

    def mix_step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        """`step` without the projection."""
        raise NotImplementedError

    def forward(self, x: Tensor, state: State = None, call: Call = UNTIMED) -> tuple[Tensor, State]:
        y, state = self.mix(x, state, call)
        return self.projection(y), state

    def step(self, x_t: Tensor, state: State, call: Call = UNTIMED) -> tuple[Tensor, State]:
        y, state = self.mix_step(x_t, state, call)
        return self.projection(y), state

    def frozen_gated_step(self, block: Mixer) -> Callable | None:
        """`frozen_step` of the gated block around this mixer in one piece; None where there is no such kernel."""
        return None


def step_operation(
    name: str, path: str, refuses: Callable[..., str | None] = always, samples: Samples | None = None
) -> Operation:
    """The operation of a mixer's whole token, its implementations called with the mixer for a function like `step`.

    path: "module:function" of the CPU's, which takes the weights as they stand, in float32.
    """
    kernels = (Kernel("numba", "cpu", path, (torch.float32,), refuses),)
    return Operation(name, _own_step, kernels, optional=True, samples=samples)


def _own_step(mixer: Mixer) -> Callable:
    return mixer.step
