"""The sLSTM over a sequence on CUDA: one program takes a group of sequences of one head through all tokens.

Heads do not see one another. A token is one matrix product that needs the whole output before it, which a program
leaves in memory, where it stays in the caches, and meets itself at a barrier. The forward keeps seven numbers of each
token and channel; the backward leaves the weights' gradient to one product over all tokens.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.ops.toolbox.triton_linear import COLUMNS, DEPTH, ROWS, WARPS, product
from harness.ops.toolbox.triton_math import sigmoid, softplus, tanh

KEPT = 7  # write, keep, tanh(z), sigmoid(o), 1 - sigmoid(f), and the new c and n


def slstm_scan(
    u: Tensor, R: Tensor, y: Tensor, c: Tensor, n: Tensor, m: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As baselines.xlstm.scan.slstm_reference, with gradients."""
    return _SLSTMScan.apply(u, R, y, c, n, m)


class _SLSTMScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, R, y, c, n, m):
        B, H, T, width = u.shape
        D = width // 4
        u, R, y = (t.contiguous() for t in (u.transpose(0, 1), R, y.transpose(0, 1)))  # heads first
        first = torch.stack([t.transpose(0, 1) for t in (c, n, m)], dim=2).contiguous()  # (H, B, 3, D)
        state, kept = first.clone(), u.new_empty(H, B, T, KEPT, D)
        outputs = u.new_empty(H, B, T + 1, D)
        outputs[:, :, 0] = y
        grid = (triton.cdiv(B, ROWS), H)
        _forward[grid](u, R, state, kept, outputs, B, T, D, KEPT, ROWS, COLUMNS, DEPTH, num_warps=WARPS)
        ctx.save_for_backward(R, first, outputs, kept)
        c, n, m = (t.transpose(0, 1).contiguous() for t in state.unbind(2))
        ctx.mark_non_differentiable(m)
        return outputs[:, :, 1:].transpose(0, 1), c, n, m

    @staticmethod
    @once_differentiable
    def backward(ctx, g, g_c, g_n, _):
        R, first, outputs, kept = ctx.saved_tensors
        H, B, T, _, D = kept.shape
        g, carry = g.transpose(0, 1).contiguous(), g.new_zeros(H, B, D)
        g_state = torch.stack([t.transpose(0, 1) for t in (g_c, g_n)], dim=2).contiguous()  # (H, B, 2, D)
        g_u = g.new_empty(H, B, T, 4 * D)
        grid = (triton.cdiv(B, ROWS), H)
        _backward[grid](R, first, kept, g, g_state, carry, g_u, B, T, D, KEPT, ROWS, COLUMNS, DEPTH, num_warps=WARPS)
        before = outputs[:, :, :-1].flatten(1, 2)  # the output that each token sees
        with torch.autocast(g.device.type, enabled=False):
            g_R = torch.bmm(before.mT, g_u.flatten(1, 2))
        g_y, g_c, g_n = (t.transpose(0, 1) for t in (carry, *g_state.unbind(2)))
        return g_u.transpose(0, 1), g_R, g_y, g_c, g_n, None


@triton.jit
def _gate(
    u, R, outputs, row, token, real, column, D, GATE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """Some columns of u + R y of one gate, before its activation: (ROWS, COLUMNS). row: of y; token: of u."""
    inside = real[:, None] & (column < D)[None, :]
    place = GATE * D + column
    given = tl.load(u + token[:, None] * (4 * D) + place[None, :], mask=inside, other=0.0)
    weight = R + GATE * D
    return given + product(outputs, row * D, real, D, weight, column, D, 1, 4 * D, -1, ROWS, COLUMNS, DEPTH)


@triton.jit
def _forward(
    u, R, state, kept, outputs, B, T, D, KEPT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """Fills the rows of outputs (H, B, T + 1, D) after row 0 and kept (H, B, T, KEPT, D), and advances state."""
    head = tl.program_id(1).to(tl.int64)
    inner = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real, sequence = inner < B, head * B + inner
    t = 0
    while t < T:
        row, token = sequence * (T + 1) + t, sequence * T + t
        low = 0
        while low < D:
            column = low + tl.arange(0, COLUMNS)
            inside = real[:, None] & (column < D)[None, :]
            weights = R + head * D * 4 * D
            i = _gate(u, weights, outputs, row, token, real, column, D, 0, ROWS, COLUMNS, DEPTH)
            f = _gate(u, weights, outputs, row, token, real, column, D, 1, ROWS, COLUMNS, DEPTH)
            z = _gate(u, weights, outputs, row, token, real, column, D, 2, ROWS, COLUMNS, DEPTH)
            o = _gate(u, weights, outputs, row, token, real, column, D, 3, ROWS, COLUMNS, DEPTH)
            held_at = state + sequence[:, None] * (3 * D) + column[None, :]
            c = tl.load(held_at, mask=inside, other=0.0)
            n = tl.load(held_at + D, mask=inside, other=1.0)
            m = tl.load(held_at + 2 * D, mask=inside, other=0.0)
            held, fresh = m - softplus(-f), n == 0.0
            most = tl.where(fresh | (i > held), i, held)
            most = tl.where((i != i) | (held != held), i + held, most)  # NaN stays visible
            write, keep = tl.exp(i - most), tl.where(fresh, 0.0, tl.exp(held - most))
            value, gate = tanh(z), sigmoid(o)
            c, n = keep * c + write * value, keep * n + write
            tl.store(held_at, c, mask=inside)
            tl.store(held_at + D, n, mask=inside)
            tl.store(held_at + 2 * D, most, mask=inside)
            tl.store(outputs + (row + 1)[:, None] * D + column[None, :], gate * c / n, mask=inside)
            kept_at = kept + token[:, None] * (KEPT * D) + column[None, :]
            tl.store(kept_at, write, mask=inside)
            tl.store(kept_at + D, keep, mask=inside)
            tl.store(kept_at + 2 * D, value, mask=inside)
            tl.store(kept_at + 3 * D, gate, mask=inside)
            tl.store(kept_at + 4 * D, sigmoid(-f), mask=inside)
            tl.store(kept_at + 5 * D, c, mask=inside)
            tl.store(kept_at + 6 * D, n, mask=inside)
            low += COLUMNS
        tl.debug_barrier()
        t += 1


@triton.jit
def _backward(
    R, first, kept, g, g_state, carry, g_u, B, T, D, KEPT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """Fills g_u (H, B, T, 4 D), the gradients by the gates, and leaves in carry and g_state those by the start."""
    head = tl.program_id(1).to(tl.int64)
    inner = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real, sequence = inner < B, head * B + inner
    t = T - 1
    while t >= 0:
        token = sequence * T + t
        low = 0
        while low < D:
            column = low + tl.arange(0, COLUMNS)
            inside = real[:, None] & (column < D)[None, :]
            kept_at = kept + token[:, None] * (KEPT * D) + column[None, :]
            write = tl.load(kept_at, mask=inside, other=0.0)
            keep = tl.load(kept_at + D, mask=inside, other=0.0)
            value = tl.load(kept_at + 2 * D, mask=inside, other=0.0)
            gate = tl.load(kept_at + 3 * D, mask=inside, other=0.0)
            closing = tl.load(kept_at + 4 * D, mask=inside, other=0.0)
            c = tl.load(kept_at + 5 * D, mask=inside, other=0.0)
            n = tl.load(kept_at + 6 * D, mask=inside, other=1.0)
            start = first + sequence[:, None] * (3 * D) + column[None, :]
            before = kept_at - 2 * D if t > 0 else start  # the c and n of the token before, its last two numbers
            c_before = tl.load(before, mask=inside, other=0.0)
            n_before = tl.load(before + D, mask=inside, other=0.0)
            carry_at = carry + sequence[:, None] * D + column[None, :]
            state_at = g_state + sequence[:, None] * (2 * D) + column[None, :]
            g_y = tl.load(g + token[:, None] * D + column[None, :], mask=inside, other=0.0)
            g_y += tl.load(carry_at, mask=inside, other=0.0)
            ratio = c / n
            by_ratio = g_y * gate / n
            by_c = tl.load(state_at, mask=inside, other=0.0) + by_ratio
            by_n = tl.load(state_at + D, mask=inside, other=0.0) - by_ratio * ratio
            gates_at = g_u + token[:, None] * (4 * D) + column[None, :]
            tl.store(gates_at, (by_c * value + by_n) * write, mask=inside)
            tl.store(gates_at + D, (by_c * c_before + by_n * n_before) * keep * closing, mask=inside)
            tl.store(gates_at + 2 * D, by_c * write * (1.0 - value * value), mask=inside)
            tl.store(gates_at + 3 * D, g_y * ratio * gate * (1.0 - gate), mask=inside)
            tl.store(state_at, by_c * keep, mask=inside)
            tl.store(state_at + D, by_n * keep, mask=inside)
            low += COLUMNS
        tl.debug_barrier()
        low = 0
        while low < D:
            column = low + tl.arange(0, COLUMNS)
            inside = real[:, None] & (column < D)[None, :]
            weights = R + head * D * 4 * D
            by_y = product(g_u, token * (4 * D), real, 4 * D, weights, column, D, 4 * D, 1, -1, ROWS, COLUMNS, DEPTH)
            tl.store(carry + sequence[:, None] * D + column[None, :], by_y, mask=inside)
            low += COLUMNS
        tl.debug_barrier()
        t -= 1
