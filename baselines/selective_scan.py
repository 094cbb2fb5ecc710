"""The selective scan S6 (Gu and Dao 2023, arXiv:2312.00752, eq. 2 and algorithm 2) and the ways to compute it.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t,    y_t = <C_t, h_t> + D x_t

Shapes: x, dt, y (batch, T, channels); A (channels, N); B, C (batch, T, N); D (channels); h (batch, channels, N). The
input term keeps only the first order of zero-order hold, as Mamba's code does. dt is positive, A negative.
"""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from baselines.kernels import selective_numba as selective_scan_cpu


def scan_step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """One token: x, dt (batch, channels), B, C (batch, N). Returns y (batch, channels) and the new h."""
    decay = torch.exp(dt.unsqueeze(-1) * A)  # (batch, channels, N)
    h = decay * h + (dt * x).unsqueeze(-1) * B.unsqueeze(1)
    return (h * C.unsqueeze(1)).sum(-1) + D * x, h


def selective_scan_reference(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, h0: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The scan as a loop over time, in torch operations: the oracle, and the way where there is no kernel."""
    h = x.new_zeros(x.shape[0], *A.shape) if h0 is None else h0
    ys = []
    for token in zip(*(tensor.unbind(1) for tensor in (x, dt, B, C)), strict=True):
        x_t, dt_t, B_t, C_t = token
        y, h = scan_step(x_t, dt_t, A, B_t, C_t, D, h)
        ys.append(y)
    return torch.stack(ys, dim=1), h


def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, h0: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns y and the last h by the fastest way the device has; every input is float32 or every one float64.

    CPU: the fused kernels. CUDA: mamba-ssm's kernel in float32 where that package is installed. Else the reference.
    """
    if x.device.type == "cpu":
        h0 = x.new_zeros(x.shape[0], *A.shape) if h0 is None else h0
        inputs = (x, dt, A, B, C, D, h0)
        return _FusedScan.apply(torch.is_grad_enabled() and any(t.requires_grad for t in inputs), *inputs)
    kernel = mamba_ssm_kernel() if x.is_cuda and x.dtype == torch.float32 else None
    if kernel is not None:
        return selective_scan_by(kernel, x, dt, A, B, C, D, h0)
    return selective_scan_reference(x, dt, A, B, C, D, h0)


def mamba_ssm_kernel() -> Callable | None:
    """mamba-ssm's `selective_scan_fn`, None where the package or its compiled half is missing."""
    try:
        if importlib.import_module("selective_scan_cuda").fwd is None:  # a stand-in, put there to import the rest
            return None
        return importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    except ImportError:
        return None


def selective_scan_by(
    kernel: Callable, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, h0: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The scan by a function of the signature of mamba-ssm's `selective_scan_fn`, with gradients of every input.

    That kernel starts from h = 0 and gives no gradient to the state it returns. So the last state is read as the
    outputs of N more tokens, which do not move it (dt = 0) and whose C are the unit vectors; and what h0 adds to the
    outputs, the scan being linear in h, is added here. Tested on CPU with mamba-ssm's reference of the same signature;
    not yet run on a GPU.
    """
    length, states = x.shape[1], A.shape[1]
    still = x.new_zeros(x.shape[0], states, x.shape[2])
    unit = torch.eye(states, dtype=x.dtype, device=x.device).expand(x.shape[0], -1, -1)
    tokens = [(x, still), (dt, still), (B, torch.zeros_like(unit)), (C, unit)]
    u, delta, b, c = (torch.cat(pair, dim=1).transpose(1, 2).contiguous() for pair in tokens)  # (batch, .., T + N)
    out = kernel(u, delta, A.contiguous(), b, c, D).transpose(1, 2)
    y, h = out[:, :length], out[:, length:].transpose(1, 2)
    if h0 is None:
        return y, h
    elapsed = dt.cumsum(1)  # (batch, T, channels)
    for n in range(states):
        y = y + C[:, :, n, None] * torch.exp(elapsed * A[:, n]) * h0[:, None, :, n]
    return y, h + torch.exp(elapsed[:, -1, :, None] * A) * h0


class _FusedScan(torch.autograd.Function):
    """The kernels of selective_scan_cpu behind autograd."""

    @staticmethod
    def forward(ctx, differentiable, x, dt, A, B, C, D, h0):
        batch, length, channels = x.shape
        states, tasks = A.shape[1], selective_scan_cpu.blocks(channels)
        inputs = [t.detach().contiguous() for t in (x, dt, A.t(), B, C, D, h0.transpose(1, 2))]  # channels last
        kept = selective_scan_cpu.chunks(length) if differentiable else 0
        marks = x.new_empty(batch, tasks, kept, states, selective_scan_cpu.WIDTH)
        y, hT = torch.empty_like(inputs[0]), torch.empty_like(inputs[6])
        selective_scan_cpu.forward(*(t.numpy() for t in (*inputs, marks, y, hT)))
        ctx.save_for_backward(*inputs[:6], marks)
        return y, hT.transpose(1, 2).contiguous()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gy, ghT):
        *inputs, marks = ctx.saved_tensors
        x, _, A, B, _, D = inputs
        batch, tasks = marks.shape[:2]
        gx, gdt, gh0 = torch.empty_like(x), torch.empty_like(x), x.new_empty(batch, *A.shape)
        gA, gD = x.new_empty(batch, *A.shape), x.new_empty(batch, *D.shape)
        gB, gC = (x.new_empty(tasks, *B.shape) for _ in range(2))
        upstream = [gy.contiguous(), ghT.transpose(1, 2).contiguous()]
        selective_scan_cpu.backward(*(t.numpy() for t in (*inputs, marks, *upstream, gx, gdt, gA, gB, gC, gD, gh0)))
        return None, gx, gdt, gA.sum(0).t(), gB.sum(0), gC.sum(0), gD.sum(0), gh0.transpose(1, 2)
