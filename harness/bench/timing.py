"""Stopwatch of the bench: contestants by turns in one process, at a length each can bear."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.latency import synchronize

PROBE = 16  # tokens of the first, untimed call
QUICK_MS = 200  # a shorter call is preceded by an untimed one: what ran last leaves the caches in its own state


@dataclass(frozen=True)
class Limits:
    """seconds: of one contestant in one cell, about. rounds: at most so many timed calls of each."""

    seconds: float = 6.0
    rounds: int = 5


@dataclass(frozen=True)
class Call:
    """One thing to time. run: gives the output that is differentiated. inputs: what it reads and has gradients by."""

    run: Callable[[], Tensor]
    inputs: list[Tensor]


@dataclass(frozen=True)
class Contestant:
    """One implementation of an operation.

    make: (batch, length, channels) -> Call. needs: modules without which it is skipped. longest: tokens of its longest
    sequence (the memory of a loop's backward grows with them). training: whether it has a backward.
    """

    name: str
    make: Callable[[int, int, int], Call]
    needs: tuple[str, ...] = ()
    longest: int | None = None
    training: bool = True


@dataclass
class Times:
    """Milliseconds of the timed calls, over sequences of `length` tokens."""

    length: int
    call: Call
    forward_ms: list[float] = field(default_factory=list)
    training_ms: list[float] = field(default_factory=list)

    def median(self, training: bool) -> float | None:
        values = self.training_ms if training else self.forward_ms
        return statistics.median(values) if values else None


def time_call(call: Call, training: bool, device: torch.device) -> float:
    """Milliseconds of one call, with its backward where `training`."""
    for tensor in call.inputs:
        tensor.grad = None
    with torch.set_grad_enabled(training):
        synchronize(device)
        start = time.perf_counter()
        y = call.run()
        if training:
            y.backward(torch.ones_like(y))
        synchronize(device)
    return 1e3 * (time.perf_counter() - start)


def bearable(contestant: Contestant, batch: int, length: int, channels: int, limits: Limits, device) -> int:
    """The tokens that a contestant can be timed at: `length`, or the largest power of two within the limits."""
    probe = min(PROBE, length, contestant.longest or length)
    call = contestant.make(batch, probe, channels)
    time_call(call, contestant.training, device)  # compiles
    per_token = time_call(call, contestant.training, device) / probe
    most = min(length, contestant.longest or length)
    affordable = 1e3 * limits.seconds / 3 / per_token
    return most if affordable >= most else max(probe, 2 ** int(affordable).bit_length() // 2)


def measure(
    contestants: list[Contestant], batch: int, length: int, channels: int, limits: Limits, device: torch.device
) -> dict[str, Times]:
    """Times all contestants by turns, round after round, until each has had its seconds or its rounds."""
    times, spent = {}, {}
    for contestant in contestants:
        tokens = bearable(contestant, batch, length, channels, limits, device)
        times[contestant.name] = Times(tokens, contestant.make(batch, tokens, channels))
        spent[contestant.name] = 0.0
    for turn in range(limits.rounds):
        for contestant in contestants:
            own = times[contestant.name]
            if turn and spent[contestant.name] * (turn + 1) / turn > 1e3 * limits.seconds:
                continue
            for training in (False, True)[: 1 + contestant.training]:
                taken = time_call(own.call, training, device)
                spent[contestant.name] += taken
                if taken < QUICK_MS:
                    taken = time_call(own.call, training, device)
                (own.training_ms if training else own.forward_ms).append(taken)
    return times
