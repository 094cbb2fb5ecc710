"""What generation adds to the resident memory of a process that holds nothing but the model.

A process that has trained and evaluated holds freed memory of both, which says nothing of generation. So another one
loads the model, generates once from an empty state, notes its resident memory, and generates from each context in turn.
"""

from contextlib import ExitStack
from dataclasses import dataclass

import torch

from harness.generation.decode import Decoder
from harness.machine.memory import Increase
from harness.model.anew import Anew, Blueprint
from harness.model.backbone import LanguageModel
from harness.model.context import ContextPolicy

STEPS = 8
"""Tokens generated behind a context: the first few take what every later one takes anew."""


@dataclass(frozen=True)
class Generation:
    """What is generated: a few tokens of each of `batch` sequences behind each of `contexts`, which rise."""

    batch: int
    contexts: list[int]
    policy: ContextPolicy


def generation_memory(
    model: LanguageModel, what: Generation, seconds: float, process: Anew | None = None
) -> list[int] | str:
    """Bytes that generation adds to the loaded model at its peak, for each context; else why it was not measured.

    seconds: the most that the other process may take. process: one that holds the model and has answered nothing yet;
    None starts one.
    """
    with ExitStack() as stack:
        try:
            asked = process or stack.enter_context(Anew(Blueprint(model), model, seconds))
            return asked.ask(_increases, what, seconds=seconds)
        except RuntimeError as error:  # of the process, or of the model in it
            return str(error)


@torch.inference_mode()
def _increases(model: LanguageModel, what: Generation) -> list[int] | str:
    """The peaks over the loaded model, in this process. The contexts rise, so each peak is its own context's."""
    _generate(model, what, 0)
    increase, found = Increase(), []
    for context in sorted(what.contexts):
        _generate(model, what, context)
        found.append(increase.bytes())
    known = [peak for peak in found if peak is not None]
    return known if len(known) == len(found) else "this system does not let the peak of a process's memory be reset"


def _generate(model: LanguageModel, what: Generation, context: int) -> None:
    token = model.interface.inputs.random(what.batch, 1, torch.Generator().manual_seed(0))[:, 0]
    decoder = Decoder(model, model.init_state(what.batch, what.policy.held(context)), what.policy, context)
    for _ in range(STEPS):
        token = model.interface.following(decoder.step(token), token)
