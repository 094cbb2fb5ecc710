"""The closed form of the CfC cell for Triton, with its derivative: element by element, for any layout of the heads."""

import triton
import triton.language as tl

from harness.ops.toolbox.triton_math import sigmoid, tanh

MODES = {"default": 0, "no_gate": 1, "pure": 2}


@triton.jit
def beside(time, w_tau, amplitude, row, column, real, there, like, MODE: tl.constexpr, TIMED: tl.constexpr):
    """What the closed form takes beside the heads, in the shape of `like` (rows, columns): time, w_tau, amplitude.

    time is of rows and 1 where not TIMED; w_tau and amplitude are of columns, of mode pure alone.
    """
    step, rate, scale = tl.full(like.shape, 1.0, like.dtype), tl.zeros_like(like), tl.zeros_like(like)
    if TIMED:
        step = step * tl.load(time + row, mask=real, other=0.0)[:, None]
    if MODE == 2:
        rate += tl.load(w_tau + column, mask=there, other=0.0)[None, :]
        scale += tl.load(amplitude + column, mask=there, other=0.0)[None, :]
    return step, rate, scale


@triton.jit
def combine(a, b, t_a, t_b, time, w_tau, amplitude, MODE: tl.constexpr, TIMED: tl.constexpr):
    """The state from the heads; t_a is t_a + t_b where not TIMED."""
    if MODE == 2:
        return amplitude - amplitude * a * tl.exp(-(tl.abs(w_tau) + tl.abs(a)) * time)
    else:
        gate = sigmoid(t_b + t_a * time) if TIMED else sigmoid(t_a)
        left, right = tanh(a), tanh(b)
        return left + gate * right if MODE == 1 else left + gate * (right - left)


@triton.jit
def combine_vjp(a, b, t_a, t_b, time, w_tau, amplitude, grad, MODE: tl.constexpr, TIMED: tl.constexpr):
    """The gradients by what `combine` takes, in its order, from that by the state; zeros by what it does not read."""
    none = tl.zeros_like(a)
    if MODE == 2:
        rate = tl.abs(w_tau) + tl.abs(a)
        decay = tl.exp(-rate * time)
        by_rate = grad * amplitude * a * decay
        by_w = tl.where(w_tau < 0, -by_rate * time, by_rate * time)
        by_a = -grad * amplitude * decay * (1.0 - tl.abs(a) * time)
        return by_a, none, none, none, by_rate * rate, tl.where(w_tau == 0, 0.0, by_w), grad * (1.0 - a * decay)
    else:
        gate = sigmoid(t_b + t_a * time) if TIMED else sigmoid(t_a)
        left, right = tanh(a), tanh(b)
        keep = 1.0 if MODE == 1 else 1.0 - gate
        apart = right if MODE == 1 else right - left
        by_a, by_b = grad * keep * (1.0 - left * left), grad * gate * (1.0 - right * right)
        by_gate = grad * apart * gate * (1.0 - gate)
        if TIMED:
            return by_a, by_b, by_gate * time, by_gate, by_gate * t_a, none, none
        else:
            return by_a, by_b, by_gate, none, none, none, none
