"""WKV-7: the fused kernels against the torch loop, in values and gradients."""

import torch
import torch.nn.functional as F

from baselines.rwkv import scan as rwkv_scan
from baselines.rwkv.scan_numba import rwkv_scan as fused
from kernel_checks import exact, relative_errors, values_and_gradients


def inputs(B: int, T: int, H: int, N: int, dtype=torch.float64) -> list[torch.Tensor]:
    """Vectors as the model makes them: decays in (0.55, 1), a = -kk and b = kk * rate with kk of unit length."""
    r, w, k, v, kk, rate = (torch.randn(B, T, H, N, dtype=dtype) for _ in range(6))
    kk = F.normalize(kk, dim=-1)
    state = torch.randn(B, H, N, N, dtype=dtype)
    values = [r, torch.exp(-0.6 * torch.sigmoid(w)), k, v, -kk, kk * torch.sigmoid(rate), state]
    return [value.requires_grad_() for value in values]


def run(function, values):
    """Outputs, and gradients of a loss that weighs every output and the final state differently."""
    y, final = function(*values)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    loss = (weights * y).sum() + (torch.cos(torch.arange(final.numel(), dtype=y.dtype)).view_as(final) * final).sum()
    return (y, final), torch.autograd.grad(loss, values)


def test_large_values_stay_finite_and_right():
    values = [value.detach() for value in inputs(2, 19, 2, 8, torch.float32)]
    for number in (0, 2, 3, 6):  # r, k, v and the state
        values[number] *= 1e6
    got = values_and_gradients(fused, [value.requires_grad_() for value in values])
    assert all(value.isfinite().all() for value in got)
    assert max(relative_errors(got, values_and_gradients(rwkv_scan.reference, exact(values)))) < 1e-5


def test_the_loop_is_the_published_equation():
    r, w, k, v, a, b, state = (value.detach() for value in inputs(1, 1, 1, 4))
    r, w, k, v, a, b = (value[0, 0, 0] for value in (r, w, k, v, a, b))
    expected = state[0, 0] @ torch.diag(w) + torch.outer(state[0, 0] @ a, b) + torch.outer(v, k)
    y, new = rwkv_scan.step(*(value.view(1, 1, 4) for value in (r, w, k, v, a, b)), state)
    torch.testing.assert_close(new[0, 0], expected)
    torch.testing.assert_close(y[0, 0], expected @ r)


def test_a_unit_key_written_at_full_rate_is_replaced():
    """The delta rule: with decay 1 and rate 1, writing (k, v2) over (k, v1) leaves v2 alone under k."""
    k, first, second = F.normalize(torch.randn(8), dim=0), torch.randn(8), torch.randn(8)
    keys = torch.stack([k, k]).view(1, 2, 1, 8)
    values = torch.stack([first, second]).view(1, 2, 1, 8)
    y, _ = fused(keys, torch.ones_like(keys), keys, values, -keys, keys, torch.zeros(1, 1, 8, 8))
    torch.testing.assert_close(y[0, 0, 0], first)
    torch.testing.assert_close(y[0, 1, 0], second)


def test_a_carried_state_continues_the_sequence_and_its_gradient():
    values = inputs(2, 21, 2, 8)

    def split(*values):
        *vectors, state = values
        y1, state = fused(*(value[:, :9] for value in vectors), state)
        y2, state = fused(*(value[:, 9:] for value in vectors), state)
        return torch.cat([y1, y2], dim=1), state

    whole, parts = run(fused, values), run(split, values)
    for a, b in zip(whole[0] + whole[1], parts[0] + parts[1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0)


def test_only_every_sixteenth_state_is_kept_and_none_without_gradients():
    values = inputs(1, 40, 1, 8)
    y, _ = fused(*values)
    assert y.grad_fn.saved_tensors[-1].shape == (1, 1, 3, 8, 8)
    with torch.no_grad():
        y, _ = fused(*(value.detach() for value in values))
    assert y.grad_fn is None
