"""What is particular to the wired CfC's Triton kernel: several tiles of a product, and several groups of sequences."""

import pytest
import torch

import conformance
from arch.ncp import layers_triton
from arch.ncp.layers import WIRED_CFC_SCAN


@pytest.mark.parametrize("kind", [("default", True), ("pure", False)])
def test_several_tiles_and_groups_of_sequences(monkeypatch, kind):
    for name in ("ROWS", "COLUMNS", "DEPTH"):
        monkeypatch.setattr(layers_triton, name, 16)
    kernel = next(kernel for kernel in WIRED_CFC_SCAN.kernels if kernel.backend == "triton")
    sizes = {"batch": 17, "length": 2, "inter": 18, "command": 17, "motor": 3}
    conformance.check_results(WIRED_CFC_SCAN, kernel, {"kind": kind, "timed": True, **sizes}, torch.float64)
