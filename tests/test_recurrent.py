"""LSTM and GRU: the fused kernel, the cell written out, torch's own cell, and the state that is carried."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from baselines.recurrent.gru_numba import gru_scan
from baselines.recurrent.mixer import GRU, LSTM
from harness.checks.oracles import find_oracle
from harness.model.state import tensors
from oracles import step_loop

MIXERS = pytest.mark.parametrize("mixer", [LSTM, GRU])


def gradients(mixer, function, x):
    x = x.clone().requires_grad_()
    mixer.zero_grad()
    function(x).sin().sum().backward()
    return [x.grad, *(p.grad.clone() for p in mixer.parameters())]


@MIXERS
@pytest.mark.parametrize("expand", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_forward_equals_the_step_loop_in_values_and_gradients(mixer, expand, dtype, tolerance):
    mixer = mixer(6, expand=expand).to(dtype)
    x = torch.randn(3, 9, 6, dtype=dtype)
    whole, state = mixer(x)
    stepped, last = step_loop(mixer, x)
    torch.testing.assert_close(whole, stepped, rtol=0, atol=tolerance)
    for a, b in zip(tensors(state), tensors(last), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)
    fused, looped = (gradients(mixer, f, x) for f in (lambda x: mixer(x)[0], lambda x: step_loop(mixer, x)[0]))
    for a, b in zip(fused, looped, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@MIXERS
def test_trusted_cell_agrees_and_sees_the_weights(mixer):
    mixer = mixer(8, expand=2).double()
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(find_oracle(mixer).forward(x), mixer(x)[0], rtol=0, atol=1e-12)
    assert find_oracle(mixer).name.startswith("torch.nn.")
    before = find_oracle(mixer).forward(x)
    with torch.no_grad():
        mixer.rnn.bias_hh_l0 += 0.1
    assert (find_oracle(mixer).forward(x) - before).abs().max() > 1e-4


@MIXERS
def test_a_carried_state_continues_and_passes_gradients(mixer):
    mixer = mixer(5).double()
    x = torch.randn(2, 8, 5, dtype=torch.float64, requires_grad=True)
    whole, _ = mixer(x)
    first, state = mixer(x[:, :3])
    rest, _ = mixer(x[:, 3:], state)
    torch.testing.assert_close(torch.cat([first, rest], 1), whole, rtol=0, atol=1e-12)
    by_whole, by_rest = (torch.autograd.grad(y[:, -1].sum(), x)[0] for y in (whole, rest))
    torch.testing.assert_close(by_rest, by_whole, rtol=0, atol=1e-12)
    assert by_rest[:, 0].abs().min() > 0


@MIXERS
def test_flops_and_state_are_those_of_a_real_step(mixer):
    mixer = mixer(12, expand=2)
    with FlopCounterMode(display=False) as counter:
        _, state = mixer.step(torch.randn(1, 12), mixer.init_state(1))
    assert mixer.flops_per_token(7).matmul == counter.get_total_flops()
    assert [t.shape for t in tensors(state)] == [t.shape for t in tensors(mixer.init_state(1, 1000))]


@MIXERS
def test_biases_are_flagged_and_other_weights_are_not(mixer):
    flagged = {name for name, p in mixer(4).named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert flagged == {"rnn.bias_ih_l0", "rnn.bias_hh_l0"}


def test_the_forget_gate_starts_open():
    mixer = LSTM(4, expand=2)
    bias = (mixer.rnn.bias_ih_l0 + mixer.rnn.bias_hh_l0).detach()
    assert torch.equal(bias[8:16], torch.ones(8))
    assert bias[:8].abs().max() < 1


def test_a_gru_starts_as_its_authors_started_it():
    """Orthogonal recurrent matrices, small ones from the token, no biases."""
    torch.manual_seed(0)
    rnn = GRU(24, expand=2).rnn
    for matrix in rnn.weight_hh_l0.chunk(3):
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(48), rtol=0, atol=1e-5)
    assert rnn.weight_ih_l0.std().item() == pytest.approx(0.01, rel=0.05)
    assert not any(bias.any() for bias in (rnn.bias_ih_l0, rnn.bias_hh_l0))


@MIXERS
def test_autocast_keeps_the_recurrence_in_float32(mixer):
    mixer = mixer(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = mixer(torch.randn(2, 5, 8))
        _, stepped = mixer.step(torch.randn(2, 8), state)
        y.float().sum().backward()
    assert all(t.dtype == torch.float32 for part in (state, stepped) for t in tensors(part))
    assert all(p.grad.isfinite().all() for p in mixer.parameters())


def test_the_gru_scans_gradients_do_not_follow_autocast():
    shapes = (2, 5, 8), (2, 8), (24, 8), (24, 8), (24,), (24,)
    tensors = [torch.randn(shape).requires_grad_() for shape in shapes]
    loss = gru_scan(*tensors).square().sum()
    outside = torch.autograd.grad(loss, tensors, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        inside = torch.autograd.grad(loss, tensors)
    assert all(map(torch.equal, inside, outside))
