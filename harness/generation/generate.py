"""Generation from the cached state: one prefill, then one `step` per token."""

from collections.abc import Iterator

import torch
from torch import Tensor

from harness.generation.decode import Decoder
from harness.model.context import FULL, ContextPolicy
from harness.model.state import State


@torch.inference_mode()
def generate(
    model,
    prompt: Tensor,
    n_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    policy: ContextPolicy = FULL,
) -> Tensor:
    """Continues each row of `prompt` (B, T), T at least 1; returns the new tokens (B, n_tokens).

    temperature: 0 takes the likeliest token. top_k, top_p: sample among the k likeliest, and among the likeliest whose
    probabilities reach p. Draws come from a private generator on the CPU, so the seed decides them on every device.
    policy: how much of the past a state that grows keeps.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens: list[Tensor] = []
    logits, state = read(model, prompt, prompt.shape[1], policy)  # (B, V)
    decoder = Decoder(model, state, policy, prompt.shape[1])
    while len(tokens) < n_tokens:
        tokens.append(choose(logits, temperature, top_p, top_k, generator))
        if len(tokens) < n_tokens:
            logits = decoder.step(tokens[-1])
    return torch.stack(tokens, dim=1) if tokens else prompt[:, :0]


def read(
    model, tokens: Tensor, chunk: int, policy: ContextPolicy = FULL, state: State | None = None, before: int = 0
) -> tuple[Tensor, State]:
    """Reads tokens (B, T), T at least 1, as `chunks` does; returns the last outputs (B, ...) and the state."""
    last, known = tokens, state
    for outputs, behind in chunks(model, tokens, chunk, policy, state, before):
        last, known = outputs[:, -1].clone(), behind  # keeps one position, not the chunk's
        del outputs
    return last, known


def chunks(
    model, tokens: Tensor, chunk: int, policy: ContextPolicy = FULL, state: State | None = None, before: int = 0
) -> Iterator[tuple[Tensor, State]]:
    """Reads tokens (B, T) in chunks that carry the state; yields the outputs (B, t, ...) of each and the state behind.

    state: what was left by the `before` tokens that were read earlier. Chunks end where the policy cuts the state, so
    that every token sees what it sees in evaluation.
    """
    cuts = FULL if model.constant_state else policy
    start, end = before, before + tokens.shape[1]
    while start < end:
        stop = int(min(start + chunk, end, cuts.next_cut(start + 1)))
        outputs, state = model(tokens[:, start - before : stop - before], cuts.cut(model, state, start))
        yield outputs, state
        del outputs
        start = stop


def choose(logits: Tensor, temperature: float, top_p: float, top_k: int | None, generator: torch.Generator) -> Tensor:
    """Draws one token per row of `logits` (B, V): (B,), on the device of the logits."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    scaled, order = (logits.double().cpu() / temperature).sort(dim=-1, descending=True, stable=True)
    probabilities = scaled.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # the mass of the likelier tokens
    kept = before < top_p
    kept[:, 0] = True
    if top_k is not None:
        kept[:, top_k:] = False
    drawn = torch.multinomial(probabilities * kept, 1, generator=generator)
    return order.gather(1, drawn)[:, 0].to(logits.device)


def sample_text(
    model, prompt: bytes, n_bytes: int, temperature: float, top_p: float, seed: int, policy: ContextPolicy = FULL
) -> dict[str, str]:
    """Continues a text: {"prompt", "text"}; bytes that are no UTF-8 show as the replacement character."""
    tokens = torch.tensor([list(prompt)], device=next(model.parameters()).device)
    text = bytes(generate(model, tokens, n_bytes, temperature, top_p, seed=seed, policy=policy)[0].tolist())
    return {"prompt": prompt.decode("utf-8", errors="replace"), "text": text.decode("utf-8", errors="replace")}
