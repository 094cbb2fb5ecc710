"""The liquid mixer whose multiplier can be negative: what it computes, and that a sign held exactly follows parity."""

import pytest
import torch
from torch import Tensor

from arch.ltc.mixer import LTC
from arch.solvers import Exponential, Reflected, Solver
from configs import spec
from harness.model.mixer import Call
from harness.ops.linear_scan.scan import reference as linear_scan

OPTIONS = {"coupling": "none", "gate": "softplus", "leak": False, "omega": 2.0, "d_conv": 0}
D, B, T = 8, 3, 33


def mixer(width: int = D, solver: Solver = Reflected(), **more) -> LTC:  # noqa: B008, a value
    torch.manual_seed(0)
    return LTC(width, solver=solver, **OPTIONS, **more).double()


def closed_form(ltc: LTC, x: Tensor, elapsed: Tensor | None) -> Tensor:
    """h' = m h + (1 - m) A / 2 with m = 2 (1 + e^a)^-elapsed - 1, which is -tanh(a / 2) over one unit of time."""
    field = ltc.field(x)
    a = field.a
    m = -torch.tanh(a / 2) if elapsed is None else 2 * (1 + a.exp()) ** -elapsed.unsqueeze(-1) - 1
    return ltc.out_proj(linear_scan(m, (1 - m) * field.A / 2, x.new_zeros(len(x), ltc.d_inner)))


@pytest.mark.parametrize("kernel", ["reference", "auto"])
@pytest.mark.parametrize("timed", [False, True])
def test_it_is_a_linear_recurrence_of_negative_and_positive_multipliers(timed, kernel):
    ltc = mixer(kernel=kernel)
    x = (3 * torch.randn(B, T, D, dtype=torch.float64)).requires_grad_()
    elapsed = 2 * torch.rand(B, T, dtype=torch.float64) if timed else None
    y, expected = ltc(x, call=Call(elapsed))[0], closed_form(ltc, x, elapsed)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-13)
    assert (ltc.field(x).a > 1).any()  # some multipliers below -0.46
    leaves, g = [x, *ltc.parameters()], torch.randn_like(y)
    pairs = zip(torch.autograd.grad(y, leaves, g), torch.autograd.grad(expected, leaves, g), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def follows_parity(solver: Solver, bits: Tensor) -> bool:
    """Whether one channel, whose gate is wide open for a 1 and shut for a 0, is on its first side or the other."""
    ltc = mixer(1, solver)
    with torch.no_grad():
        ltc.in_proj.weight.copy_(torch.tensor([[40.0], [0.0]]))  # a = 40 (bit - 1/2)
        ltc.gate_bias.zero_()
        ltc.out_proj.weight.fill_(1.0)
        start = {"h": torch.ones(len(bits), 1, 1, dtype=torch.float64)}  # A = 0: each 1 turns h to -h
        y = ltc(bits.unsqueeze(-1) - 0.5, start)[0].squeeze(-1)
    return bool(((y < 0) == (bits.cumsum(1) % 2 == 1)).all())


def test_a_channel_by_itself_follows_parity_where_an_exact_flow_cannot():
    bits = torch.randint(2, (4, 2048), generator=torch.Generator().manual_seed(0)).double()
    assert follows_parity(Reflected(), bits)
    assert not follows_parity(Exponential(), bits)
    assert not follows_parity(Reflected(2), bits)  # two changes of sign a token are none


def test_the_model_of_its_name_is_that_mixer():
    ltc = spec("ltc_signed").mixer(D)
    given = (ltc.solver, ltc.coupling, ltc.gate, ltc.leak, ltc.omega.unique().item())
    assert given == (Reflected(), "none", "softplus", False, 2.0)


def multipliers(share: float) -> Tensor:
    """Of a width of 64, at the start: (N, 64) for N normalised tokens."""
    ltc = mixer(64, sharp=share)
    tokens = torch.nn.functional.rms_norm(torch.randn(512, 1, 64, dtype=torch.float64), (64,))
    return -torch.tanh(ltc.field(tokens).a / 2).squeeze(1)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_sharp_gate_starts_with_either_sign_held(share):
    m = multipliers(share)
    turns = (m < -0.9).double().mean(0)  # (64,), the share of tokens that turn a channel's sign
    assert ((turns > 0.2).sum(), (turns > 0).sum()) == (64 * share, 64 * share)
    sharp = turns > 0
    assert (m[:, sharp] > 0.9).double().mean(0).gt(0.2).all()  # and those that keep it
    if share:  # spread over the time constants
        assert sharp.nonzero().diff(dim=0).max() == round(1 / share)
