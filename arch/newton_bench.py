"""Where Newton's method over time wins: against the fused sequential scan, the torch loop and pararnn's ParaCfC.

The times of a row come from one process, repeats taken in turn, so that a busy machine slows all of them alike; with
one thread they are processor time.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from arch.field import Gate
from arch.liquid_scan import LIQUID_SCAN
from arch.newton import DEFAULT, Newton, Tally, newton_scan
from harness.latency import synchronize

BATCHES, LENGTHS, CHANNELS = (1, 8), (256, 2048, 16384), 256
LOOP_LENGTH = 2048  # tokens above which a loop is not timed: its backward keeps every operation's result
Row = dict[str, float | int | None]
Run = Callable[[], Tensor]


def study(
    batches: Iterable[int] = BATCHES,
    lengths: Iterable[int] = LENGTHS,
    channels: int = CHANNELS,
    solver: str = "semi_implicit",
    substeps: int = 6,
    gate: Gate = "sigmoid",
    coupling: float = 0.1,
    options: Newton = DEFAULT,
    device: str = "cpu",
    repeats: int = 5,
) -> list[Row]:
    """A row for each batch and length, in float32, at the rates an LTC starts with and weights of scale `coupling`.

    iterations; fallbacks (sequences); residual, max |F_t(h_{t-1}) - h_t| that the last iteration began with; update,
    its relative one; difference, max |y - y of the sequential scan|, the states being of order 1. For each NAME of
    newton, sequential and loop the best of `repeats` in milliseconds, None where not timed: NAME_forward_ms, without
    gradients, and NAME_training_ms, with its backward. forward_ratio and training_ratio: the sequential scan's time
    over Newton's, above 1 where Newton's method wins.
    """
    rows = []
    for batch, length in itertools.product(batches, lengths):
        inputs = liquid_inputs(batch, length, channels, gate, coupling, device)
        call = (solver, substeps, gate, *inputs, None)
        facts = {"solver": solver, "coupling": "diagonal", "d_state": 1}
        scans = {
            "newton": partial(newton_scan, options=options),
            "sequential": LIQUID_SCAN.choose("auto", inputs[0].device, inputs[0].dtype, **facts),
        }
        row = {"batch": batch, "length": length} | _convergence(scans, call)
        if length <= LOOP_LENGTH:
            scans["loop"] = LIQUID_SCAN.reference
        runs = {name: lambda scan=scan, call=call: scan(*call)[0] for name, scan in scans.items()}
        forward, training = best_ms(runs, device, repeats, False), best_ms(runs, device, repeats, True)
        for name in ("newton", "sequential", "loop"):
            row |= {f"{name}_forward_ms": forward.get(name), f"{name}_training_ms": training.get(name)}
        row["forward_ratio"] = forward["sequential"] / forward["newton"]
        row["training_ratio"] = training["sequential"] / training["newton"]
        rows.append(row)
    return rows


def _convergence(scans: dict[str, Callable], call: tuple) -> Row:
    tally = Tally()
    with torch.no_grad():
        difference = scans["newton"](*call, record=tally.add)[0] - scans["sequential"](*call)[0]
    found = tally.last
    return {
        "iterations": found.iterations,
        "fallbacks": found.fallbacks,
        "residual": found.residuals[-1],
        "update": found.updates[-1],
        "difference": difference.abs().max().item(),
    }


def peer(
    batches: Iterable[int] = BATCHES,
    lengths: Iterable[int] = LENGTHS,
    channels: int = CHANNELS,
    device: str = "cpu",
    repeats: int = 5,
) -> list[Row]:
    """pararnn-torch's ParaCfC against the liquid scan, forward and backward in float32; [] where it is not installed.

    pararnn_ms: its layer by Newton's method, with the iterations its package picks; pararnn_loop_ms: the same layer
    token by token, which its own figures are relative to (None above LOOP_LENGTH). Its layer projects the input, so
    ours are given with a projection of the same size, channels to 2 * channels, and without: sequential_ms,
    sequential_projected_ms, newton_ms, newton_projected_ms (semi_implicit x 6, diagonal coupling).
    """
    if find_spec("pararnn") is None:
        return []
    from pararnn import NewtonConfig, ParaCfC, ParaRNN

    rows = []
    for batch, length in itertools.product(batches, lengths):
        x = torch.randn(batch, length, channels, device=device)
        x_and_time = torch.cat([x, x.new_ones(batch, length, 1)], dim=2).requires_grad_()
        cell = ParaCfC(channels + 1, channels).to(device)
        newton = ParaRNN(cell, config=NewtonConfig(max_iters=None), solver="newton")
        runs: dict[str, Run] = {"pararnn": partial(newton, x_and_time)}
        if length <= LOOP_LENGTH:
            runs["pararnn_loop"] = partial(ParaRNN(cell, solver="sequential"), x_and_time)
        times = best_ms(runs | liquid_layers(x.requires_grad_()), device, repeats, True)
        row = {"batch": batch, "length": length, "pararnn_iterations": newton.last_stats[0].iters}
        rows.append(row | {"pararnn_loop_ms": None} | {f"{name}_ms": value for name, value in times.items()})
    return rows


def liquid_layers(x: Tensor) -> dict[str, Run]:
    """The liquid scan and Newton's method by name, each alone and behind a projection of x (batch, T, D)."""
    batch, T, D = x.shape
    projection = nn.Linear(D, 2 * D, device=x.device)
    a, A, *rest = liquid_inputs(batch, T, D, "sigmoid", 0.1, x.device)
    facts = {"solver": "semi_implicit", "coupling": "diagonal", "d_state": 1}
    sequential = LIQUID_SCAN.choose("auto", x.device, x.dtype, **facts)
    bias, runs = a[:1, :1].detach(), {}
    for name, scan in {"sequential": sequential, "newton": newton_scan}.items():

        def alone(scan=scan, a=a, A=A) -> Tensor:
            return scan("semi_implicit", 6, "sigmoid", a, A, *rest, None)[0]

        def projected(run=alone, bias=bias) -> Tensor:
            a, A = projection(x).chunk(2, dim=2)
            return run(a=a + bias, A=A)

        runs |= {name: alone, f"{name}_projected": projected}
    return runs


def liquid_inputs(batch: int, T: int, D: int, gate: Gate, coupling: float, device) -> list[Tensor | None]:
    """a, A, B, C, inv_tau, omega, w and h0 as arch.ltc.LTC starts them, time constants from 1 to 4096 tokens."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    log_tau = torch.linspace(0.0, math.log(4096.0), D)
    f = 1 / (1 + log_tau.exp())
    a = normal(batch, T, D) + (torch.logit(f) if gate == "sigmoid" else f.expm1().log())
    rates = ((-log_tau).exp().unsqueeze(1), torch.ones(D, 1), coupling * normal(D))
    tensors = (a, normal(batch, T, D), None, None, *rates, torch.zeros(batch, D, 1))
    return [x if x is None else x.to(device).requires_grad_() for x in tensors]


def best_ms(runs: dict[str, Run], device: str, repeats: int, training: bool) -> dict[str, float]:
    """The shortest of each run's `repeats`, which alternate; training: with its backward.

    Before each an untimed call of its own, since what ran last leaves the caches and the allocator in its own state.
    """
    device = torch.device(device)
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.set_grad_enabled(training):
        for _, (name, run) in itertools.product(range(repeats), runs.items()):
            for _ in range(2):
                synchronize(device)
                start = clock()
                y = run()
                if training:
                    y.sum().backward()
                synchronize(device)
                taken = 1e3 * (clock() - start)
            times[name].append(taken)
    return {name: min(values) for name, values in times.items()}
