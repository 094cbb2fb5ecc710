"""minGRU: the linear scan against the authors' scan over logarithms, the step, and the parameter groups."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from baselines.mingru.mixer import MinGRU
from harness.checks.oracles import find_oracle
from harness.model.state import tensors
from harness.training.optimizer import parameter_groups
from oracles import step_loop


def mixer(**options) -> MinGRU:
    """Biases and taps away from where they start."""
    made = MinGRU(6, **options).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return made


def in_logarithms(mixer: MinGRU, x: torch.Tensor) -> torch.Tensor:
    """Appendix B of the paper: log h = cumulated log(1 - z) + logcumsumexp of what each token adds, over that."""
    if mixer.d_conv:
        padded = F.pad(x, (0, 0, mixer.d_conv - 1, 0))
        taps = [padded[:, k : k + x.shape[1]] * mixer.conv_weight[k] for k in range(mixer.d_conv)]
        x = x + sum(taps) + mixer.conv_bias
    hidden, gate = mixer.hidden_and_gate(x).chunk(2, dim=-1)
    log_g = torch.where(hidden >= 0, (F.relu(hidden) + 0.5).log(), -F.softplus(-hidden))
    kept = (-F.softplus(gate)).cumsum(1)
    return mixer.out((kept + (log_g - F.softplus(-gate) - kept).logcumsumexp(1)).exp())


@pytest.mark.parametrize(("batch", "length"), [(3, 17), (1, 1), (1, 2)])
@pytest.mark.parametrize("options", [{}, {"d_conv": 0, "expand": 2}])
def test_both_paths_are_the_authors_scan_over_logarithms_in_values_and_gradients(batch, length, options):
    made, x = mixer(**options), torch.randn(batch, length, 6, dtype=torch.float64, requires_grad=True)
    expected = in_logarithms(made, x)
    grads = torch.autograd.grad(expected.sin().sum(), [x, *made.parameters()])
    for path in (lambda: made(x)[0], lambda: step_loop(made, x)[0]):
        y = path()
        assert_close(y, expected, rtol=0, atol=1e-11)
        for grad, wanted in zip(torch.autograd.grad(y.sin().sum(), [x, *made.parameters()]), grads, strict=True):
            assert_close(grad, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("options", [{}, {"d_conv": 0, "expand": 2}])
def test_equals_mingru_pytorch_in_values_and_gradients(options):
    pytest.importorskip("minGRU_pytorch")
    made, x = mixer(**options), torch.randn(2, 21, 6, dtype=torch.float64, requires_grad=True)
    y, expected = made(x)[0], find_oracle(made).forward(x)
    assert_close(y, expected, rtol=0, atol=1e-11)
    grads = (torch.autograd.grad(out.sin().sum(), [x, *made.parameters()]) for out in (y, expected))
    for grad, wanted in zip(*grads, strict=True):
        assert_close(grad, wanted, rtol=1e-9, atol=1e-11)


def test_a_carried_state_continues_and_passes_gradients():
    made, x = mixer(), torch.randn(2, 9, 6, dtype=torch.float64, requires_grad=True)
    whole, last = made(x)
    first, state = made(x[:, :4])
    rest, state = made(x[:, 4:], state)
    assert_close(torch.cat([first, rest], 1), whole, rtol=0, atol=1e-12)
    for a, b in zip(tensors(state), tensors(last), strict=True):
        assert_close(a, b, rtol=0, atol=1e-12)
    by_rest, by_whole = (torch.autograd.grad(y[:, -1].sum(), x)[0] for y in (rest, whole))
    assert_close(by_rest, by_whole, rtol=0, atol=1e-12)
    assert by_rest[:, 0].abs().min() > 0


def test_the_matrix_of_gate_and_candidate_does_not_decay():
    made = mixer()
    groups = {group["name"]: group["params"] for group in parameter_groups(made, 0.1)}
    assert {id(p) for p in groups["decay"]} == {id(made.out.weight), id(made.conv_weight)}


def test_a_gated_block_has_the_only_convolution():
    assert set(MinGRU(6, d_out=3).init_state(2)) == {"h"}
    assert set(MinGRU(6).init_state(2)) == {"conv", "h"}
