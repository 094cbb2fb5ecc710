"""The bench's stopwatch: contestants interleaved in one process, each at the longest length it can afford."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from harness.machine.memory import reused_memory
from harness.measurement.latency import synchronize

PROBE = 16  # tokens of the first, untimed call
QUICK_MS = 200  # a shorter call follows an untimed one, which refills the caches that another contestant emptied
LEAST_ROUNDS = 2
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """seconds: about the time of one contestant in one cell, warm-up not counted. rounds: the most timed calls."""

    seconds: float = 4.0
    rounds: int = 5


@dataclass(frozen=True)
class Call:
    """One thing to time. run: returns the output to differentiate. inputs: the tensors it reads, gradients included."""

    run: Callable[[], Tensor]
    inputs: list[Tensor]


@dataclass(frozen=True)
class Contestant:
    """One implementation of an operation.

    make: (batch, length, channels) -> Call. needs: modules without which it is skipped. most_tokens: the largest
    batch x length it is given (the memory of a loop's backward grows with it). training: whether it has a backward.
    exact: of one that computes float32 alone, the same call with the same inputs in the default type; None: make.
    """

    name: str
    make: Callable[[int, int, int], Call]
    needs: tuple[str, ...] = ()
    most_tokens: int | None = None
    training: bool = True
    exact: Callable[[int, int, int], Call] | None = None


@dataclass
class Times:
    """Milliseconds of the timed calls, over sequences of `length` tokens."""

    length: int
    call: Call
    forward_ms: list[float] = field(default_factory=list)
    training_ms: list[float] = field(default_factory=list)

    def of(self, training: bool) -> list[float]:
        return self.training_ms if training else self.forward_ms

    def median(self, training: bool) -> float | None:
        return statistics.median(self.of(training)) if self.of(training) else None

    def per_token(self, training: bool) -> float:
        """The median over the tokens of a sequence."""
        return self.median(training) / self.length


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


@contextmanager
def undisturbed() -> Iterator[None]:
    """Reuses freed memory, as training does, and keeps the garbage collector out of timed calls."""
    gc.collect()
    gc.disable()
    try:
        with reused_memory():
            yield
    finally:
        gc.enable()


def affordable(contestant: Contestant, batch: int, length: int, channels: int, limits: Limits, device) -> Times:
    """A contestant at `length`, or at the longest shorter one whose rounds fit the limits.

    The length grows step by step, since the time of a short sequence predicts little of a long one's. The call that is
    returned has run at its own length already, so that no compilation or first touch of memory is timed.
    """
    most = min(length, max(1, contestant.most_tokens // batch)) if contestant.most_tokens else length
    budget, tokens, found = 1e3 * limits.seconds / LEAST_ROUNDS, min(PROBE, most), None
    while True:
        call = contestant.make(batch, tokens, channels)
        taken = _warm(call, contestant.training, device)
        if found is not None and taken > budget:
            return found  # a time that grows faster than the length
        found = Times(tokens, call)
        growth = next((growth for growth in (4, 2) if taken * min(growth, most / tokens) <= budget), 1)
        if tokens == most or growth == 1:
            return found
        tokens = min(most, growth * tokens)


def in_turn(contestants: Sequence[T], turn: int) -> list[T]:
    """The order of one round: every round begins with another contestant, so that none is always first."""
    first = turn % len(contestants)
    return [*contestants[first:], *contestants[:first]]


def _warm(call: Call, training: bool, device: torch.device) -> float:
    """Milliseconds of a call after one untimed call of each kind."""
    for with_backward in (False, True)[: 1 + training]:
        time_call(call, with_backward, device)
    return time_call(call, training, device)


def measure(
    contestants: list[Contestant], batch: int, length: int, channels: int, limits: Limits, device: torch.device
) -> dict[str, Times]:
    """Times all contestants, interleaved, until each has had its rounds or, after LEAST_ROUNDS, spent its seconds."""
    with undisturbed():
        times = {c.name: affordable(c, batch, length, channels, limits, device) for c in contestants}
        spent = dict.fromkeys(times, 0.0)
        for turn in range(limits.rounds):
            for contestant in in_turn(contestants, turn):
                enough = spent[contestant.name] * (turn + 1) / max(turn, 1) > 1e3 * limits.seconds
                if turn < LEAST_ROUNDS or not enough:
                    spent[contestant.name] += _round(times[contestant.name], contestant.training, device)
    return times


def _round(times: Times, trains: bool, device: torch.device) -> float:
    """Times one call of each kind; returns the milliseconds spent."""
    spent = 0.0
    for training in (False, True)[: 1 + trains]:
        taken = time_call(times.call, training, device)
        spent += taken
        if taken < QUICK_MS:
            taken = time_call(times.call, training, device)
            spent += taken
        times.of(training).append(taken)
    return spent
