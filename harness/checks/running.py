"""Checks at the conditions of the run: its precision, device, kernels, batch and length, in training and evaluation.

Sampled are the run's own batch, in training and in evaluation, and LONG tokens in evaluation, which hold a full block
of every power of two from 16 to 1,024 and go on behind it. Inputs change from chosen positions on
(`trial.places_of_change`, and random ones), and all earlier outputs must stay bit for bit: the shapes are equal, and
equal shapes take equal kernels. What begins to leak as training goes on, these checks cannot see: the checks after
training look again.
"""

import torch

from harness.checks.case import Case, Outcome, check, state_distance
from harness.checks.tolerances import ROUNDING, TURNED, allowance, distance, worst
from harness.checks.trial import LONG, LONG_PREFILL, LONG_ROWS, NOT_JUDGED, SHORT_PREFILL, Calls
from harness.generation.decode import Decoder
from harness.model.state import state_bytes


@check
def repeatability(case: Case) -> Outcome:
    """Two equal calls with one seed give equal outputs, in training and in evaluation."""
    error = worst([case.run.in_training.again, case.run.in_evaluation.again])
    return Outcome(error, case.run.repeatable, "random numbers must be drawn from torch's own generators")


def judged(calls: Calls, name: str, training: bool) -> Outcome:
    """The verdict on one of the moves; none where even equal calls differ, which is no leak."""
    conditions, moves = calls.conditions, calls.in_training if training else calls.in_evaluation
    if not moves.again <= calls.repeatable:
        return Outcome(None, None, NOT_JUDGED)
    what = "outputs before a change of the inputs" if name == "past" else "outputs of a row while the others change"
    rows = conditions.batch_size if name == "past" else calls.rows
    where = f"{rows} x {conditions.length} tokens in {'training' if training else 'evaluation'}"
    allowed = getattr(allowance(calls.model.mixers), name)
    if allowed and conditions.precision == "bf16":  # the least difference may turn a rounding
        allowed = max(allowed, TURNED)
    tolerance = max(calls.repeatable, allowed)
    return Outcome(getattr(moves, name), tolerance, f"{what}, {where}, {conditions.precision} on {conditions.device}")


@check
def causality_in_training(case: Case) -> Outcome:
    """At the run's own shape, in training, a change of later inputs leaves earlier outputs as they were."""
    return judged(case.run, "past", training=True)


@check
def causality_in_evaluation(case: Case) -> Outcome:
    """The same in evaluation, at that shape and in sequences past a full block of every size."""
    found = judged(case.run, "past", training=False)
    if found.value is None:
        return found
    value = worst([found.value, case.run.at_length])
    return Outcome(value, found.tolerance, f"{found.detail}; and {LONG_ROWS} x {LONG} tokens")


@check
def batch_independence_in_training(case: Case) -> Outcome:
    """At the run's own shape, in training, a row stays as it was when the others change."""
    return judged(case.run, "rows", training=True)


@check
def batch_independence_in_evaluation(case: Case) -> Outcome:
    """The same in evaluation."""
    return judged(case.run, "rows", training=False)


@check
def long_generation(case: Case) -> Outcome:
    """In long sequences chunks, `step` and the decoder give what `forward` gives at once, outputs and last state.

    A prefill past a full block of every size is read in two chunks; `step` and the decoder go on behind it, and the
    decoder behind a short one, too.
    """
    trial = case.run
    inputs, model = trial.long.values.to(trial.conditions.device), trial.model.eval()
    with torch.inference_mode():
        whole, last = trial.read
        first, state = model(inputs[:, : LONG_PREFILL // 2])
        second, state = model(inputs[:, LONG_PREFILL // 2 : LONG_PREFILL], state)
        decoder, behind = Decoder(model, state), inputs[:, LONG_PREFILL:].unbind(1)
        decoded = [decoder.step(token).clone() for token in behind]
        stepped = []
        for token in behind:
            output, state = model.step(token, state)
            stepped.append(output)
    errors = {
        "chunks": distance(torch.cat([first, second], 1), whole[:, :LONG_PREFILL]),
        "step": distance(torch.stack(stepped, 1), whole[:, LONG_PREFILL:]),
        "state": state_distance(state, last),
        "decoder": distance(torch.stack(decoded, 1), whole[:, LONG_PREFILL:]),
        "decoder behind a short prefill": distance(trial.decoded[0], whole[:, SHORT_PREFILL:]),
    }
    error = worst(errors.values())
    detail = ", ".join(f"{name} {value:.1e}" for name, value in errors.items())
    return Outcome(error, max(ROUNDING[torch.float32], case.allowed.paths), detail)


@check
def precision(case: Case) -> Outcome:
    """`forward` in the run's precision gives what it gives in the precision of its weights, but for rounding."""
    trial = case.run
    if trial.conditions.precision == "fp32":
        return Outcome(0.0, 0.0, "float32 throughout")
    exact = trial.outputs(trial.long, training=False, precision="fp32")
    return Outcome(distance(trial.whole, exact), ROUNDING[torch.bfloat16], f"{trial.conditions.precision} by float32")


@check
def long_state(case: Case) -> Outcome:
    """After a long sequence, read by `forward` or by the decoder, the state takes the bytes that are stated."""
    trial = case.run
    stated = state_bytes(trial.model.init_state(LONG_ROWS, LONG))
    held = [state_bytes(state) for state in (trial.read[1], trial.decoded[1])]
    detail = f"{held[0]} bytes by forward, {held[1]} by the decoder, {stated} stated, {LONG} tokens x {LONG_ROWS} rows"
    return Outcome(float(max(abs(size - stated) for size in held)), 0.0, detail)
