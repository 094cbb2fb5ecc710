"""Newton's method over time against the sequential reference in float64: values, gradients and how it converges."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arch.ltc import newton, scan, tokens_numba, tokens_triton
from arch.ltc import tokens as flows
from arch.ltc.newton import refuses
from arch.newton import Newton, Tally
from arch.solvers import SemiImplicit
from bench.liquid import liquid_field
from liquid_calls import SOLVERS, by_tensors

reference, newton_scan = by_tensors(scan.reference), by_tensors(newton.newton_scan)
EXACT = Newton(tolerance=1e-7)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNELS = {"numba": (tokens_numba, "cpu"), "triton": (tokens_triton, DEVICE)}
ELAPSED = torch.tensor([[1.0, 0.3, 0.0, 0.7, 1.0], [0.2, 1.0, 0.5, 1.1, 0.9]], dtype=torch.float64)


def case(N=1, coupled=True, batch=2, T=5, D=7, dtype=torch.float64, seed=0, scale=0.5):
    """a, A, B, C, inv_tau, omega, w, h0; rates within every solver's region of stability."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return (scale * torch.randn(*shape, generator=g, dtype=torch.float64)).to(dtype)

    B, C = (normal(batch, T, N), normal(batch, T, N)) if N > 1 else (None, None)
    inv_tau, omega = 0.3 * normal(D, N).exp(), 0.3 * normal(D, N).exp()
    return (
        normal(batch, T, D),
        normal(batch, T, D),
        B,
        C,
        inv_tau,
        omega,
        normal(D) if coupled else None,
        normal(batch, D, N),
    )


def run(scan, solver, substeps, gate, tensors, elapsed=None):
    """y, the last h, and the gradient of a fixed random functional of both by every tensor given, in float64."""
    leaves = [x if x is None else x.detach().clone().requires_grad_() for x in tensors]
    y, last = scan(solver, substeps, gate, *leaves, elapsed)
    g = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, generator=g, dtype=torch.float64).to(x.device)).sum() for x in (y, last))
    gradients = torch.autograd.grad(loss, [x for x in leaves if x is not None])
    return [x.detach().double() for x in (y, last, *gradients)]


def close(got, expected, tolerance):
    for x, y in zip(got, expected, strict=True):
        error = (x - y).abs().max() / y.abs().max().clamp_min(1e-3)
        assert error <= tolerance, (error, y.shape)


def by(tally=None, options=EXACT, kernel="auto"):
    """newton_scan with its options, in the reference's signature."""

    def scan(*call):
        return newton_scan(*call, options=options, kernel=kernel, record=tally and tally.add)

    return scan


@pytest.mark.parametrize(("solver", "kernel"), itertools.product(SOLVERS, ["reference", "fused"]))
def test_values_and_gradients(solver, kernel):
    for gate, (N, coupled) in itertools.product(["sigmoid", "softplus"], [(1, True), (1, False), (3, False)]):
        tensors, tally = case(N, coupled), Tally()
        expected = run(reference, solver, 2, gate, tensors, ELAPSED)
        close(run(by(tally, kernel=kernel), solver, 2, gate, tensors, ELAPSED), expected, 1e-9)
        assert tally.fallbacks == 0
        single = [x if x is None else x.float() for x in tensors]
        close(run(by(tally, Newton(), kernel), solver, 2, gate, single, ELAPSED.float()), expected, 1e-5)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(SOLVERS), st.booleans(), st.integers(1, 3), st.sampled_from([1, 2, 63, 64, 65, 131]),
    st.sampled_from([1, 31, 33, 260]), st.integers(1, 3),
)  # fmt: skip
def test_odd_sizes(solver, coupled, batch, T, D, substeps):
    tensors, tally = case(1, coupled, batch, T, D), Tally()
    expected = run(reference, solver, substeps, "sigmoid", tensors)
    close(run(by(tally), solver, substeps, "sigmoid", tensors), expected, 1e-9)
    assert tally.fallbacks == 0


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles of which Triton's interpreter fills more than one in little time."""
    for name in ("ROWS", "CHANNELS", "RUN"):
        monkeypatch.setattr(tokens_triton, name, 16)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gates_of_slow_channels_keep_their_digits(kernel, dtype):
    """Where 1 + e^a and 1 - e^-rate would lose them."""
    module, device = KERNELS[kernel]
    a = torch.linspace(-40, 0, 81, dtype=torch.float64).view(1, 1, 81)
    zeros, ones = torch.zeros(81, 1, dtype=torch.float64), torch.ones(81, 1, dtype=torch.float64)
    for solver in ("euler", "exponential"):
        call = (a, torch.ones_like(a), None, None, zeros, ones, ones[:, 0], zeros[None], None, torch.zeros_like(a))
        expected = by_tensors(flows.tokens)(solver, 1, "softplus", *call)
        got = by_tensors(module.tokens)(solver, 1, "softplus", *(x if x is None else x.to(device, dtype) for x in call))
        for x, y in zip(got, expected, strict=True):  # relative to each element, not to the largest
            torch.testing.assert_close(x.cpu().double(), y, rtol=2e-6 if dtype == torch.float32 else 1e-12, atol=1e-13)


@pytest.mark.parametrize("N", [1, 3])
def test_a_linear_cell_takes_one_iteration(N):
    tally = Tally()
    run(by(tally), "semi_implicit", 6, "sigmoid", case(N, False, T=200))
    assert (tally.calls, tally.last.iterations, tally.last.converged) == (1, 1, True)


def test_convergence_is_quadratic():
    *rest, w, h0 = case(T=300, scale=1.0)
    tally = Tally()
    with torch.no_grad():
        by(tally, Newton(tolerance=1e-14))("semi_implicit", 6, "sigmoid", *rest, w.sign(), h0, None)
    residuals, updates = tally.last.residuals, tally.last.updates
    assert tally.last.converged
    assert len(residuals) == len(updates) == tally.last.iterations
    settled = [(x, y) for x, y in itertools.pairwise(updates) if x < 0.1 and y > 1e-13]
    assert len(settled) >= 2
    assert all(y < 3 * x**2 for x, y in settled)
    settled = [(x, y) for x, y in itertools.pairwise(residuals) if x < 0.1 and y > 1e-13]
    assert all(y < 3 * x**2 for x, y in settled)


@pytest.mark.parametrize(("solver", "gate"), itertools.product(["semi_implicit", "rk4"], ["sigmoid", "softplus"]))
def test_strong_coupling_converges_or_falls_back(solver, gate):
    fallbacks = []
    for scale in (1, 4, 30, 1000):
        *rest, w, h0 = case(T=130, D=40, scale=1.0)
        tally, tensors = Tally(), (*rest, scale * w, h0)
        y, last = by(tally)(solver, 2, gate, *tensors, None)
        expected = reference(solver, 2, gate, *tensors, None)
        if tally.fallbacks == 0:
            close([y, last], expected, 1e-9)
        assert torch.equal(y.isfinite(), expected[0].isfinite())
        assert tally.last.converged == (tally.fallbacks == 0)
        fallbacks.append(tally.fallbacks)
    assert fallbacks[0] == 0
    assert fallbacks[-1] > 0


def test_what_falls_back_has_the_sequential_values_and_the_exact_gradient():
    tensors, tally = case(T=40), Tally()
    got = run(by(tally, Newton(max_iterations=1)), "semi_implicit", 2, "sigmoid", tensors, None)
    assert (tally.last.iterations, tally.last.fallbacks, tally.last.converged) == (1, 2, False)
    close(got, run(reference, "semi_implicit", 2, "sigmoid", tensors), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_gates_stay_finite(dtype):
    for solver, gate, value in itertools.product(
        ["semi_implicit", "exponential"], ["sigmoid", "softplus"], [1e3, -1e3, 1e6, -1e6]
    ):
        a, *rest = case(T=9, dtype=dtype)
        for x in run(by(), solver, 2, gate, [torch.full_like(a, value), *rest]):
            assert torch.isfinite(x).all()


def test_nan_is_not_hidden():
    a, *rest = case(T=9)
    a[1, 4, 2] = torch.nan
    expected = torch.zeros_like(a, dtype=torch.bool)
    expected[1, 4:, 2] = True
    tally = Tally()
    y, _ = by(tally)("semi_implicit", 2, "sigmoid", a, *rest, None)
    assert torch.equal(y.isnan(), expected)
    assert tally.fallbacks == 1


def test_a_sequence_does_not_see_its_company():
    a, A, B, C, *rates, w, h0 = case(T=70, batch=3, scale=1.0)
    a[1], w = 4 * a[1], 3 * w  # of these one sequence needs more iterations than the others
    together, tally = by()("semi_implicit", 2, "softplus", a, A, B, C, *rates, w, h0, None)[0], Tally()
    counts = []
    for i in range(3):
        one = slice(i, i + 1)
        alone, _ = by(tally)("semi_implicit", 2, "softplus", a[one], A[one], B, C, *rates, w, h0[one], None)
        counts.append(tally.last.iterations)
        torch.testing.assert_close(alone, together[one], rtol=0, atol=1e-13)
    assert len(set(counts)) > 1


def test_carried_state_equals_whole_and_carries_gradient():
    def in_parts(solver, substeps, gate, a, A, B, C, inv_tau, omega, w, h, elapsed):
        ys = []
        for part in (slice(0, 30), slice(30, 31), slice(31, 40)):
            y, h = by()(solver, substeps, gate, a[:, part], A[:, part], B, C, inv_tau, omega, w, h, None)
            ys.append(y)
        return torch.cat(ys, dim=1), h

    tensors = case(T=40)
    close(run(in_parts, "rk4", 2, "sigmoid", tensors), run(reference, "rk4", 2, "sigmoid", tensors), 1e-9)


def test_inputs_are_read_right_and_left_alone():
    tensors = case(batch=1, T=1)
    strided = [x if x is None else x.repeat_interleave(2, dim=-1)[..., ::2] for x in tensors]
    before = [x if x is None else x.clone() for x in strided]
    with torch.inference_mode():
        close(by()("heun", 2, "sigmoid", *strided, None), reference("heun", 2, "sigmoid", *tensors, None), 1e-12)
    assert all(x is None or torch.equal(x, y) for x, y in zip(strided, before, strict=True))


def test_half_precision_computes_in_float32():
    tensors = case(T=40, dtype=torch.bfloat16)
    y, last = newton_scan("semi_implicit", 2, "sigmoid", *tensors, None)
    assert y.dtype == last.dtype == torch.float32
    expected = reference("semi_implicit", 2, "sigmoid", *(x if x is None else x.double() for x in tensors), None)
    close([y, last], expected, 1e-5)


def test_long_memory_in_float32():
    """Time constants to 4,096 tokens: rounding, summed by the scan, must not keep Newton's method from stopping."""
    field = liquid_field(1, 4096, 32, "sigmoid", 1.0, "cpu").map(torch.detach)
    tally, h0 = Tally(), torch.zeros(1, 32, 1)
    y, _ = newton.newton_scan(SemiImplicit(6), field, h0, record=tally.add)
    assert tally.fallbacks == 0
    exact = field.map(torch.Tensor.double)
    close([y], scan.reference(SemiImplicit(6), exact, h0.double())[:1], 1e-5)


def test_the_threads_do_not_change_a_bit():
    tensors = case(T=200, D=300, dtype=torch.float32)
    threads = torch.get_num_threads()
    runs = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            runs.append(run(by(options=Newton()), "semi_implicit", 2, "sigmoid", tensors))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))


def test_refuses_what_it_cannot_do():
    assert refuses("semi_implicit", "diagonal", 1) is None
    assert refuses("rk4", "none", 16) is None
    assert "d_state=4" in refuses("rk4", "diagonal", 4)
    assert "coupling=dense" in refuses("rk4", "dense", 1)
    assert "solver=dopri5" in refuses("dopri5", "none", 1)
    for call, reason in (
        ((*case(3)[:6], torch.zeros(7), case(3)[7], None), "d_state=3"),
        ((*case()[:6], torch.zeros(7, 7), case()[7], None), "dense"),
        ((*case(), torch.ones(2, 5, requires_grad=True)), "elapsed"),
        ((*case(T=0), None), "one token"),
    ):
        with pytest.raises(ValueError, match=reason):
            newton_scan("rk4", 1, "sigmoid", *call)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("solver", SOLVERS)
def test_on_cuda(solver, monkeypatch):
    monkeypatch.undo()  # the sizes of real use
    tensors = case(T=500, D=64)
    expected = run(reference, solver, 2, "sigmoid", tensors)
    got = run(by(), solver, 2, "sigmoid", [x if x is None else x.cuda() for x in tensors])
    close([x.cpu() for x in got], expected, 1e-9)
