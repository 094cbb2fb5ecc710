"""The subject `gradients`: the memory that the training of a liquid cell takes, and how exact its gradients are."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from analysis.bench import Row
from analysis.liquid import read
from bench.kernels import present
from bench.store import Store
from bench.timing import Call, Contestant, Limits, time_call
from harness.config.configure import locate
from harness.machine.memory import Increase


def run(config: dict, store: Store, device: torch.device, limits: Limits, say: Callable[[str], None]) -> None:
    """Measures the implementations of docs/implementations.yaml that the store lacks, one at a time."""
    store.note(channels=config["channels"])
    named = read()
    for path in config["comparisons"]:
        comparison = locate(path, "comparisons")(device)
        for contestant in present(comparison, store, say):
            cell = {"operation": comparison.operation, "contestant": contestant.name}
            wanted = contestant.name in named.get(comparison.operation, {})
            if wanted and not store.holds([contestant.name], **cell):
                row = cell | memory(contestant, *config["memory_cell"], config["channels"], device)
                row["gradient_error"] = error(contestant, *config["error_cell"], config["channels"], device)
                store.add([row])
                say(f"{comparison.operation}, {contestant.name}: {row}")
    store.write()


def memory(contestant: Contestant, batch: int, length: int, channels: int, device: torch.device) -> Row:
    """What a forward and backward pass adds to the memory in use at its peak, over its tokens.

    The inputs stand before and their gradients count. A pass before has compiled and allocated what stays.
    """
    tokens = min(length, max(1, contestant.most_tokens // batch)) if contestant.most_tokens else length
    call = contestant.make(batch, tokens, channels)
    time_call(call, True, device)
    for tensor in call.inputs:
        tensor.grad = None
    increase = Increase(device)
    time_call(call, True, device)
    taken = increase.bytes()
    row: Row = {"batch": batch, "length": tokens}
    return row | {"bytes_per_token": None if taken is None else taken / (batch * tokens)}


def error(contestant: Contestant, batch: int, length: int, channels: int, device: torch.device) -> float:
    """The largest deviation of a gradient from the same call's in float64, over the largest gradient of that input.

    Of a kernel that computes float32 alone, `exact` is the same cell by the loop.
    """
    ours = contestant.make(batch, length, channels)
    with doubled():
        exact = (contestant.exact or contestant.make)(batch, length, channels)
    with torch.no_grad():
        for theirs, given in zip(exact.inputs, ours.inputs, strict=True):
            theirs.copy_(given)
    worst = 0.0
    for found, true in zip(gradients(ours), gradients(exact), strict=True):
        if true is not None and found is not None and (size := true.abs().max().item()) > 0:
            worst = max(worst, (found.double() - true).abs().max().item() / size)
    return worst


def gradients(call: Call) -> list[Tensor | None]:
    """Of the sum of the call's outputs, by its inputs."""
    for tensor in call.inputs:
        tensor.grad = None
    call.run().sum().backward()
    return [tensor.grad for tensor in call.inputs]


@contextmanager
def doubled() -> Iterator[None]:
    """New tensors are float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
