"""The fused liquid scan against a plain torch loop in float64: values, gradients and its promises."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from arch.ltc import scan_numba as module
from arch.ltc.scan import LIQUID_SCAN
from arch.ltc.scan_numba import liquid_scan as liquid_scan_of_a_field
from arch.solvers import TABLEAUS
from liquid_calls import by_tensors

liquid_scan = by_tensors(liquid_scan_of_a_field)
NAMES = ("a", "A", "B", "C", "inv_tau", "omega", "w", "h0")


def oracle_step(solver, rates, h, dt):
    """One substep of h (batch, D, N); rates(h) gives (rate, drive)."""
    if solver in TABLEAUS:
        k = []
        for row in TABLEAUS[solver].a:
            x = h + dt * sum(weight * k_i for weight, k_i in zip(row, k, strict=True))
            rate, drive = rates(x)
            k.append(drive - rate * x)
        return h + dt * sum(weight * k_i for weight, k_i in zip(TABLEAUS[solver].b, k, strict=True))
    rate, drive = rates(h)
    if solver == "semi_implicit":
        return (h + dt * drive) / (1 + dt * rate)
    return h * torch.exp(-dt * rate) - drive / rate * torch.expm1(-dt * rate)


def couple(w, y):
    """w (D,) channel by channel, (heads, P, P) head by head, or (D, D); y (batch, D)."""
    if w.dim() < 3:
        return w * y if w.dim() == 1 else y @ w.t()
    return torch.einsum("hqp,bhp->bhq", w, y.unflatten(1, w.shape[:2])).flatten(1)


def oracle(solver, substeps, gate, a, A, B, C, inv_tau, omega, w, h, elapsed):
    squash = {"sigmoid": torch.sigmoid, "softplus": F.softplus}[gate]
    ys = []
    for t in range(a.shape[1]):
        B_t = torch.ones_like(h[:, :1]) if B is None else B[:, t, None]
        C_t = torch.ones_like(h[:, :1]) if C is None else C[:, t, None]
        dt = (torch.ones_like(a[:, t, :1]) if elapsed is None else elapsed[:, t, None])[..., None] / substeps

        def rates(h, t=t, B_t=B_t, C_t=C_t):
            coupling = 0 if w is None else couple(w, (C_t * h).sum(-1))
            f = squash(a[:, t] + coupling)[..., None]
            return inv_tau + omega * f, f * B_t * A[:, t, :, None]

        for _ in range(substeps):
            h = oracle_step(solver, rates, h, dt)
        ys.append((C_t * h).sum(-1))
    return torch.stack(ys, dim=1), h


def case(N, coupled, batch=2, T=4, D=7, dtype=torch.float64, seed=0, dense=False):
    """The tensors of NAMES."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    B, C = (normal(batch, T, N), normal(batch, T, N)) if N > 1 else (None, None)
    w = normal(D, D) / D**0.5 if dense else normal(D) if coupled else None
    return (
        normal(batch, T, D),
        normal(batch, T, D),
        B,
        C,
        normal(D, N).exp(),
        normal(D, N).exp(),
        w,
        normal(batch, D, N),
    )


def run(scan, solver, substeps, gate, tensors, elapsed=None):
    """y, the last h, and the gradient of a fixed random functional of both by every tensor given."""
    leaves = [x if x is None else x.detach().clone().requires_grad_() for x in tensors]
    y, last = scan(solver, substeps, gate, *leaves, elapsed)
    g = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, generator=g, dtype=torch.float64)).sum() for x in (y, last))
    given = [x for x in leaves if x is not None]
    return [y.detach(), last.detach(), *torch.autograd.grad(loss, given)]


def close(result, expected, tolerance):
    for got, want in zip(result, expected, strict=True):
        error = (got.double() - want).abs().max() / want.abs().max().clamp_min(1e-3)
        assert error <= tolerance, (error, want.shape)


@pytest.mark.parametrize(("N", "substeps", "dense"), [*itertools.product([1, 16], [1, 12], [False]), (1, 12, True)])
def test_training_keeps_no_more_than_twice_its_inputs_and_outputs(N, substeps, dense, monkeypatch):
    sizes = {"batch": 1, "T": 256, "D": 256, "dense": dense}
    tensors = [x if x is None else x.float().requires_grad_() for x in case(N, True, **sizes)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        y, last = liquid_scan("rk4", substeps, "sigmoid", *tensors, None)
    made = []
    for name in ("new_empty", "new_zeros"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda *args, of=original: made.append(of(*args)) or made[-1])
    gy, g_last = torch.ones_like(y), torch.ones_like(last)
    torch.autograd.backward([y, last], [gy, g_last])
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in [*kept, *made, gy]}
    inputs_and_outputs = sum(x.nbytes for x in [*tensors, y, last] if x is not None)
    gradients = sum(x.nbytes for x in tensors if x is not None)
    assert len(made) >= 4
    assert sum(storages.values()) - gradients <= 2 * inputs_and_outputs


@pytest.mark.parametrize("solver", ["semi_implicit", "exponential"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_gates_stay_finite(solver, dtype):
    for gate, scale in itertools.product(["sigmoid", "softplus"], [1e3, -1e3, 1e6, -1e6]):
        a, *rest = case(3, True, dtype=dtype)
        for x in run(liquid_scan, solver, 1, gate, [torch.full_like(a, scale), *rest]):
            assert torch.isfinite(x).all()


def test_exponential_is_exact_where_nothing_decays():
    a, A, _, _, inv_tau, omega, _, h0 = case(1, False)
    y, _ = liquid_scan("exponential", 1, "sigmoid", a, A, None, None, 0 * inv_tau, 0 * omega, None, h0, None)
    torch.testing.assert_close(y, h0[..., 0][:, None] + (torch.sigmoid(a) * A).cumsum(1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", ["semi_implicit", "exponential", "euler", "rk4_38"])
@pytest.mark.parametrize("N", [1, 3])
def test_a_dense_coupling_takes_blocks_and_groups_of_every_size_in_windows(solver, N, monkeypatch):
    """67 channels are two blocks, 5 sequences two groups, and 35 tokens several windows of the backward."""
    monkeypatch.setattr(module, "WINDOW", 7)
    tensors = case(N, True, batch=5, T=35, D=67, dense=True)
    tensors = [x * 0.3 if name in ("inv_tau", "omega") else x for name, x in zip(NAMES, tensors, strict=True)]
    close(run(liquid_scan, solver, 2, "sigmoid", tensors), run(oracle, solver, 2, "sigmoid", tensors), 1e-11)


@pytest.mark.parametrize("N", [1, 3])
def test_carried_state_equals_whole_and_carries_gradient(N):
    tensors = case(N, True, T=6)
    whole = run(liquid_scan, "rk4", 2, "sigmoid", tensors)

    def in_parts(solver, substeps, gate, a, A, B, C, inv_tau, omega, w, h, elapsed):
        ys = []
        for part in (slice(0, 4), slice(4, 5), slice(5, 6)):
            B_p, C_p = (None, None) if B is None else (B[:, part], C[:, part])
            y, h = liquid_scan(solver, substeps, gate, a[:, part], A[:, part], B_p, C_p, inv_tau, omega, w, h, None)
            ys.append(y)
        return torch.cat(ys, dim=1), h

    close(run(in_parts, "rk4", 2, "sigmoid", tensors), whole, 1e-13)


@pytest.mark.parametrize("N", [1, 3])
def test_without_gradients_and_half_precision(N):
    tensors = case(N, True, dtype=torch.bfloat16)
    expected = run(oracle, "euler", 1, "sigmoid", [x if x is None else x.double() for x in tensors])[:2]
    with torch.no_grad():
        y, last = liquid_scan("euler", 1, "sigmoid", *tensors, None)
    assert y.dtype == last.dtype == torch.float32
    close([y, last], expected, 1e-5)


def test_refuses_what_it_cannot_do():
    tensors = case(1, False)
    with pytest.raises(ValueError, match="elapsed"):
        liquid_scan("euler", 1, "sigmoid", *tensors, torch.ones(2, 4, requires_grad=True))
    with pytest.raises(ValueError, match="both B and C"):
        liquid_scan("euler", 1, "sigmoid", *tensors[:3], torch.ones(2, 4, 1), *tensors[4:], None)
    with pytest.raises(ValueError, match="at least one token"):
        liquid_scan("euler", 1, "sigmoid", *case(1, False, T=0), None)

    def serves(dtype, solver, coupling, d_state):
        return LIQUID_SCAN.serves("cpu", dtype, solver=solver, coupling=coupling, d_state=d_state)

    assert serves(torch.bfloat16, "rk4", "diagonal", 16)
    assert not serves(torch.float32, "dopri5", "none", 1)
    assert serves(torch.float32, "rk4", "dense", 16)
    assert LIQUID_SCAN.serves("cpu", torch.float32, solver="rk4", coupling="heads", d_state=1, head_dim=32)
    assert not LIQUID_SCAN.serves("cpu", torch.float32, solver="rk4", coupling="heads", d_state=1, head_dim=128)


def test_a_first_call_in_inference_mode_leaves_later_training_alone():
    module._constant.cache_clear()
    with torch.inference_mode():
        liquid_scan("euler", 1, "sigmoid", *(case(1, True, dtype=torch.float32)), None)
    tensors = [None if x is None else x.requires_grad_() for x in case(1, True, dtype=torch.float32)]
    liquid_scan("euler", 1, "sigmoid", *tensors, None)[0].sum().backward()
    assert tensors[0].grad.isfinite().all()
