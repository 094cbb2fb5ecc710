"""The small matrix product inside numba kernels."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from harness.ops.toolbox.numba_linear import padded, panels, product


@njit(cache=True)
def small_product(x, panels, width):
    """The product has no entry from Python."""
    y = np.full((x.shape[0], padded(x, width)), np.nan, x.dtype)
    product(x, panels, y)
    return y


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 70), st.sampled_from([torch.float32, torch.float64]))
def test_the_small_product_is_torchs(rows, depth, width, dtype):
    x, weight = torch.randn(rows, depth, dtype=dtype), torch.randn(depth, width, dtype=dtype)
    y = torch.from_numpy(small_product(x.numpy(), panels(weight).numpy(), width))
    torch.testing.assert_close(y[:, :width], x @ weight, rtol=1e-4, atol=1e-4)
    assert (y[:, width:] == 0).all()
