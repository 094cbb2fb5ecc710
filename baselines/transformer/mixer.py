"""Causal self-attention as in Llama (Touvron et al. 2023, arXiv:2302.13971): rotary positions, no bias."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from baselines.transformer.ring_cache import RingCache
from harness.config.errors import ConfigError
from harness.config.ranges import Base, Dimension, Length
from harness.model.fixed_cache import FixedCache
from harness.model.kv_cache import KVCache
from harness.model.mixer import UNTIMED, Call, Flops, ProjectedMixer, step_operation
from harness.model.norm import RMSNorm
from harness.ops.attention.attention import ATTENTION, weigh
from harness.ops.attention.rotary import turned
from harness.ops.registry import Choice
from harness.ops.samples import Draw, Sample, Samples, randomised

Cache = KVCache | FixedCache | RingCache
NORM_EPS = 1e-5


class Attention(ProjectedMixer):
    """Multi-head attention whose state is the keys and values of every token seen, or of the last `window`.

    window: tokens that a token sees, itself included (Jiang et al. 2023, arXiv:2310.06825); None for all. The state is
    then constant: places for a window's tokens, from the start. Through n layers a token depends on n windows.
    head_dim: even, divides d_model. n_kv_heads: key-value heads, each shared by a group of query heads (Ainslie et al.
    2023, arXiv:2305.13245); None means one for each. qk_norm: whether queries and keys pass an RMSNorm over each head's
    components before they are turned (Dehghani et al. 2023, arXiv:2302.05442). rope_theta: base of the rotary
    frequencies (Su et al. 2021, arXiv:2104.09864). Projections start as N(0, 2 / (5 d_model)) (Nguyen and Salazar 2019,
    arXiv:1910.05895), the one into the residual stream smaller (`scale_projection`). kernel: see
    harness/ops/registry.py; a sequence of one token needs no mask and is weighed by torch's own products whatever the
    choice.
    """

    def __init__(
        self,
        d_model: int,
        layer: int = 0,
        n_layers: int = 1,
        *,
        head_dim: Dimension = 32,
        n_kv_heads: Dimension | None = None,
        qk_norm: bool = False,
        window: Length | None = None,
        rope_theta: Base = 10_000.0,
        kernel: Choice = "auto",
        d_out: int | None = None,
    ):
        super().__init__(d_model, layer, n_layers, d_out)
        self.head_dim, self.rope_theta, self.kernel = head_dim, rope_theta, kernel
        self.window, self.constant_state = window, window is not None
        self.n_heads = _count_heads(d_model, head_dim)
        self.n_kv_heads = _count_kv_heads(self.n_heads, n_kv_heads, head_dim)
        self.qkv = nn.Linear(d_model, (self.n_heads + 2 * self.n_kv_heads) * head_dim, bias=False)
        self.out = nn.Linear(d_model, self.d_out, bias=False)
        self.norms = nn.ModuleList(RMSNorm(head_dim, NORM_EPS, kernel) for _ in range(2 if qk_norm else 0))
        std = math.sqrt(2 / (5 * d_model))
        nn.init.normal_(self.qkv.weight, std=std)
        nn.init.normal_(self.out.weight, std=std)
        self.scale_projection()

    @property
    def projection(self) -> nn.Linear:
        return self.out

    def mix(self, x: Tensor, state: Cache | None = None, call: Call = UNTIMED) -> tuple[Tensor, Cache]:
        position = 0 if state is None else state.position
        queries, keys, values = self._project(x, position)
        if state is None:
            state = self._empty(keys)
        if isinstance(state, RingCache):
            held = zip(state.past(), (keys, values), strict=True)
            keys, values = (torch.cat([old.to(new), new], 2) for old, new in held)
            cache: Cache = state.after(keys, values)
        else:
            past, cache = state.length, state.append(keys, values)
            if past or x.shape[1] == 1:
                keys, values = cache.keys, cache.values
        if x.shape[1] == 1:
            seen = slice(max(0, keys.shape[2] - (self.window or keys.shape[2])), None)
            y = weigh(queries, keys[:, :, seen], values[:, :, seen])
        else:
            y = ATTENTION.choose(self.kernel, queries.device, queries.dtype)(queries, keys, values, self.window)
        return y.transpose(1, 2).flatten(2), cache  # (B, heads, T, head_dim) -> (B, T, d_model)

    def mix_step(self, x_t: Tensor, state: Cache, call: Call = UNTIMED) -> tuple[Tensor, Cache]:
        queries, keys, values = self._project(x_t.unsqueeze(1), state.position)
        cache = state.append(keys, values)
        if isinstance(cache.position, Tensor):
            y = weigh(queries, cache.keys, cache.values, ~cache.seen.unsqueeze(0))
        else:  # the order in which a ring lies does not matter: positions are in the keys
            y = weigh(queries, cache.keys[:, :, : cache.length], cache.values[:, :, : cache.length])
        return y.flatten(1), cache  # (B, heads, 1, head_dim) -> (B, d_model)

    def frozen_step(self) -> Callable:
        return ATTENTION_STEP.choose(self.kernel, self.out.weight.device, self.out.weight.dtype)(self)

    def init_state(self, batch: int, context: int = 0, device=None, dtype=None) -> Cache:
        if self.window is not None:
            return RingCache.zeros((batch, self.n_kv_heads, self.window, self.head_dim), context, device, dtype)
        return KVCache.zeros(batch, self.n_kv_heads, context, self.head_dim, device=device, dtype=dtype)

    def _empty(self, keys: Tensor) -> Cache:
        """The cache before the first token, of the type of its keys (B, n_kv_heads, T, head_dim)."""
        if self.window is None:
            return KVCache.of(keys[:, :, :0], keys[:, :, :0])
        return self.init_state(len(keys), 0, keys.device, keys.dtype)

    def truncate_state(self, state: Cache, keep: int) -> Cache:
        return state if isinstance(state, RingCache) else state.truncate(keep)

    def fixed_state(self, state: Cache, room: int) -> FixedCache | RingCache:
        return state.fixed() if isinstance(state, RingCache) else FixedCache.of(state, room)

    def flops_per_token(self, context: int) -> Flops:
        context = min(context, self.window or context)
        attention = self.n_heads * self.head_dim * context
        projections = self.qkv.weight.numel() + self.out.weight.numel()
        rotation = (3 + 5 * bool(self.norms)) * (self.n_heads + self.n_kv_heads) * self.head_dim
        softmax = 5 * self.n_heads * context  # scale, maximum, difference, exponential and sum
        return Flops(matmul=2 * projections + 4 * attention, other=rotation + softmax)

    def _project(self, x: Tensor, position: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, d_model) -> queries (B, n_heads, T, head_dim), keys and values (B, n_kv_heads, T, head_dim)."""
        rotated = self.n_heads + self.n_kv_heads
        heads = self.qkv(x).unflatten(2, (-1, self.head_dim))  # (B, T, n_heads + 2 n_kv_heads, head_dim)
        qk = heads[:, :, :rotated]
        if self.norms:
            parts = zip(self.norms, qk.split([self.n_heads, self.n_kv_heads], dim=2), strict=True)
            qk = torch.cat([norm(part) for norm, part in parts], dim=2)
        qk = turned(qk, position, self.rope_theta).transpose(1, 2)
        return qk[:, : self.n_heads], qk[:, self.n_heads :], heads[:, :, rotated:].transpose(1, 2)


def _count_heads(d_model: int, head_dim: int) -> int:
    if d_model % head_dim or head_dim % 2:
        raise ConfigError(
            f"model.mixer.head_dim={head_dim} does not fit d_model={d_model}.",
            "an even head_dim that divides d_model.",
            f"set model.width_multiple to a multiple of head_dim={head_dim}, which must be even.",
        )
    return d_model // head_dim


def _count_kv_heads(n_heads: int, n_kv_heads: int | None, head_dim: int) -> int:
    if n_kv_heads is not None and n_heads % n_kv_heads:
        raise ConfigError(
            f"model.mixer.n_kv_heads={n_kv_heads} does not divide the {n_heads} query heads of this width.",
            "every key-value head shared by the same number of query heads.",
            f"set model.width_multiple={n_kv_heads * head_dim}.",
        )
    return n_kv_heads or n_heads


def step_sample(draw: Draw, batch=2, past=7, head_dim=4, heads=2, shared_by=1, window=0, qk_norm=False) -> Sample:
    """Random weights, and one token behind a cache; `shared_by` query heads a key-value head; window: 0 for none."""
    width, options = heads * shared_by * head_dim, {"window": window or None, "qk_norm": qk_norm}
    attention = Attention(width, head_dim=head_dim, n_kv_heads=heads, **options)
    mixer = randomised(attention, draw)
    keys, values = draw.normal(batch, heads, past, head_dim), draw.normal(batch, heads, past, head_dim)
    cache = KVCache.of(keys, values) if not window else attention._empty(keys).after(keys, values)
    return Sample((mixer,), token=(draw.normal(batch, mixer.d_model), cache))


ATTENTION_STEP = step_operation(
    "attention_step",
    "baselines.transformer.step_numba:attention_step",
    samples=Samples(
        step_sample,
        {"batch": (1, 3), "past": (0, 1, 127, 129, 300), "head_dim": (2, 8, 18), "heads": (1, 3), "shared_by": (1, 2)}
        | {"window": (0, 1, 8, 200)},
        (
            *({}, {"past": 129, "shared_by": 2}, {"batch": 1, "past": 300, "head_dim": 16}),
            *({"window": 4}, {"window": 16}, {"qk_norm": True, "shared_by": 2}, {"qk_norm": True, "head_dim": 18}),
        ),
    ),
)
