"""The key-value cache: pure to its holders, appended to in place."""

import math

import torch
from torch.testing import assert_close

from baselines.transformer.mixer import Attention
from harness.model.kv_cache import GROWTH, SPARE, KVCache
from harness.model.state import detach, map_tensors, tensors
from oracles import step_loop


def attention():
    return Attention(16, head_dim=4, rope_theta=50.0).double()


def tokens(length):
    return torch.randn(2, length, 16, dtype=torch.float64)


def test_a_truncated_cache_holds_no_more_than_it_shows():
    _, state = attention()(tokens(30))
    cut = state.truncate(5)
    for whole, part in zip(tensors(state), tensors(cut), strict=True):
        assert torch.equal(whole[:, :, 25:], part)
        assert part.untyped_storage().nbytes() == part.numel() * part.element_size()
    assert state.truncate(30) is state


def test_branches_of_a_cache_do_not_see_each_other():
    mixer, x = attention(), tokens(12)
    with torch.no_grad():
        _, trunk = mixer(x[:, :5])
        _, trunk = mixer.step(x[:, 5], trunk)
        before = [t.clone() for t in tensors(trunk)]
        first, left = step_loop(mixer, x[:, 6:9], trunk)
        _, right = step_loop(mixer, -x[:, 6:9], trunk)
        second, again = step_loop(mixer, x[:, 6:9], trunk)
        assert torch.equal(first, second)
        assert all(torch.equal(a, b) for a, b in zip(before, tensors(trunk), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(tensors(left), tensors(again), strict=True))
        assert not torch.equal(next(tensors(left)), next(tensors(right)))


def test_appending_writes_in_place_and_seldom_copies():
    one = torch.ones(1, 2, 1, 4)
    with torch.no_grad():
        cache = KVCache.zeros(1, 2, 0, 4)
        places = set()
        for count in range(1, 2001):
            cache = cache.append(count * one, -count * one)
            places.add(cache.keys.data_ptr())
            allowed = max(GROWTH * count, count + SPARE) * 2 * 4 * 4  # tokens x heads x head_dim x bytes
            assert cache.keys.untyped_storage().nbytes() <= allowed
    assert len(places) <= 2 + math.log(2000 / SPARE, GROWTH)
    assert torch.equal(cache.keys[0, 1, :, 3], torch.arange(1.0, 2001))
    assert torch.equal(cache.values, -cache.keys)


def test_a_cache_of_any_length_keeps_its_tokens_where_autograd_records():
    keys, values = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    cache = KVCache.of(keys[:, :, :0], values[:, :, :0])
    for t in range(4):
        cache = cache.append(keys[:, :, t : t + 1], values[:, :, t : t + 1])
        assert (cache.length, cache.position) == (t + 1, t + 1)
        assert torch.equal(cache.keys, keys[:, :, : t + 1])
        assert torch.equal(cache.values, values[:, :, : t + 1])


def test_autograd_and_inference_mode_may_be_mixed():
    mixer, x = attention(), tokens(10)
    with torch.inference_mode():
        _, state = mixer(x[:, :3])
        _, state = mixer.step(x[:, 3], state)
    with torch.no_grad():
        _, state = mixer.step(x[:, 4], state)
        _, state = mixer.step(x[:, 5], state)
    y, after = mixer(x[:, 6:8], state)
    with torch.no_grad():
        _, other = mixer.step(x[:, 8], state)  # in place behind `state`, while the graph of y is still needed
    with torch.inference_mode():
        mixer.step(x[:, 8], detach(after))
    y.sum().backward()
    assert_close(y, mixer(x)[0][:, 6:8], rtol=0, atol=1e-12)
    assert other.length == 7


def test_mapped_states_keep_their_position():
    mixer, x = attention(), tokens(9)
    whole, _ = mixer(x)
    _, state = mixer(x[:, :6])
    state = mixer.truncate_state(state, 6)
    rows = map_tensors(lambda t: t[1:], state)
    assert rows.position == 6
    assert_close(mixer(x[1:, 6:], rows)[0], whole[1:, 6:], rtol=0, atol=1e-12)
    assert not any(t.requires_grad for t in tensors(detach(state)))
