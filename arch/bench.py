"""What the bench compares of the liquid family: the scan and CfC, against their loops and the packages of others."""

import torch
from torch import Tensor, nn

from arch.cfc import CfC
from arch.field import Field
from arch.gradients import scan
from arch.liquid_scan import LIQUID_SCAN
from arch.newton_bench import liquid_inputs
from arch.solvers import SemiImplicit
from harness.bench.comparison import Comparison, layer, sequence
from harness.bench.timing import Call, Contestant

SUBSTEPS = 6
LOOP_TOKENS = 2048  # longest sequence of a loop: its backward keeps every operation's result
NCPS_TOKENS = 16  # ncps' LTC keeps units^2 numbers for every unfolding, token and sequence


def liquid_scan(device: torch.device) -> Comparison:
    """The scan of a diagonal liquid cell from given a and A; peers that project their inputs bear that besides."""
    fused = [
        _fused("fused, semi_implicit x 6", "semi_implicit", SUBSTEPS, device),
        _fused("fused, semi_implicit x 1", "semi_implicit", 1, device),
        _fused("fused, euler", "euler", 1, device),
        _fused("fused, rk4", "rk4", 1, device),
        _fused("fused, exponential", "exponential", 1, device),
        _fused("fused, semi_implicit x 6, 16 states", "semi_implicit", SUBSTEPS, device, states=16),
    ]

    def loop(*size: int) -> Call:
        inputs = _inputs(*size, device)
        return _call(inputs, lambda: LIQUID_SCAN.reference("semi_implicit", SUBSTEPS, "sigmoid", *inputs, None)[0])

    def compiled(*size: int) -> Call:
        torch.compiler.reset()  # else the shapes of all cells would add up to more versions than it takes
        token, inputs = torch.compile(_token, dynamic=False), _inputs(*size, device)
        return _call(inputs, lambda: _token_by_token(token, *inputs))

    def ncps(batch: int, length: int, channels: int) -> Call:
        from ncps.torch import LTC

        return layer(LTC(channels, channels, ode_unfolds=SUBSTEPS), batch, length, channels, device)

    peers = [
        Contestant("torch loop", loop, longest=LOOP_TOKENS),
        Contestant("torch.compile, a token a call", compiled, longest=LOOP_TOKENS),
        Contestant("torchdiffeq rk4, a token a call", lambda *size: _torchdiffeq(*size, device), longest=LOOP_TOKENS),
        Contestant("ncps LTC", ncps, needs=("ncps",), longest=NCPS_TOKENS),
        Contestant("pararnn-torch ParaCfC", lambda *size: _para_cfc(*size, device), needs=("pararnn",)),
    ]
    return Comparison("liquid scan", [*fused, *peers])


def cfc(device: torch.device) -> Comparison:
    """A CfC layer of one backbone layer; ours projects its output besides."""

    def ours(kernel: str):
        return lambda batch, length, channels: layer(CfC(channels, kernel=kernel), batch, length, channels, device)

    def ncps(batch: int, length: int, channels: int) -> Call:
        from ncps.torch import CfC as Other

        other = Other(channels, channels, mode="default", backbone_units=channels, backbone_layers=1)
        return layer(other, batch, length, channels, device)

    return Comparison(
        "CfC",
        [
            Contestant("fused", ours("auto")),
            Contestant("torch loop", ours("reference"), longest=LOOP_TOKENS),
            Contestant("ncps CfC", ncps, needs=("ncps",), longest=LOOP_TOKENS),
            Contestant("pararnn-torch ParaCfC", lambda *size: _para_cfc(*size, device), needs=("pararnn",)),
        ],
    )


def _fused(name: str, solver: str, substeps: int, device: torch.device, states: int = 1) -> Contestant:
    run = LIQUID_SCAN.choose("auto", device, torch.float32, solver=solver, coupling="diagonal", d_state=states)

    def make(*size: int) -> Call:
        inputs = _inputs(*size, device, states)
        return _call(inputs, lambda: run(solver, substeps, "sigmoid", *inputs, None)[0])

    return Contestant(name, make)


def _inputs(batch: int, length: int, channels: int, device: torch.device, states: int = 1) -> list[Tensor | None]:
    """a, A, B, C, inv_tau, omega, w, h0 as an LTC starts them; B and C normal and omega 1..N where states > 1."""
    inputs = liquid_inputs(batch, length, channels, "sigmoid", 0.1, device)
    if states == 1:
        return inputs
    a, A, _, _, inv_tau, _, w, _ = (x if x is None else x.detach() for x in inputs)
    B, C = torch.randn(2, batch, length, states, device=device)
    omega = torch.arange(1.0, states + 1, device=device).repeat(channels, 1)
    wide = (a, A, B, C, inv_tau.repeat(1, states), omega, w, a.new_zeros(batch, channels, states))
    return [x.clone().requires_grad_() for x in wide]


def _call(inputs: list[Tensor | None], run) -> Call:
    return Call(run, [x for x in inputs if x is not None])


def _token(a: Tensor, A: Tensor, inv_tau: Tensor, omega: Tensor, w: Tensor, h: Tensor) -> Tensor:
    """The state h (B, D, 1) after one token (B, D) of the diagonal cell."""
    return SemiImplicit(SUBSTEPS).integrate(Field(a, A, None, None, inv_tau, omega, w, "sigmoid"), h)


def _token_by_token(token, a, A, _B, _C, inv_tau, omega, w, h) -> Tensor:
    outputs = []
    for a_t, A_t in zip(a.unbind(1), A.unbind(1), strict=True):
        h = token(a_t, A_t, inv_tau, omega, w, h)
        outputs.append(h.squeeze(2))
    return torch.stack(outputs, dim=1)


def _torchdiffeq(batch: int, length: int, channels: int, device: torch.device) -> Call:
    """The same cell by torchdiffeq's rk4, one step a token, backpropagated through."""
    from torchdiffeq import odeint

    inputs = _inputs(batch, length, channels, device)
    ends = torch.tensor([0.0, 1.0], device=device)

    def cross(field: Field, h: Tensor, _elapsed) -> Tensor:
        return odeint(lambda _, state: field.derivative(state), h, ends, method="rk4")[-1]

    def run() -> Tensor:
        a, A, B, C, inv_tau, omega, w, h0 = inputs
        return scan(cross, Field(a, A, B, C, inv_tau, omega, w, "sigmoid"), h0)[0]

    return _call(inputs, run)


def _para_cfc(batch: int, length: int, channels: int, device: torch.device) -> Call:
    """pararnn-torch's layer by Newton's method, iterations as its package picks them, over x beside the time."""
    from pararnn import NewtonConfig, ParaCfC, ParaRNN

    net: nn.Module = ParaRNN(ParaCfC(channels + 1, channels), config=NewtonConfig(max_iters=None), solver="newton")
    return sequence(net.to(device), torch.randn(batch, length, channels + 1, device=device))
