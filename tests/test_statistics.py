"""Intervals, paired differences, Holm's correction and exponents, against known answers and by simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from analysis.statistics import (
    ALPHA,
    Difference,
    Interval,
    Prior,
    Slope,
    holm,
    interval,
    paired,
    power,
    prior,
    scaled_inverse_chi_squared,
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
        3, found.mean, found.low, found.high, found.p, (3, 7), 2
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


BLOCKS = ({0: 1.0, 1: 1.2, 2: 1.1}, {0: 2.0, 1: 2.3, 2: 2.0}, {0: 0.5, 1: 0.6, 2: 0.7})
"""Architectures 1.1, 2.1, 0.6; seeds -0.1, 0.1, 0; what is left: 0 0 0, 0 0.1 -0.1, 0 -0.1 0.1, of square sum 0.04."""


def test_variances_that_are_alike_are_one_noise_with_all_degrees_of_freedom():
    known = prior(BLOCKS)  # of the differences 0.01, 0.01 and 0.04
    assert known == Prior(pytest.approx(0.02), math.inf, 4.0)
    found, error = paired(BLOCKS[1], BLOCKS[0], known), 0.1 * (2 / 3) ** 0.5
    assert (found.mean, found.freedom) == (pytest.approx(1.0), 4)
    assert (found.low, found.high) == (pytest.approx(1 - 2.77645 * error), pytest.approx(1 + 2.77645 * error))
    assert found.p == pytest.approx(2 * stats.t.sf(1 / error, 4))


def test_variances_that_differ_leave_the_pairs_most_of_the_say():
    quiet = [{0: 0.0, 1: 0.01 * k, 2: 0.02 * k} for k in (1, 2, 4)]
    known = prior([*quiet, {0: 0.0, 1: 9.0, 2: -7.0}])
    assert known.freedom < 1.5
    both = paired(quiet[1], quiet[0], known)
    assert both.freedom == pytest.approx(2 + known.freedom)
    own = np.var([quiet[1][seed] - quiet[0][seed] for seed in range(3)], ddof=1)
    mixed = (known.freedom * known.variance + 2 * own) / (known.freedom + 2)
    assert mixed > own
    assert both.high - both.mean == pytest.approx(stats.t.ppf(0.975, both.freedom) * (mixed / 3) ** 0.5)


@pytest.mark.parametrize("freedom", [1, 4, 10])
def test_the_distribution_that_variances_were_drawn_from_is_found(freedom):
    rng = np.random.default_rng(2)
    true = 3.0 * freedom / rng.chisquare(freedom, size=20_000)
    variance, found = scaled_inverse_chi_squared(true * rng.chisquare(2, size=len(true)) / 2, np.full(len(true), 2.0))
    assert (variance, found) == (pytest.approx(3.0, rel=0.1), pytest.approx(freedom, rel=0.2))


def test_two_architectures_have_their_pairs_alone():
    assert prior(BLOCKS[:2]) is None
    assert paired(*BLOCKS[:2]).freedom == 2


def test_variances_that_nothing_tells_are_no_prior():
    assert prior([]) is None
    assert prior(BLOCKS[:1]) is None
    assert prior([{0: 1.0}, {0: 2.0}, {0: 4.0}, {}]) is None
    shifted = [{seed: value + step for seed, value in BLOCKS[0].items()} for step in (0.0, 0.1, 0.2)]
    assert prior(shifted) is None  # rounding
    assert prior([*BLOCKS, dict(BLOCKS[0])]) == prior(BLOCKS)  # one training under two names


def blocks(stds, seeds=3, draws=400):
    """Figures of architectures that do not differ, each with its own noise; what a seed does to all is ten times it."""
    rng = np.random.default_rng(5)
    for _ in range(draws):
        shared = 10 * rng.normal(size=seeds)
        yield [dict(enumerate(shared + std * rng.normal(size=seeds))) for std in stds]


def coverage(known, ours=1):
    """How many of the moderated intervals of one architecture less the first hold the truth, 0."""
    found = [paired(figures[ours], figures[0], prior(figures)) for figures in known]
    return np.mean([one.low <= 0 <= one.high for one in found])


def test_moderated_intervals_hold_the_truth_as_often_as_they_say():
    known = list(blocks([1] * 8))
    assert coverage(known) == pytest.approx(0.95, abs=0.03)
    kept = (5, 3, 3, 5, 4, 5, 3, 1)
    missing = [
        [{seed: one[seed] for seed in range(count)} for one, count in zip(figures, kept, strict=True)]
        for figures in blocks([1] * 8, seeds=5)
    ]
    assert coverage(missing) == pytest.approx(0.95, abs=0.03)
    families = [min(holm([paired(one, m[0], prior(m)).p for one in m[1:]])) < ALPHA for m in known]
    assert np.mean(families) < 0.07  # of whole tables without a difference


def reach(found):
    return found.high - found.mean


def test_a_noisier_architecture_is_told_and_drowns_no_other():
    """What the docstring admits of unequal noise."""
    for std in (3, 10):
        known = list(blocks([1, std, *[1] * 6]))
        assert coverage(known) == pytest.approx(0.89, abs=0.03)
        assert coverage(known, 2) > 0.95
        widths = [[reach(paired(m[2], m[0], given)) for given in (prior(m), None)] for m in known]
        assert np.divide(*np.median(widths, axis=0)) < 1


def test_a_prior_finds_with_three_seeds_what_the_pairs_alone_do_not():
    pooled, alone = [], []
    for figures in blocks([1] * 8, draws=100):
        ours = {seed: value + 5 for seed, value in figures[1].items()}
        known = [figures[0], ours, *figures[2:]]
        pooled.append(holm([paired(one, known[0], prior(known)).p for one in known[1:]])[0] < ALPHA)
        alone.append(holm([paired(one, known[0]).p for one in known[1:]])[0] < ALPHA)
    assert np.mean(pooled) > 0.9
    assert np.mean(alone) < 0.5


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
