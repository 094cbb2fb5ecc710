"""The key-value cache of attention to a sliding window: as many places as the window has tokens, from the start."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RingCache:
    """Keys and values (batch, heads, window, head_dim) of the last `window` tokens; token p lies in place p % window.

    position: the number of tokens read, and that of the next one; places that no token has taken yet hold zeros. A
    tensor of one integer where a CUDA graph is captured over the cache: the next token is then written in place.
    """

    keys: Tensor
    values: Tensor
    position: int | Tensor

    @classmethod
    def zeros(cls, shape: tuple[int, int, int, int], position: int = 0, device=None, dtype=None) -> "RingCache":
        """A zero-filled cache after `position` tokens. shape: (batch, heads, window, head_dim)."""
        keys, values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        return cls(keys, values, position)

    @property
    def window(self) -> int:
        return self.keys.shape[2]

    @property
    def length(self) -> int:
        """Tokens held."""
        return min(int(self.position), self.window)

    @property
    def seen(self) -> Tensor:
        """Which places hold a token: (window,) of bool."""
        return torch.arange(self.window, device=self.keys.device) < self.position

    def past(self) -> tuple[Tensor, Tensor]:
        """The keys and values held (batch, heads, length, head_dim), the oldest token first."""
        length, start = self.length, int(self.position) % self.window if self.length == self.window else 0
        return tuple(t[:, :, :length].roll(-start, 2) if start else t[:, :, :length] for t in (self.keys, self.values))

    def append(self, keys: Tensor, values: Tensor) -> "RingCache":
        """Returns a cache after one more token. keys, values: (batch, heads, 1, head_dim), cast to the cache's type."""
        place = self.position % self.window
        if isinstance(place, Tensor):
            self.keys.index_copy_(2, place, keys.to(self.keys))
            self.values.index_copy_(2, place, values.to(self.values))
            return RingCache(self.keys, self.values, self.position + 1)
        fresh = RingCache(self.keys.clone(), self.values.clone(), self.position + 1)
        fresh.keys[:, :, place : place + 1] = keys
        fresh.values[:, :, place : place + 1] = values
        return fresh

    def after(self, keys: Tensor, values: Tensor) -> "RingCache":
        """The cache once all of keys and values (batch, heads, T, head_dim) were read, the last of them just now.

        They begin with what `past` gives: T is the tokens held and those that are new.
        """
        new = keys.shape[2] - self.length
        position = int(self.position) + new
        return RingCache(*(_ring(t.to(self.keys), self.window, position) for t in (keys, values)), position)

    def fixed(self) -> "RingCache":
        """A copy that is written in place."""
        position = torch.as_tensor([int(self.position)], device=self.keys.device)
        return RingCache(self.keys.clone(), self.values.clone(), position)

    def tensors(self) -> Iterator[Tensor]:
        """All places, whether taken or not, and the position where it is a tensor."""
        yield from (self.keys, self.values)
        if isinstance(self.position, Tensor):
            yield self.position

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> "RingCache":
        """A cache of `function` of every tensor."""
        position = function(self.position) if isinstance(self.position, Tensor) else self.position
        return RingCache(function(self.keys), function(self.values), position)


def _ring(tokens: Tensor, window: int, position: int) -> Tensor:
    """The last of tokens (batch, heads, T, head_dim), read up to `position`, in their places."""
    kept = tokens[:, :, -window:]
    batch, heads, length, head_dim = kept.shape
    if length == window:
        return kept.roll(position % window, 2)
    return torch.cat([kept, kept.new_zeros(batch, heads, window - length, head_dim)], 2)
