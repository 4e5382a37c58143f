"""Dates, offsets and the GPS clock → local time, UTC and the sun.

In: texts and tags of one photo, its position. Out: datetimes, minutes east of UTC, degrees.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from geophoto import tags
from geophoto.tags import numbers, text

STALE_MINUTES = 15  # a GPS fix this old still tells the zone (they differ by 15 min at least)
EXACT_MINUTES = 2  # a fresh GPS fix is this near to the camera's clock, offset apart
ELSEWHERE_MINUTES = 30  # a clock this far from that of the photo's own place is another place's
LEAST_OFFSET, LARGEST_OFFSET = -720, 840  # minutes east of UTC in use on Earth
FIRST_YEAR = 1826  # of the oldest photograph that is left, Niépce's view from his window

# ---------------------------------------------------------------- dates

DATE = re.compile(
    r"(\d{4})[:\-/.]\s?(\d{1,2})[:\-/.]\s?(\d{1,2})[T ]\s{0,2}(?:([上下]午|午[前後]|오[전후])\s?)?"
    r"(\d{1,2}):\s?(\d{1,2})(?::\s?(\d{1,2}))?(?:[.,](\d{1,9}))?"
    r"(?:\s?([ap])\.?\s?(?:m\.?)?(?![a-z]))?\s?(Z|[+-]\d{1,2}:?\d{2})?",
    re.IGNORECASE,
)
AFTERNOON = ("p", "下午", "午後", "오후")


def read_date(
    written: str | None, fraction: str | None = None, clock: tuple | None = None
) -> tuple[datetime, int | None] | None:
    """A valid date with time of day, and the offset in minutes if it is written behind it.

    Of twelve hours the half of the day counts as well. Hour 24 is the first hour of this day or of
    the next, writers differ: the GPS `clock` must tell.
    """
    if plain := _read_plain_date(written, fraction):
        return plain, None
    match = DATE.match(written.strip()) if written else None
    if not match:
        return None
    year, month, day, before, hours, minute, second, decimals, after, zone = match.groups()
    decimals = decimals or _digits(fraction)
    hour, half = int(hours), before or after
    if half and hour <= 12:
        hour = hour % 12 + 12 * (half.lower() in AFTERNOON)
    try:
        when = datetime(int(year), int(month), int(day), hour % 24, int(minute), int(second or 0))
        when = when.replace(microsecond=int(decimals[:6].ljust(6, "0") or 0))
    except ValueError:
        return None
    if hour < 24:
        return when, read_offset(zone)
    found = _day_of_midnight(when, clock) if hour == 24 else None
    return (found, read_offset(zone)) if found else None


def _read_plain_date(written: str | None, fraction: str | None) -> datetime | None:
    """What nearly every camera writes, "2020:01:02 03:04:05": read in a fifth of the time."""
    if not written or len(written) != 19:
        return None
    if written[4] + written[7] + written[10] + written[13] + written[16] != ":: ::":
        return None
    try:
        when = datetime.fromisoformat(
            f"{written[:4]}-{written[5:7]}-{written[8:10]}T{written[11:]}"
        )
    except ValueError:
        return None
    decimals = _digits(fraction)
    return when.replace(microsecond=int(decimals[:6].ljust(6, "0"))) if decimals else when


def _digits(fraction: str | None) -> str:
    return fraction if fraction and fraction.isascii() and fraction.isdigit() else ""


def _day_of_midnight(when: datetime, clock: tuple | None) -> datetime | None:
    """The first hour of a day or of the next, whichever the GPS clock makes an offset; the lesser
    one where both are."""
    if not clock or not clock[0]:
        return None
    ahead = (when - _clock(clock)).total_seconds() / 60
    days = [
        day
        for day in (0, 1)
        if LEAST_OFFSET - EXACT_MINUTES <= ahead + 1440 * day <= LARGEST_OFFSET + EXACT_MINUTES
    ]
    nearest = min(days, key=lambda day: abs(ahead + 1440 * day), default=None)
    return None if nearest is None else when + timedelta(days=nearest)


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
    return minutes if LEAST_OFFSET <= minutes <= LARGEST_OFFSET else None


def is_doubtful(when: datetime) -> bool:
    """Before the first photograph or after next year: a dead clock, or another calendar."""
    return not FIRST_YEAR <= when.year <= _next_year()


@functools.cache
def _next_year() -> int:
    return time.gmtime().tm_year + 1


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
        day = datetime(int(date[1]), int(date[2]), int(date[3])) if date else None
    except ValueError:
        day = None
    return day.date().isoformat() if day and not is_doubtful(day) else None, seconds


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


@functools.lru_cache(maxsize=64)
def _zones_at(lat: float, lon: float) -> list[Any]:
    """The time zones of a position: several where two clocks are in use, none without zone data."""
    import tzfpy

    found = []
    for name in tzfpy.get_tzs(lon, lat):
        if name not in _zones:
            import zoneinfo

            try:
                _zones[name] = zoneinfo.ZoneInfo(name)
            except (zoneinfo.ZoneInfoNotFoundError, ValueError):
                _zones[name] = None
        if _zones[name]:
            found.append(_zones[name])
    return found


def _minutes(offset: timedelta | None) -> int:
    return round((offset or timedelta()).total_seconds() / 60)


def zone_offset(lat: float, lon: float, when: datetime) -> tuple[int, str | None] | None:
    """Minutes east of UTC that clocks at a position showed at local wall time `when`.

    The second value flags a time that did not exist (dst_gap), existed twice (dst_fold: the first
    is taken) or lies where two clocks are in use (zone_disputed). None where no zone is known.
    """
    offsets = _offsets(lat, lon, when)
    return (offsets[0], _flag(offsets)) if offsets else None


def _flag(offsets: list[int]) -> str | None:
    if offsets[0] != offsets[1]:
        return "dst_gap" if offsets[0] < offsets[1] else "dst_fold"
    return "zone_disputed" if offsets.count(offsets[0]) < len(offsets) else None


def _offsets(lat: float, lon: float, when: datetime) -> list[int]:
    """All that clocks at a position may have showed at a local wall time: two for each zone."""
    folds = (when, when.replace(fold=1))
    return [_minutes(zone.utcoffset(f)) for zone in _zones_at(lat, lon) for f in folds]


def offset_at_place(lat: float, lon: float, utc: datetime, near: int | None = None) -> int | None:
    """Minutes east of UTC at a position at an instant; of several clocks in use, that `near`est."""
    instant = utc.replace(tzinfo=UTC)
    zones = _zones_at(lat, lon)
    offsets = [_minutes(instant.astimezone(zone).utcoffset()) for zone in zones]
    if near is None or len(offsets) < 2:
        return offsets[0] if offsets else None
    return min(offsets, key=lambda minutes: abs(minutes - near))


def zones_missing() -> list[str]:
    """Time zones asked for in this process of which the computer has no data."""
    return sorted(name for name, zone in _zones.items() if zone is None)


def lacks_zone(row: dict) -> bool:
    """Whether missing zone data left the time at a photo's place empty, and perhaps its UTC."""
    timed = row["datetime"] or row["datetime_utc"]
    known = timed and row["gps_latitude"] is not None
    return bool(known and not row["datetime_at_place"] and zones_missing())


# ---------------------------------------------------------------- UTC


def add_utc(
    row: dict,
    gps_time: tuple | None,
    taken_utc: datetime | None,
    place: tuple[float, float] | None,
    warnings: list,
) -> None:
    """Fill the UTC columns and the time at the place.

    UTC comes from the offset tag, else the GPS clock, else the zone of the position `place`; of a
    photo without a local time from Takeout, which then tells that as well, or the GPS clock.
    """
    if row["datetime"] and not (place or gps_time or row["utc_source"]):
        return  # nothing tells its zone
    with contextlib.suppress(OverflowError):  # the years 1 and 9999
        if row["datetime"]:
            _add_offset(row, datetime.fromisoformat(row["datetime"]), gps_time, place, warnings)
            return
        utc = taken_utc or (_clock(gps_time) if gps_time and gps_time[0] else None)
        if utc is None:
            return
        row["datetime_utc"], row["utc_source"] = iso_text(utc), "gps_time"
        minutes = offset_at_place(*place, utc) if place else None
        if minutes is not None:
            row["datetime_at_place"] = iso_text(utc + timedelta(minutes=minutes))
        if taken_utc:
            row["datetime"], row["utc_source"] = row["datetime_at_place"], "takeout"
            row["utc_offset_minutes"] = minutes


def _add_offset(
    row: dict,
    when: datetime,
    gps_time: tuple | None,
    place: tuple[float, float] | None,
    warnings: list,
) -> None:
    """UTC of a photo with a local time, and where its place is known what a clock there showed."""
    clocks = _offsets(*place, when) if place else []
    ahead, dated = None, bool(gps_time and gps_time[0])
    if gps_time:
        fix = _clock(gps_time, row["datetime"][:10])
        ahead = (when - fix).total_seconds() / 60
        if not dated and row["camera_make"] == "Apple" and abs(ahead) <= EXACT_MINUTES:
            ahead = None  # iPhones up to iOS 5 wrote the local time there, and no date
    minutes, source = row["utc_offset_minutes"], row["utc_source"]
    if source is None:
        minutes, source, noted = _infer_offset(clocks, ahead, dated)
        warnings.extend(noted)
    elif ahead is not None and dated and abs(ahead - minutes) > STALE_MINUTES:
        warnings.append("gps_time_differs")
    if minutes is None:
        return
    utc = when - timedelta(minutes=minutes)
    row["datetime_utc"], row["utc_source"], row["utc_offset_minutes"] = (
        iso_text(utc),
        source,
        minutes,
    )
    if minutes in clocks and _flag(clocks) != "dst_gap":  # an honest clock
        row["datetime_at_place"] = row["datetime"]
    elif place and clocks:
        there = offset_at_place(*place, utc, minutes)
        if there is not None:
            row["datetime_at_place"] = iso_text(utc + timedelta(minutes=there))
            told = source != "position_timezone" and abs(minutes - there) >= ELSEWHERE_MINUTES
            warnings.extend(["clock_elsewhere"] if told else [])


def _infer_offset(
    clocks: list[int], ahead: float | None, dated: bool
) -> tuple[int | None, str | None, list[str]]:
    """Offset, its source and warnings, from local minus GPS time in minutes, and from what the
    `clocks` of the place may have shown (none where it is unknown).

    The GPS clock is right where it agrees with the zone, or says that the camera runs on another
    whole or half hour, to EXACT_MINUTES; else its fix is old, and the zone counts.
    """
    if ahead is not None and not dated:
        ahead = _likeliest_day(ahead, clocks)
    rounded = _plausible_offset(ahead) if ahead is not None else None
    if not clocks:
        differs = ["gps_time_differs"] if dated and rounded is None else []
        return rounded, None if rounded is None else "gps_time", differs
    flag = _flag(clocks)
    doubts = [flag] if flag else []
    if ahead is None:
        return clocks[0], "position_timezone", doubts
    nearest = min(clocks, key=lambda minutes: abs(ahead - minutes))
    if rounded is not None and (rounded % 30 == 0 or abs(rounded - nearest) < ELSEWHERE_MINUTES):
        return rounded, "gps_time", []
    if abs(ahead - nearest) <= STALE_MINUTES:
        return nearest, "gps_time", []
    stale = abs(ahead - nearest) >= ELSEWHERE_MINUTES
    noted = ["fix_stale"] if stale else []
    if not stale or abs(ahead - nearest) >= 1440:
        noted.append("gps_time_differs")
    return clocks[0], "position_timezone", noted + doubts


def _likeliest_day(ahead: float, clocks: list[int]) -> float:
    """Local minus undated GPS time, on the day that makes it an offset.

    Where two days do, the one nearest to a clock of the place; without a place that of more people:
    +12 and +13 h are New Zealand, −12 and −11 h hardly anyone, −10 h Hawaii.
    """
    least, largest = LEAST_OFFSET - EXACT_MINUTES, LARGEST_OFFSET + EXACT_MINUTES
    first = (ahead - least) % 1440 + least
    days = [first, first + 1440] if first + 1440 <= largest else [first]
    if clocks:
        return min(days, key=lambda day: min(abs(day - clock) for clock in clocks))
    return days[-1] if first <= -660 + EXACT_MINUTES else first


def _clock(gps_time: tuple, day: str = "") -> datetime:
    """UTC of the GPS fix; where the fix is undated, on the day given."""
    return datetime.fromisoformat(gps_time[0] or day) + timedelta(seconds=round(gps_time[1], 3))


def _plausible_offset(ahead: float) -> int | None:
    """The offset in use on Earth that local minus GPS time is, to EXACT_MINUTES; else None."""
    minutes = round(ahead / 15) * 15
    quarter = minutes % 60 in (15, 45) and minutes not in (345, 525, 765, 825)  # Nepal … Chatham
    near = abs(ahead - minutes) <= EXACT_MINUTES and LEAST_OFFSET <= minutes <= LARGEST_OFFSET
    return minutes if near and not quarter else None


# ---------------------------------------------------------------- sun


def sun_position(lat: float, lon: float, utc: datetime) -> tuple[float, float]:
    """Geometric (not refracted) elevation and azimuth of the sun, degrees; clockwise from north."""
    import astral.sun

    zenith, azimuth = astral.sun.zenith_and_azimuth(
        astral.Observer(lat, lon), utc.replace(tzinfo=UTC), with_refraction=False
    )
    return 90.0 - zenith, azimuth
