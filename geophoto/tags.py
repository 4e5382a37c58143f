"""EXIF blocks → the values of their tags.

In: a TIFF block as Bytes. Out: dicts of values by tag, as stored;
`text`, `number`, `positive` and `angle` read one value. Nothing here raises on damaged input.
"""

from __future__ import annotations

import codecs
import math
import re
import struct

from geophoto.containers import MAX_XMP_BYTES, Bytes

MAX_VALUE_BYTES = 4096  # longest tag value read; the longest that matters is a lens name

# ---------------------------------------------------------------- tiff

TYPE_CODES = {1: "B", 3: "H", 4: "I", 5: "II", 6: "b", 8: "h", 9: "i", 10: "ii", 11: "f",
              12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q"}  # fmt: skip
TYPE_SIZES = {code: struct.calcsize("=" + letters) for code, letters in TYPE_CODES.items()}
AS_BYTES = (2, 7, 129)  # text, undefined, UTF-8 (EXIF 3.0)
TYPE_SIZES |= dict.fromkeys(AS_BYTES, 1)
MAKE, MODEL, TURN, MODIFIED = 0x010F, 0x0110, 0x0112, 0x0132
EXIF_IFD, GPS_IFD, XMP_TAG, ZONE_HOURS = 0x8769, 0x8825, 0x02BC, 0x882A
WIDTH, HEIGHT = 0x0100, 0x0101
IPTC, RESOURCES = 0x83BB, 0x8649
BLOCKS = frozenset((XMP_TAG, IPTC, RESOURCES))  # read whole, whatever type they are given
TAKEN, DIGITISED = 0x9003, 0x9004
ZONE_MODIFIED, ZONE_TAKEN, ZONE_DIGITISED = 0x9010, 0x9011, 0x9012
FRACTION_TAKEN, FRACTION_DIGITISED = 0x9291, 0x9292
EXPOSURE, F_NUMBER, ISO, FOCAL, FOCAL_35, LENS = 0x829A, 0x829D, 0x8827, 0x920A, 0xA405, 0xA434
EXIF_TAGS = frozenset((TAKEN, DIGITISED, ZONE_MODIFIED, ZONE_TAKEN, ZONE_DIGITISED, FRACTION_TAKEN,
                       FRACTION_DIGITISED, EXPOSURE, F_NUMBER, ISO, FOCAL, FOCAL_35, LENS,
                       ZONE_HOURS))  # fmt: skip
MAIN_TAGS = EXIF_TAGS | BLOCKS | {MAKE, MODEL, TURN, MODIFIED, EXIF_IFD, GPS_IFD, WIDTH, HEIGHT}
(LAT_REF, LAT, LON_REF, LON, ALT_REF, ALT, GPS_TIME, GPS_STATUS) = (1, 2, 3, 4, 5, 6, 7, 9)
(DIRECTION_REF, DIRECTION, METHOD, GPS_DATE, DIFFERENTIAL, ACCURACY) = (16, 17, 27, 29, 30, 31)
GPS_TAGS = frozenset((LAT_REF, LAT, LON_REF, LON, ALT_REF, ALT, GPS_TIME, GPS_STATUS,
                      DIRECTION_REF, DIRECTION, METHOD, GPS_DATE, DIFFERENTIAL,
                      ACCURACY))  # fmt: skip
TOGETHER = (  # tags that are only right with each other
    frozenset((TAKEN, DIGITISED, ZONE_TAKEN, ZONE_DIGITISED, FRACTION_TAKEN, FRACTION_DIGITISED,
               ZONE_MODIFIED, ZONE_HOURS)),
    frozenset((LAT_REF, LAT, LON_REF, LON, GPS_STATUS, ACCURACY, METHOD)),
    frozenset((ALT_REF, ALT)), frozenset((GPS_TIME, GPS_DATE)),
    frozenset((DIRECTION_REF, DIRECTION)),
)  # fmt: skip
MAX_BLOCKS = 4  # EXIF blocks read in one file
Value = bytes | tuple


class Directory(dict):
    """Values by tag; `damaged` where it is cut off, none at all, or points outside of its block."""

    damaged = False


def read_ifd(
    data: Bytes, offset: int, order: str, wanted: frozenset, big: bool = False
) -> Directory:
    """Read the wanted tags of one TIFF directory; values out of bounds are left out.

    A directory that is cut off or begins with an unknown type is taken for noise, as ExifTool does.
    Text and undefined values come as bytes, numbers as tuples, 0/0 as nan, x/0 as infinity.
    """
    count_size, entry, entry_size = (8, "HHQ8s", 20) if big else (2, "HHI4s", 12)
    head, found = data.at(offset, count_size), Directory()
    count = min(int.from_bytes(head, "little" if order == "<" else "big"), 4096)
    block = data.at(offset + count_size, count * entry_size)
    whole = len(head) == count_size and len(block) == count * entry_size
    if not whole or (count and struct.unpack_from(order + "H", block, 2)[0] not in TYPE_SIZES):
        found.damaged = True
        return found
    for tag, kind, number, inline in struct.iter_unpack(order + entry, block):
        if tag not in wanted or tag in found or kind not in TYPE_SIZES or number == 0:
            continue
        size = TYPE_SIZES[kind] * number
        if size > len(inline):
            place = struct.unpack(order + ("Q" if big else "I"), inline)[0]
            if tag in BLOCKS:
                found[tag] = data.at(place, min(size, MAX_XMP_BYTES))
                continue
            if place + size > data.size or (kind not in AS_BYTES and number > 64):
                found.damaged = True
                continue
            raw = data.at(place, min(size, MAX_VALUE_BYTES))
        else:
            raw = inline[:size]
        found[tag] = _unpack(raw, kind, order)
    if not found:  # nothing that anybody wants, or nothing sound?
        kinds = {kind for _, kind, _, _ in struct.iter_unpack(order + entry, block)}
        found.damaged |= not kinds <= TYPE_SIZES.keys()
    return found


def _unpack(raw: bytes, kind: int, order: str) -> Value:
    if kind in AS_BYTES:
        return raw
    letters, size = TYPE_CODES[kind], TYPE_SIZES[kind]
    count = len(raw) // size
    values = struct.unpack(order + (letters if count == 1 else letters * count), raw)
    if len(letters) == 1:
        return values
    if count == 1:
        return (divide(*values),)
    return tuple(map(divide, values[::2], values[1::2]))


def read_exif(blocks: list[Bytes]) -> tuple[Directory, Directory, Directory]:
    """Read IFD0, the Exif IFD and the GPS IFD of a TIFF block; IFD1 (thumbnail) is never used.

    What the first block lacks is taken from the next ones, but what TOGETHER names is not mixed.
    """
    found = _read_block(blocks[0]) if blocks else (Directory(), Directory(), Directory())
    for block in blocks[1:MAX_BLOCKS]:
        for first, second in zip(found, _read_block(block), strict=True):
            known = first.keys()
            lacking = [tag for tag in second if not _together(tag) & known]
            first.update({tag: second[tag] for tag in lacking})
    return found


def _together(tag: int) -> frozenset[int]:
    return next((tags for tags in TOGETHER if tag in tags), frozenset((tag,)))


def _read_block(data: Bytes) -> tuple[Directory, Directory, Directory]:
    magic = data.at(0, 16)
    order = {b"II": "<", b"MM": ">"}.get(magic[:2])
    if order is None or len(magic) < 8:
        broken = Directory()
        broken.damaged = True
        return broken, Directory(), Directory()
    version, offset = struct.unpack(order + "HI", magic[2:8])
    big = version == 43
    if big and len(magic) == 16:  # BigTIFF: 8-byte offsets and counts
        offset = struct.unpack(order + "Q", magic[8:])[0]
    main = read_ifd(data, offset, order, MAIN_TAGS, big)
    main.damaged |= version not in (42, 43)
    parts: list[Directory] = []
    for pointer, wanted in ((EXIF_IFD, EXIF_TAGS | {GPS_IFD}), (GPS_IFD, GPS_TAGS)):
        place = main.get(pointer, parts[0].get(pointer) if parts else None)
        if isinstance(place, tuple) and isinstance(place[0], int) and place[0] > 0:
            parts.append(read_ifd(data, place[0], order, wanted, big))
        else:
            parts.append(Directory())
    return main, parts[0], parts[1]


# ---------------------------------------------------------------- values


def _as_windows_1252(error: UnicodeError) -> tuple[str, int]:
    """Stands in for bytes that are no UTF-8: older cameras and editors wrote Windows-1252."""
    assert isinstance(error, UnicodeDecodeError)
    return error.object[error.start : error.end].decode("cp1252", "replace"), error.end


codecs.register_error("windows_1252", _as_windows_1252)


def text(value: Value | None) -> str | None:
    """Decode a text tag: up to the first NUL, UTF-8, Windows-1252 where a byte is none of it; no
    control characters."""
    if isinstance(value, tuple):  # text stored as BYTE
        if not all(isinstance(item, int) and 0 <= item < 256 for item in value):
            return None
        value = bytes(value)
    if not value:
        return None
    decoded = value.partition(b"\0")[0].decode("utf-8", "windows_1252")
    if not decoded.isprintable():
        decoded = "".join(c if c.isprintable() else " " for c in decoded)
    return decoded.strip() or None


def number(value: Value | None) -> float | None:
    """First value of a numeric tag (also written as text) if it is finite."""
    if isinstance(value, bytes):
        if len(value) == 1 and not value.isdigit():
            return float(value[0])
        value = tuple(numbers(text(value) or ""))
    return value[0] if value and math.isfinite(value[0]) else None


def positive(value: Value | None) -> float | None:
    """Like `number`, but 0 means unknown, as EXIF has it for lens, aperture and exposure."""
    result = number(value)
    return round(result, 10) if result and result > 0 else None


def numbers(written: str) -> list[float]:
    """Numbers in a text: "52/1 50/1", "52,50.5", "52;50;34", "52,00000,50,00000,34,01180"."""
    parts = re.findall(r"[+-]?\d+(?:\.\d+)?(?:/\d+)?", written[:200])
    if len(parts) == 6 and written.count(",") == 5:  # commas are decimal points as well
        parts = [f"{whole}.{part}" for whole, part in zip(parts[::2], parts[1::2], strict=True)]
    pairs = ((float(a), float(b or 1)) for a, _, b in (part.partition("/") for part in parts))
    return [divide(above, below) for above, below in pairs]


def divide(above: float, below: float) -> float:
    return above / below if below else math.inf if above else math.nan


def angle(value: Value | None) -> float | None:
    """Degrees from (degrees[, minutes[, seconds]]); 0/0 minutes or seconds count as 0."""
    if isinstance(value, bytes):
        value = tuple(numbers(text(value) or ""))
    if not value or math.isnan(value[0]) or any(math.isinf(part) for part in value[:3]):
        return None
    parts = [0.0 if math.isnan(part) else abs(part) for part in value[:3]]
    return sum(part / scale for part, scale in zip(parts, (1, 60, 3600), strict=False))


def encoded_text(value: Value | None) -> str | None:
    """Decode a text of type "undefined", which eight bytes precede that name its code."""
    if isinstance(value, bytes) and value[:8] == b"UNICODE\0":
        little = value[8:10] == b"\xff\xfe" or value[9:10] == b"\0"
        decoded = value[8:].decode("utf-16-le" if little else "utf-16-be", "replace")
        return decoded.strip("\ufeff\0 ")
    if isinstance(value, bytes) and value[:8] in (b"ASCII\0\0\0", bytes(8)):
        value = value[8:]
    return text(value)
