"""The liquid mixer against third parties' integrators, with its own weights."""

import pytest
import torch

from arch.gradients import Adjoint
from arch.solvers import TABLEAUS, Exponential, RungeKutta
from harness.checks.oracles import find_oracle
from test_ltc import ADAPTIVE, COUPLINGS, SOLVERS, inputs, mixer

THIRD_PARTIES = [name for name in TABLEAUS if TABLEAUS[name].torchdiffeq]
TRUSTED = [(name, coupling) for name in THIRD_PARTIES for coupling in ("diagonal", "dense")]
TRUSTED += [("semi_implicit", coupling) for coupling in COUPLINGS] + [("exponential", "none"), ("reflected", "none")]


@pytest.mark.parametrize(("name", "coupling"), TRUSTED)
def test_a_third_party_integrates_the_same_field_to_the_same_values(name, coupling):
    ltc = mixer(torch.float32, solver=SOLVERS[name], coupling=coupling)
    oracle = find_oracle(ltc)
    x, _ = inputs(torch.float32)
    y = ltc(x)[0]
    assert y.abs().max() > 0.1
    torch.testing.assert_close(y, oracle.forward(x), rtol=0, atol=oracle.tolerance)
    assert oracle.tolerance == 1e-5
    with torch.no_grad():  # the check can fail
        ltc.gate_bias.add_(0.1)
    assert (y - oracle.forward(x)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_solvers_are_near_a_tight_third_party(name):
    ltc = mixer(solver=ADAPTIVE[name])
    oracle = find_oracle(ltc)
    x, _ = inputs()
    torch.testing.assert_close(ltc(x)[0], oracle.forward(x), rtol=0, atol=oracle.tolerance)


def test_the_adjoint_runs_torchdiffeqs_own_rk4_and_says_so():
    ltc = mixer(solver=RungeKutta("rk4"), gradient=Adjoint())
    x, _ = inputs()
    torch.testing.assert_close(ltc(x)[0], find_oracle(ltc).forward(x), rtol=0, atol=1e-12)
    classic = mixer(solver=RungeKutta("rk4"))(x)[0]
    assert 1e-8 < (ltc(x)[0] - classic).abs().max() < 1e-2  # the 3/8 rule: the same order, not the same bits


@pytest.mark.parametrize("options", [{"gate": "softplus"}, {"d_state": 2}], ids=str)
def test_no_third_party_is_named_where_none_has_the_method(options):
    assert find_oracle(mixer(**options)) is None
    assert find_oracle(mixer(coupling="dense", solver=Exponential())) is None
