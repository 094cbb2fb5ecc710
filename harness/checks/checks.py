"""The checks themselves: what the contract of harness/model/mixer.py promises, each as a figure and its tolerance."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.checks.case import BATCH, LENGTH, Case, Outcome, check, state_distance
from harness.checks.oracles import comparable, find_oracle
from harness.checks.tolerances import BUDGET, MORE_STEPS, ROUNDING, allowance, distance, worst
from harness.generation.decode import Decoder
from harness.model.mixer import Mixer
from harness.model.sizing import count
from harness.model.state import state_bytes, tensors

CUTS = (0, 15, 31, 40, 63, LENGTH - 2)  # positions whose future is examined by gradient, a row for each
CHUNKS = (1, 2, 13, 1, 33, 17)
CONTEXTS = (1, 64, 4096, 8192)
FLOPS_CONTEXTS = (1, 2, 65)
GRADIENT_FLOOR = 1e-3  # gradients are compared on their own scale, but on no less than this part of the largest


@check
def causality(case: Case) -> Outcome:
    """The gradient of logits up to a position by the encoder's outputs after it is zero (a position for each row)."""
    leaves = []

    def cut(_module, _inputs, output):
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    hook = case.model.embedding.register_forward_hook(cut)
    try:
        logits, _ = case.model(case.tokens[:1].expand(len(CUTS), *case.tokens.shape[1:]))
    finally:
        hook.remove()
    future = torch.arange(LENGTH) > torch.tensor(CUTS)[:, None]  # (row, position)
    (grad,) = torch.autograd.grad((logits * case.random(*logits.shape))[~future].sum(), leaves[0])
    if not all(grad[row, t].any() for row, t in enumerate(CUTS)):
        return Outcome(None, None, "logits do not depend on their own token, so nothing can be said", passed=False)
    return Outcome(worst([grad[future].abs().max().item()]), 0.0, f"largest gradient from after positions {CUTS}")


@check
def causality_by_perturbation(case: Case) -> Outcome:
    """Changing all tokens from any position on leaves every earlier logit as it was."""
    changed = case.interface.inputs.changed(case.tokens[:1])
    time = torch.arange(LENGTH)
    past = time[None, :] < time[:, None]  # (row s, position t): row s differs from the original from s on
    shown = past.view(*past.shape, *(1 for _ in changed.shape[2:]))
    with torch.no_grad():
        base, _ = case.model(torch.where(shown, case.tokens[:1], changed))
    original = base[-1:, :-1]  # the last row differs at the last position only
    error = distance((base[:, :-1] * past[:, :-1, None]), original * past[:, :-1, None])
    return Outcome(error, case.rows, f"earlier logits after a change from each of {LENGTH} positions on")


@check
def batch_independence(case: Case) -> Outcome:
    """A row alone equals the same row in a batch."""
    with torch.no_grad():
        alone = torch.cat([case.model(row[None])[0] for row in case.tokens])
    return Outcome(distance(alone, case.whole[0]), case.rows, f"each of {BATCH} rows alone against together")


@check
def prefill_and_step(case: Case) -> Outcome:
    """A prefix by `forward`, then single steps, equals `forward` in logits and in the last state."""
    cut, (whole, last) = LENGTH // 2, case.whole
    with torch.no_grad():
        logits, state = case.model(case.tokens[:, :cut])
        parts = [logits]
        for t in range(cut, LENGTH):
            logit, state = case.model.step(case.tokens[:, t], state)
            parts.append(logit[:, None])
    error = worst([distance(torch.cat(parts, dim=1), whole), state_distance(state, last)])
    return Outcome(error, case.paths, f"{cut} tokens by forward and {LENGTH - cut} by step, logits and state")


@check
def chunks(case: Case) -> Outcome:
    """`forward` in chunks, the state carried, equals `forward` at once in logits and in the last state."""
    whole, last = case.whole
    parts, state = [], None
    with torch.no_grad():
        for chunk in case.tokens.split(CHUNKS, dim=1):
            logits, state = case.model(chunk, state)
            parts.append(logits)
    error = worst([distance(torch.cat(parts, dim=1), whole), state_distance(state, last)])
    return Outcome(error, case.paths, f"chunks of {CHUNKS} tokens, logits and state")


@check
def scan(case: Case) -> Outcome:
    """`forward` equals the loop of `step` from an empty state, in logits and in the last state."""
    whole, last = case.whole
    with torch.no_grad():
        looped, state = case.model.scan(case.tokens)
    error = worst([distance(whole, looped), state_distance(last, state)])
    return Outcome(error, case.paths, f"{LENGTH} tokens by forward against a loop of step, logits and state")


@check
def scan_gradients(case: Case) -> Outcome:
    """Every parameter's gradient through `forward` equals that through the loop of `step`."""
    named = [(name, p) for name, p in case.model.named_parameters() if p.requires_grad]
    weights = case.random(BATCH, LENGTH, case.interface.out_width)
    both = []
    for function in (case.model, case.model.scan):
        loss = (function(case.tokens)[0] * weights).sum()
        grads = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
        both.append([torch.zeros_like(p) if g is None else g for (_, p), g in zip(named, grads, strict=True)])
    floor = GRADIENT_FLOOR * worst(grad.abs().max().item() for grad in both[1])
    errors = {n: distance(a, b, floor) for (n, _), a, b in zip(named, *both, strict=True)}
    error = worst(errors.values())
    name = max(errors, key=errors.__getitem__)
    return Outcome(error, case.paths, f"{len(errors)} parameters, the largest difference at {name}")


@check
def generation(case: Case) -> Outcome:
    """What generation runs, the decoder over one-token kernels in float32, equals `forward` after a prefill."""
    cut, model = LENGTH // 2, copy.deepcopy(case.model).float()
    with torch.inference_mode():
        decoder = Decoder(model, model(case.tokens[:, :cut])[1])
        made = torch.stack([decoder.step(token).clone() for token in case.tokens[:, cut:].unbind(1)], dim=1)
    error = distance(made.double(), case.whole[0][:, cut:])
    return Outcome(error, max(ROUNDING[torch.float32], case.paths), f"{LENGTH - cut} tokens by the decoder in float32")


@check
def state_shape(case: Case) -> Outcome:
    """`init_state(context)` has the shapes and the bytes of the state that a prefill of `context` tokens leaves."""
    real, stated = case.whole[1], case.model.init_state(BATCH, LENGTH)
    shapes = [[(tuple(t.shape), t.dtype) for t in tensors(state)] for state in (real, stated)]
    differing = [f"{a} where {b} is stated" for a, b in zip(*shapes, strict=True) if a != b]
    held, promised = state_bytes(real), state_bytes(stated)
    detail = "; ".join(differing) or f"{held} bytes after {LENGTH} tokens x {BATCH} rows, {promised} stated"
    return Outcome(float(abs(held - promised) + len(differing)), 0.0, detail)


@check
def state_growth(case: Case) -> Outcome:
    """State bytes do not depend on the context where that is claimed; else they grow by the same bytes each token."""
    held = {}
    with torch.no_grad():
        for context in (1, LENGTH // 2, LENGTH):
            held[f"real {context}"] = (context, state_bytes(case.model(case.tokens[:1, :context])[1]))
    for context in CONTEXTS:
        held[f"stated {context}"] = (context, state_bytes(case.model.init_state(1, context)))
    (first, start), (last, end) = held["stated 1"], held[f"stated {CONTEXTS[-1]}"]
    slope = 0.0 if case.model.constant_state else (end - start) / (last - first)
    off = max(abs(size - start - slope * (context - first)) for context, size in held.values())
    if case.model.constant_state:
        return Outcome(off, 0.0, f"claimed constant: {start} bytes at every context")
    if slope <= 0:
        return Outcome(None, None, f"claimed to grow, but holds {start} bytes at every context", passed=False)
    return Outcome(off, 0.0, f"claimed to grow: {slope:g} bytes a token")


@check
def parameters(case: Case) -> Outcome:
    """All that can hold knowledge, embeddings included, lies within the budget's tolerance."""
    counts, budget = count(case.model), case.size.params
    parts = f"{counts.trainable} trainable, {counts.frozen} frozen, {counts.buffers} in buffers and attributes"
    detail = f"{counts.total} ({parts}), {counts.non_embedding} of them non-embedding, for a budget of {budget}"
    tolerance = max(BUDGET, case.size.tolerance)
    if tolerance > BUDGET:
        detail += f", to {tolerance:.1%} as size.tolerance says where the protocol has {BUDGET:.0%}"
    return Outcome(abs(counts.total - budget) / budget, tolerance, f"{case.spec.name}: {detail}")


@check
def flops(case: Case) -> Outcome:
    """The matrix products stated by hand are those that torch counts in one step.

    A mixer whose data decide states the least that it takes, and takes no more than MORE_STEPS times as many.
    """
    adaptive, differences = [mixer for mixer in case.model.mixers if mixer.data_dependent_flops], {}
    for context in FLOPS_CONTEXTS:
        state = case.model.init_state(1, context - 1)
        with torch.no_grad(), FlopCounterMode(display=False) as counter, _noting(adaptive, counter) as taken:
            case.model.step(case.tokens[0, :1], state)
        stated, counted = case.model.flops_per_token(context).matmul, counter.get_total_flops()
        least = [mixer.flops_per_token(context).matmul for mixer in adaptive]
        off = abs((stated - sum(least)) - (counted - sum(taken)))
        for low, found in zip(least, taken, strict=True):
            off = max(off, low - found, found - MORE_STEPS * low)
        differences[context] = (off, stated, counted)
    context = max(differences, key=lambda c: differences[c][0])
    off, stated, counted = differences[context]
    return Outcome(off, 0.0, f"{stated:.0f} stated, {counted} counted at context {context}")


@contextmanager
def _noting(mixers: list[Mixer], counter: FlopCounterMode) -> Iterator[list[int]]:
    """What the `step` of each mixer takes meanwhile, of the operations that are counted."""
    taken = [0] * len(mixers)

    def noted(place: int, step: Callable) -> Callable:
        def run(*given):
            before = counter.get_total_flops()
            made = step(*given)
            taken[place] += counter.get_total_flops() - before
            return made

        return run

    for place, mixer in enumerate(mixers):
        vars(mixer)["step"] = noted(place, mixer.step)
    try:
        yield taken
    finally:
        for mixer in mixers:
            del vars(mixer)["step"]


@check
def oracle(case: Case) -> Outcome:
    """Each class of mixer equals a third party's implementation that carries its weights, where one exists."""
    firsts: dict[type, Mixer] = {}
    for mixer in map(comparable, case.model.mixers):
        firsts.setdefault(type(mixer), mixer)
    compared, notes, missing = [], [], False
    for kind, mixer in firsts.items():
        try:
            other = find_oracle(mixer)
        except ImportError as error:
            missing = True
            notes.append(f"{kind.__name__}: not installed ({error})")
            continue
        if other is None:
            notes.append(f"{kind.__name__}: no third-party implementation known")
            continue
        x = case.random(2, 17, mixer.d_model)
        with torch.no_grad():
            figure = distance(mixer(x)[0], other.forward(x).double())
        compared.append((figure, min(other.tolerance, allowance([mixer]).oracle)))
        notes.append(f"{kind.__name__} = {other.name} within {figure:.1e}")
    failed = [pair for pair in compared if not pair[0] <= pair[1]]
    detail = "; ".join(notes)
    if failed or (compared and not missing):
        return Outcome(*max(failed or compared, key=lambda pair: pair[0] / pair[1]), detail)
    return Outcome(None, None, detail)
