"""A key-value cache whose tensors keep their shapes, so that a CUDA graph can be captured over it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.model.kv_cache import KVCache


@dataclass(frozen=True)
class FixedCache:
    """Keys and values (batch, heads, capacity, head_dim), of which the first `length` tokens count.

    length, position: tensors of one integer, since a captured graph must read them anew at every replay. The next token
    has the position `position`, and takes the place `length` of the same storage: an older cache does not look there.
    """

    keys: Tensor
    values: Tensor
    length: Tensor
    position: Tensor

    @classmethod
    def of(cls, cache: "KVCache | FixedCache", room: int) -> "FixedCache":
        """A copy of `cache` with room for that many more tokens."""
        length, position = int(cache.length), int(cache.position)

        def roomy(tensor: Tensor) -> Tensor:
            batch, heads, _, head_dim = tensor.shape
            copy = tensor.new_zeros(batch, heads, length + room, head_dim)
            copy[:, :, :length] = tensor[:, :, :length]
            return copy

        numbers = [torch.tensor([number], device=cache.keys.device) for number in (length, position)]
        return cls(roomy(cache.keys), roomy(cache.values), *numbers)

    def append(self, keys: Tensor, values: Tensor) -> "FixedCache":
        """Returns a cache with one more token. keys, values: (batch, heads, 1, head_dim)."""
        self.keys.index_copy_(2, self.length, keys.to(self.keys))
        self.values.index_copy_(2, self.length, values.to(self.values))
        return FixedCache(self.keys, self.values, self.length + 1, self.position + 1)

    def truncate(self, keep: int) -> KVCache:
        """The last `keep` tokens, in a cache that grows again; positions go on counting."""
        length = int(self.length)
        keys, values = (tensor[:, :, max(0, length - keep) : length].clone() for tensor in (self.keys, self.values))
        return KVCache.of(keys, values, int(self.position))

    @property
    def seen(self) -> Tensor:
        """Which places hold a token: (capacity,) of bool."""
        return torch.arange(self.keys.shape[2], device=self.keys.device) < self.length

    def tensors(self) -> Iterator[Tensor]:
        """The whole storage, and the two numbers."""
        yield from (self.keys, self.values, self.length, self.position)

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> "FixedCache":
        """A cache of `function` of every tensor."""
        return FixedCache(*map(function, self.tensors()))
