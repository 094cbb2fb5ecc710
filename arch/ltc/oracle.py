"""Third-party integrators of the liquid mixer's own field, with its weights: its oracles.

torchdiffeq integrates for the Runge-Kutta rules (the same tableaus), for the adaptive solvers (dopri5 at 1e-10) and,
where the gate ignores the state (the flow is then linear and the solver exact), for the exponential solver, and for the
reflected one as far as the middle of a token. ncps, by the authors of the published cell, integrates for the
semi-implicit solver: its fused step is ours for a cell of one synapse a neuron. A gate that sees several channels is no
synapse of ncps, so ncps is handed what it sees as an input, one fused step at a time. Nobody else has the exponential
solver under a coupling, where only the project's own oracle stands.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from arch.field import Field, couple
from arch.ltc.mixer import LTC
from arch.solvers import normalised
from harness.checks.oracles import Oracle, oracle_of

TIGHT = {"method": "dopri5", "rtol": 1e-10, "atol": 1e-12}


@oracle_of(LTC)
def integrator(mixer: LTC) -> Oracle | None:
    """The oracle of this LTC's configuration, or None where there is none."""
    solver, adjoint = mixer.solver, mixer.gradient.name == "adjoint"
    if solver.adaptive:
        return Oracle("torchdiffeq dopri5 at 1e-10", _forward(mixer, _odeint(TIGHT, 1)), 10 * solver.rtol)
    if solver.torchdiffeq_method is not None:
        cross = _odeint({"method": solver.torchdiffeq_method}, solver.substeps)
        if solver.name == "rk4" and not adjoint:
            return Oracle("torchdiffeq rk4_step_func", _forward(mixer, _classic_rk4(solver.substeps)))
        return Oracle(f"torchdiffeq {solver.torchdiffeq_method}", _forward(mixer, cross))
    if solver.name == "exponential" and mixer.coupling == "none":
        return Oracle("torchdiffeq dopri5 at 1e-10", _forward(mixer, _odeint(TIGHT, 1)))
    if solver.name == "reflected" and mixer.coupling == "none" and solver.substeps == 1:
        return Oracle("torchdiffeq dopri5 at 1e-10, reflected", _forward(mixer, _reflected(_odeint(TIGHT, 1, 0.5))))
    if solver.name == "semi_implicit" and mixer.d_state == 1 and mixer.gate == "sigmoid":
        return Oracle("ncps LTCCell", _forward(mixer, _ncps(mixer)))
    return None


def _forward(mixer: LTC, cross: Callable[[Field, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """(B, T, d_model) -> the same: the mixer's projections around a third party's crossing of a token, in float64."""

    def forward(x: Tensor) -> Tensor:
        state = mixer.init_state(x.shape[0], device=x.device, dtype=x.dtype)
        sequence = mixer.field(mixer.convolve(x, state)[0])
        h = state["h"].double()
        outputs = []
        for field in sequence.tokens():
            field = _double(field)
            h = cross(field, h)
            outputs.append(field.read_out(h))
        return mixer.out_proj(torch.stack(outputs, dim=1).to(x.dtype))

    return forward


def _double(field: Field) -> Field:
    tensors = {name: value.double() for name, value in vars(field).items() if isinstance(value, Tensor)}
    return replace(field, **tensors)


def _odeint(options: dict, substeps: int, end: float = 1) -> Callable[[Field, Tensor], Tensor]:
    from torchdiffeq import odeint

    grid = torch.linspace(0, end, substeps + 1, dtype=torch.float64)
    return lambda field, h: odeint(normalised(field, None), h, grid.to(h.device), **options)[-1]


def _reflected(to_middle: Callable[[Field, Tensor], Tensor]) -> Callable[[Field, Tensor], Tensor]:
    return lambda field, h: 2 * to_middle(field, h) - h


def _classic_rk4(substeps: int) -> Callable[[Field, Tensor], Tensor]:
    """torchdiffeq's public rk4 is the 3/8 rule; the classic one starts its multistep methods, by this function."""
    from torchdiffeq._impl.rk_common import rk4_step_func

    def cross(field: Field, h: Tensor) -> Tensor:
        function = lambda t, y, perturb=False: field.derivative(y)  # noqa: E731
        for _ in range(substeps):
            h = h + rk4_step_func(function, 0.0, 1 / substeps, 1 / substeps, h)
        return h

    return cross


def _ncps(mixer: LTC) -> Callable[[Field, Tensor], Tensor]:
    """ncps' fused step of D neurons: (cm v / dt + w E s) / (cm / dt + gleak + w s), s = sigmoid(sigma (v - mu)).

    With cm = w = 1, gleak = 1/tau and vleak = 0 it is ours. A diagonal coupling is each neuron's synapse to itself,
    with sigma = w and mu = -a / w; else a sensory synapse carries the gate's argument: a and, where the gate sees other
    channels, for each fused step anew, what they add. All have A as their potential E.
    """
    from ncps.torch import LTCCell
    from ncps.wirings import Wiring

    D = mixer.d_inner
    wiring = Wiring(D)
    wiring.set_output_dim(D)
    wiring.build(D)
    for neuron in range(D):
        wiring.add_synapse(neuron, neuron, 1)
        wiring.add_sensory_synapse(neuron, neuron, 1)
    mixed, substeps = mixer.coupling in ("heads", "dense"), mixer.solver.substeps
    unfolds = 1 if mixed else substeps
    cell = LTCCell(wiring, D, input_mapping=None, output_mapping=None, ode_unfolds=unfolds, epsilon=0.0)

    def cross(field: Field, h: Tensor) -> Tensor:
        cell.to(h.device)
        one, zero = torch.ones(D).to(h), torch.zeros(D).to(h)
        values = {"gleak": field.inv_tau[:, 0], "vleak": zero, "cm": one, "sigma": zero, "mu": zero, "erev": zero}
        values |= {"sensory_sigma": one, "sensory_mu": zero, "sensory_erev": field.A.diag_embed()}
        values |= {"w": zero, "sensory_w": one}
        if field.coupled == "diagonal":
            w = torch.where(field.coupling.abs() < 1e-9, 1e-9, field.coupling)
            values |= {"sigma": w, "mu": (-field.a / w).diag_embed(), "erev": field.A.diag_embed()}
            values |= {"w": one, "sensory_w": zero}
        cell._params.update(values)
        if not mixed:
            return cell(field.a, h[..., 0])[1].unsqueeze(-1)
        for _ in range(substeps):
            seen = field.a + couple(field.read_out(h), field.coupling)
            h = cell(seen, h[..., 0], 1 / substeps)[1].unsqueeze(-1)
        return h

    return cross
