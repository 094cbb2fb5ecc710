"""The checks after training, on the trained weights: what a run must pass before its figures are recorded.

A gate that opens while training, or a memory that training fills, shows in no check of a model that is not trained. So
the evaluation's own calls are read again: the passages below are those whose losses are in the recorded test figure.
Training's own calls are made again too: what leaked into the loss that was trained on from some update on, and stays
away from every evaluation, has spoilt the weights all the same.
"""

import copy
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from harness.checks import purity
from harness.checks.case import Case, Outcome
from harness.checks.conditions import Conditions
from harness.checks.runner import CheckResults, tried
from harness.checks.running import judged
from harness.checks.tolerances import distance, worst
from harness.checks.trial import FOLLOWING, Calls, Trial
from harness.evaluation.passage import Passage, Reading
from harness.evaluation.text import token_losses
from harness.generation.decode import Decoder
from harness.model.anew import AnewError, Blueprint
from harness.model.backbone import LanguageModel
from harness.model.interface import IGNORE, Classes, Tokens
from harness.model.inventory import Held, inventory, irreproducible
from harness.model.sizing import SizeConfig
from harness.model.state import State, state_bytes

LEADING = 3
"""Passages kept from the start: a state that grows is first cut to less than it holds before the third."""
DRAWN = 8
"""Passages drawn from all others, by the system's randomness: no seed that a model knows tells which."""
SECTION = 32
"""Tokens of a drawn passage that are read one by one, around a scored target that is drawn too."""
ROWS = 4
"""Rows of the test figure's passages that are read from an empty state on; of others one is, behind a state all are."""
SHORT_PROMPTS = (131, 67)
"""Tokens of two generations' prompts, where states are tried."""
BLOCK = 16
"""Half of the perturbations begin beside a multiple of this: at an edge of a kernel's blocks."""
SAME_LOSS = 1e-3
"""Nats a token, or part of the loss where that is not in nats: less is rounding, and changes no printed digit."""
SAME_OUTPUT = 1e-4
"""Part of the largest output that rounding in float32 may move it."""


class Watch:
    """Keeps the passages that are read again: the first of the test figure, some drawn from its others, and one of each
    shape of a call.

    Whether a passage is kept is decided once the model has answered, so nothing that a model sees foretells it. chance:
    what draws, here and in the checks.
    """

    def __init__(self, chance: random.Random | None = None):
        self.chance = chance or random.SystemRandom()
        self.leading: list[Passage] = []
        self.drawn: list[Passage] = []
        self.shapes: dict[tuple, Passage] = {}
        self._others, self._alike = 0, Counter[tuple]()

    def __call__(self, passage: Passage) -> None:
        batch = passage.batch
        shape = (*batch.inputs.shape[:2], passage.state is None, batch.cut)
        self._alike[shape] += 1
        if not self.chance.randrange(self._alike[shape]):
            self.shapes[shape] = passage
        if not passage.main:
            return
        if passage.index == 0 or (passage.read > 0 and passage.index < LEADING):
            self.leading.append(passage)
            return
        self._others += 1
        if len(self.drawn) < DRAWN:
            self.drawn.append(passage)
        elif (place := self.chance.randrange(self._others)) < DRAWN:  # each of them with the same chance
            self.drawn[place] = passage

    def generator(self) -> torch.Generator:
        """A generator of torch's that no seed foretells."""
        return torch.Generator().manual_seed(self.chance.getrandbits(63))


class Trained(Trial):
    """The trained model with short prompts, and a copy of it on the CPU that no one has called."""

    def __init__(self, model: LanguageModel, conditions: Conditions, generator: torch.Generator):
        Calls.__init__(self, model, conditions, generator, seed=0)
        self.unused = copy.deepcopy(model).cpu()

    @property
    def prompts(self) -> list[tuple[Tensor, Tensor]]:
        rows = zip(self.long.values, SHORT_PROMPTS, strict=True)
        return [(row[None, :read], row[None, read : read + FOLLOWING]) for row, read in rows]


class Memory:
    """What a model held before training, and how many numbers of it its budget counts, by where they lie.

    seed: that it was built under. blueprint: how it is built; why that cannot be told, where it cannot.
    """

    def __init__(self, model: LanguageModel, seed: int = 0):
        self.held, self.parameters = inventory(model), _parameters(model)
        self.counted = {path: held.numbers for path, held in irreproducible(model).items()}
        self.blueprint: Blueprint | str
        try:
            self.blueprint = Blueprint(model, seed)
        except AnewError as error:
            self.blueprint = str(error)

    def hidden(self, model: LanguageModel) -> dict[str, Held]:
        """What the model holds now, held otherwise or not at all before, and does not count or counts as smaller."""
        found = inventory(model).items()
        now = {path: held for path, held in found if not held.frozen and held.numbers > self.counted.get(path, 0)}
        changed = {path: held for path, held in now.items() if self.held.get(path) != held}
        added = _parameters(model) - self.parameters
        return changed | ({"parameters made while training": Held(added, "")} if added > 0 else {})


def _parameters(model: LanguageModel) -> int:
    return sum(p.numel() for p in model.parameters())


def check_trained(
    model: LanguageModel, task: Any, watch: Watch, before: Memory, conditions: Conditions
) -> CheckResults:
    """Tries every check on the model as it was evaluated: its weights, its precision, its device; in seconds.

    task: a harness.tasks.task.Task. watch: what it kept of the evaluation. before: what the model held before training.
    conditions: of training, whose calls are made again.
    """
    was_training = model.training
    model.eval()
    checks: dict[str, Callable[[], Outcome]] = {
        "evaluation_equals_decoding": lambda: _evaluation(model, task, watch),
        "causality_after_training": lambda: _causality(model, watch, conditions),
        "hidden_memory": lambda: _hidden_memory(model, before),
        **_of_states(model, watch, conditions),
    }
    try:
        with torch.inference_mode():
            return CheckResults([tried(name, check) for name, check in checks.items()])
    finally:
        model.train(was_training)


def _evaluation(model: LanguageModel, task: Any, watch: Watch) -> Outcome:
    """The losses that the evaluation found equal those of the decoder, token by token, on the same tokens."""
    if not watch.leading:
        return Outcome(
            None, None, "the evaluation shows none of its calls (harness/evaluation/passage.py)", passed=False
        )
    main = chain(_whole(model, watch.leading), _sections(model, watch.drawn, watch.chance))
    others = [passage for passage in watch.shapes.values() if not passage.main]
    value, scored = difference(task, main)
    other, more = difference(task, _sections(model, others, watch.chance))
    unit = "nats a target" if task.targets.in_nats else "parts of the loss"
    calls = ", ".join(str(passage.index) for passage in (*watch.leading, *watch.drawn))
    where = f"{scored} targets of the test figure, in its calls {calls} of {watch.leading[0].count}"
    detail = f"mean difference from the decoder's losses, {unit}, over {where}; and over {more} at other lengths"
    return Outcome(worst([value, other]), SAME_LOSS, detail)


def difference(task: Any, readings: Iterable[tuple[Reading, Tensor, Tensor]]) -> tuple[float, int]:
    """How far the losses of two outputs differ, nats a target or part of the loss; and how many targets there are."""
    differences, total, scored = 0.0, 0.0, 0
    for batch, *outputs in readings:
        found, expected = (_losses(task, each, batch).double() for each in outputs)
        alike = (found == expected) | (found.isnan() & expected.isnan())
        differences += torch.where(alike, 0.0, (found - expected).abs()).sum().item()
        total += expected.sum().item()
        scored += task.scored(batch)
    scale = max(1, scored) if task.targets.in_nats else total
    return differences / scale if scale else differences, scored


def _whole(model: LanguageModel, passages: list[Passage]) -> Iterator[tuple[Reading, Tensor, Tensor]]:
    """What was read, with the outputs (rows, T, ...) that the evaluation had, and with those of single steps.

    The passages are read as one, from an empty state, and the decoder counts and cuts by itself.
    """
    step: Callable[[Tensor, Tensor | None], Tensor] | None = None
    for passage in passages:
        batch = passage.batch.rows(slice(ROWS))
        if step is None or not passage.read:
            step = _stepper(model, passage, batch, 0)
        yield batch, passage.outputs[:ROWS], _stepped(step, batch)


def _sections(
    model: LanguageModel, passages: list[Passage], chance: random.Random
) -> Iterator[tuple[Reading, Tensor, Tensor]]:
    """The same of a section of each passage.

    It is read behind what `forward` makes of the state that the passage's own call started from and the inputs before.
    """
    for passage in passages:
        rows = some_rows(passage, chance)
        batch = passage.batch.rows(rows)
        part = _section(model, batch, chance)
        section = _part(model, batch, part)
        step = _stepper(model, passage, batch, part.start)
        yield section, passage.outputs[rows, part], _stepped(step, section)


def some_rows(passage: Passage, chance: random.Random) -> slice:
    """The rows of a passage that are read again: all behind a state, else a few from a row that is drawn."""
    if passage.state is not None:
        return slice(None)
    count = ROWS if passage.main else 1
    first = chance.randrange(max(1, len(passage.outputs) - count + 1))
    return slice(first, first + count)


def _section(model: LanguageModel, batch: Reading, chance: random.Random) -> slice:
    """The positions of a section around a scored target."""
    length = batch.inputs.shape[1]
    if isinstance(model.interface.targets, Classes):
        scored = [length - 1]  # a class is said after the last position
    else:
        missing = batch.targets.isnan().any(-1) if batch.targets.is_floating_point() else batch.targets == IGNORE
        scored = (~missing).any(0).nonzero().flatten().tolist() or [length - 1]
    first = max(0, min(chance.choice(scored) - chance.randrange(SECTION), length - SECTION))
    return slice(first, min(length, first + SECTION))


def _part(model: LanguageModel, batch: Reading, part: slice) -> Reading:
    """These positions of a batch alone."""
    targets = batch.targets if isinstance(model.interface.targets, Classes) else batch.targets[:, part]
    elapsed = None if batch.elapsed is None else batch.elapsed[:, part]
    return replace(batch, inputs=batch.inputs[:, part], targets=targets, elapsed=elapsed)


def _stepped(step: Callable[[Tensor, Tensor | None], Tensor], batch: Reading) -> Tensor:
    """The outputs (B, T, ...) of single steps."""
    times = [None] * batch.inputs.shape[1] if batch.elapsed is None else batch.elapsed.unbind(1)
    return torch.stack([step(*read) for read in zip(batch.inputs.unbind(1), times, strict=True)], 1)


def _stepper(
    model: LanguageModel, passage: Passage, batch: Reading, first: int
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Reads one token after the other, from position `first` of a batch on, some rows of the passage's or all.

    It is the decoder, or plain `step` where the decoder lacks what the batch has: it knows no elapsed times, and no cut
    but those of its policy.
    """
    state, read = _read(model, passage.state, batch, first), first
    if state is None:
        state = model.init_state(len(batch.inputs))
    if batch.elapsed is None and batch.cut is None:
        decoder = Decoder(model, state, passage.policy, passage.read + first)
        return lambda token, _: decoder.step(token).clone()

    def step(token: Tensor, elapsed: Tensor | None) -> Tensor:
        nonlocal state, read
        if read == batch.cut:
            state = model.truncate_state(state, 0)
        read += 1
        output, state = model.step(token, state, elapsed)
        return output

    return step


def _read(model: LanguageModel, state: State, batch: Reading, count: int) -> State:
    """The state once `forward` has read the first `count` positions of a batch behind `state`."""
    first = 0
    for last in sorted({count, min(count, batch.cut or 0)}):
        if last > first:
            part = _part(model, batch, slice(first, last))
            state = model(part.inputs, state, part.elapsed)[1]
            state = model.truncate_state(state, 0) if last == batch.cut and last < count else state
            first = last
    return state


def _losses(task: Any, outputs: Tensor, batch: Any) -> Tensor:
    """Of each token (B, T) where targets are tokens, else of each row (B,)."""
    if isinstance(task.targets, Tokens):
        return token_losses(outputs, batch.targets)
    rows = [slice(row, row + 1) for row in range(len(batch.targets))]
    return torch.stack([task.loss(outputs[row], batch.rows(row)) for row in rows])


def _causality(model: LanguageModel, watch: Watch, conditions: Conditions) -> Outcome:
    """Changing inputs from a position on leaves earlier outputs as they were, in the evaluation's calls of each shape.

    In training also other rows, which a run's batch may hold, must leave a row as it was.
    """
    generator = watch.generator()
    leak = _leak_in_training(model, conditions, generator)
    if leak is not None:
        return leak
    errors = [_leak(model, passage, generator) for passage in watch.shapes.values()]
    shapes = sorted({tuple(passage.batch.inputs.shape[:2]) for passage in watch.shapes.values()})
    detail = f"earlier outputs after a change from a position of each row on, at (rows, tokens) {shapes}"
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


def _leak(model: LanguageModel, passage: Passage, generator: torch.Generator) -> float:
    """How far the outputs that the evaluation had move when the inputs of each row change from some position on."""
    batch, base = passage.batch, passage.outputs
    inputs = batch.inputs
    rows, length = inputs.shape[:2]
    if length < 2:
        return 0.0
    starts = torch.randint(1, length, (rows, 1), generator=generator)
    beside = (starts // BLOCK * BLOCK + torch.randint(2, (rows, 1), generator=generator)).clamp(1, length - 1)
    starts = torch.where(torch.rand(rows, 1, generator=generator) < 0.5, starts, beside)
    past = torch.arange(length, device=inputs.device) < starts.to(inputs.device)  # (B, T)
    shown = past.view(*past.shape, *(1 for _ in inputs.shape[2:]))
    changed = model.interface.inputs.changed(inputs.cpu()).to(inputs)
    moved = replace(batch, inputs=torch.where(shown, inputs, changed)).read(model, passage.state)
    return distance(moved * past[..., None], base * past[..., None])


def _hidden_memory(model: LanguageModel, before: Memory) -> Outcome:
    """Nothing that the budget does not count was written while training."""
    hidden = before.hidden(model)
    numbers = sum(held.numbers for held in hidden.values())
    named = ", ".join(f"{path} ({held.numbers} numbers)" for path, held in list(hidden.items())[:5])
    remedy = "make it a parameter with requires_grad=False, which the budget counts"
    detail = f"changed while training and not counted: {named}; {remedy}" if hidden else "nothing uncounted has changed"
    return Outcome(float(numbers), 0.0, detail)


def _of_states(model: LanguageModel, watch: Watch, conditions: Conditions) -> dict[str, Callable[[], Outcome]]:
    """What is checked of states before training (harness/checks/purity.py), on the trained weights."""

    made = cache(lambda: as_case(model, watch, conditions))

    def after_training(check: Callable[[Case], Outcome]) -> Callable[[], Outcome]:
        def run() -> Outcome:
            with torch.inference_mode(False), torch.no_grad():
                return check(made())

        return run

    checks = (purity.state_contents, purity.state_purity, purity.interleaving, purity.another_copy)
    found = {check.__name__: after_training(check) for check in checks}
    found["state_bytes"] = after_training(lambda case: _state_bytes(model, watch, case))
    return {f"{name}_after_training": check for name, check in found.items()}


def as_case(model: LanguageModel, watch: Watch, conditions: Conditions) -> Case:
    """The trained model as the checks of states take it."""
    run = Trained(model, conditions, watch.generator())
    size = SizeConfig(_parameters(model), model.n_layers)
    return Case(run.unused, model.spec, model.interface, size, run.generator, run)


def _state_bytes(model: LanguageModel, watch: Watch, case: Case) -> Outcome:
    """The states that the evaluation carried, and those behind prompts, hold what a state may, in the bytes stated."""
    reader = copy.deepcopy(case.run.unused)
    states = [(reader(prompt)[1], 1, prompt.shape[1]) for prompt, _ in case.run.prompts]
    states.append((case.run.carried[0], 1, SHORT_PROMPTS[0] + FOLLOWING // 2))
    for passage in (*watch.leading, *watch.drawn):
        if passage.state is not None:
            states.append((passage.state, len(passage.batch.inputs), _held(passage)))
    held = [state for state, _, _ in states]
    if wrong := purity.breach(model, held, held):
        return Outcome(None, None, wrong, passed=False)
    off = [abs(state_bytes(state) - state_bytes(model.init_state(rows, read))) for state, rows, read in states]
    detail = f"bytes that states take beside those stated, in {len(states)} states, {len(states) - 3} of the evaluation"
    return Outcome(float(max(off)), 0.0, detail)


def _held(passage: Passage) -> int:
    """How many tokens a state that grows holds where the call begins: it has been cut if its policy says so."""
    policy, read = passage.policy, passage.read
    if policy.window is None or policy.stride is None or policy.next_cut(read) != read:
        return policy.held(read)
    return min(policy.held(read), policy.window - policy.stride)
