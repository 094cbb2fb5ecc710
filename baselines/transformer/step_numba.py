"""Attention for one token on the CPU (harness/ops/attention/step_numba.py)."""

from collections.abc import Callable

import torch

from harness.ops.attention import step_numba


def attention_step(mixer) -> Callable:
    """Operation `attention_step`: the `step` of an Attention for its weights as they stand, without gradients."""
    sizes = mixer.n_heads, mixer.n_kv_heads, mixer.head_dim
    weights = mixer.qkv.weight, mixer.out.weight
    norms = None
    if mixer.norms:
        norms = torch.stack([norm.weight for norm in mixer.norms]), mixer.norms[0].eps
    return step_numba.attention_step(mixer.step, *weights, sizes, mixer.rope_theta, mixer.window, norms=norms)
