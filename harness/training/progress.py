"""What a person sees of training: a bar on a terminal, a line now and then elsewhere."""

import math
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINES = 10
"""Plain lines over a whole run."""


class TrainingProgress:
    """Context manager that shows updates, loss, bits per token, tokens/s and the time left.

    updates: in all. done: before this process took the run up. in_nats: whether losses are shown in bits, too. Silent
    unless `enabled`.
    """

    def __init__(
        self, enabled: bool, updates: int, done: int = 0, console: Console | None = None, in_nats: bool = True
    ):
        self.updates, self.done, self.started_at = updates, done, done
        self.console, self.in_nats = console or Console(), in_nats
        self.plain = enabled and not self.console.is_terminal
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if enabled and self.console.is_terminal:
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"))
            self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console)

    def __enter__(self) -> "TrainingProgress":
        self._start = time.monotonic()
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("training", total=self.updates, completed=self.done, figures="")
        return self

    def __exit__(self, *exception) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, done: int, loss: float, tokens_per_second: float) -> None:
        """Notes that `done` updates are made; loss: of the last one, per target."""
        earlier, self.done = self.done, done
        in_bits = f"{loss / math.log(2):.3f} bits/token, " if self.in_nats else ""
        figures = f"loss {loss:.3f}, {in_bits}{tokens_per_second:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, figures=figures)
        elif self.plain and (earlier == self.started_at or _tenth(done, self.updates) > _tenth(earlier, self.updates)):
            self._print(f"update {done:,}/{self.updates:,}: {figures}, {clock(self._seconds_left())} left")

    def note(self, text: str) -> None:
        """Shows one line."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        elif self.plain:
            self._print(text)

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def _seconds_left(self) -> float:
        per_update = (time.monotonic() - self._start) / max(1, self.done - self.started_at)
        return per_update * (self.updates - self.done)


class SweepProgress:
    """Which run of a sweep comes next, and how long the rest will take.

    runs: in all; None where only the sweeper knows. The time is judged by the runs made so far: those that were already
    recorded, or only resumed, say nothing about it. Several workers share it.
    """

    def __init__(self, runs: int | None):
        self.runs, self.started, self.ended = runs, 0, 0
        self._seconds: list[float] = []

    def start(self, overrides: list[str]) -> str:
        """Counts one more run; returns the line that announces it."""
        self.started += 1
        of = f" of {self.runs}" if self.runs is not None else ""
        left = ""
        if self.runs is not None and self._seconds:
            at_once = max(1, self.started - self.ended)
            seconds = sum(self._seconds) / len(self._seconds) * (self.runs - self.ended) / at_once
            left = f" (about {clock(seconds)} left)"
        return f"Run {self.started}{of}{left}: {' '.join(overrides)}"

    def made(self, seconds: float, training_seconds: float) -> None:
        """Notes a run that ended: what it took in all, and what its record says of training alone."""
        self.ended += 1
        if seconds >= training_seconds:
            self._seconds.append(seconds)

    def failed(self) -> None:
        """Notes a run that failed, which says nothing about the time of others."""
        self.ended += 1


def _tenth(done: int, updates: int) -> int:
    return done * LINES // updates


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03, or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
