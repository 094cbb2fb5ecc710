"""The context policy of a run: what of the past a state that grows keeps, in evaluation, generation and measurement."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from harness.config.ranges import Length
from harness.model.state import State

Context = Literal["train", "full"] | Length
"""The policy as a configuration says it: the training length, all the past, or a number of tokens."""


@dataclass(frozen=True)
class ContextPolicy:
    """How many tokens a prediction sees at most, its own included; None for all. A constant state is carried whole.

    Tokens are numbered from 0. Before every token whose number is a multiple of `stride`, half a window, the state is
    cut to its last window - stride tokens. Token t thus sees max(0, t // stride * stride - (window - stride)) .. t:
    between a half and a whole window. Cutting at every token would cost a copy of the cache each; so it costs one
    token's copy a token.
    """

    window: int | None = None

    @classmethod
    def of(cls, context: Context, train_length: int) -> "ContextPolicy":
        """The policy that a configuration names. train_length: tokens of a training sequence."""
        return cls({"train": train_length, "full": None}[context] if isinstance(context, str) else context)

    @property
    def stride(self) -> int | None:
        """Tokens between two cuts; None where there is none."""
        return None if self.window is None else max(1, self.window // 2)

    def next_cut(self, read: int) -> float:
        """The first token, from number `read` on, that the state is cut before; infinity where there is none."""
        return math.inf if self.stride is None else max(1, -(-read // self.stride)) * self.stride

    def cut(self, model: Any, state: State, read: int) -> State:
        """The state after `read` tokens as the next token finds it."""
        if self.window is None or self.stride is None or state is None or self.next_cut(read) != read:
            return state
        return model.truncate_state(state, self.window - self.stride)

    def held(self, read: int) -> int:
        """How many tokens a state that grows holds after `read` tokens, before it is next cut."""
        if self.window is None or self.stride is None or read == 0:
            return read
        return read - max(0, (read - 1) // self.stride * self.stride - (self.window - self.stride))

    def describe(self, model: Any) -> dict[str, Any]:
        """The record's "context_policy" block."""
        if model.constant_state:
            return {"kind": "state", "tokens": None}
        return {"kind": "full" if self.window is None else "window", "tokens": self.window}


FULL = ContextPolicy()
