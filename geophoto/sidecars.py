"""What owners and Google keep beside a photo: XMP sidecars and Takeout's JSON files.

In: the names in one folder; the files. Out: which belong to which photo; what they say, as plain
values, and warnings: what is damaged, hostile or of the wrong type costs a warning, never the row.
"""

from __future__ import annotations

import json
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

from geophoto.containers import MAX_XMP_BYTES
from geophoto.packets import parse_xmp

MAX_JSON_BYTES = 1_000_000  # Takeout's files have one or two kilobytes; longer ones are not read

# ---------------------------------------------------------------- names

SIDECAR_SUFFIXES = (".xmp", ".json")
TAKEOUT_WORD = ".supplemental-metadata"
TAKEOUT_LENGTH = 46  # Takeout cuts the name of a JSON file there, before ".json" and its number
TAKEOUT_PHOTO_LENGTH = 51  # and that of a photo there, suffix included
NUMBERED = re.compile(r"(.+)(\(\d{1,4}\))")
# Takeout's copies of edited photos, in the languages of their owners.
EDITED = ("-edited", "-effects", "-smile", "-mix", "-bearbeitet", "-bewerkt", "-edytowane",
          "-editado", "-ha editado", "-editat", "-modificato", "-modifié", "-編集済み")  # fmt: skip
ORIGINALS = (".heic", ".png", ".dng")  # what the edited copy is a JPEG of, if not of a JPEG


def match(photos: Iterable[str], others: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Name of each photo of one folder → names of its XMP sidecar and its Takeout JSON, "" if none.

    Photos without either are left out. Suffixes count in any case, the rest of a name as it is.
    """
    sidecars: dict[str, list[str]] = {}
    takeouts: dict[str, list[str]] = {}
    for name in sorted(others):
        base, suffix = os.path.splitext(name)
        if suffix.lower() == ".xmp":
            sidecars.setdefault(_key(base), []).append(name)
            continue
        for spelled in {base, _whole(base)}:
            takeouts.setdefault(_key(spelled), []).append(name)
    photos = list(photos)
    exact, keys = set(photos), set(map(_key, photos))
    pairs = {}
    for photo in photos:
        xmp = _sidecar_of(photo, sidecars, exact, keys) if sidecars else ""
        takeout = _takeout_of(photo, takeouts) if takeouts else ""
        if xmp or takeout:
            pairs[photo] = (xmp, takeout)
    return pairs


def _plain(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _key(name: str) -> str:
    return _plain(name).casefold()


def _pick(found: dict[str, list[str]], wanted: str, stem: str) -> list[str]:
    """Files by the name wanted, in any case but for the stem; the very name wanted comes first."""
    names = [n for n in found.get(_key(wanted), ()) if _plain(n).startswith(_plain(stem))]
    return sorted(names, key=lambda name: not name.startswith(wanted))


def _sidecar_of(photo: str, found: dict[str, list[str]], exact: set[str], keys: set[str]) -> str:
    """<name>.<ext>.xmp, else <stem>.xmp; never the sidecar of another photo in the folder."""
    stem = os.path.splitext(photo)[0]
    for name in _pick(found, photo, stem):
        if name[:-4] == photo or name[:-4] not in exact:
            return name
    return next((n for n in _pick(found, stem, stem) if _key(n[:-4]) not in keys), "")


def _takeout_of(photo: str, found: dict[str, list[str]]) -> str:
    for base, stem in _takeout_names(photo):
        names = _pick(found, base, stem[:TAKEOUT_LENGTH])
        if names:
            return names[0]
    return ""


def _takeout_names(photo: str) -> Iterator[tuple[str, str]]:
    """Names without ".json" that Takeout gives the file of a photo, and the stem in them.

    "a(1).jpg" is told of in "a.jpg(1).json", an edited copy in its original's file, a photo whose
    title had no suffix in "a.supplemental-metadata.json".
    """
    stem, suffix = os.path.splitext(photo)
    for title, number in _titles(stem, cut=len(photo) == TAKEOUT_PHOTO_LENGTH):
        copied = title + number != stem  # whose original may be of another format
        for name in (title + suffix, *(title + other for other in ORIGINALS if copied)):
            yield name + number, title
            yield name + TAKEOUT_WORD + number, title
            # A cut that loses the number of "a(1)" would leave the name of another photo's file.
            if len(name) > TAKEOUT_LENGTH and (number or not NUMBERED.fullmatch(title)):
                yield name[:TAKEOUT_LENGTH] + number, title
        yield title + TAKEOUT_WORD + number, title


def _whole(base: str) -> str:
    """The name of a JSON file whose word was cut: "a.jpg.supple(1)" → "a.jpg.supplemental-…(1)"."""
    numbered = NUMBERED.fullmatch(base)
    named, number = (numbered[1], numbered[2]) if numbered else (base, "")
    title, dot, word = named.rpartition(".")
    cut = dot and TAKEOUT_WORD.startswith(dot + word.lower())
    return title + TAKEOUT_WORD + number if cut else base


def _titles(stem: str, cut: bool) -> Iterator[tuple[str, str]]:
    """(title without suffix, number) of a photo's stem, and of its original's if it is a copy."""
    numbered = NUMBERED.fullmatch(stem)
    yield stem, ""
    if numbered:
        yield numbered[1], numbered[2]
    plain, number = (numbered[1], numbered[2]) if numbered else (stem, "")
    folded = _plain(plain).casefold()
    for word in EDITED:
        endings = [word[:size] for size in range(len(word), 1 if cut else len(word) - 1, -1)]
        for ending in endings:
            if folded.endswith(ending) and len(folded) > len(ending):
                yield _plain(plain)[: -len(ending)], number
                if not number and (before := NUMBERED.fullmatch(plain[: -len(ending)])):
                    yield before[1], before[2]  # "a(1)-edited.jpg"
                break


# ---------------------------------------------------------------- xmp

SIDECAR_NAMES = frozenset((
    "exif:GPSLatitude", "exif:GPSLatitudeRef", "exif:GPSLongitude", "exif:GPSLongitudeRef",
    "exif:GPSAltitude", "exif:GPSAltitudeRef", "exif:GPSHPositioningError", "exif:GPSImgDirection",
    "exif:GPSImgDirectionRef", "exif:GPSProcessingMethod", "exif:GPSTimeStamp",
    "exif:DateTimeOriginal", "exif:OffsetTimeOriginal", "exif:DateTimeDigitized",
    "photoshop:DateCreated", "photoshop:SidecarForExtension", "xmp:CreateDate", "tiff:Make",
    "tiff:Model",
))  # fmt: skip


def read_sidecar(path: str, photo: str) -> tuple[dict[str, str], list[str]]:
    """Properties in a photo's XMP sidecar, and warnings.

    <stem>.xmp may be that of another file of the same stem: photoshop:SidecarForExtension says so.
    """
    packet = _read_file(path, MAX_XMP_BYTES + 1)
    if not packet:
        return {}, ["sidecar_damaged"]
    found, whole = parse_xmp(packet[:MAX_XMP_BYTES], SIDECAR_NAMES)
    warnings = [] if whole and len(packet) <= MAX_XMP_BYTES else ["sidecar_damaged"]
    meant = found.pop("photoshop:SidecarForExtension", "").lstrip(".").casefold()
    name = _key(os.path.basename(photo))
    if _key(os.path.basename(path)[:-4]) != name and meant not in ("", name.rpartition(".")[2]):
        return {}, []
    return found, warnings


def _read_file(path: str, limit: int) -> bytes:
    """At most `limit` bytes; none of what cannot be read or is no file (any more)."""
    patience = getattr(os, "O_NONBLOCK", 0)  # a pipe that took a file's place is not waited for
    try:
        with open(path, "rb", opener=lambda name, how: os.open(name, how | patience)) as file:
            return file.read(limit)
    except OSError:
        return b""


# ---------------------------------------------------------------- takeout


class Takeout:
    """What Google Takeout says of a photo: None = unknown."""

    def __init__(self) -> None:
        self.lat: float | None = None
        self.lon: float | None = None
        self.altitude: float | None = None
        self.taken_utc: datetime | None = None
        self.warnings: list[str] = []


def read_takeout(path: str, photo: str) -> Takeout:
    """Read a photo's JSON file; one of another photo, or of another program, says nothing."""
    written = _read_file(path, MAX_JSON_BYTES + 1)
    told: Any = None
    if written and len(written) <= MAX_JSON_BYTES:
        try:
            told = json.loads(written.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            told = None
    found = Takeout()
    if not isinstance(told, dict):
        found.warnings.append("takeout_damaged")
        return found
    if not _same_title(told.get("title"), path, photo):
        return found
    sound = _add_place(found, told), _add_moment(found, told.get("photoTakenTime"))
    if not all(sound):
        found.warnings.append("takeout_damaged")
    return found


def _same_title(title: Any, path: str, photo: str) -> bool:
    """Two long names that Takeout cuts to the same 46 characters are told apart by the title."""
    base = os.path.splitext(os.path.basename(path))[0]
    numbered = NUMBERED.fullmatch(base)
    if not isinstance(title, str) or len(numbered[1] if numbered else base) < TAKEOUT_LENGTH:
        return True
    words = re.sub(r"\W", "_", _key(title))  # Takeout writes _ for what file names may not hold
    stem = os.path.splitext(os.path.basename(photo))[0]
    stems = (re.sub(r"\W", "_", _key(name)) for name, _ in _titles(stem, cut=True))
    return any(words.startswith(name) for name in stems)


def _add_place(found: Takeout, told: dict) -> bool:
    """geoData, else geoDataExif: 0/0 is no position, altitude 0 unknown. False: some is wrong."""
    sound = True
    for key in ("geoData", "geoDataExif"):
        place = told.get(key, {})
        if not isinstance(place, dict):
            sound = False
            continue
        if place.get("latitude") is None and place.get("longitude") is None:
            continue
        lat, lon = _number(place.get("latitude")), _number(place.get("longitude"))
        altitude = _number(place.get("altitude", 0.0))
        sound = sound and altitude is not None
        if lat is None or lon is None or abs(lat) > 90 or abs(lon) > 180:
            sound = False
        elif lat or lon:
            found.lat, found.lon, found.altitude = lat, lon, altitude or None
            break
    return sound


def _number(value: Any) -> float | None:
    """A finite JSON number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _add_moment(found: Takeout, taken: Any) -> bool:
    """photoTakenTime's timestamp, seconds since 1970 in UTC; Takeout writes 0 for unknown."""
    if taken is None:
        return True
    stamp = taken.get("timestamp", 0) if isinstance(taken, dict) else None
    if isinstance(stamp, str) and re.fullmatch(r"-?\d{1,12}", stamp):
        stamp = int(stamp)
    if isinstance(stamp, bool) or not isinstance(stamp, int):
        return False
    try:
        if stamp:
            found.taken_utc = datetime(1970, 1, 1) + timedelta(seconds=stamp)
    except OverflowError:
        return False
    return True
