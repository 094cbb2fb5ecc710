"""What the bench compares of the liquid family: the scan and CfC, against their loops and the packages of others."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from arch.cfc.mixer import CfC
from arch.field import Field, Gate
from arch.gradients import Adjoint, scan
from arch.ltc.mixer import LTC
from arch.ltc.scan import LIQUID_SCAN
from arch.solvers import Exponential, RungeKutta, SemiImplicit, Solver
from bench.comparison import Comparison, Projected, layer, sequence
from bench.timing import Call, Contestant

SUBSTEPS = 6
LOOP_TOKENS = 2**14  # of a loop, whose backward keeps every operation's result
NCPS_TOKENS = 2**9  # of ncps' LTC, which keeps units^2 numbers an unfolding, a token and a sequence
COMPILED_TOKENS = 8  # of one call of a compiled loop: more of them take minutes to compile


def liquid_scan(device: torch.device) -> Comparison:
    """The scan of a diagonal liquid cell from given a and A, and other packages' diagonal cells."""
    fused = [
        _fused("fused, semi_implicit x 6", SemiImplicit(SUBSTEPS), device),
        _fused("fused, semi_implicit x 1", SemiImplicit(1), device),
        _fused("fused, euler", RungeKutta("euler"), device),
        _fused("fused, rk4", RungeKutta("rk4"), device),
        _fused("fused, exponential", Exponential(), device),
        _fused("fused, semi_implicit x 6, 16 states", SemiImplicit(SUBSTEPS), device, states=16),
        Contestant("fused, semi_implicit x 6, projecting", lambda *size: _projecting(*size, device)),
    ]
    peers = [
        Contestant("torch loop", lambda *size: _loop(*size, device), most_tokens=LOOP_TOKENS),
        Contestant(f"torch.compile, {COMPILED_TOKENS} tokens a call", _compiled(device), most_tokens=LOOP_TOKENS),
        Contestant("torchdiffeq rk4", lambda *size: _torchdiffeq(*size, device), most_tokens=LOOP_TOKENS),
        Contestant(
            "torchdiffeq rk4, adjoint",
            lambda *size: _scanning(partial(Adjoint().scan, RungeKutta("rk4")), _field(*size, device)),
            most_tokens=LOOP_TOKENS,
            exact=lambda *size: _torchdiffeq(*size, device),
        ),
        Contestant("pararnn-torch ParaCfC", lambda *size: para_cfc(*size, device), needs=("pararnn",)),
    ]
    note = (
        "The fused rows, the torch loop, torch.compile and torchdiffeq compute the diagonal cell, whose operations a "
        "substep grow with the channels, from a and A given; `projecting` finds these from x by a product of "
        "channels x 2 channels. ParaCfC is a diagonal CfC with a projection of its input, by Newton's method. "
        "torchdiffeq takes one step of rk4 a token."
    )
    return Comparison("liquid scan", [*fused, *peers], note)


def published_ltc(device: torch.device) -> Comparison:
    """The layer of the published cell, O(units^2) a substep, and its authors' package."""

    def ours(**options) -> Callable[[int, int, int], Call]:
        return lambda batch, length, channels: layer(LTC(channels, **options), batch, length, channels, device)

    cell = {"solver": SemiImplicit(SUBSTEPS), "coupling": "dense", "reversal": "constant", "d_conv": 0}
    loop = ours(**cell, kernel="reference")
    contestants = [
        Contestant("fused", ours(**cell)),
        Contestant("torch loop", loop, most_tokens=LOOP_TOKENS),
        Contestant("ncps LTC", lambda *size: _ncps_ltc(*size, device), needs=("ncps",), most_tokens=NCPS_TOKENS),
        Contestant("another cell: diagonal, fused", ours(**cell | {"coupling": "diagonal"})),
    ]
    note = (
        "Every unit's gate sees all units: units² operations a substep (semi_implicit x 6). In ours it is one sigmoid "
        "of their weighted sum, in ncps' the sum of one sigmoid a pair. Ours has a projection before and after it, "
        "ncps' a sigmoid for each pair of input and unit. The last row is no peer but another cell, whose operations "
        "grow with the units and not with their square."
    )
    return Comparison("published LTC", contestants, note)


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


def liquid_field(batch: int, T: int, D: int, gate: Gate, coupling: float, device) -> Field:
    """A sequence's field as arch.ltc.mixer.LTC starts it, time constants from 1 to 4096 tokens; one state a channel."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    log_tau = torch.linspace(0.0, math.log(4096.0), D)
    f = 1 / (1 + log_tau.exp())
    a = normal(batch, T, D) + (torch.logit(f) if gate == "sigmoid" else f.expm1().log())
    rates = ((-log_tau).exp().unsqueeze(1), torch.ones(D, 1), coupling * normal(D))
    field = Field(a, normal(batch, T, D), None, None, *rates, gate)
    return field.map(lambda x: x.to(device).requires_grad_())


def fresh(field: Field) -> Tensor:
    """The state that a sequence starts from, differentiated."""
    batch, _, D = field.a.shape
    return field.a.new_zeros(batch, D, field.inv_tau.shape[1]).requires_grad_()


def projecting(scan: Callable, batch: int, T: int, D: int, device: torch.device) -> Call:
    """A scan of the cell of `liquid_field`, a and A projected from x (batch, T, D)."""
    field = liquid_field(batch, T, D, "sigmoid", 0.1, device)
    bias, x, h0 = field.a[:1, :1].detach(), torch.randn(batch, T, D, device=device, requires_grad=True), fresh(field)
    projection = nn.Linear(D, 2 * D, device=device)

    def run() -> Tensor:
        a, A = projection(x).chunk(2, dim=2)
        return scan(SemiImplicit(SUBSTEPS), replace(field, a=a + bias, A=A), h0)[0]

    return Call(run, [x, *projection.parameters(), *field.tensors()[2:], h0])


def para_cfc(batch: int, length: int, channels: int, device: torch.device, solver: str = "newton") -> Call:
    """pararnn-torch's layer, by Newton's method with the iterations its package picks, over x beside times of 1."""
    from pararnn import NewtonConfig, ParaCfC, ParaRNN

    net = ParaRNN(ParaCfC(channels + 1, channels), config=NewtonConfig(max_iters=None), solver=solver)
    x = torch.randn(batch, length, channels, device=device)
    return sequence(net.to(device), torch.cat([x, x.new_ones(batch, length, 1)], dim=2))


def fused_scan(device: torch.device, solver: str = "semi_implicit", states: int = 1) -> Callable:
    """The scan of the diagonal cell as a run would choose it."""
    return LIQUID_SCAN.choose("auto", device, torch.float32, solver=solver, coupling="diagonal", d_state=states)


def _fused(name: str, solver: Solver, device: torch.device, states: int = 1) -> Contestant:
    run = fused_scan(device, solver.name, states)

    def make(*size: int) -> Call:
        return _scanning(partial(run, solver), _field(*size, device, states))

    def exact(*size: int) -> Call:
        return _scanning(partial(LIQUID_SCAN.reference, solver), _field(*size, device, states))

    return Contestant(name, make, exact=exact)


def _field(batch: int, length: int, channels: int, device: torch.device, states: int = 1) -> Field:
    """As an LTC starts it; B and C normal and omega 1..N where states > 1."""
    field = liquid_field(batch, length, channels, "sigmoid", 0.1, device)
    if states == 1:
        return field
    B, C = torch.randn(2, batch, length, states, device=device)
    omega = torch.arange(1.0, states + 1, device=device).repeat(channels, 1)
    wide = replace(field, B=B, C=C, inv_tau=field.inv_tau.repeat(1, states), omega=omega)
    return wide.map(lambda x: x.detach().clone().requires_grad_())


def _scanning(run: Callable, field: Field) -> Call:
    """A call of run(field, h0), differentiated by all of both."""
    h0 = fresh(field)
    return Call(lambda: run(field, h0)[0], [*field.tensors(), h0])


def _projecting(batch: int, length: int, channels: int, device: torch.device) -> Call:
    return projecting(fused_scan(device), batch, length, channels, device)


def _loop(batch: int, length: int, channels: int, device: torch.device) -> Call:
    return _scanning(partial(LIQUID_SCAN.reference, SemiImplicit(SUBSTEPS)), _field(batch, length, channels, device))


def _compiled(device: torch.device) -> Callable[[int, int, int], Call]:
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)  # shapes x with and without
    tokens = torch.compile(partial(_tokens, SemiImplicit(SUBSTEPS)), dynamic=False, fullgraph=True)

    def make(batch: int, length: int, channels: int) -> Call:
        return _scanning(partial(_by_chunks, tokens), _field(batch, length, channels, device))

    return make


def _tokens(solver: SemiImplicit, a: Tensor, A: Tensor, inv_tau, omega, w, h: Tensor) -> tuple[Tensor, Tensor]:
    """Some tokens (B, T, D) of the diagonal cell from h (B, D, 1): the states as read (B, T, D), and the last."""
    cross = partial(_cross, solver)
    return scan(cross, Field(a, A, None, None, inv_tau, omega, w, "sigmoid"), h)


def _cross(solver: SemiImplicit, field: Field, h: Tensor, _elapsed) -> Tensor:
    return solver.integrate(field, h)


def _by_chunks(tokens: Callable, field: Field, h: Tensor) -> tuple[Tensor, Tensor]:
    outputs, rates = [], (field.inv_tau, field.omega, field.coupling)
    for a_t, A_t in zip(field.a.split(COMPILED_TOKENS, 1), field.A.split(COMPILED_TOKENS, 1), strict=True):
        y, h = tokens(a_t, A_t, *rates, h)
        outputs.append(y)
    return torch.cat(outputs, dim=1), h


def _torchdiffeq(batch: int, length: int, channels: int, device: torch.device) -> Call:
    """The same cell by torchdiffeq's rk4, one step a token, backpropagated through."""
    from torchdiffeq import odeint

    ends = torch.tensor([0.0, 1.0], device=device)

    def cross(field: Field, h: Tensor, _elapsed) -> Tensor:
        return odeint(lambda _, state: field.derivative(state), h, ends, method="rk4")[-1]

    return _scanning(partial(scan, cross), _field(batch, length, channels, device))


def _ncps_ltc(batch: int, length: int, channels: int, device: torch.device) -> Call:
    from ncps import torch as ncps

    return layer(ncps.LTC(channels, channels, ode_unfolds=SUBSTEPS), batch, length, channels, device)
