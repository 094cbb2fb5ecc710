"""Where Newton's method over time wins: against the fused sequential scan, the torch loop and pararnn's ParaCfC."""

from collections.abc import Callable
from functools import partial

import torch

from arch.field import Field
from arch.ltc.newton import DEFAULT, newton_scan
from arch.ltc.scan import LIQUID_SCAN
from arch.newton import Newton, Tally
from arch.solvers import SemiImplicit
from bench.liquid import LOOP_TOKENS, SUBSTEPS, fresh, fused_scan, liquid_field, para_cfc, projecting
from bench.timing import Call, Contestant, Limits, Times, measure

Row = dict[str, float | int | None]
SOLVER = SemiImplicit(SUBSTEPS)


def study(
    batch: int, length: int, channels: int, device: torch.device, limits: Limits, options: Newton = DEFAULT
) -> Row:
    """A row in float32, semi_implicit x 6 on a diagonal coupling, at the rates an LTC starts with.

    iterations; fallbacks (sequences); residual, max |F_t(h_{t-1}) - h_t| that the last iteration began with; update,
    its relative one; difference, max |y - y of the sequential scan|, the states being of order 1. For each NAME of
    newton, sequential and loop the median in milliseconds, None where the length is too long for it: NAME_forward_ms,
    without gradients, and NAME_training_ms, with its backward. forward_ratio and training_ratio: Newton's time over
    the sequential scan's, below 1 where Newton's method wins.
    """
    scans = {"newton": _by(options), "sequential": fused_scan(device), "loop": LIQUID_SCAN.reference}
    contestants = [Contestant(name, _alone(scan, device)) for name, scan in scans.items() if name != "loop"]
    contestants.append(Contestant("loop", _alone(scans["loop"], device), most_tokens=LOOP_TOKENS))
    times = measure(contestants, batch, length, channels, limits, device)
    row: Row = _convergence(scans, liquid_field(batch, length, channels, "sigmoid", 0.1, device), options)
    for name, own in times.items():
        row |= {f"{name}_{what}_ms": _at(own, length, what == "training") for what in ("forward", "training")}
    for what in ("forward", "training"):
        newton, sequential = (times[name].per_token(what == "training") for name in ("newton", "sequential"))
        row[f"{what}_ratio"] = newton / sequential
    return row


def peer(batch: int, length: int, channels: int, device: torch.device, limits: Limits) -> Row:
    """pararnn-torch's ParaCfC against the liquid scan, forward and backward in float32, medians in milliseconds.

    pararnn_ms: its layer by Newton's method, with the iterations its package picks; pararnn_loop_ms: the same layer
    token by token, which its own figures are relative to. Its layer projects the input, so ours are given with a
    projection of the same size, channels to 2 * channels, and without: sequential_ms, sequential_projected_ms,
    newton_ms, newton_projected_ms. None where the length is too long for one.
    """
    scans = {"newton": _by(DEFAULT), "sequential": fused_scan(device)}
    contestants = [
        Contestant("pararnn", lambda *size: para_cfc(*size, device)),
        Contestant("pararnn_loop", lambda *size: para_cfc(*size, device, "sequential"), most_tokens=LOOP_TOKENS),
        *(Contestant(name, _alone(scan, device)) for name, scan in scans.items()),
        *(Contestant(f"{name}_projected", _projected(scan, device)) for name, scan in scans.items()),
    ]
    times = measure(contestants, batch, length, channels, limits, device)
    return {f"{name}_ms": _at(own, length, True) for name, own in times.items()}


def _by(options: Newton) -> Callable:
    return partial(newton_scan, options=options)


def _alone(scan: Callable, device: torch.device) -> Callable[[int, int, int], Call]:
    def make(batch: int, length: int, channels: int) -> Call:
        field = liquid_field(batch, length, channels, "sigmoid", 0.1, device)
        h0 = fresh(field)
        return Call(lambda: scan(SOLVER, field, h0)[0], [*field.tensors(), h0])

    return make


def _projected(scan: Callable, device: torch.device) -> Callable[[int, int, int], Call]:
    return lambda *size: projecting(scan, *size, device)


def _at(own: Times, length: int, training: bool) -> float | None:
    return own.median(training) if own.length == length else None


def _convergence(scans: dict[str, Callable], field: Field, options: Newton) -> Row:
    tally = Tally()
    with torch.no_grad():
        h0 = fresh(field)
        found = newton_scan(SOLVER, field, h0, options=options, record=tally.add)[0]
        difference = found - scans["sequential"](SOLVER, field, h0)[0]
    last = tally.last
    return {
        "iterations": last.iterations,
        "fallbacks": last.fallbacks,
        "residual": last.residuals[-1],
        "update": last.updates[-1],
        "difference": difference.abs().max().item(),
    }
