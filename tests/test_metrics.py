"""The blocks of metrics.json against numpy."""

import numpy as np
import pytest

from geophoto.metrics import geometric_mean_km


def test_geometric_mean_counts_from_one_metre():
    assert geometric_mean_km(np.array([1.0, 100.0])) == pytest.approx(10)
    assert geometric_mean_km(np.array([0.0, 1e-9])) == pytest.approx(0.001)
