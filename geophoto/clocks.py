"""Dates, offsets and the GPS clock → local time, UTC and the sun.

In: texts and tags of one photo, its position. Out: datetimes, minutes east of UTC, degrees.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from geophoto import tags
from geophoto.tags import numbers, text

STALE_MINUTES = 15  # a GPS fix this old still tells the zone (they differ by 15 min at least)

# ---------------------------------------------------------------- dates

DATE = re.compile(
    r"(\d{4})[:\-/.]\s?(\d{1,2})[:\-/.]\s?(\d{1,2})[T ]\s{0,2}(\d{1,2}):\s?(\d{1,2})"
    r"(?::\s?(\d{1,2}))?"
    r"(?:[.,](\d{1,9}))?\s?(Z|[+-]\d{1,2}:?\d{2})?"
)


def read_date(
    written: str | None, fraction: str | None = None
) -> tuple[datetime, int | None] | None:
    """A valid date with time of day, and the offset in minutes if it is written behind it."""
    match = DATE.match(written.strip()) if written else None
    if not match:
        return None
    *parts, decimals, zone = match.groups()
    decimals = decimals or (
        fraction if fraction and fraction.isascii() and fraction.isdigit() else ""
    )
    try:
        when = datetime(*(int(part or 0) for part in parts), int(decimals[:6].ljust(6, "0") or 0))
    except ValueError:
        return None
    return when, read_offset(zone)


def read_offset(written: str | None) -> int | None:
    """Minutes east of UTC from "+02:00", "-0530" or "Z"; None if it is no zone on Earth."""
    if not written:
        return None
    if written.strip().upper() == "Z":
        return 0
    match = re.fullmatch(r"([+-])(\d{1,2}):?(\d{2})", written.strip())
    if not match or int(match[3]) > 59:
        return None
    minutes = int(match[2]) * 60 + int(match[3])
    minutes = -minutes if match[1] == "-" else minutes
    return minutes if -720 <= minutes <= 840 else None


def gps_clock(gps: dict) -> tuple[str | None, float] | None:
    """(UTC date or None, seconds of the day) of the GPS fix: tags 0x001D and 0x0007."""
    value = gps.get(tags.GPS_TIME)
    if isinstance(value, bytes):
        value = tuple(numbers((text(value) or "").replace(":", " ")))
    if not value or len(value) < 3 or math.isnan(value[0]):
        return None
    parts = [0.0 if math.isnan(part) else part for part in value[:3]]
    seconds = sum(part * scale for part, scale in zip(parts, (3600, 60, 1), strict=True))
    if not 0 <= seconds < 86400:
        return None
    date = re.match(r"(\d{4})\D(\d{1,2})\D(\d{1,2})", text(gps.get(tags.GPS_DATE)) or "")
    try:
        return datetime(*map(int, date.groups())).date().isoformat() if date else None, seconds
    except ValueError:
        return None, seconds


def iso_text(when: datetime) -> str:
    fine = when.microsecond % 1000 or not when.microsecond
    return when.isoformat(timespec="auto" if fine else "milliseconds")


def utc_text(nanoseconds: int) -> str | None:
    """ISO 8601 UTC to the microsecond, without "Z": spreadsheets then see a date, not a text."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    try:
        return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest // 1000:06d}"
    except (ValueError, OverflowError, OSError):
        return None


# ---------------------------------------------------------------- zones

_zones: dict[str, Any] = {}


def zone_offset(lat: float, lon: float, when: datetime) -> tuple[int, str | None] | None:
    """Minutes east of UTC that clocks at a position showed at local wall time `when`.

    The second value flags a time that did not exist (dst_gap), existed twice (dst_fold: the first
    is taken) or lies where two clocks are in use (zone_disputed). None where no zone is known.
    """
    import tzfpy

    names = tzfpy.get_tzs(lon, lat)
    offsets = []
    for name in names:
        if name not in _zones:
            import zoneinfo

            try:
                _zones[name] = zoneinfo.ZoneInfo(name)
            except (zoneinfo.ZoneInfoNotFoundError, ValueError):
                _zones[name] = None
        if _zones[name]:
            for fold in (0, 1):
                delta = when.replace(tzinfo=_zones[name], fold=fold).utcoffset()
                offsets.append(round(delta.total_seconds() / 60))
    if not offsets:
        return None
    flag = None
    if offsets[0] != offsets[1]:
        flag = "dst_gap" if offsets[0] < offsets[1] else "dst_fold"
    elif set(offsets) != {offsets[0]}:
        flag = "zone_disputed"
    return offsets[0], flag


def zones_missing() -> list[str]:
    """Time zones asked for in this process of which the computer has no data."""
    return sorted(name for name, zone in _zones.items() if zone is None)


def lacks_zone(row: dict) -> bool:
    """Whether missing zone data left the UTC of a photo empty."""
    known = row["datetime"] and row["gps_latitude"] is not None
    return bool(known and not row["datetime_utc"] and zones_missing())


def add_utc(row: dict, gps_time: tuple | None, warnings: list) -> None:
    """Fill the UTC columns: offset tag, else the GPS clock, else the zone of the position."""
    if not row["datetime"]:
        if gps_time and gps_time[0]:
            row["datetime_utc"] = _clock(gps_time).isoformat(timespec="seconds")
            row["utc_source"] = "gps_time"
        return
    when, dated = datetime.fromisoformat(row["datetime"]), bool(gps_time and gps_time[0])
    ahead = (when - _clock(gps_time, when)).total_seconds() / 60 if gps_time else None
    minutes, source = row["utc_offset_minutes"], row["utc_source"]
    if source is None:
        known = row["gps_latitude"] is not None and "gps_zero" not in warnings
        place = (row["gps_latitude"], row["gps_longitude"]) if known else None
        minutes, source, noted = _infer_offset(place, when, ahead, dated)
        warnings.extend(noted)
    elif dated and abs(ahead - minutes) > STALE_MINUTES:
        warnings.append("gps_time_differs")
    if minutes is None:
        return
    with contextlib.suppress(OverflowError):  # the years 1 and 9999
        row["datetime_utc"] = iso_text(when - timedelta(minutes=minutes))
        row["utc_offset_minutes"], row["utc_source"] = minutes, source


def _infer_offset(
    place: tuple | None, when: datetime, ahead: float | None, dated: bool
) -> tuple[int | None, str | None, list[str]]:
    """Offset, its source and warnings, from local time minus GPS time or from the position."""
    rounded = _plausible_offset(ahead) if dated else None
    if rounded is not None:
        return rounded, "gps_time", []
    local = zone_offset(*place, when) if place else None
    differs = ["gps_time_differs"] if dated else []
    if local is None:
        return None, None, differs
    days = (0,) if dated else (-1440, 0, 1440)
    if ahead is not None and any(abs(ahead + day - local[0]) <= STALE_MINUTES for day in days):
        return local[0], "gps_time", []  # the fix was a little old, or undated, but says the same
    return local[0], "position_timezone", differs + ([local[1]] if local[1] else [])


def _clock(gps_time: tuple, when: datetime | None = None) -> datetime:
    """UTC of the GPS fix; on the local day where the fix is undated."""
    day = datetime.fromisoformat(gps_time[0] or when.date().isoformat())
    return day + timedelta(seconds=round(gps_time[1], 3))


def _plausible_offset(ahead: float) -> int | None:
    """The offset in use on Earth within 5 min of local minus GPS time, in minutes; else None."""
    minutes = round(ahead / 15) * 15
    quarter = minutes % 60 in (15, 45) and minutes not in (345, 525, 765, 825)  # Nepal … Chatham
    return minutes if abs(ahead - minutes) <= 5 and -720 <= minutes <= 840 and not quarter else None


# ---------------------------------------------------------------- sun


def sun_position(lat: float, lon: float, utc: datetime) -> tuple[float, float]:
    """Geometric (not refracted) elevation and azimuth of the sun, degrees; clockwise from north."""
    import astral.sun

    zenith, azimuth = astral.sun.zenith_and_azimuth(
        astral.Observer(lat, lon), utc.replace(tzinfo=UTC), with_refraction=False
    )
    return 90.0 - zenith, azimuth
