"""MT-LNN's attention: rotary, many query heads over one key-value head, scores that fall with the distance.

From the authors' mt_lnn/mt_attention.py (AwareLiquid/M1 at 96860e3), whose names the parameters keep.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arch.mtlnn.mixer import FAST, SLOW, STD, own_rate
from harness.config.errors import ConfigError
from harness.config.ranges import Base, Dimension, Length
from harness.model.fixed_cache import FixedCache
from harness.model.kv_cache import KVCache
from harness.model.mixer import UNTIMED, Call, Flops, Mixer, step_operation
from harness.ops.attention.attention import ATTENTION, distance_bias, weigh
from harness.ops.attention.rotary import turned
from harness.ops.registry import Choice
from harness.ops.samples import Draw, Sample, Samples, randomised

Cache = KVCache | FixedCache


class MTAttention(Mixer):
    """Multi-head attention with the bias -(softplus(gtp_gamma) + clamp(polarity, -1, 1) / max_seq_len) x distance.

    n_heads: of queries; n_kv_heads: of keys and values. head_dim: even, None for the even number nearest d_model /
    n_heads, above it where two are as near (the authors' 64 of 832 / 13). max_seq_len: tokens that polarity is spread
    over. decay, polarity: whether the bias has the one part, the other. rope_theta: base of the rotary frequencies.
    """

    constant_state = False

    def __init__(
        self,
        d_model: int,
        layer: int = 0,
        n_layers: int = 1,
        *,
        n_heads: Dimension = 13,
        n_kv_heads: Dimension = 1,
        head_dim: Dimension | None = None,
        max_seq_len: Length = 1024,
        decay: bool = True,
        polarity: bool = True,
        rope_theta: Base = 10_000.0,
        kernel: Choice = "auto",
    ):
        super().__init__(d_model, layer, n_layers)
        _check_heads(n_heads, n_kv_heads, head_dim)
        self.n_heads, self.n_kv_heads, self.max_seq_len = n_heads, n_kv_heads, max_seq_len
        self.head_dim = head_dim or max(2, 2 * math.floor(d_model / n_heads / 2 + 0.5))
        self.rope_theta, self.kernel = rope_theta, kernel
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(d_model, heads * self.head_dim, bias=False) for heads in (n_heads, n_kv_heads, n_kv_heads)
        )
        self.out_proj = nn.Linear(n_heads * self.head_dim, d_model, bias=False)
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.normal_(linear.weight, std=STD)
        self.polarity_direction = own_rate(torch.empty(n_heads).uniform_(-0.05, 0.05), FAST) if polarity else None
        rates = 0.1 * 2 ** torch.linspace(3, -3, n_heads)
        self.gtp_gamma = own_rate(rates.expm1().log(), SLOW) if decay else None

    def forward(self, x: Tensor, state: Cache | None = None, call: Call = UNTIMED) -> tuple[Tensor, Cache]:
        queries, keys, values = self._project(x, 0 if state is None else state.position)
        if state is None:
            state = KVCache.of(keys[:, :, :0], values[:, :, :0])
        past, cache = state.length, state.append(keys, values)
        if past:
            keys, values = cache.keys, cache.values
        run = ATTENTION.choose(self.kernel, queries.device, queries.dtype)
        y = run(queries, keys, values, None, self.slopes(queries.dtype))
        return self.out_proj(y.transpose(1, 2).flatten(2)), cache  # (B, heads, T, head_dim) -> (B, T, d_model)

    def step(self, x_t: Tensor, state: Cache, call: Call = UNTIMED) -> tuple[Tensor, Cache]:
        queries, keys, values = self._project(x_t.unsqueeze(1), state.position)
        cache = state.append(keys, values)
        unseen = ~cache.seen.unsqueeze(0) if isinstance(cache, FixedCache) else None
        slopes = self.slopes(queries.dtype)
        bias = None if slopes is None else distance_bias(slopes, 1, cache.length, cache.keys.shape[2])
        y = weigh(queries, cache.keys, cache.values, unseen, bias)
        return self.out_proj(y.flatten(1)), cache  # (B, heads, 1, head_dim) -> (B, d_model)

    def frozen_step(self) -> Callable:
        return MT_ATTENTION_STEP.choose(self.kernel, self.out_proj.weight.device, self.out_proj.weight.dtype)(self)

    def _project(self, x: Tensor, position: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, d_model) -> queries (B, n_heads, T, head_dim), keys and values (B, n_kv_heads, T, head_dim)."""
        q, k, v = (proj(x).unflatten(2, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        qk = turned(torch.cat([q, k], 2), position, self.rope_theta).transpose(1, 2)
        return qk[:, : self.n_heads], qk[:, self.n_heads :], v.transpose(1, 2)

    def slopes(self, dtype: torch.dtype) -> Tensor | None:
        """What the scores of each head lose with every token of distance, (n_heads), None for nothing."""
        wide = torch.promote_types(dtype, torch.float32)
        slopes: Tensor | None = None
        if self.gtp_gamma is not None:
            slopes = F.softplus(self.gtp_gamma.to(wide))
        if self.polarity_direction is not None:
            polarity = self.polarity_direction.to(wide).clamp(-1, 1) / self.max_seq_len
            slopes = polarity if slopes is None else slopes + polarity
        return slopes

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> Cache:
        return KVCache.zeros(batch, self.n_kv_heads, context, self.head_dim, device=device, dtype=dtype)

    def truncate_state(self, state: Cache, keep: int) -> Cache:
        return state.truncate(keep)

    def fixed_state(self, state: Cache, room: int) -> FixedCache:
        return FixedCache.of(state, room)

    def flops_per_token(self, context: int) -> Flops:
        attention = self.n_heads * self.head_dim * context
        projections = 2 * self.d_model * (self.n_heads + self.n_kv_heads) * self.head_dim
        rotation = 3 * (self.n_heads + self.n_kv_heads) * self.head_dim
        scores = 7 * self.n_heads * context  # scale, bias, maximum, difference, exponential and sum
        return Flops(2.0 * projections + 4.0 * attention, float(rotation + scores))


def _check_heads(n_heads: int, n_kv_heads: int, head_dim: int | None) -> None:
    if n_heads % n_kv_heads:
        raise ConfigError(
            f"n_kv_heads={n_kv_heads} does not divide n_heads={n_heads}.",
            "every key-value head shared by the same number of query heads.",
            "set attention.mixer.n_kv_heads=1, as the authors do.",
        )
    if head_dim is not None and head_dim % 2:
        raise ConfigError(
            f"head_dim={head_dim} is odd.",
            "an even number: rotary positions turn pairs of coordinates.",
            f"set attention.mixer.head_dim={head_dim + 1}.",
        )


def step_sample(draw: Draw, batch=2, past=7, heads=2, shared_by=2, head_dim=4, biased=True) -> Sample:
    """Random weights, and one token behind a cache; `shared_by` query heads a key-value head."""
    size = {"n_heads": heads * shared_by, "n_kv_heads": heads, "head_dim": head_dim}
    mixer = randomised(MTAttention(10, **size, decay=biased, polarity=biased), draw)
    keys, values = draw.normal(batch, heads, past, head_dim), draw.normal(batch, heads, past, head_dim)
    return Sample((mixer,), token=(draw.normal(batch, 10), KVCache.of(keys, values)))


MT_ATTENTION_STEP = step_operation(
    "mt_attention_step",
    "arch.mtlnn.step_numba:mt_attention_step",
    samples=Samples(
        step_sample,
        {"batch": (1, 3), "past": (0, 1, 129), "heads": (1, 2), "shared_by": (1, 3), "head_dim": (2, 8)},
        ({}, {"past": 300, "heads": 1}, {"biased": False}),
    ),
)
