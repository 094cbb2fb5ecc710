"""A process that holds the models as they were before any state existed, and nothing that was made since.

It is forked, which takes milliseconds where a fresh interpreter takes seconds, and keeps to one thread, since the
threads of OpenMP and of the kernels do not survive a fork. It runs on the CPU whatever the device of the run.
"""

import copy
import io
import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from harness.checks.conditions import Conditions, Inputs, called
from harness.generation.decode import Decoder
from harness.model.backbone import LanguageModel
from harness.model.state import State

SECONDS = 1800
"""An answer that takes longer does not come."""


class Elsewhere:
    """The other process, from its fork to `close`. model: as it will train. unused: a copy that no one ever called."""

    def __init__(self, model: LanguageModel, unused: LanguageModel, conditions: Conditions):
        self._process, self._pipe = None, None
        self.on_gpu = next(model.parameters()).is_cuda
        if not hasattr(os, "fork"):
            return
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        answers = {
            "continued": lambda *given: continued(unused, *given),
            "copied": lambda *given: copy_differs(model, conditions, *given),
        }
        self._process = context.Process(target=_serve, args=(theirs, self._pipe, answers), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def exists(self) -> bool:
        """Whether this system can fork."""
        return self._process is not None

    def ask(self, name: str, *given: Any) -> Any:
        """What the other process answers; raises RuntimeError with what it says where it fails."""
        assert self._pipe is not None, "asked where there is no other process"
        self._pipe.send_bytes(_written((name, given)))
        if not self._pipe.poll(SECONDS):
            raise RuntimeError(f"the other process has not answered within {SECONDS} s")
        try:
            failure, answer = _read(self._pipe.recv_bytes())
        except EOFError:
            raise RuntimeError("the other process ended without an answer") from None
        if failure is not None:
            raise RuntimeError(f"in another process: {failure}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None and self._pipe is not None:
            self._pipe.close()
            self._process.kill()
            self._process.join()


def _serve(pipe, others_end, answers: dict[str, Callable]) -> None:
    others_end.close()  # so that the pipe ends with the process that asks
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    while True:
        try:
            question = pipe.recv_bytes()
        except EOFError:
            return
        try:
            name, given = _read(question)
            reply: tuple[str | None, Any] = None, answers[name](*given)
        except Exception as error:  # whatever an architecture under test may raise
            reply = f"{type(error).__name__}: {error}", None
        pipe.send_bytes(_written(reply))


def _written(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _read(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), weights_only=False)


def continued(model: LanguageModel, state: State, tokens: Tensor, decoder: Decoder | None = None) -> Tensor:
    """Outputs (2, B, T, out_width) of tokens (B, T) behind `state`, by `step` and `decoder`, a new one where None."""
    model.eval()
    decoder, logits = decoder or Decoder(model, state), []
    with torch.no_grad():
        for token in tokens.unbind(1):
            logit, state = model.step(token, state)
            logits.append(torch.stack([logit, decoder.step(token)]))
    return torch.stack(logits, 2)


def copy_differs(model: LanguageModel, conditions: Conditions, inputs: Inputs, seed: int) -> list[bool]:
    """Whether a copy of `model` gives other outputs than the model itself, in training and in evaluation."""
    differs = []
    for training in (True, False):
        both = []
        for one in (copy.deepcopy(model), model):
            torch.manual_seed(seed)
            one.train(training)
            with called("cpu", conditions.precision, training):
                both.append(one(inputs.values, None, inputs.elapsed)[0].detach())
        differs.append(not torch.equal(*both))
    return differs
