"""The CfC recurrence for numba: a few sequences walk time together, so that they share each load of a weight.

Layout: (batch, time, channel), weights in panels (harness/ops/toolbox/numba_linear.py). A task is a group of
sequences. The forward keeps the pre-activations z (layer, batch, time, units) and g (batch, time, heads) for the
backward, which computes the activations again and leaves them, with the gradients by every pre-activation, to products
over all tokens outside.
"""

import numpy as np

from arch.cfc.cell_numba import activate, activate_vjp, combine, combine_vjp
from harness.ops.toolbox.jit import helper, kernel
from harness.ops.toolbox.numba_linear import padded, product


@helper
def _plus(x, y, total):
    for c in range(len(total)):
        total[c] = x[c] + y[c]


@helper
def _forward_token(t, slot, mode, activation, u, time, weights, biases, extras, z, g, h, state, a, y, gate):
    """One token of the group's sequences. state, a: (rows, width) what the products read; y: what they write."""
    rows = len(u)
    recurrent, layers, heads = weights
    product(state, recurrent, y)
    for r in range(rows):
        _plus(u[r, t], y[r], z[0, r, slot])
        activate(activation, z[0, r, slot], a[r])
    for layer in range(len(layers)):
        product(a, layers[layer], y)
        for r in range(rows):
            _plus(biases[0][layer], y[r], z[layer + 1, r, slot])
            activate(activation, z[layer + 1, r, slot], a[r])
    product(a, heads, y)
    for r in range(rows):
        _plus(biases[1], y[r], g[r, slot])
        combine(mode, g[r, slot], time[r, t], extras[0], extras[1], gate, state[r])
        h[r, t] = state[r]


@kernel
def forward(first, last, size, mode, activation, u, h0, time, weights, biases, extras, z, g, h):
    """Fills h (B, T, d_inner), and z and g where they have a place for each token.

    size: sequences of a task. u (B, T, units); h0 (B, d_inner); time (B, T). weights: panels of R^T, of the further
    layers (depth - 1, ...) and of the heads. biases: (depth - 1, units), (heads). extras: w_tau, amplitude.
    """
    batch, length, units = u.shape
    kept = z.shape[2]
    for low in range(first * size, min(last * size, batch), size):
        high = min(low + size, batch)
        state = h0[low:high].copy()
        a = np.empty((high - low, units), u.dtype)
        y = np.empty((high - low, padded(u, max(units, g.shape[2]))), u.dtype)
        gate = np.empty(h.shape[2], u.dtype)
        group = u[low:high], time[low:high], weights, biases, extras
        for t in range(length):
            slot = min(t, kept - 1)
            _forward_token(
                t, slot, mode, activation, *group, z[:, low:high], g[low:high], h[low:high], state, a, y, gate
            )  # fmt: skip


@helper
def _backward_token(t, mode, activation, time, weights, extras, z, g, gh, grads, carry, wide, narrow, gate):
    """One token of the group's sequences: carry (rows, d_inner), the gradient by the state after it, becomes the one
    by the state before it. wide, narrow: (rows, width), what the products read."""
    rows = len(gh)
    recurrent, layers, heads = weights
    a, gz, gg, g_time, g_w, g_amplitude = grads
    for r in range(rows):
        total = carry[r, : gh.shape[2]]
        _plus(gh[r, t], carry[r], total)
        g_time[r, t] = combine_vjp(
            mode, g[r, t], time[r, t], extras[0], extras[1], gate, total, wide[r], g_w[r], g_amplitude[r]
        )
        gg[r, t] = wide[r]
    product(wide, heads, carry)
    for layer in range(len(z) - 1, -1, -1):
        for r in range(rows):
            activate_vjp(activation, z[layer, r, t], carry[r], a[layer, r, t], narrow[r])
            gz[layer, r, t] = narrow[r]
        product(narrow, layers[layer - 1] if layer else recurrent, carry)


@kernel
def backward(first, last, size, mode, activation, time, weights, extras, z, g, gh, grads, g_h0):
    """From gh (B, T, d_inner), the gradient by h, fills grads and g_h0 (B, d_inner).

    grads: the activations a and the gradients by z, by g, by time (B, T), and by w_tau and amplitude (B, d_inner),
    the last two zeroed before. weights: panels of R, the further layers and the heads.
    """
    batch, length, width = gh.shape
    units = z.shape[3]
    for low in range(first * size, min(last * size, batch), size):
        high = min(low + size, batch)
        carry = np.zeros((high - low, padded(gh, max(width, units))), gh.dtype)
        wide = np.empty((high - low, g.shape[2]), gh.dtype)
        narrow = np.empty((high - low, units), gh.dtype)
        gate = np.empty(width, gh.dtype)
        a, gz, gg, g_time, g_w, g_amplitude = grads
        by_batch = (a[:, low:high], gz[:, low:high], gg[low:high], g_time[low:high], g_w[low:high],
                    g_amplitude[low:high])  # fmt: skip
        group = time[low:high], weights, extras, z[:, low:high], g[low:high], gh[low:high], by_batch
        for t in range(length - 1, -1, -1):
            _backward_token(t, mode, activation, *group, carry, wide, narrow, gate)
        g_h0[low:high] = carry[:, :width]
