"""The floor under every operation's time: the bytes that it must move, at the machine's measured copy rate."""

import torch

from bench.timing import Call, Limits, time_call

COPIED = 2**26  # numbers of float32: far beyond any cache


def copy_rate(device: torch.device, rounds: int = Limits.rounds) -> float:
    """Bytes a second, read and written, of a large copy by torch; the best of some rounds."""
    source, target = torch.ones(COPIED, device=device), torch.zeros(COPIED, device=device)
    call = Call(lambda: target.copy_(source), [])
    fastest = min(time_call(call, False, device) for _ in range(rounds))
    return 2 * source.nbytes / (fastest / 1e3)


def floor_ms(call: Call, rate: float, training: bool) -> float:
    """Milliseconds of moving what a call must: its inputs read and its output written once.

    Training adds the backward's: inputs and the output's gradient read, the inputs' gradients written.
    """
    with torch.no_grad():
        written = call.run().nbytes
    read = sum(tensor.nbytes for tensor in call.inputs)
    return 1e3 * (read + written + training * (2 * read + written)) / rate
