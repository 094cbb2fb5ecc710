"""Intervals, paired differences, Holm's correction and exponents, against known answers and by simulation."""

import itertools

import numpy as np
import pytest
from scipy import stats

from analysis.differences import REFERENCES, compare
from analysis.entries import Entry
from analysis.statistics import (
    ALPHA,
    Difference,
    Interval,
    Slope,
    holm,
    interval,
    paired,
    power,
)


def test_the_interval_of_a_mean_is_a_bootstrap_interval_and_the_same_again():
    values = [2.0, 2.1, 2.3, 2.05, 2.2]
    found = interval(values)
    assert found.method == "BCa"
    assert found.low < np.mean(values) < found.high
    assert min(values) <= found.low
    assert found.high <= max(values)
    assert found == interval(values)
    assert interval([*values, None, float("nan")]) == found


def test_equal_values_have_a_point_and_one_value_has_no_interval():
    assert interval([1.5, 1.5, 1.5]) == Interval(1.5, 1.5, "constant")
    assert interval([1.5, 1.7]) is None  # of two it would be the two
    assert interval([]) is None


def test_the_bootstrap_of_five_is_too_narrow_and_students_interval_is_not():
    """What the docstrings say of both, on normal values: a comparison must not be decided by the former."""
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(400, 5))
    boots = [interval(sample) for sample in samples]
    students = [paired(dict(enumerate(sample)), dict.fromkeys(range(5), 0.0)) for sample in samples]
    covered = [np.mean([one.low <= 0 <= one.high for one in found]) for found in (boots, students)]
    assert covered[0] == pytest.approx(0.8, abs=0.06)
    assert covered[1] == pytest.approx(0.95, abs=0.03)


def test_a_paired_difference_has_its_known_answer():
    found = paired({0: 1.0, 1: 2.0, 2: 3.3}, {0: 1.5, 1: 2.6, 2: 3.7})  # -0.5, -0.6, -0.4: t = -0.5 / (0.1 / sqrt 3)
    assert found.count == 3
    assert found.mean == pytest.approx(-0.5)
    assert (found.low, found.high) == (pytest.approx(-0.7484, abs=1e-4), pytest.approx(-0.2516, abs=1e-4))
    assert found.p == pytest.approx(2 * stats.t.cdf(-0.5 / (0.1 / 3**0.5), 2))
    assert (found.p < ALPHA) == (found.high < 0 or found.low > 0)


def test_pairing_removes_what_the_seeds_share():
    noise = {0: 0.0, 1: 1.0, 2: -1.0, 3: 2.0, 4: -2.0}
    jitter = {0: 0.001, 1: -0.001, 2: 0.0, 3: 0.001, 4: -0.001}
    ours = {seed: noise[seed] + 0.01 + jitter[seed] for seed in noise}
    assert paired(ours, noise).p < 0.001
    shuffled = {seed: noise[(seed + 1) % 5] for seed in noise}  # planted: pairs of different seeds
    assert paired(ours, shuffled).p > 0.5
    assert stats.ttest_ind(list(ours.values()), list(noise.values())).pvalue > 0.9


def test_a_seed_that_one_side_lacks_does_not_count():
    ours, theirs = {0: 1.0, 1: 1.1, 2: 1.3, 3: 1.2}, {0: 1.1, 1: 1.3, 2: 1.4, 7: 99.0}
    found = paired(ours, theirs)
    assert (found.count, found.unpaired) == (3, (3, 7))
    assert found == paired({s: ours[s] for s in (0, 1, 2)}, {s: theirs[s] for s in (0, 1, 2)}).__class__(
        3, found.mean, found.low, found.high, found.p, (3, 7)
    )
    two = paired({0: 1.0, 1: 1.1}, {0: 1.2, 1: 1.4})
    assert two.p is None  # fewer than three pairs are not tested
    assert two.low < two.mean < two.high
    assert paired({0: 1.0}, {0: 1.5}) == Difference(1, -0.5)
    assert paired({0: 1.0}, {1: 1.5}) == Difference(0, unpaired=(0, 1))


def test_differences_that_do_not_vary_are_not_tested():
    same = {0: 1.1, 1: 2.1, 2: 3.1}
    assert paired(same, same).p == 1.0
    constant = paired(same, {seed: value - 0.1 for seed, value in same.items()})  # varies by rounding alone
    assert constant.p is None
    assert constant.mean == pytest.approx(0.1)


def tables(stds, seeds, count):
    """The comparisons of tables whose models do not differ, each with its own noise beside what a seed does to all.

    The first are the references; every entry is compared with all of them.
    """
    rng = np.random.default_rng(5)
    models = [*REFERENCES, *(f"model {place}" for place in range(len(REFERENCES), len(stds)))]
    for _ in range(count):
        drawn = 10 * rng.normal(size=seeds) + np.array(stds)[:, None] * rng.normal(size=(len(stds), seeds))
        yield compare(
            [
                Entry(model, model, "1m", "", True, False, 1, 1, dict(enumerate(figures)), frozenset())
                for model, figures in zip(models, drawn, strict=True)
            ]
        )


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("stds", [(1, 1, 1, 1), (5, 1, 1, 1), (0.1, 1, 1, 1), (10, 1, 1)], ids=str)
def test_tests_and_intervals_are_as_certain_as_they_say_whatever_the_noise_of_each_model(stds, seeds):
    """Variances pooled over models are wrong in 11 of 100 where a reference of three seeds has five times the noise.

    Of 200 tables a share has a standard error of up to 0.02.
    """
    found = list(tables(stds, seeds, 200))
    against = [one.difference for table in found for one in table if one.other.model == REFERENCES[0]]
    assert np.mean([one.p < ALPHA for one in against]) < 0.085
    assert np.mean([one.low <= 0 <= one.high for one in against]) > 0.915
    assert np.mean([any(one.significant for one in table) for table in found]) < 0.085


def test_an_exact_sign_flip_test_of_five_pairs_could_find_nothing():
    """Why the paired t-test is used."""
    differences = np.array([1.0, 1.1, 0.9, 1.2, 1.05])
    flips = [abs(np.mean(differences * signs)) for signs in itertools.product((1, -1), repeat=5)]
    least = np.mean([flip >= abs(differences.mean()) for flip in flips])
    assert least == 2 / 32
    assert least > ALPHA


def test_holm_has_its_known_answer_and_never_reorders():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, None, 0.04]) == [0.02, None, 0.04]
    assert holm([0.7, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_many_comparisons_of_equals_seldom_find_anything():
    """Of 22 comparisons without a difference one in twenty tables has a finding; uncorrected, two in three."""
    rng = np.random.default_rng(1)
    tables = [[float(p) for p in stats.ttest_1samp(rng.normal(size=(5, 22)), 0.0, axis=0).pvalue] for _ in range(300)]
    found = np.mean([min(holm(ps)) < ALPHA for ps in tables])
    assert found < 0.09
    assert np.mean([min(ps) < ALPHA for ps in tables]) > 0.5


def test_exponents_are_slopes_on_logarithms():
    assert power({1024: 5.0, 4096: 5.0, 32768: 5.0}) == Slope(0.0, 0.0, 0.0)
    linear = power({1024: 3 * 1024.0, 4096: 3 * 4096.0, 32768: 3 * 32768.0})
    assert linear.value == pytest.approx(1.0)
    assert linear.high - linear.low < 1e-6
    noisy = power({512: 1.0, 2048: 3.0, 8192: 20.0})
    assert noisy.low < noisy.value < noisy.high
    assert power({512: 1.0, 2048: 4.0}) == Slope(pytest.approx(1.0), None, None)
    assert power({512: 1.0}) is power({}) is power({512: 0.0, 1024: 1.0}) is None


def test_a_difference_turned_round_is_theirs_less_ours():
    ours = Difference(3, 0.2, 0.1, 0.4, p=0.03)
    assert ours.turned == Difference(3, -0.2, -0.4, -0.1, p=0.03)
    assert Difference(1, 0.2).turned == Difference(1, -0.2)
