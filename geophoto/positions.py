"""What EXIF, XMP, sidecars and Takeout say of a photo's place → the columns of its position.

In: the GPS IFD, XMP properties, Takeout's values. Out: Fixes, one a source; of these the row's
position, altitude, accuracy and heading.
"""

from __future__ import annotations

import math

from density import EARTH_RADIUS_KM
from geophoto import tags
from geophoto.packets import xmp_angle, xmp_number
from geophoto.sidecars import Takeout
from geophoto.tags import Value, angle, encoded_text, number, text

ALTITUDES = (-500.0, 50_000.0)  # m; the Dead Sea's shore to balloons: others are doubtful
APART_KM = 1.0  # farther apart, two sources tell of two places
Place = tuple[float, float]  # lat, lon: signed degrees

# ---------------------------------------------------------------- one source


class Fix:
    """What one source, a value of gps_source, says of where a photo was taken: None = unknown."""

    __slots__ = ("accuracy_m", "altitude", "direction", "place", "source", "warnings")

    def __init__(
        self,
        source: str,
        place: Place | None = None,
        altitude: float | None = None,
        accuracy_m: float | None = None,
        direction: float | None = None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.source, self.place, self.altitude = source, place, altitude
        self.accuracy_m, self.direction, self.warnings = accuracy_m, direction, [*warnings]

    @property
    def rank(self) -> int:
        """0 for a position, 1 for an estimate of this tool, 2 for 0/0, which is no place."""
        return 2 if self.place == (0, 0) else int(self.source == "estimate")


def position(
    lat: float | None, lat_ref: str, lon: float | None, lon_ref: str, warnings: list
) -> Place | None:
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


def fix_of_gps(gps: dict) -> Fix:
    """The GPS IFD of EXIF."""
    fix = Fix("exif")
    lat, lon = angle(gps.get(tags.LAT)), angle(gps.get(tags.LON))
    references = _reference(gps.get(tags.LAT_REF)), _reference(gps.get(tags.LON_REF))
    fix.place = position(lat, references[0], lon, references[1], fix.warnings)
    if fix.place is None and (tags.LAT in gps or tags.LON in gps):
        fix.warnings.append("gps_incomplete")
    fix.altitude = altitude(gps.get(tags.ALT), gps.get(tags.ALT_REF))
    _add_accuracy(fix, number(gps.get(tags.ACCURACY)))
    _add_direction(fix, number(gps.get(tags.DIRECTION)), _reference(gps.get(tags.DIRECTION_REF)))
    if _reference(gps.get(tags.GPS_STATUS)) == "V":
        fix.warnings.append("gps_void")
    if number(gps.get(tags.DIFFERENTIAL)) == 1:
        fix.warnings.append("gps_differential")
    _note_estimate(fix, encoded_text(gps.get(tags.METHOD)))
    return fix


def fix_of_xmp(xmp: dict[str, str], source: str) -> Fix:
    """The exif: properties of an XMP packet (ISO 16684-1) or sidecar."""
    fix = Fix(source)
    if "exif:GPSLatitude" in xmp and "exif:GPSLongitude" in xmp:
        lat = xmp_angle(xmp["exif:GPSLatitude"], xmp.get("exif:GPSLatitudeRef"), "NS")
        lon = xmp_angle(xmp["exif:GPSLongitude"], xmp.get("exif:GPSLongitudeRef"), "EW")
        fix.place = position(*lat, *lon, fix.warnings)
    if fix.place is None and ("exif:GPSLatitude" in xmp or "exif:GPSLongitude" in xmp):
        fix.warnings.append("gps_incomplete")
    height = xmp_number(xmp.get("exif:GPSAltitude"))
    if height is not None:
        fix.altitude = altitude((height,), xmp.get("exif:GPSAltitudeRef", "").encode())
    _add_accuracy(fix, xmp_number(xmp.get("exif:GPSHPositioningError")))
    heading = xmp_number(xmp.get("exif:GPSImgDirection"))
    _add_direction(fix, heading, xmp.get("exif:GPSImgDirectionRef", "")[:1].upper())
    _note_estimate(fix, xmp.get("exif:GPSProcessingMethod"))
    return fix


def fix_of_takeout(told: Takeout) -> Fix:
    fix = Fix("takeout", altitude=told.altitude)
    if told.lat is not None and told.lon is not None:
        halves = "S" if told.lat < 0 else "N", "W" if told.lon < 0 else "E"
        fix.place = position(abs(told.lat), halves[0], abs(told.lon), halves[1], fix.warnings)
    return fix


def _add_accuracy(fix: Fix, metres: float | None) -> None:
    fix.accuracy_m = round(metres, 4) if metres and metres > 0 else None


def _add_direction(fix: Fix, heading: float | None, reference: str) -> None:
    if heading is not None and 0 <= heading <= 360:
        if reference == "M":
            fix.warnings.append("direction_magnetic")
        else:
            fix.direction = round(heading % 360, 4)


def _note_estimate(fix: Fix, method: str | None) -> None:
    """A position that this tool wrote back (GPSProcessingMethod "estimate: …") is no label."""
    if method and method.casefold().startswith("estimate"):
        fix.source = "estimate"


def altitude(value: Value | None, below: Value | None) -> float | None:
    """Metres; reference 1 (EXIF 3.0: also 3) means below sea level, a missing one above."""
    height = number(value)
    if height is None:
        return None
    return round(-abs(height) if _is_below(below) else height, 4) + 0.0


def _is_below(reference: Value | None) -> bool:
    if isinstance(reference, bytes):  # written as text or undefined: the number, or its digit
        reference = reference.strip(b"\0 ")
        return reference[:1] in (b"\1", b"\3", b"1", b"3") or reference.lower().startswith(b"below")
    return number(reference) in (1, 3)


# ---------------------------------------------------------------- all sources


def add_position(row: dict, fixes: list[Fix], warnings: list) -> None:
    """Fill the gps_ columns from what the sources say, in their order.

    The altitude may be another source's than the position, but not that of another place.
    """
    placed = [fix for fix in fixes if fix.place]
    taken = min(placed, key=lambda fix: fix.rank) if len(placed) > 1 else next(iter(placed), None)
    place = taken.place if taken else None
    if taken and place:
        row["gps_latitude"], row["gps_longitude"] = place
        row["gps_source"], row["gps_accuracy_m"] = taken.source, taken.accuracy_m
        warnings.extend(taken.warnings)
        for fix in placed[1:] if taken.source == "sidecar" else ():
            if fix.source == "exif" and fix.rank == 0 and not _near(fix, place):
                warnings.append("gps_differs")
    for fix in fixes:
        elsewhere = fix is not taken and (fix.rank or (place and not _near(fix, place)))
        if row["gps_altitude"] is None and not elsewhere:
            row["gps_altitude"] = fix.altitude
        if row["gps_img_direction"] is None:
            row["gps_img_direction"] = fix.direction
        if not taken:
            row["gps_accuracy_m"] = row["gps_accuracy_m"] or fix.accuracy_m
            warnings.extend(fix.warnings)
    height = row["gps_altitude"]
    if height is not None and not ALTITUDES[0] <= height <= ALTITUDES[1]:
        warnings.append("altitude_doubtful")


def _near(fix: Fix, place: Place) -> bool:
    """Whether a source may tell of this place: it does not know where, or is near enough."""
    if fix.place is None:
        return True
    north, south = math.radians(fix.place[0]), math.radians(place[0])
    east = math.radians(fix.place[1] - place[1])
    chord = math.sin((north - south) / 2) ** 2
    chord += math.cos(north) * math.cos(south) * math.sin(east / 2) ** 2
    return 2 * EARTH_RADIUS_KM * math.asin(min(1.0, math.sqrt(chord))) <= APART_KM
