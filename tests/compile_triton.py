"""Compiles every Triton kernel that a call would launch for one kind of GPU, without a GPU and without running it.

The program prints a line for each operation and type with the kernels compiled, and fails at the first that does not
compile. It must start without TRITON_INTERPRET, so it is a process of its own.
"""

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from arch.field import Field
from arch.solvers import FIXED
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


def selective_scan(dtype):
    from baselines.mamba.scan_triton import selective_scan

    B, T, D, N = 2, 40, 96, 16
    x, dt = leaf(B, T, D, dtype=dtype), leaf(B, T, D, dtype=dtype)
    inputs = (x, dt, leaf(D, N), leaf(B, T, N, dtype=dtype), leaf(B, T, N, dtype=dtype), leaf(D), leaf(B, D, N))
    differentiate(selective_scan(*inputs))


def rwkv_scan(dtype):
    from baselines.rwkv.scan_triton import rwkv_scan

    B, T, H, N = 2, 40, 2, 64
    differentiate(rwkv_scan(*(leaf(B, T, H, N, dtype=dtype) for _ in range(6)), leaf(B, H, N, N)))


def causal_conv(dtype):
    from harness.ops.causal_conv.conv_triton import causal_conv

    for silu in (False, True):
        inputs = [leaf(2, 40, 96, dtype=dtype), leaf(4, 96), leaf(96), leaf(2, 3, 96, dtype=dtype)]
        differentiate(causal_conv(*inputs, silu))


def linear_scan(dtype):
    from harness.ops.linear_scan.scan_triton import run

    for reverse in (False, True):
        with torch.no_grad():
            run(leaf(2, 400, 96, dtype=dtype), leaf(2, 400, 96, dtype=dtype), leaf(2, 96, dtype=dtype), reverse)


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


def cfc_scan(_dtype):
    from arch.cfc.scan import Cell
    from arch.cfc.scan_triton import cfc_scan

    T, B, D = 4, 20, 96
    for mode, heads in (("default", 3), ("pure", 1)):
        extras = (leaf(D), leaf(D)) if mode == "pure" else ()
        cell = Cell(mode, "gelu", leaf(D, D), [], (leaf(heads * D, D), leaf(heads * D)), *extras)
        differentiate(cfc_scan(cell, leaf(T, B, D), leaf(B, D), None))


OPERATIONS = (selective_scan, rwkv_scan, causal_conv, linear_scan, liquid_scan, liquid_tokens, cfc_scan)
CALLS = {call.__name__: call for call in OPERATIONS}

if __name__ == "__main__":
    compile_in_place_of_running()
    for name, call in CALLS.items():
        for dtype in (torch.float32, torch.bfloat16):
            compiled.clear()
            call(dtype)
            print(name, dtype, *compiled, flush=True)
