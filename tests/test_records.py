"""Flat records for people and programs."""

import math

import pytest

from geophoto import records

# ---------------------------------------------------------------- statistics


@pytest.mark.parametrize(
    "minutes, shown", [(0, "00:00"), (1439.4, "23:59"), (1439.6, "00:00"), (75, "01:15")]
)
def test_clock(minutes, shown):
    assert records.clock(minutes) == shown
    assert records.clock(math.nan) is None
