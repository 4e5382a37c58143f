"""Statistics of photos that come in groups: weighted, with intervals bootstrapped by group.

In: values and group numbers of photos. Out: medians, means, 95 % intervals.
"""

from __future__ import annotations

import math

import numpy as np

FEW_GROUPS = 10  # of fewer a bootstrap by group is too sure of itself


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """Median of values repeated by weights; NaN without any weight."""
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    if not len(total) or total[-1] <= 0:
        return math.nan
    low = values[order][np.searchsorted(total, total[-1] / 2, side="left")]
    high = values[order][min(np.searchsorted(total, total[-1] / 2, side="right"), len(total) - 1)]
    return float((low + high) / 2)


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    total = weights.sum()
    return float(values @ weights / total) if total > 0 else math.nan


def resampled_weights(groups: np.ndarray, draws: int, seed: int):
    """Yield weights (N,) of a bootstrap by group: how often each photo's group was drawn."""
    rng = np.random.default_rng(seed)
    present, group = np.unique(groups, return_inverse=True)
    for _ in range(draws):
        drawn = rng.integers(0, len(present), len(present))
        yield np.bincount(drawn, minlength=len(present))[group].astype(float)


def interval(values, groups, statistic, draws: int, seed: int, minus=None) -> list[float] | None:
    """95 % percentile interval of a statistic, or of its difference to that of `minus`, paired."""
    if len(np.unique(groups)) < 2:
        return None
    found = [
        statistic(values, weights) - (statistic(minus, weights) if minus is not None else 0.0)
        for weights in resampled_weights(groups, draws, seed)
    ]
    return [float(x) for x in np.percentile(found, [2.5, 97.5])]
