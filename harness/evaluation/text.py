"""What a model of bytes is worth: bits per byte with context carried over, by position, beyond the training length."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.evaluation.evaluate import EvaluateConfig
from harness.evaluation.passage import Passage, Reading, observe
from harness.generation.generate import sample_text
from harness.model.context import ContextPolicy
from harness.model.interface import IGNORE


def text_figures(model, streams: dict[str, np.ndarray], config: EvaluateConfig, train_length: int, seed: int) -> dict:
    """The "evaluation" block of a text: the figures of its splits (bytes in reading order) and a sample."""
    result: dict = {}
    policy = config.policy(train_length)
    for split in ("validation", "test"):
        stream = streams[split][: config.max_bytes]
        rows = stream_rows(stream, config.streams, train_length)
        nats, scored = stream_loss(model, rows, policy, train_length // 2, observed=split == "test")
        result[split] = _figures(nats, scored, stream)
    test = streams["test"]
    result["test"]["loss_by_position"] = loss_by_position(model, test, config, train_length)
    result["extrapolation"] = extrapolation(model, test, config, train_length)
    prompt = test[: config.sample_prompt_bytes].tobytes()
    how = (config.sample_bytes, config.sample_temperature, config.sample_top_p, seed)
    return result | {"sample": sample_text(model, prompt, *how, policy)}


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats of every target: logits (B, T, V), targets (B, T) -> (B, T), 0 where the target is IGNORE."""
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    flat = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORE)
    return flat.view_as(targets)


def stream_loss(model, rows: Tensor, policy: ContextPolicy, chunk: int, observed: bool = False) -> tuple[float, int]:
    """The total nats of rows of bytes (S, R) read with context carried over, and the bytes that were scored.

    Every byte but the first of each row is predicted exactly once, in chunks of the policy's stride, or of `chunk`
    where nothing is cut. The state goes on from chunk to chunk; one that grows is cut between them as the policy says.
    With the training length as the window no distance is one that training never showed, and no prediction suffers the
    short contexts of separate windows: this strided sliding window is a Transformer's best practice. A state of
    constant size needs no such care and simply carries all it remembers. observed: shows the chunks to who observes.
    """
    rows = rows.to(next(model.parameters()).device)
    chunk = policy.stride or max(1, chunk)
    starts = range(0, rows.shape[1] - 1, chunk)
    total, state = torch.zeros((), dtype=torch.float64, device=rows.device), None
    for index, start in enumerate(starts):
        tokens = rows[:, start : start + chunk + 1].long()
        reading = Reading(tokens[:, :-1], tokens[:, 1:])
        before = policy.cut(model, state, start)
        logits, state = model(reading.inputs, before)
        total += token_losses(logits, reading.targets).sum(dtype=torch.float64)
        if observed:
            observe(Passage(index, len(starts), reading, logits, before, start, policy))
    return total.item(), int((rows[:, 1:] != IGNORE).sum())


def stream_rows(stream: np.ndarray, streams: int, train_length: int) -> Tensor:
    """A stream of bytes in contiguous rows (S, R), S at most `streams`; IGNORE at the end of a row that is shorter."""
    count = max(1, min(streams, len(stream) // (2 * train_length)))
    pieces = np.array_split(stream, count)  # their lengths differ by one at most, so padding is only ever a target
    rows = np.full((count, len(pieces[0])), IGNORE, dtype=np.int16)
    for row, piece in zip(rows, pieces, strict=True):
        row[: len(piece)] = piece
    return torch.from_numpy(rows)


def _figures(nats: float, scored: int, stream: np.ndarray) -> dict:
    """Bits per byte and perplexities; that of a word is 2 ^ (bits per byte x bytes per word), white space included."""
    bits = nats / math.log(2) / scored
    words = len(stream.tobytes().split())
    bits_per_word = bits * len(stream) / words if words else math.inf
    return {
        "bits_per_byte": bits,
        "perplexity_per_byte": 2**bits,
        "perplexity_per_word": 2**bits_per_word if bits_per_word < 1000 else None,
        "bytes": scored,
    }


def loss_by_position(model, stream: np.ndarray, config: EvaluateConfig, train_length: int) -> list[dict]:
    """Bits per byte by the bytes seen, in windows of the training length from fresh states.

    A row's position is the last of its bucket; buckets are spaced evenly in the logarithm, from one byte seen on.
    """
    count = max(1, min(config.position_bytes, len(stream) - 1) // train_length)
    ends = np.linspace(train_length, len(stream) - 1, count).astype(int)
    losses = _window_losses(model, stream, ends, train_length, train_length, config.streams * train_length)
    by_position = losses.mean(dim=0) / math.log(2)  # (train_length,)
    edges = np.unique(np.geomspace(1, train_length, config.position_buckets).round().astype(int))
    return [
        {"position": int(last), "bits_per_byte": by_position[first:last].mean().item()}
        for first, last in zip([0, *edges[:-1]], edges, strict=True)
    ]


def extrapolation(model, stream: np.ndarray, config: EvaluateConfig, train_length: int) -> list[dict]:
    """Bits per byte at the end of fresh contexts of several lengths, nothing truncated.

    Each length scores the last half training length of its sequences, and every length scores the very same bytes:
    the rows differ in nothing but how far back the context begins, so a rise with length is the model's own failure to
    extrapolate and a fall is its use of a longer context. Lengths that the stream does not hold are left out.
    """
    lengths = [factor * train_length for factor in config.length_factors if factor * train_length < len(stream)]
    if not lengths:
        return []
    scored, longest = max(1, train_length // 2), max(lengths)
    room = (len(stream) - 1 - longest) // scored + 1  # scored segments that do not overlap
    count = max(1, min(config.extrapolation_bytes // longest, room))
    ends = np.linspace(longest, len(stream) - 1, count).astype(int)
    rows = []
    for length in lengths:
        losses = _window_losses(model, stream, ends, length, scored, config.streams * train_length)
        rows.append({"length": length, "bits_per_byte": losses.mean().item() / math.log(2), "bytes": losses.numel()})
    return rows


def _window_losses(model, stream: np.ndarray, ends: np.ndarray, length: int, scored: int, tokens: int) -> Tensor:
    """Nats (N, scored), float64, of the last targets of the windows whose last target is stream[end]."""
    device = next(model.parameters()).device
    windows = np.lib.stride_tricks.sliding_window_view(stream, length + 1)[ends - length]
    losses, batches = [], torch.from_numpy(windows.copy()).split(max(1, tokens // length))
    for index, rows in enumerate(batches):
        rows = rows.to(device).long()
        logits, _ = model(rows[:, :-1])
        targets = rows[:, 1:].clone()
        targets[:, : length - scored] = IGNORE
        observe(Passage(index, len(batches), Reading(rows[:, :-1], targets), logits, main=False))
        losses.append(token_losses(logits[:, -scored:], rows[:, -scored:]).double())
    return torch.cat(losses)
