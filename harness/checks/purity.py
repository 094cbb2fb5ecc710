"""Checks that a state is all that generation needs: nothing is kept beside it, and no call changes it."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from harness.checks.case import Case, Outcome, check
from harness.checks.elsewhere import continued
from harness.checks.tolerances import ROUNDING, distance, worst
from harness.checks.trial import FOLLOWING, NOT_JUDGED
from harness.generation.decode import Decoder
from harness.model.backbone import LanguageModel
from harness.model.mixer import Mixer
from harness.model.state import State, StateError, examine, saved, skeleton, tensors


def single(case: Case) -> float:
    """How closely two generations in float32 must agree."""
    return max(ROUNDING[torch.float32], case.allowed.paths)


def _lengths(case: Case) -> list[int]:
    return [prompt.shape[1] for prompt, _ in case.run.prompts]


def _parts(model: LanguageModel, state: State) -> list[tuple[Mixer, State]]:
    """Each mixer with its part of the state."""
    return list(zip(model.mixers, (part for block in state for part in block), strict=True))


@check
def state_contents(case: Case) -> Outcome:
    """A state holds tensors, a few integers and caches that list their tensors: nothing that its bytes do not count.

    Its containers and keys are those of an empty state whatever was read, and its integers tell how many tokens that
    were, not which.
    """
    model, given = copy.deepcopy(case.run.unused).eval(), case.run.prompts[1]
    with torch.no_grad():
        states = _states(model, *given)
        others = _states(model, *map(model.interface.inputs.changed, given))
    wrong = breach(model, states, others)
    kept = f"the states of {len(model.mixers)} mixers, after forward, step and the decoder"
    return Outcome(None, None, wrong or kept, passed=not wrong)


def _states(model: LanguageModel, prompt: Tensor, following: Tensor) -> list[State]:
    """A state as it is stated, and those behind a prompt and, by `step` and by the decoder, another token."""
    prefilled = model(prompt)[1]
    stepped = model.step(following[:, 0], prefilled)[1]
    decoder = Decoder(model, prefilled)
    decoder.step(following[:, 0])
    return [model.init_state(1, 5), prefilled, stepped, decoder.state]


def breach(model: LanguageModel, states: Sequence[State], others: Sequence[State]) -> str:
    """What a state of `states` tells by more than its tensors, or holds that a state may not; nothing for honest ones.

    others: the states after as many tokens of another content.
    """
    for state in states:
        for mixer, part in _parts(model, state):
            try:
                examine(part)
            except StateError as error:
                return f"layer {mixer.layer}, {type(mixer).__name__}: {error}"
    empty = _parts(model, model.init_state(1))
    for pair in zip(states, others, strict=True):
        ours, theirs = (_parts(model, state) for state in pair)
        for (mixer, part), (_, other), (_, fresh) in zip(ours, theirs, empty, strict=True):
            if told := _told(part, other, fresh):
                return f"layer {mixer.layer}, {type(mixer).__name__}: {told}"
    return ""


def _told(state: State, other: State, empty: State) -> str:
    if (found := skeleton(state)) != (expected := skeleton(empty)):
        return f"its state is made of {str(found)[:200]}, and empty of {str(expected)[:200]}"
    integers = examine(state), examine(other)
    return f"its integers depend on what was read: {integers}" if integers[0] != integers[1] else ""


@check
def state_purity(case: Case) -> Outcome:
    """Neither `step`, nor the decoder, nor `forward` changes the state that it is given."""
    model, (prompt, following) = copy.deepcopy(case.run.unused).eval(), case.run.prompts[1]
    changed = []
    with torch.no_grad():
        state = model(prompt)[1]
        for name in ("step", "decoder", "forward"):
            before = [tensor.clone() for tensor in tensors(state)]
            if name == "step":
                model.step(following[:, 0], state)
            elif name == "decoder":
                Decoder(model, state).step(following[:, 0])
            else:
                model(following, state)
            after = list(tensors(state))
            if len(before) != len(after) or not all(map(torch.equal, before, after)):
                changed.append(name)
                state = model(prompt)[1]
    detail = f"{' and '.join(changed)} changed it" if changed else f"as it was, after {prompt.shape[1]} tokens"
    return Outcome(None, None, detail, passed=not changed)


@check
def interleaving(case: Case) -> Outcome:
    """Two generations, a token of each in turn, give what each gives alone, by `step` and by the decoder."""
    model, prompts = copy.deepcopy(case.run.unused).eval(), case.run.prompts
    with torch.no_grad():
        alone, states = [], []
        for prompt, following in prompts:
            states.append(model(prompt)[1])
            alone.append(continued(model, states[-1], following))
        decoders = [Decoder(model, state) for state in states]
        made: list[list[Tensor]] = [[], []]
        for t in range(FOLLOWING):
            for i, (_, following) in enumerate(prompts):
                output, states[i] = model.step(following[:, t], states[i])
                made[i].append(torch.stack([output, decoders[i].step(following[:, t])]))
    error = worst(distance(torch.stack(ours, 2), theirs) for ours, theirs in zip(made, alone, strict=True))
    return Outcome(error, single(case), f"two prompts of {_lengths(case)} tokens, {FOLLOWING} behind each")


@check
def another_copy(case: Case) -> Outcome:
    """A copy of a state, carried into a copy of the model that has read nothing, goes on alike."""
    state, following, expected = case.run.carried
    found = continued(copy.deepcopy(case.run.unused), copy.deepcopy(state), following)
    return Outcome(distance(found, expected), single(case), f"behind {_lengths(case)[0]} tokens")


@check
def another_process(case: Case) -> Outcome:
    """A state that is saved goes on alike in a process that was forked before the state existed."""
    if not case.run.elsewhere.exists:
        return Outcome(None, None, "this system cannot fork a process")
    state, following, expected = case.run.carried
    found = case.run.elsewhere.ask("continued", saved(state), following)
    return Outcome(distance(found, expected), single(case), f"behind {_lengths(case)[0]} tokens")


@check
def copies(case: Case) -> Outcome:
    """The model that will train gives what its copies give, which the other checks examine."""
    if not case.run.elsewhere.exists or case.run.elsewhere.on_gpu:
        return Outcome(None, None, "this system cannot fork a process on the CPU")
    if not case.run.in_training.again <= case.run.repeatable:
        return Outcome(None, None, NOT_JUDGED)
    differs = case.run.elsewhere.ask("copied", case.run.batch, case.run.seed)
    names = [name for name, differ in zip(("training", "evaluation"), differs, strict=True) if differ]
    detail = f"a copy differs in {' and '.join(names)}" if names else "equal bit for bit in training and evaluation"
    return Outcome(None, None, detail, passed=not names)
