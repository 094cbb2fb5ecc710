"""What the bench compares of the liquid family: the scan and CfC, against their loops and the packages of others."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from arch.cfc.mixer import CfC
from arch.field import Field, Gate
from arch.gradients import scan
from arch.ltc.mixer import LTC
from arch.ltc.scan import LIQUID_SCAN
from arch.solvers import SemiImplicit
from bench.comparison import Comparison, Projected, layer, sequence
from bench.timing import Call, Contestant

SUBSTEPS = 6
LOOP_TOKENS = 2**14  # of a loop, whose backward keeps every operation's result
DENSE_TOKENS = 2**9  # of a dense cell in ncps, which keeps units^2 numbers an unfolding, a token and a sequence
COMPILED_TOKENS = 8  # of one call of a compiled loop: more of them take minutes to compile
Run = Callable[[], Tensor]


def liquid_scan(device: torch.device) -> Comparison:
    """The scan of a diagonal liquid cell from given a and A, and other packages' cells."""
    fused = [
        _fused("fused, semi_implicit x 6", "semi_implicit", SUBSTEPS, device),
        _fused("fused, semi_implicit x 1", "semi_implicit", 1, device),
        _fused("fused, euler", "euler", 1, device),
        _fused("fused, rk4", "rk4", 1, device),
        _fused("fused, exponential", "exponential", 1, device),
        _fused("fused, semi_implicit x 6, 16 states", "semi_implicit", SUBSTEPS, device, states=16),
        Contestant("fused, semi_implicit x 6, projecting", lambda *size: _projecting(*size, device)),
    ]
    peers = [
        Contestant("torch loop", lambda *size: _loop(*size, device), most_tokens=LOOP_TOKENS),
        Contestant(f"torch.compile, {COMPILED_TOKENS} tokens a call", _compiled(device), most_tokens=LOOP_TOKENS),
        Contestant("torchdiffeq rk4", lambda *size: _torchdiffeq(*size, device), most_tokens=LOOP_TOKENS),
        Contestant("torch loop, dense cell", lambda *size: _dense(*size, device), most_tokens=LOOP_TOKENS),
        Contestant("ncps LTC", lambda *size: _ncps_ltc(*size, device), needs=("ncps",), most_tokens=DENSE_TOKENS),
        Contestant("pararnn-torch ParaCfC", lambda *size: para_cfc(*size, device), needs=("pararnn",)),
    ]
    note = (
        "The fused rows, the torch loop, torch.compile and torchdiffeq compute the diagonal cell from a and A given, "
        "`projecting` finds these from x by a product of channels x 2 channels. ncps' LTC is the published dense cell, "
        "units² operations a substep (semi_implicit x 6); `dense cell` is ours of that kind, in torch, with its "
        "projections. ParaCfC is a diagonal CfC with a projection of its input, by Newton's method. torchdiffeq takes "
        "one step of rk4 a token."
    )
    return Comparison("liquid scan", [*fused, *peers], note)


def cfc(device: torch.device) -> Comparison:
    """A CfC layer of one backbone layer and the projection of its output."""

    def ours(kernel: str):
        return lambda batch, length, channels: layer(CfC(channels, kernel=kernel), batch, length, channels, device)

    def ncps(batch: int, length: int, channels: int) -> Call:
        from ncps.torch import CfC as Other

        other = Other(channels, channels, mode="default", backbone_units=channels, backbone_layers=1)
        return layer(Projected(other, channels), batch, length, channels, device)

    contestants = [
        Contestant("fused", ours("auto")),
        Contestant("torch loop", ours("reference"), most_tokens=LOOP_TOKENS),
        Contestant("ncps CfC + Linear", ncps, needs=("ncps",), most_tokens=LOOP_TOKENS),
        Contestant("pararnn-torch ParaCfC", lambda *size: para_cfc(*size, device), needs=("pararnn",)),
    ]
    note = (
        "Ours and ncps' see the whole state through a dense backbone of as many units, then project their output. "
        "ParaCfC's gates are diagonal in the state, so that its tokens can be solved for at once, and it has no "
        "projection of its output: another and a smaller cell."
    )
    return Comparison("CfC", contestants, note)


def liquid_inputs(batch: int, T: int, D: int, gate: Gate, coupling: float, device) -> list[Tensor | None]:
    """a, A, B, C, inv_tau, omega, w and h0 as arch.ltc.mixer.LTC starts them, time constants from 1 to 4096 tokens."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    log_tau = torch.linspace(0.0, math.log(4096.0), D)
    f = 1 / (1 + log_tau.exp())
    a = normal(batch, T, D) + (torch.logit(f) if gate == "sigmoid" else f.expm1().log())
    rates = ((-log_tau).exp().unsqueeze(1), torch.ones(D, 1), coupling * normal(D))
    tensors = (a, normal(batch, T, D), None, None, *rates, torch.zeros(batch, D, 1))
    return [x if x is None else x.to(device).requires_grad_() for x in tensors]


def projecting(scan: Callable, batch: int, T: int, D: int, device: torch.device) -> Call:
    """A scan of the cell of `liquid_inputs`, a and A projected from x (batch, T, D)."""
    a, _, *rest = liquid_inputs(batch, T, D, "sigmoid", 0.1, device)
    bias, x = a[:1, :1].detach(), torch.randn(batch, T, D, device=device, requires_grad=True)
    projection = nn.Linear(D, 2 * D, device=device)

    def run() -> Tensor:
        a, A = projection(x).chunk(2, dim=2)
        return scan("semi_implicit", SUBSTEPS, "sigmoid", a + bias, A, *rest, None)[0]

    return Call(run, [x, *projection.parameters(), *(r for r in rest if r is not None)])


def para_cfc(batch: int, length: int, channels: int, device: torch.device, solver: str = "newton") -> Call:
    """pararnn-torch's layer, by Newton's method with the iterations its package picks, over x beside times of 1."""
    from pararnn import NewtonConfig, ParaCfC, ParaRNN

    net = ParaRNN(ParaCfC(channels + 1, channels), config=NewtonConfig(max_iters=None), solver=solver)
    x = torch.randn(batch, length, channels, device=device)
    return sequence(net.to(device), torch.cat([x, x.new_ones(batch, length, 1)], dim=2))


def fused_scan(device: torch.device, solver: str = "semi_implicit", states: int = 1) -> Callable:
    """The scan of the diagonal cell as a run would choose it."""
    return LIQUID_SCAN.choose("auto", device, torch.float32, solver=solver, coupling="diagonal", d_state=states)


def _fused(name: str, solver: str, substeps: int, device: torch.device, states: int = 1) -> Contestant:
    run = fused_scan(device, solver, states)

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


def _call(inputs: list[Tensor | None], run: Run) -> Call:
    return Call(run, [x for x in inputs if x is not None])


def _projecting(batch: int, length: int, channels: int, device: torch.device) -> Call:
    return projecting(fused_scan(device), batch, length, channels, device)


def _loop(batch: int, length: int, channels: int, device: torch.device) -> Call:
    inputs = _inputs(batch, length, channels, device)
    return _call(inputs, lambda: LIQUID_SCAN.reference("semi_implicit", SUBSTEPS, "sigmoid", *inputs, None)[0])


def _compiled(device: torch.device) -> Callable[[int, int, int], Call]:
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)  # shapes x with and without
    tokens = torch.compile(partial(_tokens, SemiImplicit(SUBSTEPS)), dynamic=False, fullgraph=True)

    def make(batch: int, length: int, channels: int) -> Call:
        inputs = _inputs(batch, length, channels, device)
        return _call(inputs, lambda: _by_chunks(tokens, *inputs))

    return make


def _tokens(solver: SemiImplicit, a: Tensor, A: Tensor, inv_tau, omega, w, h: Tensor) -> tuple[Tensor, Tensor]:
    """Some tokens (B, T, D) of the diagonal cell from h (B, D, 1): the states as read (B, T, D), and the last."""
    cross = partial(_cross, solver)
    return scan(cross, Field(a, A, None, None, inv_tau, omega, w, "sigmoid"), h)


def _cross(solver: SemiImplicit, field: Field, h: Tensor, _elapsed) -> Tensor:
    return solver.integrate(field, h)


def _by_chunks(tokens: Callable, a, A, _B, _C, inv_tau, omega, w, h) -> Tensor:
    outputs = []
    for a_t, A_t in zip(a.split(COMPILED_TOKENS, 1), A.split(COMPILED_TOKENS, 1), strict=True):
        y, h = tokens(a_t, A_t, inv_tau, omega, w, h)
        outputs.append(y)
    return torch.cat(outputs, dim=1)


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


def _dense(batch: int, length: int, channels: int, device: torch.device) -> Call:
    mixer = LTC(channels, solver=SemiImplicit(SUBSTEPS), coupling="dense", reversal="constant", d_conv=0)
    return layer(mixer, batch, length, channels, device)


def _ncps_ltc(batch: int, length: int, channels: int, device: torch.device) -> Call:
    from ncps import torch as ncps

    return layer(ncps.LTC(channels, channels, ode_unfolds=SUBSTEPS), batch, length, channels, device)
