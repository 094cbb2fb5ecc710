"""Stopwatches of generation: prefill in chunks, decode token by token."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from harness.generation.decode import Decoder
from harness.generation.generate import read
from harness.model.backbone import LanguageModel
from harness.model.context import FULL, ContextPolicy


def synchronize(device: torch.device) -> None:
    """Waits for the work queued on a GPU, so that a clock read now has seen it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def now(device: torch.device) -> int:
    """Nanoseconds on a monotonic clock, after the device has caught up."""
    synchronize(device)
    return time.perf_counter_ns()


def prompt(model: LanguageModel, batch: int, length: int, device: torch.device) -> Tensor:
    """Random inputs (batch, length, ...), the same on every call and machine, apart from the global generators."""
    return model.interface.inputs.random(batch, length, torch.Generator().manual_seed(0)).to(device)


def time_prefill(model: LanguageModel, tokens: Tensor, chunk: int, policy: ContextPolicy = FULL) -> tuple[float, float]:
    """Returns the seconds of reading tokens (B, T), and of that and the first generated token."""
    start = now(tokens.device)
    logits, state = read(model, tokens, chunk, policy)
    after = now(tokens.device)
    following, last = model.interface.following, tokens[:, -1]
    following(model.step(following(logits, last), policy.cut(model, state, tokens.shape[1]))[0], last)
    return (after - start) / 1e9, (now(tokens.device) - start) / 1e9


def time_decode(decoder: Decoder, tokens: Tensor, warmup: int, steps: int, seconds: float) -> list[float]:
    """Generates greedily from tokens (B,); returns the milliseconds of each step, the choice included.

    The first `warmup` steps are not returned. Stops after `steps` more, or after the one that passes `seconds`; where
    that happens during the warm-up, the last step alone is returned.
    """
    device = tokens.device
    decoder.prepare(tokens)
    times: list[float] = []
    start = before = now(device)
    while len(times) < warmup + steps and (not times or (before - start) / 1e9 <= seconds):
        tokens = decoder.model.interface.following(decoder.step(tokens), tokens)
        after = now(device)
        times.append((after - before) / 1e6)
        before = after
    return times[min(warmup, len(times) - 1) :]


MINIMUM_SAMPLES = {50: 1, 95: 20, 99: 100}
"""Fewer than these hold no sample beyond the percentile."""


def percentiles(times: Sequence[float]) -> dict[str, float | None]:
    """The percentiles of `times`, linearly interpolated: {"p50": ..., "p95": ..., "p99": ...}.

    None where there are too few samples for it to mean anything but the largest.
    """
    return {
        f"p{which}": float(np.percentile(times, which)) if len(times) >= minimum else None
        for which, minimum in MINIMUM_SAMPLES.items()
    }
