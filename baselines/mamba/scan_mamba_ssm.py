"""The selective scan by mamba-ssm's CUDA kernel, where that package and its compiled half are installed."""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor


def kernel() -> Callable | None:
    """mamba-ssm's `selective_scan_fn`, None where the package or its compiled half is missing."""
    try:
        if importlib.import_module("selective_scan_cuda").fwd is None:  # a stand-in, put there to import the rest
            return None
        return importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    except ImportError:
        return None


def refuses(carried: bool = False, **options) -> str | None:
    """Why mamba-ssm cannot serve; carried: whether the scan begins at a state that an earlier one left."""
    if carried:
        return "its kernel starts from no state but zero"
    return None if kernel() else "the package or its compiled half is not installed"


def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, h0: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Operation `selective_scan`, float32, from h0 = None."""
    if h0 is not None:
        raise ValueError("mamba-ssm's selective scan starts from no state but zero.")
    return scan_by(kernel(), x, dt, A, B, C, D)


def scan_by(
    kernel: Callable, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> tuple[Tensor, Tensor]:
    """The scan by a function of the signature of mamba-ssm's `selective_scan_fn`, with gradients of every input.

    That kernel gives no gradient to the state it returns. So the last state is read as the outputs of N more tokens,
    which do not move it (dt = 0) and whose C are the unit vectors. Tested on CPU with mamba-ssm's reference of the same
    signature; not yet run on a GPU.
    """
    length, states = x.shape[1], A.shape[1]
    still = x.new_zeros(x.shape[0], states, x.shape[2])
    unit = torch.eye(states, dtype=x.dtype, device=x.device).expand(x.shape[0], -1, -1)
    tokens = [(x, still), (dt, still), (B, torch.zeros_like(unit)), (C, unit)]
    u, delta, b, c = (torch.cat(pair, dim=1).transpose(1, 2).contiguous() for pair in tokens)  # (batch, .., T + N)
    out = kernel(u, delta, A.contiguous(), b, c, D).transpose(1, 2)
    return out[:, :length], out[:, length:].transpose(1, 2)
