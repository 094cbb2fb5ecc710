"""The CfC scan under autocast."""

import pytest
import torch

from arch.cfc import scan_numba as cfc_numba
from arch.cfc.scan import Cell

MODES = ("default", "no_gate", "pure")


def inputs(
    mode="default", merged=False, batch=2, length=3, units=5, width=4, layers=1, dtype=torch.float64, scale=1.0,
    device="cpu",
):  # fmt: skip
    """u, h, time (none where merged) and the cell's tensors, in the order of Cell.flat; `scale` multiplies u.

    The weights are of the size at which a sum over their inputs is as large as these: a chaotic cell would make any two
    orders of summation disagree.
    """
    heads = 1 if mode == "pure" else 4 - merged
    shapes = [(length, batch, units), (batch, width), *([] if merged else [(length, batch, 1)]), (units, width)]
    shapes += [(units, units), (units,)] * (layers - 1) + [(heads * width, units), (heads * width,)]
    shapes += [(width,), (width,)] if mode == "pure" else []
    tensors = [torch.randn(shape, dtype=dtype, device=device) for shape in shapes]
    tensors[0] *= scale
    for weight in (x for x in tensors[2:] if x.dim() == 2):
        weight *= weight.shape[1] ** -0.5
    return [x.requires_grad_() for x in tensors]


def scan(function, mode="default", merged=False, activation="lecun_tanh"):
    """The scan as a function of the tensors of `inputs`."""

    def run(u, h, *rest):
        time, flat = (None, rest) if merged else (rest[0].abs(), rest[1:])
        flat = flat if mode == "pure" else (*flat, None, None)
        return (function(Cell.from_flat(mode, activation, flat), u, h, time),)

    return run


@pytest.mark.parametrize("mode", MODES)
def test_the_gradients_do_not_follow_autocast(mode):
    tensors = inputs(mode, dtype=torch.float32)
    loss = scan(cfc_numba.cfc_scan, mode)(*tensors)[0].square().sum()
    outside = torch.autograd.grad(loss, tensors, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        inside = torch.autograd.grad(loss, tensors)
    assert all(map(torch.equal, inside, outside))
