"""Generation one token at a time: what every generation and every measurement of one runs."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from harness.model.backbone import LanguageModel
from harness.model.context import FULL, ContextPolicy
from harness.model.state import State, tensors

WARMUP = 3
"""Steps run before a CUDA graph is captured, as its documentation asks, so that libraries have set themselves up."""
ROOM = 256
"""Tokens that a growing state is given room for at once; a graph is captured anew when they are used up."""


class Decoder:
    """A model's `step` with its state kept between tokens, in inference mode.

    It is made for the weights as they stand: make another when they have changed. On the CPU a token is one call of the
    model's frozen step, whose one-token kernels hold copies of the weights. On CUDA the step is captured as a graph
    once, over one preallocated state, and replayed: a token then costs one launch, whatever the number of kernels. A
    state that grows is given a fixed shape with room first, and a new graph when that is used up. The state given is
    never written to.

    policy: the context policy, which cuts a state that grows. read: tokens of each sequence that the state has read.
    """

    @torch.inference_mode()
    def __init__(self, model: LanguageModel, state: State, policy: ContextPolicy = FULL, read: int = 0):
        self.model, self.state = model, state
        self._step = model.frozen_step()
        self._replay: Callable[[Tensor], Tensor] | None = None
        self._room: float = 0
        self.policy, self.read = policy, read
        self._next_cut = math.inf if model.constant_state else policy.next_cut(read)

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """Reads one token of each sequence (B,); returns the logits of the next (B, vocab_size).

        On CUDA they lie in one buffer, which the next step overwrites.
        """
        if not self._captures(tokens):
            self._cut()
            self.read += 1
            logits, self.state = self._step(tokens, self.state)
            return logits
        self.prepare(tokens)
        self._room -= 1
        self.read += 1
        assert self._replay is not None, "prepare captures where `_captures` says so"
        return self._replay(tokens)

    @torch.inference_mode()
    def prepare(self, tokens: Tensor) -> None:
        """Captures the graph where the next step would: a stopwatch calls it first."""
        if not self._captures(tokens):
            return
        self._cut()
        if not self._room:
            with torch.cuda.device(tokens.device):
                self._capture(tokens)

    def _cut(self) -> None:
        """Cuts the state where the policy does so before the next token."""
        if self.read == self._next_cut:
            self.state = self.policy.cut(self.model, self.state, self.read)
            self._next_cut = self.policy.next_cut(self.read + 1)
            self._room = 0

    def _captures(self, tokens: Tensor) -> bool:
        return tokens.device.type == "cuda" and self.model.capturable

    def _capture(self, tokens: Tensor) -> None:
        """Captures one step over static buffers: the tokens, the state and the logits."""
        self._replay = None  # frees the former graph's memory
        self._room = math.inf if self.model.constant_state else ROOM
        self.state = state = self.model.fixed_state(self.state, ROOM)
        given = tokens.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUP):
                self.model.step(given, state)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits, new = self.model.step(given, state)
            keep(state, new)

        def replay(tokens: Tensor) -> Tensor:
            given.copy_(tokens)
            graph.replay()
            return logits

        self._replay = replay


def keep(state: State, new: State) -> None:
    """Writes the new state over the old one, tensor by tensor, but for what was written in place already."""
    for old, fresh in zip(tensors(state), tensors(new), strict=True):
        if old.data_ptr() != fresh.data_ptr():
            old.copy_(fresh)
