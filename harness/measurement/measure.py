"""The one instrument: state bytes, memory, prefill and decode speed of a model, by context."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter

import torch

from harness.config.ranges import Batch, Count, CountOrNone, Dollars, Length, Lengths, Seconds
from harness.generation.decode import Decoder
from harness.generation.generate import read
from harness.machine.hardware import available_bytes, device_name, is_out_of_memory
from harness.machine.memory import Increase
from harness.measurement import latency
from harness.measurement.cost import dollars_per_million_tokens
from harness.measurement.forecast import Forecast
from harness.measurement.resident import Generation, generation_memory
from harness.model.anew import Anew
from harness.model.backbone import LanguageModel
from harness.model.context import FULL, ContextPolicy
from harness.model.state import state_bytes, tensors

STEP_COPIES = 3
"""Memory a step may need, in states: the old one, the new one, and as much again for slack."""
MEMORY_FRACTION = 0.8
"""The part of the free memory that a measurement may plan to use."""
UNMEASURED = [
    "state_bytes",
    "generation_memory_bytes",
    *("prefill_tokens_per_second", "first_token_ms", "prefill_samples"),
    *("decode_tokens_per_second", "decode_ms_p50", "decode_ms_p95", "decode_ms_p99", "decode_samples"),
]


@dataclass(frozen=True)
class MeasureConfig:
    """What is measured, and how long it may take.

    contexts: tokens read before generation starts. warmup: untimed steps at the head of every pass. decode_tokens:
    timed steps of a pass. repeats: passes (decode) and readings (prefill), as far as time allows.
    seconds_per_context: budget of one context; half of it is for decoding. prefill_chunk: tokens read at once.
    memory_seconds: what the process that measures memory on a CPU may take, None to measure none.
    dollars_per_hour: the price of the machine, an assumption of the user's that the costs are scaled by.
    """

    contexts: Lengths = field(default_factory=lambda: [1024, 4096, 16384, 32768, 131072])
    batch_size: Batch = 1
    warmup: CountOrNone = 8
    decode_tokens: Count = 64
    repeats: Count = 3
    seconds_per_context: Seconds = 5.0
    prefill_chunk: Length = 2048
    memory_seconds: Seconds | None = None
    dollars_per_hour: Dollars = 0.10


class StateMismatchError(RuntimeError):
    """An architecture whose `init_state` does not hold what reading the context really leaves."""


def measure(
    model: LanguageModel, config: MeasureConfig, policy: ContextPolicy = FULL, process: Anew | None = None
) -> dict:
    """Returns the record's measurement block, but for the costs (see `cost`).

    policy: the context policy, under which a state that grows is held, read and generated from. Memory is what
    generation takes beyond the loaded model: of a process of its own on a CPU, of the allocator on a GPU. What does not
    fit the time or the memory is null, and `skipped` says why. process: another one that holds the model and has
    answered nothing yet, for the memory on a CPU; None starts one. Leaves the model's training mode and the random
    generators as they were. Raises StateMismatchError where `init_state` misstates the state.
    """
    device = model.head.weight.device
    with _undisturbed(model, device), torch.inference_mode():
        forecast = Forecast(linear=model.constant_state or policy.window is not None)
        contexts = sorted(set(config.contexts))
        if contexts:
            _check_state(model, config, contexts[0], policy)
        rows = [_measure_context(model, config, context, policy, forecast) for context in contexts]
    memory = _memory(model, config, policy, rows, process)
    return {
        "device": device.type,
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "dtype": str(model.head.weight.dtype).removeprefix("torch."),
        "batch_size": config.batch_size,
        "generation_memory": memory,
        "contexts": rows,
    }


def cost(config: MeasureConfig, measurement: dict, train_tokens_per_second: float | None) -> dict:
    """Returns dollars per million tokens, trained on and generated (by context), at the configured price."""
    price = config.dollars_per_hour
    decode = {
        str(row["context"]): dollars_per_million_tokens(price, row["decode_tokens_per_second"])
        for row in measurement["contexts"]
    }
    return {
        "dollars_per_hour": price,
        "train_dollars_per_million_tokens": dollars_per_million_tokens(price, train_tokens_per_second),
        "decode_dollars_per_million_tokens": decode,
    }


@contextmanager
def _undisturbed(model: LanguageModel, device: torch.device) -> Iterator[None]:
    """Evaluation mode inside; every module's training flag and the random generators as they were afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def _check_state(model: LanguageModel, config: MeasureConfig, context: int, policy: ContextPolicy) -> None:
    """Holds `init_state` to a real prefill of the smallest context; warms the prefill up, too."""
    tokens = latency.prompt(model, config.batch_size, context, model.head.weight.device)
    _, state = read(model, tokens, config.prefill_chunk, policy)
    real = [(tuple(tensor.shape), tensor.dtype) for tensor in tensors(state)]
    held = policy.held(context)
    stated = [(tuple(t.shape), t.dtype) for t in tensors(model.init_state(config.batch_size, held))]
    if real != stated:
        wrong = next((pair for pair in zip(real, stated, strict=False) if pair[0] != pair[1]), (len(real), len(stated)))
        raise StateMismatchError(
            f"model={model.spec.name}: init_state(context={held}) differs from the state that reading {context} "
            f"tokens leaves: read {wrong[0]}, stated {wrong[1]}."
        )


def _measure_context(
    model: LanguageModel, config: MeasureConfig, context: int, policy: ContextPolicy, forecast: Forecast
) -> dict:
    row = {"context": context} | dict.fromkeys(UNMEASURED) | {"skipped": None}
    skipped = []
    started = perf_counter()
    for part in (_decode, _prefill):
        left = config.seconds_per_context * (0.5 if part is _decode else 1.0) - (perf_counter() - started)
        try:
            result = part(model, config, context, policy, forecast, left)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            result = "out of memory"
        if isinstance(result, str):
            skipped.append(f"{part.__name__.strip('_')}: {result}")
        else:
            row |= result
    row["skipped"] = "; ".join(skipped) or None
    return row


def _decode(
    model: LanguageModel,
    config: MeasureConfig,
    context: int,
    policy: ContextPolicy,
    forecast: Forecast,
    seconds: float,
) -> dict | str:
    """Holds the state after `context` tokens and generates from it: bytes, latency, on a GPU memory."""
    device, kept = model.head.weight.device, policy.held(context)
    needed, free = STEP_COPIES * _stated_bytes(model, config.batch_size, kept), available_bytes(device)
    if needed > MEMORY_FRACTION * free:
        return f"needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
    token = latency.prompt(model, config.batch_size, 1, device)[:, 0]
    memory = Increase(device)
    held = 0
    times: list[float] = []
    deadline = perf_counter() + seconds
    for number in range(config.repeats):
        left = deadline - perf_counter()
        if number and left <= 0:
            break
        decoder = Decoder(model, model.init_state(config.batch_size, kept), policy, context)  # the state's only holder
        held = state_bytes(decoder.state)
        times += latency.time_decode(decoder, token, config.warmup, config.decode_tokens, left)
    spread = latency.percentiles(times)
    return {
        "state_bytes": held,
        "generation_memory_bytes": memory.bytes() if device.type == "cuda" else None,
        "decode_tokens_per_second": config.batch_size * len(times) / sum(times) * 1e3,
        "decode_samples": len(times),
        **{f"decode_ms_{name}": value for name, value in spread.items()},
    }


def _prefill(
    model: LanguageModel,
    config: MeasureConfig,
    context: int,
    policy: ContextPolicy,
    forecast: Forecast,
    seconds: float,
) -> dict | str:
    """Reads `context` tokens for real, where the smaller contexts say that time and memory allow it."""
    device = model.head.weight.device
    refusal = forecast.refusal(context, seconds, MEMORY_FRACTION * available_bytes(device))
    if refusal:
        return refusal
    tokens = latency.prompt(model, config.batch_size, context, device)
    memory = Increase(device)
    timings: list[tuple[float, float]] = []
    while not timings or (len(timings) < config.repeats and sum(t[1] for t in timings) + timings[-1][1] <= seconds):
        timings.append(latency.time_prefill(model, tokens, config.prefill_chunk, policy))
    read = median(timing[0] for timing in timings)
    first_token = median(timing[1] for timing in timings)
    forecast.add(context, first_token, memory.bytes() or 0)
    return {
        "prefill_tokens_per_second": config.batch_size * context / read,
        "first_token_ms": first_token * 1e3,
        "prefill_samples": len(timings),
    }


def _memory(
    model: LanguageModel, config: MeasureConfig, policy: ContextPolicy, rows: list[dict], process: Anew | None
) -> str:
    """Enters what generation takes beyond the loaded model into the rows; returns how it was measured, or why not."""
    if model.head.weight.device.type == "cuda":
        return "the allocator's increase over the loaded model"
    held = [row for row in rows if row["state_bytes"] is not None]
    if not held or config.memory_seconds is None:
        return "not measured: measure.memory_seconds is null" if held else "not measured: no state was held"
    contexts = [row["context"] for row in held]
    what = Generation(config.batch_size, contexts, policy)
    measured = generation_memory(model, what, config.memory_seconds, process)
    if isinstance(measured, str):
        return f"not measured: {measured}"
    for row, increase in zip(held, measured, strict=True):
        row["generation_memory_bytes"] = increase
    return "the increase of the resident memory of a process of its own over the loaded model"


def _stated_bytes(model: LanguageModel, batch: int, context: int) -> int:
    """Bytes the state will take, from its shapes alone: nothing is allocated."""
    dtype = model.head.weight.dtype
    return sum(state_bytes(mixer.init_state(batch, context, device="meta", dtype=dtype)) for mixer in model.mixers)
