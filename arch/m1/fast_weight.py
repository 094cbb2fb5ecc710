"""M1's associative memory: keys and values written into a decaying matrix, read by queries.

A fast weight (Schmidhuber 1992; Ba et al. 2016, arXiv:1610.06258), by linear attention's outer products (Katharopoulos
et al. 2020, arXiv:2006.16236) or by the delta rule (Schlag et al. 2021, arXiv:2102.11174), with one decay a head.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch.m1.memory import FAST_WEIGHT
from harness.model.mixer import Flops
from harness.ops.registry import Choice

Rule = Literal["outer", "delta"]
LEAST = 1e-6
"""What the outer rule's normaliser is at least, and what is added to the norm of the delta rule's keys."""


class FastWeight(nn.Module):
    """W_o r, where r reads the memory F at q = elu(W_q x) + 1 after k = elu(W_k x) + 1 has written v = W_v x into it.

    outer: F = decay F + k v', z = decay z + k, r = F' q / max(q z, 1e-6). delta: k^ = k / (|k| + 1e-6),
    F = decay F + rate k^ (v - F' k^)', r = F' q, and z stays as it is. decay and rate are a head's own, sigmoids of
    `decay_raw` and `eta_raw`. Parameters have the names and shapes of the authors' FastWeightMemoryV2
    (AwareLiquid/M1, mt_lnn/mt_lnn_v2.py). The state: F (B, n_heads, d_memory, d_memory), keys first, and
    z (B, n_heads, d_memory).
    """

    def __init__(
        self,
        d_model: int,
        d_memory: int = 64,
        n_heads: int = 1,
        rule: Rule = "outer",
        decay: float = 0.95,
        chunk: int = 64,
        kernel: Choice = "auto",
    ):
        super().__init__()
        self.d_memory, self.n_heads, self.chunk, self.kernel = d_memory, n_heads, chunk, kernel
        self.W_k = nn.Linear(d_model, n_heads * d_memory, bias=False)
        self.W_q = nn.Linear(d_model, n_heads * d_memory, bias=False)
        self.W_v = nn.Linear(d_model, n_heads * d_memory, bias=False)
        self.W_o = nn.Linear(n_heads * d_memory, d_model, bias=False)
        self.decay_raw = nn.Parameter(torch.full((n_heads,), math.log(decay / (1 - decay))))
        self.eta_raw = nn.Parameter(torch.zeros(n_heads)) if rule == "delta" else None

    def forward(self, x: Tensor, memory: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, d_model) and the state -> y (B, T, d_model) and the state after the last token."""
        qkv = F.linear(x, torch.cat([self.W_q.weight, self.W_k.weight, self.W_v.weight]))
        with torch.autocast(x.device.type, enabled=False):
            q, k, v = qkv.to(memory).unflatten(2, (3, self.n_heads, -1)).unbind(2)  # (B, T, n_heads, d_memory)
            q, k = F.elu(q) + 1, F.elu(k) + 1
            run = FAST_WEIGHT.choose(self.kernel, memory.device, memory.dtype)
            log_decay = F.logsigmoid(self.decay_raw)
            if self.eta_raw is not None:
                k = k / (k.norm(dim=-1, keepdim=True) + LEAST)
                r, memory = run(q, k, v, memory, log_decay, self.eta_raw.sigmoid(), self.chunk)
            else:  # z is one more column of the memory, into which ones are written
                ones = torch.ones_like(v[..., :1])
                both = torch.cat([memory, z.unsqueeze(-1)], -1)
                r, both = run(q, k, torch.cat([v, ones], -1), both, log_decay, None, self.chunk)
                memory, z = both[..., :-1].contiguous(), both[..., -1].contiguous()
                r = r[..., :-1] / r[..., -1:].clamp_min(LEAST)
        return self.W_o(r.flatten(2).to(x)), memory, z

    def step(self, x_t: Tensor, memory: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_t (B, d_model) and the state -> y_t (B, d_model) and the new state."""
        q, k, v = (W(x_t).to(memory).unflatten(1, (self.n_heads, 1, -1)) for W in (self.W_q, self.W_k, self.W_v))
        with torch.autocast(x_t.device.type, enabled=False):
            q, k, decay = F.elu(q) + 1, F.elu(k) + 1, self.decay_raw.sigmoid()[:, None]  # (B, n_heads, 1, d_memory)
            if self.eta_raw is None:
                memory = decay.unsqueeze(2) * memory + k.mT * v
                z = decay * z + k.squeeze(2)
                r = (q @ memory).squeeze(2) / (q.squeeze(2) * z).sum(2, keepdim=True).clamp_min(LEAST)
            else:
                k = k / (k.norm(dim=3, keepdim=True) + LEAST)
                error = v - k @ memory
                memory = decay.unsqueeze(2) * memory + self.eta_raw.sigmoid()[:, None, None] * k.mT * error
                r = (q @ memory).squeeze(2)
        return self.W_o(r.flatten(1).to(x_t)), memory, z

    def init_state(self, batch: int, device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The empty memory and its normaliser."""
        empty = torch.zeros(batch, self.n_heads, self.d_memory, self.d_memory, device=device, dtype=dtype)
        return empty, torch.zeros_like(empty[..., 0])

    def flops(self) -> Flops:
        """Of one token, its matrix products as `step` performs them."""
        projections, read = 4 * self.W_k.weight.numel(), self.n_heads * self.d_memory**2
        delta = self.eta_raw is not None
        features = self.n_heads * self.d_memory * (4 * 2 + (4 if delta else 5))  # elu of both, norm or normaliser
        return Flops(2 * (projections + read * (1 + delta)), read * (3 + delta) + features)
