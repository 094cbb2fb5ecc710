"""Attention and its cache: against attention spelt out, Llama's, and each other's paths."""

import math

import pytest
import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from baselines.transformer.mixer import Attention
from harness.checks.oracles import find_oracle
from harness.config.errors import ConfigError
from harness.model.kv_cache import KVCache
from harness.model.state import state_bytes, tensors
from harness.ops.attention import attention as operation
from oracles import step_loop


def spelt_out(mixer, x, window=None):
    """Attention by loops: every query, head and pair of coordinates by itself; `window` tokens are seen at most."""
    size, group = mixer.head_dim, mixer.n_heads // mixer.n_kv_heads
    heads = (x @ mixer.qkv.weight.T).unflatten(-1, (-1, size))  # (B, T, heads, head_dim)
    half = size // 2

    def turned(vector, position):
        out = [None] * size
        for i in range(half):
            angle = torch.tensor(position * mixer.rope_theta ** (-2 * i / size), dtype=x.dtype)
            real, imaginary = vector[:, i], vector[:, i + half]
            out[i] = real * angle.cos() - imaginary * angle.sin()
            out[i + half] = real * angle.sin() + imaginary * angle.cos()
        return torch.stack(out, dim=-1)

    rows = []
    for t in range(x.shape[1]):
        row = []
        for h in range(mixer.n_heads):
            query, shared = turned(heads[:, t, h], t), mixer.n_heads + h // group
            seen = range(0 if window is None else max(0, t + 1 - window), t + 1)
            scores = [(query * turned(heads[:, s, shared], s)).sum(-1) / math.sqrt(size) for s in seen]
            weights = torch.stack(scores, dim=-1).softmax(-1)  # (B, seen)
            values = torch.stack([heads[:, s, shared + mixer.n_kv_heads] for s in seen], dim=1)
            row.append((weights[..., None] * values).sum(1))
        rows.append(torch.cat(row, dim=-1))
    return torch.stack(rows, dim=1) @ mixer.out.weight.T


def attention(**options):
    return Attention(16, **{"head_dim": 4, "rope_theta": 50.0, **options}).double()


def tokens(length, batch=2, width=16):
    return torch.randn(batch, length, width, dtype=torch.float64)


@pytest.mark.parametrize(("n_kv_heads", "window"), [(None, None), (2, None), (1, None), (2, 1), (None, 3), (1, 6)])
def test_values_and_gradients_equal_attention_spelt_out(n_kv_heads, window):
    mixer = attention(n_kv_heads=n_kv_heads, window=window)
    x = tokens(7).requires_grad_()
    weights = torch.randn(2, 7, 16, dtype=torch.float64)
    fast, slow = mixer(x)[0], spelt_out(mixer, x, window)
    assert_close(fast, slow, rtol=0, atol=1e-12)
    leaves = [x, *mixer.parameters()]
    grads = [torch.autograd.grad((y * weights).sum(), leaves) for y in (fast, slow)]
    for a, b in zip(*grads, strict=True):
        assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-5)])
@pytest.mark.parametrize("n_kv_heads", [None, 2])
@pytest.mark.parametrize(
    ("window", "kind"), [(None, "LlamaAttention"), (1, "MistralAttention"), (32, "MistralAttention")]
)
def test_equals_llama_or_with_a_window_mistral(dtype, tolerance, n_kv_heads, window, kind):
    mixer = Attention(32, head_dim=8, n_kv_heads=n_kv_heads, rope_theta=500.0, window=window).to(dtype)
    oracle = find_oracle(mixer)
    assert kind in oracle.name
    assert oracle.tolerance <= tolerance
    x = torch.randn(2, 70, 32, dtype=dtype)
    assert_close(mixer(x)[0], oracle.forward(x), rtol=0, atol=tolerance)


@pytest.mark.parametrize("n_kv_heads", [None, 2])
@pytest.mark.parametrize("window", [None, 1, 4, 11, 40])
@pytest.mark.parametrize("recording", [False, True])
def test_chunks_and_steps_equal_the_whole(n_kv_heads, window, recording, monkeypatch):
    monkeypatch.setattr(operation, "MASK_ELEMENTS", 40)  # so that a chunk takes several masks
    mixer, x = attention(n_kv_heads=n_kv_heads, window=window), tokens(23)
    with torch.set_grad_enabled(recording):
        whole, last = mixer(x)
        state, parts = None, []
        for chunk in x[:, :20].split([1, 3, 1, 9, 6], dim=1):
            y, state = mixer(chunk, state)
            parts.append(y)
        y, state = step_loop(mixer, x[:, 20:], state)
        assert_close(torch.cat([*parts, y], dim=1), whole, rtol=0, atol=1e-12)
        from_empty, _ = step_loop(mixer, x, mixer.init_state(2, dtype=torch.float64))
        assert_close(from_empty, whole, rtol=0, atol=1e-12)
    for a, b in zip(tensors(state), tensors(last), strict=True):
        assert_close(a, b, rtol=0, atol=1e-12)


def test_gradients_flow_through_the_carried_state():
    mixer, x = attention(n_kv_heads=2), tokens(9).requires_grad_()

    def in_parts(x):
        first, state = mixer(x[:, :4])
        second, state = mixer(x[:, 4:6], state)
        third, _ = step_loop(mixer, x[:, 6:], state)
        return torch.cat([first, second, third], dim=1)

    grads = []
    for function in (in_parts, lambda x: mixer(x)[0]):
        grads.append(torch.autograd.grad((function(x) ** 2).sum(), [x, *mixer.parameters()]))
    for a, b in zip(*grads, strict=True):
        assert_close(a, b, rtol=0, atol=1e-12)


def test_no_token_sees_the_future():
    mixer, x = attention(), tokens(6).requires_grad_()
    _, state = mixer(tokens(3))
    for y in (mixer(x)[0], mixer(x, state)[0]):
        for t in range(5):
            (grad,) = torch.autograd.grad(y[:, t].sum(), x, retain_graph=True)
            assert grad[:, t + 1 :].count_nonzero() == 0
            assert grad[:, t].count_nonzero() > 0


@pytest.mark.parametrize("keep", [0, 1, 4])
def test_a_truncated_cache_is_a_sliding_window(keep):
    mixer, x = attention(n_kv_heads=2), tokens(12)
    with torch.no_grad():
        state, ys = mixer.init_state(2, dtype=torch.float64), []
        for x_t in x.unbind(1):
            y, state = mixer.step(x_t, mixer.truncate_state(state, keep))
            ys.append(y)
            assert next(tensors(state)).shape[2] <= keep + 1
    assert_close(torch.stack(ys, dim=1), spelt_out(mixer, x, window=keep + 1), rtol=0, atol=1e-12)
    assert state.position == 12


def test_state_bytes_are_those_of_the_context():
    mixer = Attention(48, head_dim=8, n_kv_heads=3)
    a_token = 2 * 3 * 8 * 4
    for context in (0, 1, 1024, 131_072):
        assert state_bytes(mixer.init_state(1, context)) == a_token * context
    for context in (1, 77):
        for recording in (False, True):
            with torch.set_grad_enabled(recording):
                _, state = mixer(torch.randn(2, context, 48))
                assert state_bytes(state) == 2 * a_token * context
                _, state = mixer.step(torch.randn(2, 48), state)
                assert state_bytes(state) == 2 * a_token * (context + 1)


def test_a_window_is_held_in_places_that_are_there_from_the_start():
    mixer, x = attention(n_kv_heads=2, window=5), tokens(13)
    for context in (0, 3, 5, 131_072):
        assert state_bytes(mixer.init_state(1, context, dtype=torch.float64)) == 2 * 2 * 5 * 4 * 8
    _, state = mixer(x)
    assert state.position == 13
    assert mixer.truncate_state(state, 2) is state
    keys, _ = state.past()
    for index, position in enumerate(range(8, 13)):
        assert torch.equal(state.keys[:, :, position % 5], keys[:, :, index])
    before = [t.clone() for t in tensors(state)]
    mixer.step(x[:, 0], state)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(state), strict=True))


def test_a_token_does_not_see_beyond_its_window():
    mixer, x = attention(window=4), tokens(15).requires_grad_()
    y, _ = mixer(x)
    for t in range(15):
        (grad,) = torch.autograd.grad(y[:, t].sum(), x, retain_graph=True)
        assert (grad.abs().sum((0, 2)) > 0).nonzero().flatten().tolist() == list(range(max(0, t - 3), t + 1))


def test_the_blocks_of_a_window_take_no_longer_rows_than_two_windows(monkeypatch):
    shapes, plain = [], operation._sdpa
    monkeypatch.setattr(operation, "_sdpa", lambda q, k, *rest: shapes.append(k.shape) or plain(q, k, *rest))
    attention(window=8)(tokens(100))
    assert max(shape[2] for shape in shapes) == 16
    assert sum(shape[0] * shape[2] for shape in shapes) <= 2 * (2 * 100 + 2 * 8)


@pytest.mark.parametrize("window", [None, 2, 40])
@pytest.mark.parametrize("n_kv_heads", [None, 2])
def test_matmul_flops_are_those_of_one_step(n_kv_heads, window):
    mixer = Attention(32, head_dim=8, n_kv_heads=n_kv_heads, window=window)
    for context in (1, 2, 300):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            mixer.step(torch.randn(1, 32), mixer.init_state(1, context - 1))
        assert mixer.flops_per_token(context).matmul == counter.get_total_flops()


def test_positions_stay_exact_far_along():
    mixer = attention()
    x = tokens(6)
    near, _ = mixer(x)
    far = KVCache.of(torch.zeros(2, 4, 0, 4).double(), torch.zeros(2, 4, 0, 4).double(), position=1_000_000)
    assert_close(mixer(x, far)[0], near, rtol=0, atol=1e-9)  # rotary positions are relative


@pytest.mark.parametrize("window", [None, 5])
def test_bfloat16_autocast_follows_float32(window):
    mixer = Attention(32, head_dim=8, n_kv_heads=2, window=window)
    x = torch.randn(2, 12, 32)
    exact, _ = mixer(x)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        prefix, state = mixer(x[:, :8])
        stepped, _ = step_loop(mixer, x[:, 8:], state)
        from_float32, _ = step_loop(mixer, x, mixer.init_state(2))
    for y in (torch.cat([prefix, stepped], dim=1), from_float32):
        assert ((y - exact).norm() / exact.norm()).item() < 0.02


@pytest.mark.parametrize("options", [{"head_dim": 5}, {"head_dim": 3}, {"n_kv_heads": 3}])
def test_heads_that_do_not_divide_are_refused(options):
    with pytest.raises(ConfigError, match=f"mixer.{next(iter(options))}=.*width_multiple"):
        Attention(12, **{"head_dim": 6, **options})
