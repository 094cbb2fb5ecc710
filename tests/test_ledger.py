"""The books of training: when a run counts as diverged, and what the figures are taken over."""

import math

import pytest

from harness.machine.load import Load, LoadMeter
from harness.training.ledger import Divergence, Ledger


def test_a_gradient_as_long_as_the_limit_is_not_over_it():
    ledger = Ledger(update=4)
    assert [ledger.judge(1.0, norm, limit=2.0, patience=2) for norm in (2.0, 2.0, 2.0, 2.5)] == [None] * 4
    assert ledger.exploded == 1
    found = ledger.judge(1.0, 3.0, limit=2.0, patience=2)
    assert found == Divergence(5, "the gradient norm was over 2 for 2 updates in a row, 3 at the last", 3.0)


def test_a_short_gradient_begins_the_count_anew():
    ledger = Ledger()
    assert [ledger.judge(1.0, norm, limit=2.0, patience=2) for norm in (9.0, 1.0, 9.0)] == [None] * 3
    assert ledger.judge(1.0, 9.0, limit=2.0, patience=2) is not None


@pytest.mark.parametrize(
    ("loss", "norm", "reason"), [(math.inf, 1.0, "the loss is not finite"), (1.0, math.nan, "the gradient norm is not")]
)
def test_a_figure_that_is_not_finite_names_the_update_that_failed(loss, norm, reason):
    found = Ledger(update=6).judge(loss, norm, limit=2.0, patience=99)
    assert found is not None
    assert found.update == 7
    assert found.reason.startswith(reason)


def test_means_and_medians_are_taken_over_the_updates_asked_for():
    ledger = Ledger()
    assert ledger.mean_loss(2) is None
    assert ledger.median_seconds() is None
    for loss, seconds in ((8.0, 100.0), (2.0, 1.0), (4.0, 3.0)):
        ledger.add(loss, seconds)
    assert ledger.update == 3
    assert ledger.mean_loss(2) == 3.0
    assert ledger.median_seconds() == 3.0


def test_the_load_is_that_of_all_stretches_and_unknown_once_one_could_not_be_metered():
    def stretch(other, machine):
        meter = LoadMeter()
        meter.other_seconds, meter.machine_seconds = other, machine
        return meter

    ledger = Ledger()
    ledger.meter_load(stretch(1.0, 10.0))
    assert ledger.load == Load(0.1, False)
    ledger.meter_load(stretch(4.0, 10.0))
    assert ledger.load == Load(0.25, True)
    ledger.meter_load(stretch(None, 0.0))
    ledger.meter_load(stretch(1.0, 10.0))
    assert ledger.load == Load(None, False)


def test_energy_adds_up_until_a_stretch_could_not_be_metered():
    ledger = Ledger()
    assert ledger.peak_memory_bytes is None
    for joules, peak in ((2.0, None), (3.0, 70), (1.0, 50)):
        ledger.meter(joules, peak)
    assert (ledger.energy_joules, ledger.peak_memory_bytes) == (6.0, 70)
    ledger.meter(None, None)
    ledger.meter(5.0, 90)
    assert (ledger.energy_joules, ledger.peak_memory_bytes) == (None, 90)
