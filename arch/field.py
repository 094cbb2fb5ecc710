"""The vector field of a liquid cell.

Hasani et al., "Liquid Time-constant Networks" (AAAI 2021, arXiv:2006.04439), eq. 1, per channel:

    dh/dt = -(1/tau + f) h + f A,    f = gate(a + coupling(h))

and its state expansion, in the selective state-space form of Gu & Dao (arXiv:2312.00752), per channel d and state n:

    dh_dn/dt = -(1/tau_dn + omega_dn f_d) h_dn + f_d B_n A_d,    y_d = sum_n C_n h_dn,    f = gate(a + coupling(y))

A field is constant while its token lasts: the token enters through a, A, B and C.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.ops.shapes import expect, expect_tokens

Gate = Literal["sigmoid", "softplus"]
Coupling = Literal["none", "diagonal", "heads", "dense"]
GATES = {"sigmoid": torch.sigmoid, "softplus": partial(F.softplus, threshold=40.0)}
"""torch's own softplus gives x from 20 on, which is off by 2e-9; from 40 on x is exact in float64 too."""


def couple(y: Tensor, weight: Tensor) -> Tensor:
    """What the state (its read-out y, (..., D)) adds to the gate; the shape of `weight` says how.

    (D,): diagonal, w * y. (D, D): dense, W y. (H, P, P): heads, one W per block of P channels.
    """
    if weight.dim() == 1:
        return weight * y
    if weight.dim() == 2:
        return F.linear(y, weight)
    heads = y.unflatten(-1, weight.shape[:2])  # (..., D) -> (..., H, P)
    return torch.einsum("...hp,hqp->...hq", heads, weight).flatten(-2)


@dataclass(frozen=True, eq=False)
class Field:
    """dh/dt = drive - rate * h for one token, or (with a time axis after the batch) for a sequence of them.

    a, A: (B, D). B, C: (B, N), or None for ones (the published cell, N = 1). inv_tau, omega: (D, N).
    coupling: None or a weight as `couple` takes. The state h: (B, D, N).
    """

    a: Tensor
    A: Tensor
    B: Tensor | None
    C: Tensor | None
    inv_tau: Tensor
    omega: Tensor
    coupling: Tensor | None
    gate: Gate

    def read_out(self, h: Tensor) -> Tensor:
        """y = sum_n C_n h_n: (B, D, N) -> (B, D)."""
        if self.C is None:
            return h.squeeze(-1) if h.shape[-1] == 1 else h.sum(-1)
        return (h * self.C.unsqueeze(-2)).sum(-1)

    def split(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (rate, drive), each (B, D, N): the derivative at h is drive - rate * h."""
        a = self.a if self.coupling is None else self.a + couple(self.read_out(h), self.coupling)
        f = GATES[self.gate](a)  # (B, D)
        rate = self.inv_tau + self.omega * f.unsqueeze(-1)  # (B, D, N)
        drive = (f * self.A).unsqueeze(-1)
        if self.B is not None:
            drive = drive * self.B.unsqueeze(-2)
        return rate, drive.expand_as(rate)

    def derivative(self, h: Tensor) -> Tensor:
        """dh/dt, (B, D, N)."""
        rate, drive = self.split(h)
        return drive - rate * h

    @property
    def coupled(self) -> Coupling:
        """The kind of coupling, which the shape of its weight says."""
        return "none" if self.coupling is None else ("diagonal", "dense", "heads")[self.coupling.dim() - 1]

    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor the field depends on, in the order of the attributes."""
        return tuple(tensor for tensor in self._all() if tensor is not None)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Field":
        """The field of the function's results, tensor by tensor."""
        return Field(*(None if tensor is None else function(tensor) for tensor in self._all()), self.gate)

    def computed(self, *others: Tensor) -> tuple["Field", Tensor, ...]:
        """The field, omega of inv_tau's shape, and the other tensors in the widest of their types, float32 at least."""
        dtype = reduce(torch.promote_types, (x.dtype for x in (*self.tensors(), *others)), torch.float32)
        *token, inv_tau, omega, coupling = self.map(lambda tensor: tensor.to(dtype))._all()
        whole = Field(*token, inv_tau, omega.expand_as(inv_tau), coupling, self.gate)
        return whole, *(x.to(dtype) for x in others)

    def check(self, operation: str, h: Tensor, elapsed: Tensor | None) -> None:
        """Raises ValueError where a sequence's field, the state h before it and the elapsed times do not fit."""
        (batch, T, D), N = self.a.shape, h.shape[-1]
        expect_tokens(operation, T)
        w, weight = self.coupling, {"none": (), "diagonal": (D,), "dense": (D, D), "heads": ()}[self.coupled]
        if self.coupled == "heads":
            P = w.shape[-1]
            if P == 0 or D % P:
                raise ValueError(
                    f"{operation}: w has the shape {tuple(w.shape)}, whose heads do not divide {D} channels."
                )
            weight = (D // P, P, P)
        tokens = ("A", self.A, (batch, T, D)), ("B", self.B, (batch, T, N)), ("C", self.C, (batch, T, N))
        rates = ("inv_tau", self.inv_tau, (D, N)), ("w", w, weight)
        expect(operation, *tokens, *rates, ("h0", h, (batch, D, N)), ("elapsed", elapsed, (batch, T)))

    def window(self, start: int, stop: int) -> "Field":
        """The tokens start..stop of a sequence."""
        return self._over_time(lambda tensor: tensor[:, start:stop])

    def tokens(self) -> list["Field"]:
        """A sequence's fields one by one; unbound at once, because indexing each makes the backward quadratic."""
        unbound = {name: tensor.unbind(1) for name, tensor in self._timed().items()}
        return [replace(self, **{name: parts[t] for name, parts in unbound.items()}) for t in range(self.a.shape[1])]

    def _all(self) -> tuple[Tensor | None, ...]:
        return self.a, self.A, self.B, self.C, self.inv_tau, self.omega, self.coupling

    def _timed(self) -> dict[str, Tensor]:
        timed = {"a": self.a, "A": self.A, "B": self.B, "C": self.C}
        return {name: tensor for name, tensor in timed.items() if tensor is not None}

    def _over_time(self, function) -> "Field":
        return replace(self, **{name: function(tensor) for name, tensor in self._timed().items()})
