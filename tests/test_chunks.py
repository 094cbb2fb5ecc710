"""Chunks of tokens: their decays against products over tokens, and what float32 keeps of them."""

import pytest
import torch
from torch.testing import assert_close

from harness.ops.chunks.decay import DECAYED_SCORES, chunked, edges, reference


def products(g):
    """exp of the sums of g (L) over s + 1..t, [t, s], 0 above the diagonal."""
    a, L = g.exp(), len(g)
    return torch.stack([a[s + 1 : t + 1].prod() for t in range(L) for s in range(L)]).view(L, L).tril()


@pytest.mark.parametrize("choice", ["reference", "auto"])
def test_decays_are_products_over_the_tokens_between(choice):
    g = -torch.rand(1, 1, 5, dtype=torch.float64)
    run = DECAYED_SCORES.choose(choice, g.device, g.dtype)
    every, expected = torch.ones(1, 1, 5, 5, dtype=torch.float64), products(g[0, 0])
    assert_close(run(every, g)[0, 0], expected)
    assert_close(run(every, g, True)[0, 0], expected.tril(-1))
    grown, left = edges(g[0, 0])
    assert_close(grown, expected[:, 0] * g[0, 0, 0].exp())
    assert_close(left, expected[-1])


@pytest.mark.parametrize("choice", ["reference", "auto"])
def test_float32_keeps_its_digits_behind_a_token_that_forgets(choice):
    g = torch.full((1, 1, 64), -0.01)
    g[..., 1] = -3000.0
    run, every = DECAYED_SCORES.choose(choice, g.device, g.dtype), torch.ones(1, 1, 64, 64)
    pairs = [(run(every, g), reference(every.double(), g.double())), *zip(edges(g), edges(g.double()), strict=True)]
    for got, exact in pairs:
        assert_close(got.double(), exact, rtol=5e-7, atol=1e-37)


def test_the_last_chunk_is_filled_up_with_zeros():
    x, y = torch.randn(2, 7, 3), torch.randn(2, 7)
    for given, made in zip((x, y), chunked(4, x, y), strict=True):
        assert made.shape == (2, 2, 4, *given.shape[2:])
        assert torch.equal(made.flatten(1, 2)[:, :7], given)
        assert not made[:, 1, 3].any()
