"""Signals that ask a process to stop: held back while it must not be torn out of what it does."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Held:
    """The first signal that came while they were held back, if one did."""

    def __init__(self, handlers: dict):
        self._handlers = handlers
        self.number: int | None = None

    def hold(self, number: int, frame: FrameType | None) -> None:
        """Keeps the first signal; a second one comes from somebody in a hurry, and the first is let through at once."""
        if self.number is None:
            self.number = number
        else:
            self.deliver()

    def deliver(self) -> None:
        """Lets the signal through to whoever would have had it, if one came."""
        if self.number is None:
            return
        number, self.number = self.number, None
        signal.signal(number, self._handlers[number])
        signal.raise_signal(number)
        signal.signal(number, self.hold)  # whoever had it let the process go on


@contextmanager
def held_back() -> Iterator[Held]:
    """Holds SIGINT and SIGTERM back until `deliver` or the end. Elsewhere than in the main thread it does nothing."""
    mine = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in STOPPING} if mine else {}
    handlers = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    held = Held(handlers)
    for number in handlers:
        signal.signal(number, held.hold)
    try:
        yield held
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if held.number is not None:
            signal.raise_signal(held.number)
