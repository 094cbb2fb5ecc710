"""What the checks allow: to an exact mixer nothing but rounding, to an inexact one only what its reason explains."""

import math
from dataclasses import astuple
from types import SimpleNamespace

import pytest
import torch

from harness.checks.tolerances import ALLOWANCES, Allowance, allowance, distance, worst

THIRD_PARTY = 1e-5
"""What rounding in float32 may come to between two implementations."""


def test_an_exact_mixer_is_allowed_nothing_but_a_third_partys_rounding():
    exact = ALLOWANCES[None]
    assert (exact.paths, exact.rows, exact.past) == (0, 0, 0)
    assert exact.oracle == THIRD_PARTY


def test_a_reason_widens_no_more_than_what_it_explains():
    shared_steps, iterations = ALLOWANCES["adaptive_steps"], ALLOWANCES["newton_iterations"]
    assert (shared_steps.paths, shared_steps.past) == (0, 0)
    assert (iterations.rows, iterations.oracle) == (0, THIRD_PARTY)


def test_no_reason_allows_more_than_a_hundredth():
    assert all(0 <= allowed <= 0.01 for reason in ALLOWANCES.values() for allowed in astuple(reason))


def test_of_several_mixers_the_loosest_counts_in_each_respect():
    mixers = [SimpleNamespace(inexact=reason) for reason in (None, "adaptive_steps", "newton_iterations")]
    steps, iterations = ALLOWANCES["adaptive_steps"], ALLOWANCES["newton_iterations"]
    assert allowance(mixers) == Allowance(iterations.paths, steps.rows, iterations.past, steps.oracle)
    with pytest.raises(KeyError):
        allowance([SimpleNamespace(inexact="it has always been so")])


def test_the_worst_is_the_largest_and_not_a_number_if_any_is_not():
    assert worst([]) == 0
    assert worst([1e-9, 1e-7, 1e-8]) == 1e-7
    assert math.isnan(worst([1.0, math.nan]))


def test_a_distance_is_relative_to_the_largest_number_expected():
    expected = torch.tensor([4.0, -8.0])
    assert distance(torch.tensor([4.0, -6.0]), expected) == 0.25
    assert distance(torch.tensor([4.0, -6.0]), expected, floor=16.0) == 0.125
    assert distance(torch.tensor([0.5]), torch.tensor([0.0])) == 0.5
    assert distance(torch.zeros(0), torch.zeros(0)) == 0
    assert math.isnan(distance(torch.tensor([math.nan]), torch.tensor([1.0])))
    with pytest.raises(ValueError, match=r"\(1,\) where \(2,\)"):
        distance(torch.zeros(1), expected)
