"""Compiles every Triton kernel that a call would launch for one kind of GPU, without a GPU and without running it.

The program prints a line for each operation and type with the kernels compiled, and fails at the first that does not
compile. It must start without TRITON_INTERPRET, so it is a process of its own.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

import conformance
from harness.ops.samples import Draw, Sample

TARGET = GPUTarget("cuda", 90, 32)
compiled: list[str] = []


class NoGPU:
    """What Triton asks of a driver before it compiles."""

    def get_current_target(self):
        return TARGET

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=0):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")


def compile_in_place_of_running() -> None:
    """Makes a launch compile its kernel and leave its outputs as they are."""
    triton.runtime.driver.set_active(NoGPU())
    run = JITFunction.run

    def warm_up(self, *args, grid, warmup, **options):
        run(self, *args, grid=grid, warmup=True, **options)
        compiled.append(self.__name__)

    JITFunction.run = warm_up


def differentiate(outputs) -> None:
    """Runs the backward of every output."""
    tensors = [x for x in (outputs if isinstance(outputs, tuple) else (outputs,)) if x is not None and x.requires_grad]
    if tensors:
        torch.autograd.backward(tensors, [torch.ones_like(x) for x in tensors])


def calls() -> Iterator[tuple[str, torch.dtype, Callable[[], None]]]:
    """A name, a type and a call for every kernel in Triton: what an operation brings, in sizes of real use and tiny."""
    for operation in conformance.operations().values():
        for kernel in operation.kernels:
            if kernel.backend == "triton" and operation.samples:
                *_, real = ({}, *operation.samples.variants[:1], *operation.samples.large[:1])
                for keywords, dtype in (
                    *((variant | real, torch.float32) for variant in operation.samples.variants[:2]),
                    *((large, torch.float32) for large in operation.samples.large[1:]),
                    (real, torch.bfloat16),
                    ({"length": 1}, torch.float64),
                ):
                    if conformance.serves(operation, kernel, keywords, dtype):
                        sample = operation.samples.make(Draw(dtype), **keywords)
                        yield operation.name, dtype, partial(run, kernel.load(), sample)


def run(function: Callable, sample: Sample) -> None:
    differentiate(function(*sample.arguments))


if __name__ == "__main__":
    compile_in_place_of_running()
    for name, dtype, call in calls():
        compiled.clear()
        call()
        print(name, dtype, *compiled, flush=True)
