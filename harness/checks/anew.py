"""The trained model against one that is built anew, of nothing but the numbers that its budget counts.

What a model keeps elsewhere (a global variable, an attribute of a parameter, an object of a library, memory that
processes share) a copy and a fork have too. An interpreter started anew has not (harness/model/anew.py).
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from harness.checks import purity
from harness.checks.case import Outcome
from harness.checks.conditions import Conditions
from harness.checks.elsewhere import continued
from harness.checks.runner import CheckResults, tried
from harness.checks.tolerances import distance
from harness.checks.trained import SAME_LOSS, SHORT_PROMPTS, Memory, Watch, as_case, difference, some_rows
from harness.config.errors import MachineError
from harness.evaluation.passage import Reading
from harness.model.anew import Anew, AnewError
from harness.model.backbone import LanguageModel
from harness.model.state import State, map_tensors, saved

FEW_TOKENS = 2**16
"""A run that trains on fewer shows that it works, and no more: it is spared the seconds of another interpreter."""
DRAWN = 4
"""Of the passages that were drawn from the evaluation, those that are read there."""
ANSWER_SECONDS = 1800
"""What one answer of the other interpreter may take."""


class CheckAnew:
    """The checks of the trained model against one that an interpreter started anew builds from its spec.

    before: what the model held before training, of whose buffers the other one is given those that the budget counts.
    tokens: that it was trained on.
    """

    def __init__(self, model: LanguageModel, before: Memory, tokens: int):
        self.model, self.blueprint = model, before.blueprint
        self.process: Anew | None = None
        self.lost = ""
        self.spared = tokens < FEW_TOKENS
        if not self.spared and not isinstance(before.blueprint, str):
            buffers = [name for name, _ in model.named_buffers() if f"model.{name}" in before.counted]
            self.process = Anew(before.blueprint, model, ANSWER_SECONDS, buffers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.close()

    def check(self, task: Any, watch: Watch, conditions: Conditions) -> CheckResults:
        """Tries every check, once the process has measured what it is also for.

        Raises MachineError where it was lost: that says nothing of the model, and the same command tries again.
        """
        checks = {
            "evaluation_anew": lambda process: _evaluation_anew(task, watch, process),
            "generation_anew": lambda process: _generation_anew(self.model, watch, conditions, process),
        }
        results = CheckResults([tried(name, partial(self._tried, check)) for name, check in checks.items()])
        if self.lost:
            raise MachineError(
                f"The trained model could not be checked in another process: {self.lost}.",
                "a second process that holds the model.",
                "free memory; then the same command goes on from the last checkpoint.",
            )
        return results

    def _tried(self, check: Callable[[Anew], Outcome]) -> Outcome:
        if self.process is not None:
            try:
                return check(self.process)
            except AnewError as error:
                self.lost = str(error)
                raise
        if self.spared:
            return Outcome(None, None, f"a run of fewer than {FEW_TOKENS} tokens starts no other interpreter")
        return Outcome(None, None, str(self.blueprint), passed=False)


def _evaluation_anew(task: Any, watch: Watch, process: Anew) -> Outcome:
    """Given its counted numbers alone, a model built anew finds the losses of the evaluation, from saved states."""
    others = [passage for passage in watch.shapes.values() if not passage.main]
    passages = [*watch.leading[:1], *watch.drawn[:DRAWN], *others]

    def readings() -> Iterator[tuple[Reading, Tensor, Tensor]]:
        for passage in passages:
            rows = some_rows(passage, watch.chance)
            batch, state = passage.batch.rows(rows).to("cpu"), map_tensors(Tensor.cpu, saved(passage.state))
            yield batch, passage.outputs[rows].cpu(), process.ask(_read_anew, state, batch)

    value, scored = difference(task, readings())
    return Outcome(value, SAME_LOSS, f"mean difference over {scored} targets of {len(passages)} of its calls")


def _generation_anew(model: LanguageModel, watch: Watch, conditions: Conditions, process: Anew) -> Outcome:
    """A decoder's state, saved, goes on alike in the model built anew."""
    case = as_case(model, watch, conditions)
    state, following, expected = case.run.carried
    found = process.ask(_continued_anew, saved(state), following)
    return Outcome(distance(found, expected), purity.single(case), f"behind {SHORT_PROMPTS[0]} tokens")


@torch.inference_mode()
def _read_anew(model: LanguageModel, state: State, batch: Reading) -> Tensor:
    """The outputs of one call, in the other process."""
    device = model.head.weight.device
    return batch.to(device).read(model, map_tensors(lambda tensor: tensor.to(device), state)).cpu()


def _continued_anew(model: LanguageModel, state: State, tokens: Tensor) -> Tensor:
    """`continued` of a copy on the CPU, in the other process."""
    return continued(copy.deepcopy(model).cpu(), state, tokens)
