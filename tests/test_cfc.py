"""CfC: the published package's cell, the hand-written gradient against autograd, time, and the carried state."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from arch.cfc.mixer import CfC
from arch.cfc.oracle import ncps_weights
from arch.cfc.scan import ACTIVATIONS, reference
from arch.cfc.scan_torch import cfc_scan
from harness.checks.oracles import find_oracle
from harness.model.mixer import Call
from oracles import step_loop

MODES = pytest.mark.parametrize("mode", ["default", "pure", "no_gate"])


def cfc(**options) -> CfC:
    return CfC(6, **{"expand": 2, "backbone_units": 7} | options).double()


def tokens(batch=3, length=9, width=6):
    return torch.randn(batch, length, width, dtype=torch.float64)


@MODES
@pytest.mark.parametrize("layers", [1, 3])
def test_forward_equals_ncps(mode, layers):
    pytest.importorskip("ncps")
    mixer = cfc(mode=mode, backbone_layers=layers)
    x = tokens()
    torch.testing.assert_close(mixer(x)[0], find_oracle(mixer).forward(x), rtol=0, atol=1e-13)


@MODES
def test_one_step_equals_ncps_at_irregular_times(mode):
    ncps = pytest.importorskip("ncps.torch.cfc_cell")
    mixer = cfc(mode=mode)
    cell = ncps.CfCCell(6, 12, mode, backbone_units=7).double()
    cell.load_state_dict(ncps_weights(mixer))
    x, h, elapsed = tokens()[:, 0], torch.randn(3, 12, dtype=torch.float64), torch.tensor([0.1, 1.0, 7.0]).double()
    expected, _ = cell(x, h, elapsed[:, None])
    torch.testing.assert_close(mixer.step(x, {"h": h}, Call(elapsed))[1]["h"], expected, rtol=0, atol=1e-14)


@MODES
@pytest.mark.parametrize("timed", [False, True])
def test_forward_equals_the_step_loop(mode, timed):
    mixer, x = cfc(mode=mode), tokens()
    elapsed = torch.rand(3, 9, dtype=torch.float64) * 3 if timed else None
    y, state = mixer(x, call=Call(elapsed))
    stepped, stepped_state = step_loop(mixer, x, elapsed=elapsed)
    h = stepped_state["h"]
    torch.testing.assert_close(y, stepped, rtol=0, atol=1e-13)
    torch.testing.assert_close(state["h"], h, rtol=0, atol=1e-13)


@MODES
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gradient_written_by_hand_equals_autograd(mode, activation):
    mixer = cfc(mode=mode, backbone_activation=activation, backbone_layers=2)
    leaves = [torch.randn(5, 3, 7), torch.randn(3, 12), torch.rand(5, 3, 1) * 2]
    leaves = [leaf.double().requires_grad_() for leaf in leaves]
    weights = [p for name, p in mixer.named_parameters() if name.split(".")[0] not in ("input", "out")]
    results = []
    for function in (cfc_scan, reference):
        h = function(mixer._cell(merged=False), *leaves)
        weight = torch.linspace(-1, 1, h.numel(), dtype=h.dtype).view_as(h)
        results.append([h, *torch.autograd.grad((h.sin() * weight).sum(), [*leaves, *weights])])
    for by_hand, by_autograd in zip(*results, strict=True):
        assert by_autograd.abs().max() > 0
        torch.testing.assert_close(by_hand, by_autograd, rtol=1e-11, atol=1e-13)


@MODES
def test_every_gradient_without_times_equals_the_step_loop(mode):
    mixer, x = cfc(mode=mode), tokens().requires_grad_()
    wanted = [x, *mixer.parameters()]
    fused, stepped = (torch.autograd.grad(f(x)[0].sin().sum(), wanted) for f in (mixer, lambda x: step_loop(mixer, x)))
    for a, b in zip(fused, stepped, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_a_carried_state_continues_and_passes_gradients():
    mixer, x = cfc(), tokens().requires_grad_()
    whole, _ = mixer(x)
    first, state = mixer(x[:, :4])
    rest, _ = mixer(x[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, rest], 1), whole, rtol=0, atol=1e-13)
    by_whole, by_rest = (torch.autograd.grad(y[:, -1].sum(), x)[0] for y in (whole, rest))
    torch.testing.assert_close(by_rest, by_whole, rtol=0, atol=1e-13)
    assert by_rest[:, 0].abs().max() > 0


def test_the_state_holds_no_more_memory_than_it_counts():
    h = cfc()(tokens())[1]["h"]
    assert h.untyped_storage().nbytes() == h.numel() * h.element_size()


def test_no_gradient_no_difference():
    mixer, x = cfc(), tokens()
    with torch.no_grad():
        plain = mixer(x)[0]
    torch.testing.assert_close(plain, mixer(x)[0], rtol=0, atol=1e-14)


@MODES
@pytest.mark.parametrize("layers", [1, 2])
def test_flops_are_those_of_a_real_step(mode, layers):
    mixer = cfc(mode=mode, backbone_layers=layers).float()
    with FlopCounterMode(display=False) as counter:
        mixer.step(torch.randn(1, 6), mixer.init_state(1))
    assert mixer.flops_per_token(7).matmul == counter.get_total_flops()


@MODES
def test_autocast_keeps_the_recurrence_in_float32(mode):
    mixer = cfc(mode=mode).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = mixer(tokens().float())
        _, stepped = mixer.step(tokens()[:, 0].float(), state)
        y.float().sum().backward()
    assert state["h"].dtype == stepped["h"].dtype == torch.float32
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in mixer.parameters())


def test_the_gradient_of_a_float32_scan_is_close_to_float64():
    mixer, x = cfc(), tokens(length=40)
    exact = torch.autograd.grad(mixer(x)[0].square().sum(), list(mixer.parameters()))
    mixer.float()
    single = torch.autograd.grad(mixer(x.float())[0].square().sum(), list(mixer.parameters()))
    for a, b in zip(single, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))
