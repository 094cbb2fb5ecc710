"""What is particular to the CfC scan's Triton kernels: tiles, and the layers that they leave to torch."""

from functools import partial

import test_cfc_scan
from arch.cfc import scan_triton as cfc_triton
from arch.cfc.mixer import CfC
from arch.cfc.scan import CFC_SCAN, reference
from arch.cfc.scan_triton import cfc_scan
from kernel_checks import check
from test_cfc_scan import scan
from triton_checks import DEVICE

inputs = partial(test_cfc_scan.inputs, device=DEVICE)


def agree(tensors, *options):
    check(scan(cfc_scan, *options), scan(reference, *options), tensors)


def test_several_tiles_and_groups_of_sequences(monkeypatch):
    for name, size in (("ROWS", 2), ("COLUMNS", 4), ("DEPTH", 2)):
        monkeypatch.setattr(cfc_triton, name, size)
    agree(inputs("no_gate", False, 3, 2, 6, 5), "no_gate")


def test_more_layers_are_left_to_torch():
    mixer = CfC(6, backbone_layers=2)
    refuses = next(kernel.refuses for kernel in CFC_SCAN.kernels if kernel.backend == "triton")
    assert "backbone_layers=2" in refuses(layers=len(mixer.hidden) + 1, mode="default")
    assert refuses(layers=1, mode="default") is None
