"""Gated DeltaNet: its paths against each other and against transformers' Qwen3-Next, and its authors' start."""

import functools
import inspect

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from baselines.gated_deltanet import scan
from baselines.gated_deltanet.mixer import GatedDeltaNet
from harness.checks.oracles import find_oracle
from harness.model.state import map_tensors, tensors
from harness.ops.samples import Draw
from kernel_checks import check, values_and_gradients
from oracles import step_loop


def deltanet(d_model=6, **options) -> GatedDeltaNet:
    return GatedDeltaNet(d_model, **{"head_dim": 3, "n_heads": 2} | options)


@pytest.mark.parametrize("name", ["torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"])
def test_the_scan_equals_transformers(name):
    from transformers.models.qwen3_next import modeling_qwen3_next

    rule = inspect.unwrap(getattr(modeling_qwen3_next, name))
    arguments = [t.detach().float().requires_grad_() for t in scan.sample(Draw(), length=130, keys=4).arguments]

    def theirs(q, k, v, g, beta, S):  # which divides q by sqrt(K)
        return rule(2 * q, k, v, g=g, beta=beta, initial_state=S, output_final_state=True)

    check(scan.by_chunks, theirs, arguments, rtol=1e-4, atol=1e-4)


def test_a_key_written_twice_holds_its_last_value():
    """beta = 1 and no decay: the rule replaces, where a sum of writes would keep both."""
    k = F.normalize(torch.randn(1, 1, 2, 3, dtype=torch.float64), dim=-1).expand(1, 70, 2, 3)
    v, S = torch.randn(1, 70, 2, 4, dtype=torch.float64), torch.zeros(1, 2, 3, 4, dtype=torch.float64)
    nothing, one = torch.zeros(1, 70, 2, dtype=torch.float64), torch.ones(1, 70, 2, dtype=torch.float64)
    assert_close(scan.by_chunks(k, k, v, nothing, one, S)[0], v)


@pytest.mark.parametrize("options", [{}, {"d_conv": 1, "n_heads": 1}, {"head_dim": 5, "expand_v": 1}])
def test_forward_equals_the_loop_of_step_from_a_carried_state(options):
    mixer = deltanet(**options).double()
    x = torch.randn(2, 67, 6, dtype=torch.float64, requires_grad=True)
    state = map_tensors(lambda v: torch.randn_like(v).requires_grad_(), mixer.init_state(2, dtype=torch.float64))
    leaves, keys = [*mixer.parameters(), x, *tensors(state)], list(state)

    def run(function):
        def results(*_):
            y, last = function(x, state)
            return y, *(last[key] for key in keys)

        return values_and_gradients(results, leaves)

    stepped = run(functools.partial(step_loop, mixer))
    for got, expected in zip(run(mixer), stepped, strict=True):
        assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_short_chunks_and_steps_equal_the_whole():
    mixer = deltanet().double()
    x = torch.randn(3, 140, 6, dtype=torch.float64)
    whole, last = mixer(x)
    state, parts = None, []
    for part in x.split([1, 2, 65, 64, 8], dim=1):
        y, state = mixer(part, state)
        parts.append(y)
    assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-12)
    for a, b in zip(tensors(state), tensors(last), strict=True):
        assert_close(a, b, rtol=0, atol=1e-12)


def test_the_mixer_equals_qwen3_next():
    mixer = deltanet(8, n_heads=3)
    oracle = find_oracle(mixer)
    x = torch.randn(2, 75, 8, requires_grad=True)
    ours, theirs = (values_and_gradients(lambda x, f=f: [f(x)], [x]) for f in (lambda x: mixer(x)[0], oracle.forward))
    for got, expected in zip(ours, theirs, strict=True):
        assert_close(got, expected, rtol=1e-4, atol=oracle.tolerance)
    with torch.no_grad():
        mixer.in_proj.weight[-1] += 1.0  # the comparison sees the weights, the last row's place among them
    assert not torch.allclose(mixer(x)[0], oracle.forward(x), atol=1e-4)


def test_its_size_and_start_are_the_authors():
    mixer = GatedDeltaNet(256)
    assert (mixer.n_heads, mixer.keys, mixer.values) == (4, 192, 384)
    matrices = sum(p.numel() for n, p in mixer.named_parameters() if n.endswith("proj.weight"))
    assert matrices == 6 * 256**2 + 2 * 4 * 256  # as the authors count, and the rows of the decay and of beta
    spared = {name for name, p in mixer.named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert spared == {"A_log", "dt_bias"}
    wide = GatedDeltaNet(8, head_dim=1, n_heads=512)
    A, dt = wide.A_log.exp(), F.softplus(wide.dt_bias)
    assert A.min() < 0.5
    assert 15.5 < A.max() < 16.01
    assert 0.00099 < dt.min() < 0.0012
    assert 0.08 < dt.max() < 0.1001


def test_bfloat16_autocast_keeps_the_memory_in_float32():
    mixer, x = deltanet(8), torch.randn(2, 70, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = mixer(x)
        again, stepped = step_loop(mixer, x)
    exact, _ = mixer(x)
    assert state["memory"].dtype == stepped["memory"].dtype == torch.float32
    for out in (y, again):
        assert ((out - exact).norm() / exact.norm()).item() < 0.05
    y.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in mixer.parameters())
