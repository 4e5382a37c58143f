"""Dates, offsets, UTC and the sun."""

import importlib
import importlib.resources
import re
import zoneinfo
from datetime import datetime, timedelta
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from exif_files import codes, exif_bytes, gps_of, read, save
from hypothesis import given
from hypothesis import strategies as st

from geophoto import clocks

# ---------------------------------------------------------------- text and dates


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2020:01:02 03:04:05", "2020-01-02T03:04:05"),
        ("2020-01-02T03:04:05.25", "2020-01-02T03:04:05.250"),
        ("2020: 1: 2  3: 4: 5", "2020-01-02T03:04:05"), ("2020:02:30 03:04:05", None),
        ("0000:00:00 00:00:00", None), ("    :  :     :  :  ", None),
        ("2014:06:12 1:48:24 pm", "2014-06-12T13:48:24"),
        ("2014:06:12 1:48:24 am", "2014-06-12T01:48:24"),
        ("2014:06:12 01:48:24PM", "2014-06-12T13:48:24"),
        ("2014:06:12 12:05:00 a.m.", "2014-06-12T00:05:00"),
        ("2014:06:12 12:05:00 p.m.", "2014-06-12T12:05:00"),
        ("2014:06:12 11:59:59 p", "2014-06-12T23:59:59"),
        ("2014:06:12 1:48:24\u202fPM", "2014-06-12T13:48:24"),
        ("2014:06:12 1:48 pm", "2014-06-12T13:48:00"),
        ("2014:06:12 13:48:24 pm", "2014-06-12T13:48:24"),
        ("2014:06:12 下午 1:48:24", "2014-06-12T13:48:24"),
        ("2014:06:12 上午12:48:24", "2014-06-12T00:48:24"),
        ("2014:06:12 오후 1:48:24", "2014-06-12T13:48:24"),
        ("2014:06:12 1:48:24 pm+02:00", "2014-06-12T13:48:24"),
        ("2014:06:12 01:48:24 past", "2014-06-12T01:48:24"),
        ("2014:06:12 25:48:24", None), ("2014:06:12 24:28:33", None),
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


@pytest.mark.parametrize(
    ("written", "fix", "expected"),
    [
        ("2016:02:01 24:28:33", ("2016-02-01", 84496), "2016-02-02T00:28:33"),  # next day, +1 h
        ("2016:02:02 24:28:33", ("2016-02-01", 84496), "2016-02-02T00:28:33"),  # the day itself
        ("2016:02:28 24:00:00", ("2016-02-28", 54000), "2016-02-29T00:00:00"),  # +9 h
        ("2016:02:28 24:00:00", ("2016-02-28", 36000), "2016-02-28T00:00:00"),  # −10 h, not +14
        ("2015:12:31 24:59:59", ("2016-01-01", 43199), "2016-01-01T00:59:59"),  # −11 h
        ("2016:02:01 24:28:33", ("2016-02-05", 84496), None), ("2016:02:01 24:28:33", None, None),
        ("2016:02:01 24:28:33", (None, 84496), None), ("9999:12:31 24:28:33", None, None),
    ],
)  # fmt: skip
def test_hour_24_is_where_the_gps_clock_says(written, fix, expected):
    found = clocks.read_date(written, None, fix)
    assert (clocks.iso_text(found[0]) if found else None) == expected


# ---------------------------------------------------------------- UTC and the sun


def stamped(tmp_path, local, gps_time=None, gps_date=None, place=(48.2, 16.37), tag=None):
    gps = gps_of(*place) if place else {}
    if gps_time:
        gps[7] = tuple((part, 1) for part in gps_time)
    if gps_date:
        gps[29] = gps_date
    times = {0x9003: local} | ({0x9011: tag} if tag else {})
    return read(save(tmp_path / "photo.jpg", exif_bytes({}, times, gps)))


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


PLACES = {  # position, minutes east of UTC on 18 January 2024
    "Beijing": ((40.0, 116.0), 480), "Santiago": ((-33.45, -70.66), -180),
    "Kathmandu": ((27.7, 85.32), 345), "Vienna": ((48.2, 16.37), 60),
    "Auckland": ((-36.85, 174.76), 780), "Honolulu": ((21.3, -157.86), -600),
}  # fmt: skip
LOCAL = datetime(2024, 1, 18, 12, 35, 41)


def with_fix(tmp_path, place, ahead_minutes, dated=True, tag=None, local=LOCAL, make=b"Maker"):
    """A photo of local time `local` whose GPS clock is that much behind it."""
    fix = local - timedelta(minutes=ahead_minutes)
    gps = gps_of(*place) if place else {}
    gps[7] = (fix.hour, 1), (fix.minute, 1), (fix.second, 1)
    if dated:
        gps[29] = f"{fix:%Y:%m:%d}".encode()
    times = {0x9003: f"{local:%Y:%m:%d %H:%M:%S}".encode()} | ({0x9011: tag} if tag else {})
    return read(save(tmp_path / "photo.jpg", exif_bytes({0x010F: make}, times, gps)))


def said(row):
    return row["utc_offset_minutes"], row["utc_source"], codes(row)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dated", [True, False])
def test_a_fresh_fix_tells_the_offset(tmp_path, place, dated):
    where, minutes = PLACES[place]
    for late in (0, 1.5, -1.5, 9, -9):
        row = with_fix(tmp_path, where, minutes + late, dated)
        assert said(row) == (minutes, "gps_time", set())
        assert row["datetime_at_place"] == row["datetime"] == LOCAL.isoformat()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("hours", [3.2, 5.11, 7.8, 9.7, -3.2])
@pytest.mark.parametrize("dated", [True, False])
def test_an_old_fix_tells_nothing_and_the_zone_counts(tmp_path, place, hours, dated):
    where, minutes = PLACES[place]
    row = with_fix(tmp_path, where, minutes + 60 * hours, dated)
    assert said(row) == (minutes, "position_timezone", {"fix_stale"})
    assert row["datetime_utc"] == (LOCAL - timedelta(minutes=minutes)).isoformat()
    assert row["datetime_at_place"] == LOCAL.isoformat()


def test_a_fix_of_another_day_is_stale_and_differs(tmp_path):
    for days in (1, 3, -2, 400):
        row = with_fix(tmp_path, (40.0, 116.0), 480 + 1440 * days)
        assert said(row) == (480, "position_timezone", {"fix_stale", "gps_time_differs"})


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("clock", [0, 60, -480, 330, 840, -720])
def test_a_camera_on_the_clock_of_another_place(tmp_path, place, clock):
    """By its GPS clock, dated or not, or by its offset tag: UTC stays, the place's time follows."""
    where, minutes = PLACES[place]
    utc = LOCAL - timedelta(minutes=clock)
    zone = f"{'-' if clock < 0 else '+'}{abs(clock) // 60:02d}:{abs(clock) % 60:02d}".encode()
    elsewhere = {"clock_elsewhere"} if abs(clock - minutes) >= 30 else set()
    rows = [with_fix(tmp_path, where, clock + late) for late in (0, 1.9, -1.9)]
    rows.append(with_fix(tmp_path, where, clock, tag=zone))
    rows.append(stamped(tmp_path, f"{LOCAL:%Y:%m:%d %H:%M:%S}".encode(), place=where, tag=zone))
    if abs(clock - minutes) < 720:
        rows.append(with_fix(tmp_path, where, clock, dated=False))
    there = zones_time(where, utc)
    for row in rows:
        assert (row["utc_offset_minutes"], codes(row)) == (clock, elsewhere)
        assert row["datetime_utc"] == utc.isoformat()
        assert row["datetime_at_place"] == there.isoformat()
        assert row["datetime"] == LOCAL.isoformat()


def zones_time(place, utc):
    import tzfpy

    zone = zoneinfo.ZoneInfo(tzfpy.get_tz(place[1], place[0]))
    return utc.replace(tzinfo=zoneinfo.ZoneInfo("UTC")).astimezone(zone).replace(tzinfo=None)


def test_daylight_saving_is_that_of_the_instant_at_the_place(tmp_path):
    winter, summer = b"2022:01:18 20:17:57", b"2022:07:18 20:17:57"
    for local, there in ((winter, "2022-01-18T12:17:57"), (summer, "2022-07-18T13:17:57")):
        row = stamped(tmp_path, local, place=(34.03, -118.25), tag=b"+00:00")
        assert (row["datetime_at_place"], codes(row)) == (there, {"clock_elsewhere"})
    row = stamped(tmp_path, b"2022:07:18 12:00:00", place=(48.2, 16.37), tag=b"+01:00")
    assert row["datetime_at_place"] == "2022-07-18T13:00:00"  # a clock left on winter time
    assert codes(row) == {"clock_elsewhere"}
    for clock in (60, 120):  # twice half past two: the GPS clock tells which
        row = with_fix(tmp_path, (48.2, 16.37), clock, local=datetime(2024, 10, 27, 2, 30))
        assert said(row) == (clock, "gps_time", set())
        assert row["datetime_at_place"] == row["datetime"]


def test_an_undated_fix_takes_the_day_that_makes_it_an_offset(tmp_path):
    for minutes in range(-690, 840, 30):
        row = with_fix(tmp_path, None, minutes, dated=False)
        # Where two days do: +12 and +13 h are New Zealand, −12 and −11 h hardly anyone.
        expected = {-690: 750, -660: 780, 810: -630}.get(minutes, minutes)
        assert row["utc_offset_minutes"] == expected
        assert row["utc_source"] == "gps_time" and row["datetime_at_place"] is None
    for place, minutes in ((-36.85, 174.76), 780), ((21.3, -157.86), -600), ((1.87, -157.4), 840):
        row = with_fix(tmp_path, place, minutes, dated=False)  # nearest to the zone
        assert said(row) == (minutes, "gps_time", set())
    assert with_fix(tmp_path, None, 97, dated=False)["utc_source"] is None
    for date in (b"", b"    ", b"0000:00:00", b"2565:01:18", b"x"):  # no date, or no such one
        row = stamped(tmp_path, b"2024:01:18 12:35:41", (11, 35, 40), date, (47, 8))
        assert said(row) == (60, "gps_time", set())


def test_iphones_wrote_the_local_time_of_undated_fixes(tmp_path):
    row = with_fix(tmp_path, (41.85, 12.49), 0, dated=False, make=b"Apple")
    assert said(row) == (60, "position_timezone", set())
    row = with_fix(tmp_path, (41.85, 12.49), 0, dated=False)
    assert said(row) == (0, "gps_time", {"clock_elsewhere"})
    row = with_fix(tmp_path, (41.85, 12.49), 0, make=b"Apple")
    assert said(row) == (0, "gps_time", {"clock_elsewhere"})
    row = with_fix(tmp_path, (41.85, 12.49), 60, dated=False, make=b"Apple")
    assert said(row) == (60, "gps_time", set())


def test_two_minutes_part_a_clock_from_a_stale_fix(tmp_path):
    clock, zone = (240, "gps_time"), (60, "position_timezone")
    for late, found in ((1.9, clock), (-1.9, clock), (2.5, zone), (-2.5, zone)):
        row = with_fix(tmp_path, (48.2, 16.37), 240 + late)
        assert (row["utc_offset_minutes"], row["utc_source"]) == found
        assert codes(row) == {"clock_elsewhere" if found[0] == 240 else "fix_stale"}
    assert with_fix(tmp_path, None, 243)["utc_source"] is None
    assert with_fix(tmp_path, None, 241)["utc_offset_minutes"] == 240


def test_time_at_the_place_needs_a_place_and_utc(tmp_path):
    noon = b"2020:07:01 12:00:00"
    assert stamped(tmp_path, noon)["datetime_at_place"] == "2020-07-01T12:00:00"
    assert stamped(tmp_path, noon, place=None, tag=b"+02:00")["datetime_at_place"] is None
    assert stamped(tmp_path, noon, place=(0, 0), tag=b"+02:00")["datetime_at_place"] is None
    row = stamped(tmp_path, b"", (9, 58, 0), b"2020:07:01")  # the GPS clock alone tells it as well
    assert (row["datetime"], row["datetime_at_place"]) == (None, "2020-07-01T11:58:00")
    disputed = (43.8, 87.58)  # Urumqi: two clocks, and either is an honest one
    for tag in (b"+08:00", b"+06:00"):
        row = stamped(tmp_path, noon, place=disputed, tag=tag)
        assert (row["datetime_at_place"], codes(row)) == ("2020-07-01T12:00:00", set())


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


@given(
    st.one_of(
        st.datetimes().map(lambda when: f"{when:%Y:%m:%d %H:%M:%S}"),
        st.from_regex(
            r"[0-9]{4}[:-][0-9]{2}:[0-9]{2} [0-9]{2}:[0-9]{2}[:+-][0-9]{2}", fullmatch=True
        ),
        st.text(alphabet="0123: +-Z", min_size=19, max_size=19),
    ),
    st.sampled_from([None, "", "5", "123456789", "²"]),
)
def test_the_short_way_reads_what_the_long_way_reads(written, fraction):
    short = clocks.read_date(written, fraction)
    with patch.object(clocks, "_read_plain_date", lambda *_: None):
        assert clocks.read_date(written, fraction) == short
