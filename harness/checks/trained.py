"""The checks after training, on the trained weights: what a run must pass before its figures are recorded.

A gate that opens while training, or a memory that training fills, shows in no check of a model that is not trained. So
the evaluation's own calls are read again: the passages below are those whose losses are in the recorded test figure.
Training's own calls are made again too: what leaked into the loss that was trained on from some update on, and stays
away from every evaluation, has spoilt the weights all the same.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.checks.case import Outcome
from harness.checks.conditions import Conditions
from harness.checks.runner import CheckResults, tried
from harness.checks.running import judged
from harness.checks.tolerances import distance, worst
from harness.checks.trial import Calls
from harness.config.errors import TaskError
from harness.evaluation.evaluate import EVALUATION_SEED
from harness.evaluation.passage import Passage
from harness.evaluation.text import token_losses
from harness.generation.decode import Decoder
from harness.model.backbone import LanguageModel
from harness.model.interface import Tokens
from harness.model.inventory import Held, inventory, irreproducible
from harness.model.state import State

LEADING = 3
"""Passages kept from the start: a state that grows is first cut to less than it holds before the third."""
ROWS = 4
"""Rows of the passages that are read from an empty state on; one that starts from a state is read whole."""
ROUNDS = 2
"""Perturbed readings of one call; each changes every row from another position on."""
BLOCK = 16
"""Every other perturbation begins beside a multiple of this: at an edge of a kernel's blocks."""
SAME_LOSS = 1e-3
"""Nats a token, or part of the loss where that is not in nats: less is rounding, and changes no printed digit."""
SAME_OUTPUT = 1e-4
"""Part of the largest output that rounding in float32 may move it."""


class Watch:
    """Keeps the passages that are read again: the first ones, and one that the run's seed draws from all."""

    def __init__(self, seed: int):
        self.kept: list[Passage] = []
        self.generator = torch.Generator().manual_seed(seed)
        self._drawn: int | None = None

    def __call__(self, passage: Passage) -> None:
        if self._drawn is None:
            self._drawn = int(torch.randint(passage.count, (1,), generator=self.generator))
        leading = passage.index == 0 or (passage.read > 0 and passage.index < LEADING)
        if leading or passage.index == self._drawn:
            self.kept.append(passage)


class Memory:
    """What a model held before training, and which of it its budget counts."""

    def __init__(self, model: LanguageModel):
        self.held, self.counted, self.parameters = inventory(model), set(irreproducible(model)), _parameters(model)

    def hidden(self, model: LanguageModel) -> dict[str, Held]:
        """What the model holds now, held otherwise or not at all before, and does not count."""
        now = {path: held for path, held in inventory(model).items() if not held.frozen and path not in self.counted}
        changed = {path: held for path, held in now.items() if self.held.get(path) != held}
        added = _parameters(model) - self.parameters
        return changed | ({"parameters made while training": Held(added, "")} if added > 0 else {})


def _parameters(model: LanguageModel) -> int:
    return sum(p.numel() for p in model.parameters())


def check_trained(
    model: LanguageModel, task: Any, watch: Watch, before: Memory, lengths: Iterable[int], conditions: Conditions
) -> CheckResults:
    """Tries every check on the model as it was evaluated: its weights, its precision, its device; in seconds.

    task: a harness.tasks.task.Task. watch: what it kept of the evaluation. before: what the model held before training.
    lengths: of sequences that causality is tried at, as far as the task has them, beside the evaluation's own calls.
    conditions: of training, whose calls are made again.
    """
    was_training = model.training
    model.eval()
    checks: dict[str, Callable[[], Outcome]] = {
        "evaluation_equals_decoding": lambda: _evaluation(model, task, watch),
        "causality_after_training": lambda: _causality(model, task, watch, lengths, conditions),
        "hidden_memory": lambda: _hidden_memory(model, before),
    }
    try:
        with torch.inference_mode():
            return CheckResults([tried(name, check) for name, check in checks.items()])
    finally:
        model.train(was_training)


def _evaluation(model: LanguageModel, task: Any, watch: Watch) -> Outcome:
    """The losses that the evaluation found equal those of the decoder, token by token, on the same tokens."""
    if not watch.kept:
        return Outcome(
            None, None, "the evaluation shows none of its calls (harness/evaluation/passage.py)", passed=False
        )
    differences, total, scored = 0.0, 0.0, 0
    for passage, outputs in _decoded(model, watch.kept):
        rows = slice(len(outputs))
        batch, given = passage.batch.rows(rows), passage.outputs[rows]
        found, expected = (_losses(task, each, batch).double() for each in (given, outputs))
        alike = (found == expected) | (found.isnan() & expected.isnan())
        differences += torch.where(alike, 0.0, (found - expected).abs()).sum().item()
        total += expected.sum().item()
        scored += task.scored(batch)
    scale = max(1, scored) if task.targets.in_nats else total
    unit = "nats a target" if task.targets.in_nats else "parts of the loss"
    detail = f"mean difference from the decoder's losses, {unit}, over {scored} targets of the test figure"
    return Outcome(differences / scale if scale else differences, SAME_LOSS, detail)


def _decoded(model: LanguageModel, passages: list[Passage]) -> Iterator[tuple[Passage, Tensor]]:
    """Each passage with the outputs (rows, T, ...) of single steps, of some rows or of all.

    The leading passages are read as one, from an empty state, and the decoder counts and cuts by itself. Another starts
    from the state that its own call started from.
    """
    step: Callable[[Tensor, Tensor | None], Tensor] | None = None
    rows = ROWS
    for place, passage in enumerate(passages):
        if step is None or passage.index != place or not passage.read:
            rows = ROWS if passage.state is None else len(passage.batch.inputs)
            step = _stepper(model, passage, rows)
        batch = passage.batch.rows(slice(rows))
        times = [None] * batch.inputs.shape[1] if batch.elapsed is None else batch.elapsed.unbind(1)
        yield passage, torch.stack([step(*read) for read in zip(batch.inputs.unbind(1), times, strict=True)], 1)


def _stepper(model: LanguageModel, passage: Passage, rows: int) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Reads one token after the other: the decoder, or plain `step` where it lacks what the batch has.

    The decoder knows no elapsed times, and no cut but those of its policy.
    """
    state, batch, read = passage.state, passage.batch, 0
    if state is None:
        state = model.init_state(min(rows, len(batch.inputs)))
    if batch.elapsed is None and batch.cut is None:
        decoder = Decoder(model, state, passage.policy, passage.read)
        return lambda token, _: decoder.step(token).clone()

    def step(token: Tensor, elapsed: Tensor | None) -> Tensor:
        nonlocal state, read
        if read == batch.cut:
            state = model.truncate_state(state, 0)
        read += 1
        output, state = model.step(token, state, elapsed)
        return output

    return step


def _losses(task: Any, outputs: Tensor, batch: Any) -> Tensor:
    """Of each token (B, T) where targets are tokens, else of each row (B,)."""
    if isinstance(task.targets, Tokens):
        return token_losses(outputs, batch.targets)
    rows = [slice(row, row + 1) for row in range(len(batch.targets))]
    return torch.stack([task.loss(outputs[row], batch.rows(row)) for row in rows])


def _causality(
    model: LanguageModel, task: Any, watch: Watch, lengths: Iterable[int], conditions: Conditions
) -> Outcome:
    """Changing inputs from a position on leaves earlier outputs as they were, in the evaluation's calls and others.

    In training also other rows, which a run's batch may hold, must leave a row as it was.
    """
    leak = _leak_in_training(model, conditions, watch.generator)
    if leak is not None:
        return leak
    ends = {id(passage): passage for passage in (watch.kept[:1] + watch.kept[-1:])}.values()
    calls = [(passage.batch.inputs, passage.state, passage.batch.elapsed) for passage in ends]
    for length in lengths:
        try:
            batch = task.batch("test", 0, 2, length, EVALUATION_SEED).to(model.head.weight.device)
        except TaskError:
            continue  # the task has no sequence of this length, and its evaluation none either
        calls.append((batch.inputs, None, batch.elapsed))
    errors = [_leak(model, inputs, state, elapsed, watch.generator) for inputs, state, elapsed in calls]
    shapes = sorted({tuple(inputs.shape[:2]) for inputs, _, _ in calls})
    detail = f"earlier outputs after a change from {ROUNDS} positions of each row on, at (rows, tokens) {shapes}"
    detail += f"; in training {conditions.batch_size} x {conditions.length}"
    return Outcome(worst(errors), SAME_OUTPUT, detail)


def _leak_in_training(model: LanguageModel, conditions: Conditions, generator: torch.Generator) -> Outcome | None:
    """The verdict on training's own calls where they leak, else None; of a copy's, for they may change a model.

    Where equal calls differ nothing can be said, and the model is refused: before training they did not.
    """
    devices = [conditions.device] if torch.device(conditions.device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode(False):
        calls = Calls(copy.deepcopy(model), conditions, generator, seed=0)
        for name in ("past", "rows"):
            found = judged(calls, name, training=True)
            if found.value is None or found.tolerance is None or not found.value <= found.tolerance:
                return replace(found, passed=False)
    return None


def _leak(
    model: LanguageModel, inputs: Tensor, state: State, elapsed: Tensor | None, generator: torch.Generator
) -> float:
    """How far outputs move when later inputs change."""
    rows, length = inputs.shape[:2]
    if length < 2:
        return 0.0
    changed = model.interface.inputs.changed(inputs.cpu()).to(inputs)
    time = torch.arange(length, device=inputs.device)
    base, found = model(inputs, state, elapsed)[0], []
    for number in range(ROUNDS):
        starts = torch.randint(1, length, (rows, 1), generator=generator)
        if number % 2:
            starts = (starts // BLOCK * BLOCK + torch.randint(2, (rows, 1), generator=generator)).clamp(1, length - 1)
        past = time < starts.to(inputs.device)  # (B, T)
        shown = past.view(*past.shape, *(1 for _ in inputs.shape[2:]))
        moved, _ = model(torch.where(shown, inputs, changed), state, elapsed)
        found.append(distance(moved * past[..., None], base * past[..., None]))
    return worst(found)


def _hidden_memory(model: LanguageModel, before: Memory) -> Outcome:
    """Nothing that the budget does not count was written while training."""
    hidden = before.hidden(model)
    numbers = sum(held.numbers for held in hidden.values())
    named = ", ".join(f"{path} ({held.numbers} numbers)" for path, held in list(hidden.items())[:5])
    remedy = "make it a parameter with requires_grad=False, which the budget counts"
    detail = f"changed while training and not counted: {named}; {remedy}" if hidden else "nothing uncounted has changed"
    return Outcome(float(numbers), 0.0, detail)
