"""Memory that large tensors free is kept for the next ones inside `reused_memory`, and given back at its end."""

import pytest
import torch

from harness.machine import memory
from harness.machine.memory import Increase, resident_bytes, reused_memory

SIZE = 64 * 2**20


def grown_by_a_freed_tensor() -> int:
    before = resident_bytes()
    torch.ones(SIZE, dtype=torch.uint8)
    return resident_bytes() - before


def test_freed_memory_is_kept_inside_and_given_back_at_the_end():
    before = resident_bytes()
    with reused_memory():
        kept = grown_by_a_freed_tensor()
    if kept < SIZE // 2:
        pytest.skip("this C library gives freed memory back whatever it is set to")
    assert resident_bytes() - before < SIZE // 2
    assert grown_by_a_freed_tensor() < SIZE // 2


def test_an_increase_is_beyond_what_was_in_use_and_of_the_peak():
    kept = torch.ones(SIZE, dtype=torch.uint8)
    increase = Increase()
    if increase.bytes() is None:
        pytest.skip("this system does not let the peak be reset")
    assert increase.bytes() < SIZE // 2
    torch.ones(2 * SIZE, dtype=torch.uint8)
    assert 2 * SIZE <= increase.bytes() + 2**20 < 3 * SIZE
    assert Increase().bytes() < SIZE // 2
    assert len(kept) == SIZE


def test_an_increase_that_cannot_be_told_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "nowhere" / "clear_refs")
    assert Increase().bytes() is None
