"""The bench of Newton's method: how it converges, and what it and its peers take."""

import pytest
import torch

from bench import newton_study as newton_bench
from bench.timing import Limits

CPU, ONCE = torch.device("cpu"), Limits(rounds=1)


@pytest.mark.parametrize(("batch", "length"), [(1, 3), (2, 70)])
def test_the_study_tells_convergence_and_times(batch, length):
    row = newton_bench.study(batch, length, 8, CPU, ONCE)
    assert row["fallbacks"] == 0
    assert row["difference"] < 1e-5
    assert row["training_ratio"] == pytest.approx(row["newton_training_ms"] / row["sequential_training_ms"])
    assert row["loop_forward_ms"] > 0


def test_a_loop_that_cannot_bear_the_length_has_no_time(monkeypatch):
    monkeypatch.setattr(newton_bench, "LOOP_TOKENS", 2)
    assert newton_bench.study(1, 3, 8, CPU, ONCE)["loop_training_ms"] is None


def test_the_peer_is_timed():
    pytest.importorskip("pararnn", reason="pararnn-torch is an optional peer")
    row = newton_bench.peer(1, 4, 8, CPU, ONCE)
    names = ("pararnn", "pararnn_loop", "sequential", "sequential_projected", "newton", "newton_projected")
    assert all(row[f"{name}_ms"] > 0 for name in names)
