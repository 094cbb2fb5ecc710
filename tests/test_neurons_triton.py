"""What is particular to the wired neurons' Triton kernels: tiles, runs and chunks, and wirings of every kind."""

import pytest
import torch

from arch.ncp import neurons_triton
from arch.ncp.neurons import Neurons, Synapses, reference
from arch.ncp.neurons_triton import neuron_scan
from kernel_checks import check
from triton_checks import DEVICE

BATCH, LENGTH, INPUTS, UNITS, UNFOLDS = 3, 5, 4, 7, 2


def pairs(number: int, sources: int, targets: int) -> list[tuple[int, int]]:
    """Synapses in any order, some neurons with none and some pairs with several."""
    return [(int(torch.randint(sources, ())), int(torch.randint(1, targets - 1, ()))) for _ in range(number)]


def agree(sensory: list[tuple[int, int]], recurrent: list[tuple[int, int]]) -> None:
    ends = [torch.tensor(s, dtype=torch.int64, device=DEVICE).reshape(-1, 2).T for s in (sensory, recurrent)]
    make = {"dtype": torch.float64, "device": DEVICE}
    elapsed = torch.rand(BATCH, LENGTH, **make)
    elapsed[0, 1] = 0
    tensors = [torch.randn(BATCH, LENGTH, INPUTS, **make), torch.randn(BATCH, UNITS, **make), elapsed]
    tensors += [0.5 + torch.rand(UNITS, **make), torch.rand(UNITS, **make), torch.randn(UNITS, **make)]
    for size in (len(sensory), len(recurrent)):
        tensors += [torch.rand(size, **make), torch.randn(size, **make), torch.rand(size, **make)]
        tensors.append(torch.randn(size, **make))

    def scan(run):
        def call(x, v, elapsed, capacity, leak, rest, *weights):
            synapses = Synapses(*ends[0], *weights[:4]), Synapses(*ends[1], *weights[4:])
            return (run(Neurons(UNFOLDS, capacity, leak, rest, *synapses), x, v, elapsed),)

        return call

    check(scan(neuron_scan), scan(reference), [tensor.requires_grad_() for tensor in tensors])


@pytest.mark.parametrize("kept", [1, 2 * BATCH * UNITS * UNFOLDS])
def test_several_tiles_runs_and_chunks_of_tokens(monkeypatch, kept):
    for name, size in (("SEQUENCES", 2), ("COLUMNS", 4), ("TILE", 8), ("ROWS", 2), ("SYNAPSES", 4), ("RUN", 4)):
        monkeypatch.setattr(neurons_triton, name, size)
    monkeypatch.setattr(neurons_triton, "KEPT", kept)
    agree(pairs(6, INPUTS, UNITS), pairs(13, UNITS, UNITS))


@pytest.mark.parametrize("sensory", [[], [(3, u) for u in range(UNITS)]])
@pytest.mark.parametrize("recurrent", [[], [(u, 5) for u in range(UNITS)]])
def test_neurons_without_synapses_and_one_with_all(sensory, recurrent):
    agree(sensory, recurrent)


def test_a_wiring_first_seen_in_inference_mode_trains():
    wiring = pairs(6, INPUTS, UNITS), pairs(13, UNITS, UNITS)
    neurons_triton._wires.cache_clear()
    with torch.inference_mode():
        for ends, sources in zip(wiring, (INPUTS, UNITS), strict=True):
            source, target = (torch.tensor(end).numpy().tobytes() for end in zip(*ends, strict=True))
            neurons_triton._wires(source, target, sources, UNITS, torch.empty(0, device=DEVICE).device)
    agree(*wiring)
    assert neurons_triton._wires.cache_info().misses == 2
