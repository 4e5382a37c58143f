"""Dates, offsets, UTC and the sun."""

import importlib
import importlib.resources
import re
import zoneinfo
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from exif_files import exif_bytes, gps_of, read, save

from geophoto import clocks

# ---------------------------------------------------------------- text and dates


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2020:01:02 03:04:05", "2020-01-02T03:04:05"),
        ("2020-01-02T03:04:05.25", "2020-01-02T03:04:05.250"),
        ("2020: 1: 2  3: 4: 5", "2020-01-02T03:04:05"), ("2020:02:30 03:04:05", None),
        ("0000:00:00 00:00:00", None), ("    :  :     :  :  ", None),
        ("2020:01:02", None), ("2020:01:02 24:00:00", None), ("", None), (None, None),
    ],
)  # fmt: skip
def test_dates_are_validated(written, expected):
    found = clocks.read_date(written)
    assert (clocks.iso_text(found[0]) if found else None) == expected


@pytest.mark.parametrize(
    ("written", "minutes"),
    [("+02:00", 120), ("-0530", -330), ("Z", 0), ("+14:00", 840), ("+14:15", None),
     ("-12:30", None),
     ("   :  ", None), ("+02:75", None), ("", None)],
)  # fmt: skip
def test_offsets(written, minutes):
    assert clocks.read_offset(written) == minutes


# ---------------------------------------------------------------- UTC and the sun


def stamped(tmp_path, local, gps_time=None, gps_date=None, place=(48.2, 16.37)):
    gps = gps_of(*place) if place else {}
    if gps_time:
        gps[7] = tuple((part, 1) for part in gps_time)
    if gps_date:
        gps[29] = gps_date
    return read(save(tmp_path / "photo.jpg", exif_bytes({}, {0x9003: local}, gps)))


def test_three_sources_of_utc_in_order(tmp_path):
    noon = b"2020:07:01 12:00:00"
    gps = gps_of(48.2, 16.37) | {7: ((9, 1), (58, 1), (0, 1)), 29: b"2020:07:01"}
    row = read(save(tmp_path / "a.jpg", exif_bytes({}, {0x9003: noon, 0x9011: b"+05:45"}, gps)))
    assert (row["utc_source"], row["utc_offset_minutes"]) == ("offset_tag", 345)
    assert row["datetime_utc"] == "2020-07-01T06:15:00" and "gps_time_differs" in row["warnings"]
    row = stamped(tmp_path, noon, (9, 58, 0), b"2020:07:01")
    assert (row["utc_source"], row["datetime_utc"]) == ("gps_time", "2020-07-01T10:00:00")
    row = stamped(tmp_path, noon, (9, 50, 0), None)  # no date, ten minutes stale: the zone confirms
    assert (row["utc_source"], row["utc_offset_minutes"]) == ("gps_time", 120)
    row = stamped(tmp_path, noon, (9, 58, 0), b"2000:11:14")  # week rollover of an old receiver
    assert (row["utc_source"], row["utc_offset_minutes"]) == ("position_timezone", 120)
    assert "gps_time_differs" in row["warnings"]
    row = stamped(tmp_path, noon)
    assert (row["utc_source"], row["utc_offset_minutes"]) == ("position_timezone", 120)
    row = stamped(tmp_path, noon, place=None)
    assert (row["utc_source"], row["datetime_utc"], row["sun_elevation_deg"]) == (None, None, None)
    row = stamped(tmp_path, noon, place=(0, 0))  # no place at all: no zone, no sun
    assert (row["utc_source"], row["sun_elevation_deg"]) == (None, None)
    row = stamped(tmp_path, b"", (9, 58, 0), b"2020:07:01")
    assert (row["datetime"], row["datetime_utc"]) == (None, "2020-07-01T09:58:00")


def test_gaps_and_folds_of_daylight_saving_are_flagged(tmp_path):
    row = stamped(tmp_path, b"2024:03:31 02:30:00")
    assert row["warnings"] == "dst_gap" and row["utc_offset_minutes"] == 60
    row = stamped(tmp_path, b"2024:10:27 02:30:00")
    assert row["warnings"] == "dst_fold" and row["utc_offset_minutes"] == 120
    row = stamped(
        tmp_path, b"2024:10:06 02:15:00", place=(-31.55, 159.08)
    )  # half an hour: Lord Howe
    assert row["warnings"] == "dst_gap" and row["utc_offset_minutes"] == 630
    row = stamped(
        tmp_path, b"2011:12:30 12:00:00", place=(-13.83, -171.77)
    )  # Samoa skipped this day
    assert row["warnings"] == "dst_gap"
    assert (
        stamped(tmp_path, b"2024:05:05 02:30:00", place=(43.8, 87.58))["warnings"]
        == "zone_disputed"
    )


def zone_places():
    """(zone, lat, lon) of every place in the time zone database: its own table of coordinates."""
    listing = importlib.resources.files("tzdata").joinpath("zoneinfo/zone.tab").read_text()
    for line in listing.splitlines():
        if line and not line.startswith("#"):
            _, written, zone = line.split("\t")[:3]
            parts = []
            for sign, digits in re.findall(r"([+-])(\d+)", written):
                wide = len(digits) - (4 if len(digits) > 5 else 2)
                value = int(digits[:wide]) + int(digits[wide : wide + 2]) / 60
                parts.append(
                    (-1 if sign == "-" else 1) * (value + int(digits[wide + 2 :] or 0) / 3600)
                )
            yield zone, *parts


def test_zone_offsets_of_all_places_of_the_time_zone_database():
    checked, wrong = 0, []
    for zone, lat, lon in zone_places():
        for when in (datetime(2005, 1, 15, 12), datetime(2015, 7, 15, 12), datetime(2023, 4, 1, 9),
                     datetime(2024, 10, 20, 9)):  # fmt: skip
            delta = zoneinfo.ZoneInfo(zone).utcoffset(when)
            found = clocks.zone_offset(lat, lon, when)
            checked += 1
            if found is None or found[0] != round(delta.total_seconds() / 60):
                wrong.append((zone, found))
    assert checked > 1600
    # In Urumqi two clocks are in use; the official one is taken and the row says so.
    assert all(zone == "Asia/Urumqi" and found[1] == "zone_disputed" for zone, found in wrong), (
        wrong
    )


def test_sun_agrees_with_pvlib():
    solarposition = pytest.importorskip("pvlib.solarposition")

    random = np.random.default_rng(0)
    for _ in range(150):
        lat, lon = (
            float(np.degrees(np.arcsin(random.uniform(-1, 1)))),
            float(random.uniform(-180, 180)),
        )
        when = datetime(1990, 1, 1) + timedelta(seconds=int(random.uniform(0, 1.4e9)))
        up, around = clocks.sun_position(lat, lon, when)
        truth = solarposition.get_solarposition(
            pd.DatetimeIndex([when], tz="UTC"), lat, lon, method="nrel_numpy"
        ).iloc[0]
        aside = abs((around - truth.azimuth + 180) % 360 - 180) * np.cos(np.radians(up))
        assert abs(up - truth.elevation) < 0.05 and aside < 0.05
    for lat in (90.0, -90.0):
        assert np.isfinite(clocks.sun_position(lat, 0.0, datetime(2020, 6, 1))).all()
