"""The key-value cache of attention: pure to its holders, yet one token is appended in amortised O(1)."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

GROWTH = 1.25  # storage never holds more than a quarter of spare room, beyond the first tokens
SPARE = 64


class _Storage:
    """Preallocated keys and values (batch, heads, capacity, head_dim), of which the first `used` tokens are written."""

    def __init__(self, keys: Tensor, values: Tensor, used: int):
        self.keys, self.values, self.used = keys, values, used


class KVCache:
    """The keys and values of `length` tokens; the next token has the position `position`.

    A cache never changes for its holder. Caches of one sequence share a storage: appending to the newest writes behind
    it; appending to an older one, where that place is taken, copies. Room that is allocated but not written is no
    state, so `tensors` shows exactly `length` tokens.
    """

    def __init__(self, storage: _Storage, length: int, position: int):
        self._storage, self.length, self.position = storage, length, position

    @classmethod
    def zeros(cls, batch: int, heads: int, context: int, head_dim: int, device=None, dtype=None) -> "KVCache":
        """A zero-filled cache of `context` tokens, with room to grow."""
        shape = (batch, heads, _room(context), head_dim)
        keys, values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        return cls(_Storage(keys, values, context), context, context)

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, position: int | None = None) -> "KVCache":
        """A cache of exactly these tokens, without room. keys, values: (batch, heads, T, head_dim)."""
        length = keys.shape[2]
        return cls(_Storage(keys, values, length), length, length if position is None else position)

    @property
    def keys(self) -> Tensor:
        """(batch, heads, length, head_dim), a view."""
        return self._storage.keys[:, :, : self.length]

    @property
    def values(self) -> Tensor:
        """(batch, heads, length, head_dim), a view."""
        return self._storage.values[:, :, : self.length]

    def append(self, keys: Tensor, values: Tensor) -> "KVCache":
        """Returns a cache with T more tokens. keys, values: (batch, heads, T, head_dim), cast to the cache's dtype.

        Where autograd records, the tokens are concatenated: writing in place would break the graph of earlier tokens.
        """
        keys, values = keys.to(self.keys), values.to(self.values)
        length, position = self.length + keys.shape[2], self.position + keys.shape[2]
        if torch.is_grad_enabled():
            if self.length == 0:
                return KVCache.of(keys, values, position)
            return KVCache.of(torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2), position)
        storage = self._storage
        if not self._may_write(length):
            storage = _Storage(_grown(self.keys, length), _grown(self.values, length), self.length)
        storage.keys[:, :, self.length : length] = keys
        storage.values[:, :, self.length : length] = values
        storage.used = length
        return KVCache(storage, length, position)

    def _may_write(self, length: int) -> bool:
        """Whether this cache is its storage's newest and there is room for `length` tokens in all."""
        storage = self._storage
        if storage.keys.is_inference() and not torch.is_inference_mode_enabled():
            return False  # PyTorch forbids it
        return storage.used == self.length and length <= storage.keys.shape[2]

    def truncate(self, keep: int) -> "KVCache":
        """Returns a cache of the last `keep` tokens, in a storage of its own; positions go on counting."""
        if keep >= self.length:
            return self
        start = self.length - keep
        return KVCache.of(self.keys[:, :, start:].clone(), self.values[:, :, start:].clone(), self.position)

    def tensors(self) -> Iterator[Tensor]:
        """The keys and values of exactly `length` tokens."""
        yield self.keys
        yield self.values

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> "KVCache":
        """A cache of `function` of the keys and of the values, which may change any size but the length."""
        return KVCache.of(function(self.keys), function(self.values), self.position)


def _room(length: int) -> int:
    return max(int(length * GROWTH), length + SPARE)


def _grown(tensor: Tensor, length: int) -> Tensor:
    """A copy of `tensor` (batch, heads, old length, head_dim) with room for `length` tokens and more."""
    batch, heads, old_length, head_dim = tensor.shape
    copy = tensor.new_empty(batch, heads, _room(length), head_dim)
    copy[:, :, :old_length] = tensor
    return copy
