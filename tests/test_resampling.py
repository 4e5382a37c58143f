"""Statistics against numpy and by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geophoto.resampling import interval, resampled_weights, weighted_mean, weighted_median

WEIGHTED = st.lists(
    st.tuples(st.floats(-1e6, 1e6), st.integers(0, 4)), min_size=1, max_size=30
).filter(lambda pairs: sum(w for _, w in pairs) > 0)


@given(WEIGHTED)
def test_weighted_median_and_mean_are_those_of_repeated_values(pairs):
    values, weights = np.array(pairs, float).T
    repeated = np.repeat(values, weights.astype(int))
    assert weighted_median(values, weights) == pytest.approx(np.median(repeated))
    assert weighted_mean(values, weights) == pytest.approx(repeated.mean(), rel=1e-9, abs=1e-6)


def test_statistics_without_weight_are_unknown():
    for values in (np.array([]), np.array([1.0, 2.0])):
        assert math.isnan(weighted_median(values, np.zeros(len(values))))
        assert math.isnan(weighted_mean(values, np.zeros(len(values))))


def test_resampling_draws_whole_groups():
    groups = np.array([0, 0, 0, 5, 5, 9])
    for weights in resampled_weights(groups, 50, 0):
        assert weights[0] == weights[1] == weights[2] and weights[3] == weights[4]
        assert weights[0] + weights[3] + weights[5] == 3


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(150):
        groups = np.repeat(np.arange(40), 3)
        values = 10 + np.repeat(rng.normal(0, 2, 40), 3) + rng.normal(0, 0.3, 120)
        low, high = interval(values, groups, weighted_mean, 200, trial)
        hits += low <= 10 <= high
    assert 0.87 <= hits / 150 <= 0.99  # by photo instead of by group it would be about 0.73


def test_copies_within_a_group_do_not_narrow_the_interval():
    rng = np.random.default_rng(1)
    values = rng.normal(0, 1, 30)
    once = interval(values, np.arange(30), weighted_median, 500, 3)
    copied = interval(np.repeat(values, 7), np.repeat(np.arange(30), 7), weighted_median, 500, 3)
    assert copied == pytest.approx(once)


def test_paired_interval_sees_a_small_constant_gain():
    rng = np.random.default_rng(2)
    groups, rgb = np.arange(60), rng.gamma(1, 100, 60)
    limits = interval(rgb - 0.5, groups, weighted_mean, 500, 0, minus=rgb)
    assert limits == pytest.approx([-0.5, -0.5])
    assert interval(rgb, np.zeros(60), weighted_mean, 10, 0) is None
