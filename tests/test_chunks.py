"""Chunks of tokens: their decays against products over tokens, and what float32 keeps of them."""

import torch
from torch.testing import assert_close

from harness.ops.chunks import chunked, decays


def test_decays_are_products_over_the_tokens_between():
    g = -torch.rand(2, 5, dtype=torch.float64)
    between, grown, left = decays(g)
    a = g.exp()
    for t in range(5):
        assert_close(grown[:, t], a[:, : t + 1].prod(1))
        assert_close(left[:, t], a[:, t + 1 :].prod(1))
        for s in range(5):
            assert_close(between[:, t, s], a[:, s + 1 : t + 1].prod(1) if s <= t else torch.zeros(2).double())


def test_float32_keeps_its_digits_behind_a_token_that_forgets():
    g = torch.full((64,), -0.01)
    g[1] = -3000.0
    for got, exact in zip(decays(g), decays(g.double()), strict=True):
        assert_close(got.double(), exact, rtol=2e-7, atol=1e-40)


def test_the_last_chunk_is_filled_up_with_zeros():
    x, y = torch.randn(2, 7, 3), torch.randn(2, 7)
    for given, made in zip((x, y), chunked(4, x, y), strict=True):
        assert made.shape == (2, 2, 4, *given.shape[2:])
        assert torch.equal(made.flatten(1, 2)[:, :7], given)
        assert not made[:, 1, 3].any()
