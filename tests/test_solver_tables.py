"""A solver that a kernel was not compiled with: every kernel refuses it by name, and torch computes it."""

from dataclasses import dataclass

import pytest
import torch

from arch import solvers, solvers_numba, solvers_triton
from arch.gradients import Backprop
from arch.ltc import newton, scan, scan_numba, scan_triton, tokens, tokens_numba, tokens_triton
from arch.ltc.mixer import LTC
from arch.ltc.newton import LIQUID_TOKENS, LIQUID_TOKENS_VJP, newton_scan
from arch.ltc.recurrence import Recurrence
from arch.ltc.scan import LIQUID_SCAN, LIQUID_TOKEN
from arch.newton import Sequential
from arch.solvers import SemiImplicit
from harness.config.errors import ConfigError
from harness.ops.samples import Draw

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FACTS = {"solver": "lagging", "coupling": "diagonal", "d_state": 1}


@dataclass(frozen=True)
class Lagging(SemiImplicit):
    """A new solver of a frozen gate: half of a semi-implicit step."""

    name: str = "lagging"

    def step(self, field, h, dt):
        return super().step(field, h, dt / 2)


@pytest.fixture
def everywhere(monkeypatch):
    """Names the solver in every list of solvers of fixed steps, as one who adds it would."""
    for module in (solvers, scan, tokens, newton, solvers_numba, solvers_triton):
        for name in ("FIXED", "FROZEN"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, (*getattr(module, name), "lagging"))
    for operation in (LIQUID_SCAN, LIQUID_TOKEN, LIQUID_TOKENS, LIQUID_TOKENS_VJP):
        operation._chosen.clear()
    yield
    for operation in (LIQUID_SCAN, LIQUID_TOKEN, LIQUID_TOKENS, LIQUID_TOKENS_VJP):
        operation._chosen.clear()


def call(channels=5):
    """The field, the first states and the elapsed times of a call of the scan."""
    _, field, h0, elapsed = scan.sample(Draw(), channels=channels, states=0).arguments
    return field, h0, elapsed


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("kernel", [scan_numba.liquid_scan, scan_triton.liquid_scan], ids=["numba", "triton"])
def test_a_scan_refuses_a_solver_it_was_not_compiled_with(kernel):
    with pytest.raises(ValueError, match="solver=lagging is none of those it computes, euler, "):
        kernel(Lagging(), *call())


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("module", [tokens_numba, tokens_triton], ids=["numba", "triton"])
def test_newtons_kernels_refuse_it_too(module):
    field, h0, elapsed = call()
    h = torch.zeros_like(field.a)
    for run in (module.tokens, lambda *given: module.tokens_vjp(*given, h)):
        with pytest.raises(ValueError, match="solver=lagging is none of those"):
            run(Lagging(), field, h0, elapsed, h)


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_the_registry_leaves_it_to_torch_or_says_why_not(device):
    for operation, facts in ((LIQUID_SCAN, FACTS), (LIQUID_TOKEN, FACTS), (LIQUID_TOKENS, {"solver": "lagging"})):
        assert not operation.serves(device, torch.float32, **facts)
        assert operation.choose("auto", device, torch.float32, **facts) is operation.reference
        if not operation.optional:
            with pytest.raises(ConfigError, match="solver=lagging is none of those it computes"):
                operation.choose("fused", device, torch.float32, **facts)


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_a_solver_that_one_compiler_knows_is_refused_by_the_others_kernels(device, monkeypatch):
    known, other = (solvers_numba, CUDA) if device == CPU else (solvers_triton, CPU)
    monkeypatch.setitem(known.MAPS, "lagging", 1)
    for operation, facts in ((LIQUID_SCAN, FACTS), (LIQUID_TOKENS, {"solver": "lagging"})):
        kernels = {kernel.device: kernel for kernel in operation.kernels}
        assert kernels[device.type].refusal(device.type, torch.float32, **facts) is None
        assert "solver=lagging" in kernels[other.type].refusal(other.type, torch.float32, **facts)


@pytest.mark.usefixtures("everywhere")
def test_a_model_computes_it_in_torch_over_a_sequence_by_newton_and_by_the_token():
    torch.manual_seed(0)
    ltc, x = LTC(8, solver=Lagging(2)), torch.randn(2, 5, 8)
    ours, exact = ltc(x)[0], LTC.forward(ltc.double(), x.double())[0]
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-5)
    ltc.float()
    assert ltc.frozen_step() == ltc.step
    ltc.solver = SemiImplicit(2)
    ltc.recurrence = Recurrence(ltc.solver, Backprop(), Sequential(), "diagonal", 1, 32, "reference")
    assert (ltc(x)[0] - ours).abs().max() > 1e-3  # another solver than the one it might be taken for
    field, h0, elapsed = call()
    y, _ = newton_scan(Lagging(), field, h0, elapsed)
    torch.testing.assert_close(y, scan.reference(Lagging(), field, h0, elapsed)[0], rtol=0, atol=1e-7)
