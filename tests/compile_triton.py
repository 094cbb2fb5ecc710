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
from arch.field import Field
from arch.solvers import FIXED
from harness.ops.samples import Draw, Sample
from liquid_calls import make_solver

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
    tensors = [x for x in (outputs if isinstance(outputs, tuple) else (outputs,)) if x.requires_grad]
    torch.autograd.backward(tensors, [torch.ones_like(x) for x in tensors])


def leaf(*shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.rand(shape).to(dtype).requires_grad_()


def liquid_scan(dtype):
    from arch.ltc.scan_triton import liquid_scan

    B, T, D = 2, 40, 96
    for solver in FIXED:
        N = 16 if solver == "semi_implicit" else 1
        token = [leaf(B, T, D, dtype=dtype), leaf(B, T, D, dtype=dtype)]
        token += [leaf(B, T, N, dtype=dtype), leaf(B, T, N, dtype=dtype)] if N > 1 else [None, None]
        field = Field(*token, leaf(D, N), leaf(D, N), leaf(D), "sigmoid")
        differentiate(liquid_scan(make_solver(solver, 2), field, leaf(B, D, N)))


def liquid_tokens(dtype):
    from arch.ltc.tokens_triton import tokens, tokens_vjp

    B, T, D = 2, 40, 96
    tensors = leaf(B, T, D), leaf(B, T, D), None, None, leaf(D, 1), leaf(D, 1), leaf(D)
    given = leaf(B, D, 1), None, leaf(B, T, D)
    with torch.no_grad():
        for name in FIXED:
            solver = make_solver(name, 6)
            tokens(solver, Field(*tensors, "sigmoid"), *given)
            tokens_vjp(solver, Field(*tensors, "softplus"), *given, leaf(B, T, D))


BY_HAND = {"liquid_scan": liquid_scan, "liquid_tokens": liquid_tokens}
"""Calls of operations that bring no samples yet."""


def calls() -> Iterator[tuple[str, torch.dtype, Callable[[], None]]]:
    """A name, a type and a call for every kernel in Triton: what an operation brings, in sizes of real use and tiny."""
    for operation in conformance.operations().values():
        for kernel in operation.kernels:
            if kernel.backend == "triton" and operation.samples is not None:
                *_, real = ({}, *operation.samples.variants[:1], *operation.samples.large[:1])
                for keywords, dtype in (
                    *((variant | real, torch.float32) for variant in operation.samples.variants[:2]),
                    (real, torch.bfloat16),
                    ({"length": 1}, torch.float64),
                ):
                    if conformance.serves(operation, kernel, keywords, dtype):
                        sample = operation.samples.make(Draw(dtype), **keywords)
                        yield operation.name, dtype, partial(run, kernel.load(), sample)
    for name, call in BY_HAND.items():
        for dtype in (torch.float32, torch.bfloat16):
            yield name, dtype, partial(call, dtype)


def run(function: Callable, sample: Sample) -> None:
    differentiate(function(*sample.arguments))


if __name__ == "__main__":
    compile_in_place_of_running()
    for name, dtype, call in calls():
        compiled.clear()
        call()
        print(name, dtype, *compiled, flush=True)
