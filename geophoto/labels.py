"""One photo's header, and what lies beside it → its row of the table: position, altitude, time,
orientation, camera.

In: paths. Out: a dict with the columns of the table; reading never raises. Of several sources the
first that knows counts: see data/README.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

from density import cell_centre
from geophoto import packets, tags
from geophoto.clocks import (
    add_utc,
    gps_clock,
    is_doubtful,
    iso_text,
    read_date,
    read_offset,
    sun_position,
    utc_text,
)
from geophoto.containers import Bytes, OpenFile, Photo, read_container
from geophoto.orientations import ORIENTATIONS
from geophoto.packets import iptc_date, read_iptc, read_xmp
from geophoto.positions import Fix, add_position, fix_of_gps, fix_of_takeout, fix_of_xmp
from geophoto.sidecars import Takeout, read_sidecar, read_takeout
from geophoto.table import COLUMNS, stamp_beside, stamp_of
from geophoto.tags import Value, number, positive, read_exif, text

USED = COLUMNS[COLUMNS.index("datetime") : COLUMNS.index("image_width")]  # what EXIF can fill

# ---------------------------------------------------------------- time

Moment = tuple[datetime, int | None]  # local wall time, minutes east of UTC where they are told
TAKEN = ("exif:DateTimeOriginal", "photoshop:DateCreated")  # in XMP, in this order


def _exif_moment(
    tag: int, main: dict, exif: dict, clock: tuple | None, warnings: list
) -> Moment | None:
    """DateTimeOriginal (also in IFD0) or DateTimeDigitized, with fraction and offset."""
    taken = tag == tags.TAKEN
    fraction = tags.FRACTION_TAKEN if taken else tags.FRACTION_DIGITISED
    zone = tags.ZONE_TAKEN if taken else tags.ZONE_DIGITISED
    for source in (exif, main) if taken else (exif,):
        if tag not in source:
            continue
        written = text(source.get(tag))
        found = read_date(written, text(source.get(fraction)), clock)
        if found:
            offset = read_offset(text(source.get(zone)))
            if offset is None and text(main.get(tags.MODIFIED)) == written:
                offset = read_offset(text(source.get(tags.ZONE_MODIFIED)))
            hours = number(source.get(tags.ZONE_HOURS, main.get(tags.ZONE_HOURS)))  # TIFF/EP, hours
            if offset is None and found[1] is None and hours is not None and -12 <= hours <= 14:
                offset = int(hours * 60)
            return _sound((found[0], found[1] if offset is None else offset), warnings)
        if written and any(c.isdigit() and c != "0" for c in written):
            warnings.append("date_invalid")
    return None


def _sound(found: Moment | None, warnings: list) -> Moment | None:
    if found and is_doubtful(found[0]):
        warnings.append("date_doubtful")
        return None
    return found


def _xmp_moment(xmp: dict[str, str], name: str) -> Moment | None:
    found = read_date(xmp.get(name))
    if found and found[1] is None and name == "exif:DateTimeOriginal":
        return found[0], read_offset(xmp.get("exif:OffsetTimeOriginal"))
    return found


def _moments(
    photo: Photo,
    main: dict,
    exif: dict,
    clock: tuple | None,
    taken: Moment | None,
    xmp: dict[str, str],
    sidecar: dict[str, str],
    warnings: list,
) -> Iterator[Moment | None]:
    """Capture times in the order of their sources; `taken` is EXIF's DateTimeOriginal, `clock` the
    GPS clock.

    IPTC and DateTimeDigitized are only read where they are asked for.
    """
    for name in TAKEN if sidecar else ():
        found = _xmp_moment(sidecar, name)
        if found and taken and found[1] is None:
            same = found[0].replace(microsecond=0) == taken[0].replace(microsecond=0)
            found = taken if same else found  # which may know fraction and offset
        yield found
    yield taken
    for name in TAKEN if xmp else ():
        yield _xmp_moment(xmp, name)
    iptc = _read_iptc(photo, main)
    yield read_date(iptc_date(iptc, packets.CREATED)) if iptc else None
    yield _exif_moment(tags.DIGITISED, main, exif, clock, warnings)
    for packet in (sidecar, xmp) if sidecar or xmp else ():
        yield _xmp_moment(packet, "exif:DateTimeDigitized")
    yield read_date(iptc_date(iptc, packets.DIGITISED)) if iptc else None
    for packet in (sidecar, xmp) if sidecar or xmp else ():
        yield _xmp_moment(packet, "xmp:CreateDate")


def _read_iptc(photo: Photo, main: dict) -> dict[int, str]:
    """IPTC of a JPEG's Photoshop resources, or of a TIFF's own tag or its resources."""
    block, resources = main.get(tags.IPTC), main.get(tags.RESOURCES)
    if isinstance(block, bytes):
        return read_iptc(block)
    parts = [Bytes(resources)] if isinstance(resources, bytes) else photo.resources
    return read_iptc(packets.iptc_of_resources(parts)) if parts else {}


def add_time(row: dict, moments: Iterable[Moment | None], warnings: list) -> None:
    """Fill `datetime`, and the offset where it is written with it, from the first that knows."""
    for moment in moments:
        if found := _sound(moment, warnings):
            row["datetime"] = iso_text(found[0])
            if found[1] is not None:
                row["utc_offset_minutes"], row["utc_source"] = found[1], "offset_tag"
            return


def _xmp_clock(xmp: dict[str, str]) -> tuple[str, float] | None:
    """exif:GPSTimeStamp, which XMP writes as one date and time, as `gps_clock` gives it."""
    fix = read_date(xmp.get("exif:GPSTimeStamp"))
    if not fix or is_doubtful(fix[0]):
        return None
    when = fix[0] - timedelta(minutes=fix[1] or 0)
    return when.date().isoformat(), when.hour * 3600 + when.minute * 60 + when.second


# ---------------------------------------------------------------- row


RAW_ONLY = ("_kind", "gps_clock", "taken_utc", "stamp")  # no columns of the finished row
EMPTY: dict[str, Any] = dict.fromkeys((*COLUMNS, *RAW_ONLY))


def empty_row(status: str, reason: str) -> dict:
    return EMPTY | {"status": status, "warnings": reason}


def read_photo(path: str, sidecar: str = "", takeout: str = "") -> dict:
    """Read one file's header, its XMP sidecar and its Takeout file, where it has them, into a table
    row (without its name, UTC and sun); never raises."""
    beside = stamp_beside((sidecar, takeout)) if sidecar or takeout else []
    try:
        with open(path, "rb", buffering=0) as file:
            about = os.fstat(file.fileno())
            row = _read_open_file(file, about.st_size, path, sidecar, takeout)
    except OSError:
        row = empty_row("unreadable", "cannot_open")
        try:
            about = os.stat(path)
        except OSError:
            return row
    row["file_size"], row["file_mtime"] = about.st_size, utc_text(about.st_mtime_ns)
    row["stamp"] = stamp_of(about) + beside
    return row


def _read_open_file(file: Any, size: int, path: str, sidecar: str, takeout: str) -> dict:
    if size == 0:
        return empty_row("unreadable", "empty_file")
    try:
        data = Bytes(file.read(16384), OpenFile(file), 0, size)
        photo = read_container(data)
        if photo.kind is None:
            return empty_row("unreadable", "not_an_image")
        if not (sidecar or takeout):
            return _to_row(photo, {}, None, [])
        return _to_row(photo, *_read_beside(path, sidecar, takeout))
    except MemoryError:
        return empty_row("unreadable", "out_of_memory")
    except Exception as error:  # a bug met a hostile file: one row, not the run
        return empty_row("unreadable", f"reader_error_{type(error).__name__}")


def _read_beside(
    path: str, sidecar: str, takeout: str
) -> tuple[dict[str, str], Takeout | None, list[str]]:
    """Properties of the XMP sidecar, what Takeout says, and warnings."""
    try:
        told = read_takeout(takeout, path) if takeout else None
    except Exception:  # a bug met a hostile file: one warning, not the row
        told = Takeout()
        told.warnings.append("takeout_damaged")
    try:
        found, noted = read_sidecar(sidecar, path) if sidecar else ({}, [])
    except Exception:
        found, noted = {}, ["sidecar_damaged"]
    return found, told, noted + (told.warnings if told else [])


XMP_NAMES = {  # column → properties that can fill it, and those that only say more about these
    "gps_latitude": (("exif:GPSLatitude",),
                     ("exif:GPSLatitudeRef", "exif:GPSLongitude", "exif:GPSLongitudeRef",
                      "exif:GPSHPositioningError", "exif:GPSProcessingMethod")),
    "gps_altitude": (("exif:GPSAltitude",), ("exif:GPSAltitudeRef",)),
    "datetime": (("exif:DateTimeOriginal", "photoshop:DateCreated", "exif:DateTimeDigitized",
                  "xmp:CreateDate"), ("exif:OffsetTimeOriginal",)),
    "gps_clock": (("exif:GPSTimeStamp",), ()),
    "camera_make": (("tiff:Make",), ()),
    "camera_model": (("tiff:Model",), ()),
    "orientation_tag": (("tiff:Orientation",), ()),
}  # fmt: skip


def _to_row(photo: Photo, beside: dict[str, str], told: Takeout | None, noted: list[str]) -> dict:
    row, warnings = empty_row("no_exif", ""), photo.warnings + noted
    main, exif, gps = read_exif(photo.exif)
    if main.damaged and not main and photo.kind != "tiff":
        warnings.append("exif_damaged")
    if photo.kind == "tiff":
        sides = number(main.get(tags.WIDTH)) or 0, number(main.get(tags.HEIGHT)) or 0
        photo.width, photo.height = int(sides[0]), int(sides[1])
        photo.xmp = main.get(tags.XMP_TAG)
    turn = main.get(tags.TURN)
    if main or photo.xmp or photo.resources or beside or told:
        if main:
            _add_camera(row, main, exif)
        xmp = _add_place_and_time(row, photo, (main, exif, gps), beside, told, warnings)
        if turn is None and "tiff:Orientation" in xmp:
            turn = xmp["tiff:Orientation"].encode()
        if turn is not None or row["taken_utc"] or any(row[column] is not None for column in USED):
            row["status"] = "ok"
    if row["status"] != "ok" and (
        photo.xmp or (main.keys() & _POINTERS if photo.kind == "tiff" else photo.exif)
    ):
        row["status"] = "empty_exif"
    if photo.width and photo.height and min(photo.width, photo.height) > 0:
        row["image_width"], row["image_height"] = photo.width, photo.height
    else:
        warnings.append("no_size")
    _add_orientation(row, photo, turn, warnings)
    row["_kind"], row["warnings"] = photo.kind, ";".join(dict.fromkeys(warnings))
    return row


def _add_place_and_time(
    row: dict,
    photo: Photo,
    header: tuple[dict, dict, dict],
    beside: dict[str, str],
    told: Takeout | None,
    warnings: list,
) -> dict[str, str]:
    """Fill what EXIF (its three directories), XMP, IPTC and the files beside say of both; returns
    the properties of the embedded XMP."""
    main, exif, gps = header
    clock = row["gps_clock"] = gps_clock(gps) if gps else None
    taken = _exif_moment(tags.TAKEN, main, exif, clock, warnings) if main else None
    fixes = [fix_of_gps(gps)] if gps else []
    turn = main.get(tags.TURN) if photo.kind == "tiff" else ()  # XMP turns TIFF alone
    xmp = _embedded_xmp(photo, row, taken, fixes, turn) if isinstance(photo.xmp, bytes) else {}
    if taken and not beside:
        add_time(row, [taken], warnings)
    else:
        moments = _moments(photo, main, exif, clock, taken, xmp, beside, warnings)
        add_time(row, moments, warnings)
    if beside:
        fixes.insert(0, fix_of_xmp(beside, "sidecar"))
    if xmp:
        fixes.append(fix_of_xmp(xmp, "xmp"))
    if told:
        fixes.append(fix_of_takeout(told))
        row["taken_utc"] = _utc_of_takeout(told, warnings)
    if fixes:
        add_position(row, fixes, warnings)
    for packet in (beside, xmp):
        if packet:
            row["gps_clock"] = row["gps_clock"] or _xmp_clock(packet)
            row["camera_make"] = row["camera_make"] or packet.get("tiff:Make")
            row["camera_model"] = row["camera_model"] or packet.get("tiff:Model")
    return xmp


_POINTERS = {tags.EXIF_IFD, tags.GPS_IFD}  # every TIFF file has IFD0: with these it has EXIF


def _add_camera(row: dict, main: dict, exif: dict) -> None:
    row["camera_make"], row["camera_model"] = text(main.get(tags.MAKE)), text(main.get(tags.MODEL))
    row["lens_model"] = text(exif.get(tags.LENS, main.get(tags.LENS)))
    for column, tag in (("focal_length_mm", tags.FOCAL), ("focal_length_35mm", tags.FOCAL_35),
                        ("exposure_time_s", tags.EXPOSURE), ("f_number", tags.F_NUMBER),
                        ("iso", tags.ISO)):  # fmt: skip
        row[column] = positive(exif.get(tag, main.get(tag)))


def _embedded_xmp(
    photo: Photo, row: dict, taken: Moment | None, fixes: list[Fix], turn: Value | None
) -> dict[str, str]:
    """What EXIF left empty, from the photo's own XMP packet."""
    known = {column: row[column] for column in XMP_NAMES}
    known |= {"datetime": taken, "orientation_tag": turn}
    if fixes:
        known["gps_latitude"], known["gps_altitude"] = fixes[0].place, fixes[0].altitude
    missing = [names for column, names in XMP_NAMES.items() if known[column] is None]
    telling = [name for filling, _ in missing for name in filling]
    return read_xmp(photo.xmp or b"", telling, [name for _, more in missing for name in more])


def _utc_of_takeout(told: Takeout, warnings: list) -> datetime | None:
    found = _sound((told.taken_utc, 0) if told.taken_utc else None, warnings)
    return found[0] if found else None


def _add_orientation(row: dict, photo: Photo, turn: Value | None, warnings: list) -> None:
    """Tag and class of the stored pixels as a decoder hands them out.

    HEIC: the container's turn is part of decoding, so its pixels arrive upright, whatever EXIF
    says; where the container states none, EXIF's counts (phones of two makers write it so). AVIF:
    Pillow leaves the container's turn to us, and EXIF has no say (ISO 23000-22, 7.3.9).
    """
    value = number(turn)
    tag = None if value is None else int(value)
    if photo.kind == "heic" and photo.turn is not None:
        if photo.turn in (5, 6, 7, 8):
            row["image_width"], row["image_height"] = row["image_height"], row["image_width"]
        tag = 1
    elif photo.kind == "avif":
        tag = photo.turn or (1 if tag is not None else None)
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
    row = {**raw, "filename": filename}
    for name in RAW_ONLY:
        del row[name]
    warnings = row["warnings"].split(";") if row["warnings"] else []
    honest = row["gps_source"] not in (None, "estimate") and "gps_zero" not in warnings
    place = (row["gps_latitude"], row["gps_longitude"]) if honest else None
    add_utc(row, raw["gps_clock"], raw["taken_utc"], place, warnings)
    row["warnings"] = ";".join(warnings) or None
    if row["gps_latitude"] is None:
        return row
    if round_km:
        centre = cell_centre(row["gps_latitude"], row["gps_longitude"], round_km)
        row["gps_latitude"], row["gps_longitude"] = round(centre[0], 5), round(centre[1], 5)
        row["gps_accuracy_m"] = max(row["gps_accuracy_m"] or 0.0, 2000.0 * round_km)
    if row["datetime_utc"] and honest:
        utc = datetime.fromisoformat(row["datetime_utc"])
        up, around = sun_position(row["gps_latitude"], row["gps_longitude"], utc)
        row["sun_elevation_deg"], row["sun_azimuth_deg"] = round(up, 3), round(around % 360, 3)
    return row
