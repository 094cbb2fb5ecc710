"""The liquid mixer: its paths agree, it is causal, its limits are the models that theory says they are."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from arch.gradients import Adjoint, Backprop, Checkpoint
from arch.ltc.mixer import LTC
from arch.newton import Newton, Sequential
from arch.solvers import FIXED, Adaptive, Exponential, RungeKutta, SemiImplicit, make_solver
from harness.checks.tolerances import ALLOWANCES
from harness.config.errors import ConfigError
from harness.model.mixer import Call
from harness.model.state import state_bytes
from oracles import step_loop

D, T, B = 8, 6, 2
SOLVERS = {name: make_solver(name) for name in FIXED} | {"semi_implicit": SemiImplicit(2)}
ADAPTIVE = {name: Adaptive(name, 1e-3, 1e-4) for name in ("dopri5", "adaptive_heun")}


def mixer(dtype=torch.float64, **options):
    """A mixer away from its start: every parameter moved, the coupling made strong."""
    torch.manual_seed(0)
    ltc = LTC(D, head_dim=4, **options).to(dtype)
    with torch.no_grad():
        for parameter in ltc.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return ltc


def inputs(dtype=torch.float64, length=T):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(B, length, D, generator=generator, dtype=torch.float64)
    return x.to(dtype), (0.2 + 1.5 * torch.rand(B, length, generator=generator, dtype=torch.float64)).to(dtype)


def assert_same(ours, expected, tolerance=1e-10):
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance)


def assert_paths_agree(ltc, elapsed=None):
    """Whole sequence, steps, and prefill + the rest, with the gradients of the parameters and of the input."""
    x, times = inputs(next(ltc.parameters()).dtype)
    elapsed = times if elapsed else None
    x.requires_grad_()
    leaves = [x, *ltc.parameters()]

    def grads(y):
        return torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum(), leaves)

    y, state = ltc(x, call=Call(elapsed))
    gradients = grads(y)
    stepped, last = step_loop(ltc, x, ltc.init_state(B, device=x.device, dtype=x.dtype), elapsed)
    assert_same(stepped, y)
    assert_same(last, state)
    for ours, expected in zip(gradients, grads(stepped), strict=True):
        assert_same(ours, expected)
    cut = 2
    early, late = (None, None) if elapsed is None else (elapsed[:, :cut], elapsed[:, cut:])
    head, carried = ltc(x[:, :cut], call=Call(early))
    tail, last = ltc(x[:, cut:], carried, call=Call(late))
    assert_same(torch.cat([head, tail], 1), y)
    assert_same(last, state)
    for ours, expected in zip(grads(torch.cat([head, tail], 1)), gradients, strict=True):
        assert_same(ours, expected)


@pytest.mark.parametrize("elapsed", [False, True], ids=["even", "uneven"])
@pytest.mark.parametrize("name", SOLVERS)
def test_paths_agree_for_every_solver(name, elapsed):
    assert_paths_agree(mixer(solver=SOLVERS[name]), elapsed)


@pytest.mark.parametrize("options", [{}, {"parallel": Newton()}, {"solver": SOLVERS["rk4"], "d_state": 2}])
def test_a_longer_horizon_is_more_time_for_every_token(options):
    slow, plain = mixer(horizon=2.5, **options), mixer(**options)
    x, times = inputs()
    for given, same in ((None, torch.full_like(times, 2.5)), (times, 2.5 * times)):
        (y, state), (expected, last) = slow(x, call=Call(given)), plain(x, call=Call(same))
        assert_same(y, expected, 1e-9)
        assert_same(state, last, 1e-9)
    assert_paths_agree(slow) if not options else None
    slow, x = slow.float(), x.float()
    run, state = slow.frozen_step(), slow.init_state(B)
    for x_t, y_t in zip(x.unbind(1), slow(x)[0].unbind(1), strict=True):
        y, state = run(x_t, state)
        assert_same(y, y_t, 1e-5)


COUPLINGS = ["none", "diagonal", "heads", "dense"]
CHOICES = list(itertools.product(COUPLINGS, ["input", "constant"], ["sigmoid", "softplus"]))


@pytest.mark.parametrize(("coupling", "reversal", "gate"), CHOICES)
def test_paths_agree_for_every_coupling_reversal_and_gate(coupling, reversal, gate):
    assert_paths_agree(mixer(coupling=coupling, reversal=reversal, gate=gate), elapsed=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"d_state": 3},
        {"d_state": 3, "coupling": "dense", "reversal": "constant"},
        {"leak": False, "d_conv": 0, "expand": 2},
        {"d_conv": 1},
        {"gradient": Backprop()},
        {"kernel": "reference", "gradient": Checkpoint(window_tokens=2)},
        {"solver": RungeKutta("rk4", 2), "gradient": Adjoint()},
        {"parallel": Newton(tolerance=1e-8)},
        {"parallel": Newton(tolerance=1e-8), "coupling": "none", "d_state": 3, "kernel": "reference"},
    ],
    ids=str,
)
def test_paths_agree_for_other_options(options):
    assert_paths_agree(mixer(**options))


def test_newtons_method_gives_the_sequential_states_and_tells_how_it_converged():
    x, _ = inputs()
    sequential, newton = (mixer(parallel=way) for way in (Sequential(), Newton()))
    assert newton.inexact == "newton_iterations"
    assert_same(newton(x)[0], sequential(x)[0], ALLOWANCES["newton_iterations"].paths)
    counts = newton.counts()
    assert (counts["newton_calls"], counts["newton_fallbacks"]) == (1, 0)
    assert 1 < counts["newton_iterations"] < 20
    assert sequential.counts() == {}


@pytest.mark.parametrize(
    "options",
    [
        {"solver": RungeKutta("rk4")},
        {"d_state": 3, "gate": "softplus"},
        {"reversal": "constant", "d_conv": 0, "expand": 2},
        {"d_state": 2, "reversal": "constant", "coupling": "heads"},
        {"leak": False, "d_conv": 1, "coupling": "none", "solver": Exponential()},
        {"reversal": "constant", "d_conv": 0, "coupling": "dense"},
        {"d_state": 2, "coupling": "dense", "solver": RungeKutta("rk4_38")},
    ],
    ids=str,
)
def test_the_fused_token_is_the_step(options):
    ltc = mixer(torch.float32, **options)
    x, times = inputs(torch.float32)
    call = Call(times[:, 3])
    with torch.no_grad():
        run, state = ltc.frozen_step(), ltc(x[:, :3])[1]
        assert run != ltc.step  # the kernel serves
        before = {name: tensor.clone() for name, tensor in state.items()}
        assert_same(run(x[:, 3], state), ltc.step(x[:, 3], state), 1e-5)
        assert_same(run(x[:, 3], state, call), ltc.step(x[:, 3], state, call), 1e-5)
        assert_same(state, before, 0)


def test_what_the_scan_does_not_take_a_token_does_not_either():
    for options in (
        {"kernel": "reference"},
        {"solver": ADAPTIVE["dopri5"], "gradient": Backprop()},
        {"solver": RungeKutta("rk4"), "gradient": Adjoint()},  # torchdiffeq's rk4 is another rule
    ):
        ltc = mixer(torch.float32, **options)
        assert ltc.frozen_step() == ltc.step


@pytest.mark.parametrize("parallel", [Sequential(), Newton()], ids=["sequential", "newton"])
def test_the_elapsed_times_gradient_is_the_references(parallel):
    x, times = inputs()
    gradients = []
    for kernel in ("auto", "reference"):
        elapsed = times.clone().requires_grad_()
        y, _ = mixer(parallel=parallel, kernel=kernel)(x, call=Call(elapsed))
        gradients.append(torch.autograd.grad(y.sin().sum(), elapsed)[0])
    assert gradients[1].abs().min() > 0
    assert_same(*gradients)


@pytest.mark.parametrize("gradient", [Backprop(), Adjoint()], ids=["backprop", "adjoint"])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_paths_agree_for_adaptive_solvers(name, gradient):
    assert_paths_agree(mixer(solver=ADAPTIVE[name], gradient=gradient))


def test_an_adaptive_batch_moves_its_rows_within_what_the_checks_allow():
    ltc = mixer(solver=Adaptive("dopri5", 1e-4, 1e-6))
    x, _ = inputs()
    alone = ltc(x[:1])[0]
    difference = (ltc(x)[0][:1] - alone).abs().max()
    assert ltc.inexact == "adaptive_steps"
    assert 0 < difference < ALLOWANCES["adaptive_steps"].rows
    assert mixer().inexact is None


@pytest.mark.parametrize("coupling", ["diagonal", "dense"])
def test_no_token_sees_the_future_or_another_row(coupling):
    ltc = mixer(coupling=coupling)
    x, _ = inputs()
    x.requires_grad_()
    y, _ = ltc(x)
    (gradient,) = torch.autograd.grad(y[0, 3].sum(), x)
    assert (gradient[0, 4:] == 0).all()
    assert (gradient[1] == 0).all()
    assert (gradient[0, :4] != 0).all()


def test_step_leaves_the_old_state_as_it_was_and_a_state_is_what_init_state_shows():
    ltc = mixer(d_state=2)
    x, _ = inputs()
    _, state = ltc(x)
    before = {name: tensor.clone() for name, tensor in state.items()}
    _, after = ltc.step(x[:, 0], state)
    assert_same(state, before, 0)
    promised = ltc.init_state(B, context=T)
    assert {n: (t.shape, t.dtype) for n, t in after.items()} == {n: (t.shape, t.dtype) for n, t in promised.items()}
    assert state_bytes(after) == B * 8 * (D * 2 + 3 * D)
    assert all(tensor.untyped_storage().nbytes() == tensor.numel() * 8 for tensor in after.values())


def test_the_recurrence_stays_in_float32_under_autocast():
    ltc = mixer(torch.float32, coupling="dense")
    x, _ = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = ltc(x)
        stepped, _ = step_loop(ltc, x, ltc.init_state(B))
    assert state["h"].dtype == torch.float32
    exact = ltc(x)[0]
    assert (y - exact).abs().max() < 0.05 * exact.abs().max()
    assert (y - stepped).abs().max() < 0.05 * exact.abs().max()
    y.float().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in ltc.parameters())


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("name", SOLVERS)
def test_the_stated_matrix_products_are_the_ones_counted(name, coupling):
    ltc = mixer(coupling=coupling, solver=SOLVERS[name], d_state=2)
    x, _ = inputs()
    with FlopCounterMode(display=False) as counter:
        ltc.step(x[:1, 0], ltc.init_state(1))
    assert counter.get_total_flops() == ltc.flops_per_token(1).matmul
    assert ltc.flops_per_token(1) == ltc.flops_per_token(10_000)


def test_time_constants_start_from_one_token_to_tau_max():
    for gate, d_state in itertools.product(("sigmoid", "softplus"), (1, 16)):
        ltc = LTC(64, gate=gate, d_state=d_state, tau_max=1000.0)
        field = ltc.field(torch.zeros(1, 64))
        rate, _ = field.split(torch.zeros(1, 64, d_state))
        assert 0.99 < rate.max() < 1.51  # within the explicit solvers' region of stability
        assert 0.99 < 1000 * rate[0, -1, 0] / 2 < 1.01
        steps = field.inv_tau[:, 0].log().diff()
        torch.testing.assert_close(steps, steps[:1].expand_as(steps))


def test_only_meaningful_decay():
    exempt = {n for n, p in mixer(d_state=2).named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert exempt == {"log_tau", "log_omega", "gate_bias", "conv_bias", "coupling_weight"}
    assert "coupling_weight" not in {
        n for n, p in mixer(coupling="dense").named_parameters() if getattr(p, "_no_weight_decay", False)
    }


def test_the_decoding_path_of_float32_is_near_the_oracle():
    ltc, x = mixer(torch.float32, d_state=2), inputs(torch.float32)[0]
    exact, _ = step_loop(ltc, x, ltc.init_state(B))
    with torch.no_grad():
        torch.testing.assert_close(step_loop(ltc, x, ltc.init_state(B))[0], exact, rtol=0, atol=1e-5)


def test_it_can_be_counted_without_being_made():
    with torch.device("meta"):
        for coupling in COUPLINGS:
            assert LTC(64, coupling=coupling, d_state=4).in_proj.weight.is_meta


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coupling": "heads", "head_dim": 3}, "head_dim=3.*Remedy"),
        ({"gradient": Adjoint()}, "gradient=adjoint.*semi_implicit"),
        ({"gradient": Backprop(), "kernel": "fused"}, "kernel=fused.*gradient=backprop"),
        ({"solver": ADAPTIVE["dopri5"], "kernel": "fused"}, "kernel=fused.*solver=dopri5"),
        ({"coupling": "heads", "head_dim": 2, "kernel": "fused"}, "kernel=fused.*head_dim=2"),
        ({"parallel": Newton(), "d_state": 2}, "parallel=newton.*d_state=2.*Remedy"),
        ({"parallel": Newton(), "coupling": "dense"}, "parallel=newton.*coupling=dense"),
        ({"parallel": Newton(), "gradient": Backprop()}, "parallel=newton.*gradient=backprop"),
    ],
)
def test_impossible_combinations_are_told(options, message):
    with pytest.raises(ConfigError, match=message):
        LTC(D, **options)
