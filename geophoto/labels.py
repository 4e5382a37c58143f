"""The header of one photo → its row of the table: position, altitude, time, orientation, camera.

In: a path. Out: a dict with the columns of the table; reading never raises.
"""

from __future__ import annotations

import contextlib
import os
from datetime import datetime, timedelta
from typing import Any

from density import cell_centre
from geophoto import tags
from geophoto.clocks import (
    add_utc,
    gps_clock,
    iso_text,
    read_date,
    read_offset,
    sun_position,
    utc_text,
)
from geophoto.containers import Bytes, OpenFile, Photo, read_container
from geophoto.orientations import ORIENTATIONS
from geophoto.table import COLUMNS, stamp_of
from geophoto.tags import Value, angle, number, positive, read_exif, read_xmp, text, xmp_angle

ALTITUDES = (-500.0, 50_000.0)  # m; the Dead Sea's shore to balloons: others are doubtful

# ---------------------------------------------------------------- position


def position(
    lat: float | None, lat_ref: str, lon: float | None, lon_ref: str, warnings: list
) -> tuple | None:
    """Signed (lat, lon) when both values, both references and their ranges are right."""
    if lat is None or lon is None or lat_ref not in ("N", "S") or lon_ref not in ("E", "W"):
        return None
    if lat > 90 or lon > 180:
        warnings.append("gps_out_of_range")
        return None
    if lat == lon == 0:
        warnings.append("gps_zero")
    lat, lon = -lat if lat_ref == "S" else lat, -lon if lon_ref == "W" else lon
    return round(lat, 9) + 0.0, round(lon, 9) + 0.0  # + 0.0: no negative zero


def _reference(value: Value | None) -> str:
    return (text(value) or "")[:1].upper()


def add_position(row: dict, gps: dict, warnings: list) -> None:
    """Fill the gps_ columns from the GPS IFD."""
    lat, lon = angle(gps.get(tags.LAT)), angle(gps.get(tags.LON))
    references = _reference(gps.get(tags.LAT_REF)), _reference(gps.get(tags.LON_REF))
    place = position(lat, references[0], lon, references[1], warnings)
    if place:
        row["gps_latitude"], row["gps_longitude"], row["gps_source"] = *place, "exif"
    elif tags.LAT in gps or tags.LON in gps:
        warnings.append("gps_incomplete")
    row["gps_altitude"] = altitude(gps.get(tags.ALT), gps.get(tags.ALT_REF))
    accuracy = number(gps.get(tags.ACCURACY))
    row["gps_accuracy_m"] = round(accuracy, 4) if accuracy and accuracy > 0 else None
    heading = number(gps.get(tags.DIRECTION))
    if heading is not None and 0 <= heading <= 360:
        if _reference(gps.get(tags.DIRECTION_REF)) == "M":
            warnings.append("direction_magnetic")
        else:
            row["gps_img_direction"] = round(heading % 360, 4)
    if _reference(gps.get(tags.GPS_STATUS)) == "V":
        warnings.append("gps_void")
    if number(gps.get(tags.DIFFERENTIAL)) == 1:
        warnings.append("gps_differential")


def altitude(value: Value | None, below: Value | None) -> float | None:
    """Metres; reference 1 (EXIF 3.0: also 3) means below sea level, a missing one above."""
    height = number(value)
    if height is None:
        return None
    return round(-abs(height) if number(below) in (1, 3) else height, 4) + 0.0


# ---------------------------------------------------------------- xmp

XMP_NAMES = {
    "gps_latitude": ("GPSLatitude", "GPSLongitude"),
    "gps_altitude": ("GPSAltitude", "GPSAltitudeRef"),
    "datetime": ("DateTimeOriginal",),
    "gps_clock": ("GPSTimeStamp",),
    "camera_make": ("Make",),
    "camera_model": ("Model",),
}


def add_xmp(row: dict, packet: bytes, warnings: list) -> None:
    """Fill what EXIF left empty from an XMP packet (ISO 16684-1)."""
    wanted = set()
    for column, names in XMP_NAMES.items():
        if row[column] is None:
            wanted.update(names)
    xmp = read_xmp(packet, wanted)
    if "GPSLatitude" in xmp and "GPSLongitude" in xmp:
        lat, lon = xmp_angle(xmp["GPSLatitude"], "NS"), xmp_angle(xmp["GPSLongitude"], "EW")
        place = position(*lat, *lon, warnings)
        if place:
            row["gps_latitude"], row["gps_longitude"], row["gps_source"] = *place, "xmp"
    if "GPSAltitude" in xmp:
        row["gps_altitude"] = altitude(
            xmp["GPSAltitude"].encode(), xmp.get("GPSAltitudeRef", "").encode()
        )
    taken = read_date(xmp.get("DateTimeOriginal"))
    if taken:
        _set_time(row, *taken)
    fix = read_date(xmp.get("GPSTimeStamp"))
    if fix and not row["gps_clock"]:
        with contextlib.suppress(OverflowError):
            when = fix[0] - timedelta(minutes=fix[1] or 0)
            seconds = when.hour * 3600 + when.minute * 60 + when.second
            row["gps_clock"] = when.date().isoformat(), seconds
    for column, name in (("camera_make", "Make"), ("camera_model", "Model")):
        row[column] = row[column] or xmp.get(name)


# ---------------------------------------------------------------- time


def add_time(row: dict, main: dict, exif: dict, gps: dict, warnings: list) -> None:
    """Fill `datetime` from DateTimeOriginal or DateTimeDigitized, and what bears on UTC."""
    row["gps_clock"] = gps_clock(gps)
    for tag, source, fraction, zone in (
        (tags.TAKEN, exif, tags.FRACTION_TAKEN, tags.ZONE_TAKEN),
        (tags.TAKEN, main, tags.FRACTION_TAKEN, tags.ZONE_TAKEN),
        (tags.DIGITISED, exif, tags.FRACTION_DIGITISED, tags.ZONE_DIGITISED),
    ):
        written = text(source.get(tag))
        taken = read_date(written, text(source.get(fraction)))
        if taken:
            offset = read_offset(text(source.get(zone)))
            if offset is None and text(main.get(tags.MODIFIED)) == written:
                offset = read_offset(text(source.get(tags.ZONE_MODIFIED)))
            hours = number(source.get(tags.ZONE_HOURS, main.get(tags.ZONE_HOURS)))  # TIFF/EP, hours
            if offset is None and taken[1] is None and hours is not None and -12 <= hours <= 14:
                offset = int(hours * 60)
            _set_time(row, taken[0], taken[1] if offset is None else offset)
            return
        if written and any(c.isdigit() and c != "0" for c in written):
            warnings.append("date_invalid")


def _set_time(row: dict, when: datetime, offset: int | None) -> None:
    row["datetime"] = iso_text(when)
    if offset is not None:
        row["utc_offset_minutes"], row["utc_source"] = offset, "offset_tag"


# ---------------------------------------------------------------- row


def empty_row(status: str, reason: str) -> dict:
    return dict.fromkeys(COLUMNS) | {
        "status": status,
        "warnings": reason,
        "_kind": None,
        "gps_clock": None,
        "stamp": None,
    }


def read_photo(path: str) -> dict:
    """Read one file's header into a table row (without its name, UTC and sun); never raises."""
    try:
        with open(path, "rb", buffering=0) as file:
            about = os.fstat(file.fileno())
            row = _read_open_file(file, about.st_size)
    except OSError:
        row = empty_row("unreadable", "cannot_open")
        try:
            about = os.stat(path)
        except OSError:
            return row
    row["file_size"], row["file_mtime"] = about.st_size, utc_text(about.st_mtime_ns)
    row["stamp"] = stamp_of(about)
    return row


def _read_open_file(file: Any, size: int) -> dict:
    if size == 0:
        return empty_row("unreadable", "empty_file")
    try:
        data = Bytes(file.read(16384), OpenFile(file), 0, size)
        photo = read_container(data)
        if photo.kind is None:
            return empty_row("unreadable", "not_an_image")
        return _to_row(photo)
    except MemoryError:
        return empty_row("unreadable", "out_of_memory")
    except Exception as error:  # a bug met a hostile file: one row, not the run
        return empty_row("unreadable", f"reader_error_{type(error).__name__}")


def _to_row(photo: Photo) -> dict:
    row, warnings = empty_row("no_exif", ""), photo.warnings
    main, exif, gps = read_exif(photo.exif)
    if main.damaged and not main and photo.kind != "tiff":
        warnings.append("exif_damaged")
    if gps:
        add_position(row, gps, warnings)
    if main:
        add_time(row, main, exif, gps, warnings)
        row["camera_make"], row["camera_model"] = (
            text(main.get(tags.MAKE)),
            text(main.get(tags.MODEL)),
        )
        for column, tag in (("focal_length_mm", tags.FOCAL), ("focal_length_35mm", tags.FOCAL_35),
                            ("exposure_time_s", tags.EXPOSURE), ("f_number", tags.F_NUMBER),
                            ("iso", tags.ISO)):  # fmt: skip
            row[column] = positive(exif.get(tag, main.get(tag)))
        row["lens_model"] = text(exif.get(tags.LENS, main.get(tags.LENS)))
    if photo.kind == "tiff":
        photo.width, photo.height = number(main.get(tags.WIDTH)), number(main.get(tags.HEIGHT))
        photo.xmp = main.get(tags.XMP_TAG)
    if isinstance(photo.xmp, bytes):
        add_xmp(row, photo.xmp, warnings)
    if row["gps_altitude"] is not None and not ALTITUDES[0] <= row["gps_altitude"] <= ALTITUDES[1]:
        warnings.append("altitude_doubtful")
    row["image_width"], row["image_height"] = photo.width or None, photo.height or None
    if tags.TURN in main or any(row[column] is not None for column in COLUMNS[3:25]):
        row["status"] = "ok"
    _add_orientation(row, photo, main, warnings)
    if row["image_width"] is None or row["image_height"] is None:
        warnings.append("no_size")
    row["_kind"], row["warnings"] = photo.kind, ";".join(dict.fromkeys(warnings))
    return row


def _add_orientation(row: dict, photo: Photo, main: dict, warnings: list) -> None:
    """Tag and class of the stored pixels as a decoder hands them out.

    HEIC: the container's turn is part of decoding, so its pixels arrive upright, whatever EXIF
    says. AVIF: Pillow leaves the container's turn to us, and EXIF has no say (ISO 23000-22, 7.3.9).
    """
    tag = main.get(tags.TURN)
    tag = int(number(tag)) if tag is not None and number(tag) is not None else None
    if photo.kind in ("heic", "avif"):
        if photo.kind == "heic" and photo.turn in (5, 6, 7, 8):
            row["image_width"], row["image_height"] = row["image_height"], row["image_width"]
        stated = tag is not None or photo.turn is not None
        tag = (photo.turn if photo.kind == "avif" else None) or (1 if stated else None)
    elif tag is not None and tag not in ORIENTATIONS:
        warnings.append("orientation_invalid")
        tag = 1
    row["orientation_tag"] = tag
    row["orientation"] = ORIENTATIONS[tag][2] if tag else None
    if tag in (5, 7):
        warnings.append("orientation_transposed")


def finish_row(filename: str, raw: dict, round_km: float = 0.0) -> dict:
    """Give a raw row its name, UTC and sun; coarsen its position first where that is asked for.

    The sun is computed from the coarsened position: the exact one could be solved for from it.
    """
    row = {column: raw[column] for column in COLUMNS} | {"filename": filename}
    warnings = row["warnings"].split(";") if row["warnings"] else []
    add_utc(row, raw["gps_clock"], warnings)
    row["warnings"] = ";".join(warnings) or None
    if row["gps_latitude"] is None:
        return row
    if round_km:
        centre = cell_centre(row["gps_latitude"], row["gps_longitude"], round_km)
        row["gps_latitude"], row["gps_longitude"] = round(centre[0], 5), round(centre[1], 5)
        row["gps_accuracy_m"] = max(row["gps_accuracy_m"] or 0.0, 2000.0 * round_km)
    if row["datetime_utc"] and "gps_zero" not in warnings:
        utc = datetime.fromisoformat(row["datetime_utc"])
        up, around = sun_position(row["gps_latitude"], row["gps_longitude"], utc)
        row["sun_elevation_deg"], row["sun_azimuth_deg"] = round(up, 3), round(around % 360, 3)
    return row
