"""Memory that large tensors free is kept for the next ones inside `reused_memory`, and given back at its end."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.machine import memory
from harness.machine.memory import Increase

SIZE = 64 * 2**20


FREED = """
import sys, torch
from harness.machine.memory import resident_bytes, reused_memory
def grown():
    before = resident_bytes()
    torch.ones(int(sys.argv[1]), dtype=torch.uint8)
    return resident_bytes() - before
before = resident_bytes()
with reused_memory():
    kept = grown()
print(kept, resident_bytes() - before, grown())
"""


def test_freed_memory_is_kept_inside_and_given_back_at_the_end():
    """In a process of its own: what others left in the heap would be taken first."""
    root = Path(__file__).parents[1]
    ran = subprocess.run([sys.executable, "-c", FREED, str(SIZE)], cwd=root, capture_output=True, text=True, check=True)
    kept, left, grown = map(int, ran.stdout.split())
    if kept < SIZE // 2:
        pytest.skip("this C library gives freed memory back whatever it is set to")
    assert left < SIZE // 2
    assert grown < SIZE // 2


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
