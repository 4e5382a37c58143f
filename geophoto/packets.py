"""XMP packets and IPTC records → properties by name, dates and positions as they are written there.

In: the packet or block as bytes. Out: dicts of texts; nothing here raises on damaged input.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable
from typing import Any

from geophoto.containers import MAX_XMP_BYTES, Bytes
from geophoto.tags import angle, divide, numbers

MAX_ELEMENTS = 50_000  # XMP is read so far: enough for every editor's history, a bomb stays short

# ---------------------------------------------------------------- xmp

XMP_SPACES = {
    "http://ns.adobe.com/exif/1.0/": "exif",
    "http://ns.adobe.com/tiff/1.0/": "tiff",
    "http://ns.adobe.com/photoshop/1.0/": "photoshop",
    "http://ns.adobe.com/xap/1.0/": "xmp",
}


class _Enough(Exception):
    """Stops the parser: an entity was declared, or there is no end of elements."""


class _Properties:
    """Handlers of the XML parser: they keep the picture's own properties.

    Only direct properties count, not those of places told inside other structures.
    """

    def __init__(self, wanted: Iterable[str]) -> None:
        self.wanted = frozenset(wanted)
        self.names = {name: name for name in self.wanted}  # as written, by the prefixes in use
        self.changed: set[str] = set()  # prefixes that stand for another space than usual
        self.found: dict[str, str] = {}
        self.written: list[str] = []
        self.elements = self.depth = 0
        self.rdf = self.description = -9  # depth of rdf:RDF and of rdf:Description in it
        self.is_xmp = self.refused = False

    def keep(self, name: str, value: str) -> None:
        if name in self.names and value.strip():
            self.found.setdefault(self.names[name], value.strip()[:200])

    def declare(self, prefix: str, uri: str) -> None:
        space = XMP_SPACES.get(uri)
        usual = prefix == space or not (space or prefix in XMP_SPACES.values())
        if usual and prefix not in self.changed:
            return
        rest = {k: v for k, v in self.names.items() if not k.startswith(f"{prefix}:")}
        ours = (name for name in self.wanted if name.partition(":")[0] == space)
        self.names = rest | {f"{prefix}:{name.partition(':')[2]}": name for name in ours}
        self.changed.add(prefix)

    def start(self, name: str, attributes: dict) -> None:
        self.elements += 1
        if self.elements > MAX_ELEMENTS:
            raise _Enough
        self.depth += 1
        for key, value in attributes.items():
            if key.startswith("xmlns:"):
                self.declare(key[6:], value)
        if self.depth == self.rdf + 1 and name.endswith("Description"):
            self.description = self.depth
            for key, value in attributes.items():
                self.keep(key, value)
        elif name.endswith("RDF"):
            self.rdf, self.is_xmp = self.depth, True
        self.written.clear()

    def end(self, name: str) -> None:
        if self.depth == self.description + 1:
            self.keep(name, "".join(self.written))
        elif self.depth == self.description:
            self.description = -9
        elif self.depth == self.rdf:
            self.rdf = -9
        self.depth -= 1
        self.written.clear()

    def refuse(self, *_: Any) -> None:
        self.refused = True
        raise _Enough


def read_xmp(packet: bytes, wanted: Iterable[str], more: Iterable[str] = ()) -> dict[str, str]:
    """Find properties such as "exif:GPSLatitude" in a packet that may hold none of them; with them
    come those of `more`, for which alone it is not parsed."""
    plain = packet.replace(b"\0", b"")
    if not any(_as_written(name) in plain for name in wanted):
        return {}
    return parse_xmp(packet, {*wanted, *more})[0]


@functools.cache
def _as_written(name: str) -> bytes:
    """A property's name without its space, whose prefix may be any."""
    return name.partition(":")[2].encode()


def parse_xmp(packet: bytes, wanted: Iterable[str]) -> tuple[dict[str, str], bool]:
    """Find properties, as attributes or elements, and say whether the packet is whole.

    What stands before damage is kept; of a packet that declares entities, nothing is.
    """
    from xml.parsers import expat

    properties = _Properties(wanted)
    parser = expat.ParserCreate("utf-8")
    parser.StartElementHandler, parser.EndElementHandler = properties.start, properties.end
    parser.CharacterDataHandler = properties.written.append
    parser.EntityDeclHandler = properties.refuse
    try:
        parser.Parse(_xmp_text(packet).encode(), True)
    except (expat.ExpatError, _Enough):
        return ({}, False) if properties.refused else (properties.found, False)
    return properties.found, properties.is_xmp


def _xmp_text(packet: bytes) -> str:
    """Decode UTF-8 or UTF-16 and drop what XML forbids: a bad byte costs one character."""
    code = "utf-8"
    if packet[:2] in (b"\xfe\xff", b"\xff\xfe") or b"\0" in packet[:4]:
        code = "utf-16-be" if packet[:1] in (b"\xfe", b"\0") else "utf-16-le"
    written = packet.decode(code, "replace").lstrip("\ufeff")
    begin = max(written.find("<"), 0)
    return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f]", " ", written[begin : written.rfind(">") + 1])


def xmp_number(written: str | None) -> float | None:
    """A finite number from "926/10", "92.6" or "9.26e1", else None."""
    match = re.match(r"\s*([+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)(?:\s*/\s*(\d+))?", written or "")
    if not match:
        return None
    value = divide(float(match[1]), float(match[2] or 1))
    return value if math.isfinite(value) else None


def xmp_angle(written: str | None, reference: str | None, letters: str) -> tuple[float | None, str]:
    """Degrees without sign, and the letter of their half of the globe, of `letters`: "NS" or "EW".

    "48,37.9084N" (XMP GPSCoordinate) carries its letter; beside a plain number stands the reference
    of EXIF; without either the sign decides. In this order: a number that is negative and carries S
    or W as well is negative once.
    """
    written = (written or "").strip()
    plain = re.fullmatch(r"[+-]?(\d+\.?\d*(?:[eE][+-]?\d+)?)", written)
    letter = next((c for c in written.upper() if c in letters), "") if not plain else ""
    letter = letter or (reference or "").strip()[:1].upper()
    if letter not in letters or not letter:
        letter = letters[1] if written[:1] == "-" else letters[0]
    if plain:
        return float(plain[1]), letter
    parts = numbers(written)
    if any(abs(part) > 60 for part in parts[1:3]):  # "48,8566": no minutes
        return None, letter
    return angle(tuple(parts)), letter


# ---------------------------------------------------------------- iptc

CREATED, DIGITISED = (55, 60), (62, 63)  # date and time of IPTC-IIM 4.2, record 2
MAX_RECORDS = 1000


def read_iptc(block: bytes) -> dict[int, str]:
    """Dates and times of the application record (IPTC-IIM 4.2, part II): dataset → text."""
    if block[:1] != b"\x1c" and block[3:4] == b"\x1c":  # stored as 32-bit numbers, turned round
        block = b"".join(block[at : at + 4][::-1] for at in range(0, len(block), 4))
    found: dict[int, str] = {}
    at = 0
    for _ in range(MAX_RECORDS):
        head = block[at : at + 5]
        if len(head) < 5 or head[0] != 0x1C:
            break
        size, at = int.from_bytes(head[3:]), at + 5
        if size & 0x8000:  # extended: so many bytes hold the length
            wide = size & 0x7FFF
            size, at = int.from_bytes(block[at : at + min(wide, 8)]), at + wide
        if head[1] == 2 and head[2] in (*CREATED, *DIGITISED):
            text = block[at : at + min(size, 32)].decode("ascii", "replace").strip("\0 ")
            found.setdefault(head[2], text)
        at += size
    return found


def iptc_date(found: dict[int, str], datasets: tuple[int, int]) -> str | None:
    """Date, time and offset of two datasets, spelled as XMP does; None if one is missing."""
    date = re.fullmatch(r"(\d{4})\D?(\d\d)\D?(\d\d)", found.get(datasets[0], ""))
    time = re.fullmatch(r"(\d\d):?(\d\d):?(\d\d)\s*([+-]\d\d:?\d\d|Z)?", found.get(datasets[1], ""))
    if not date or not time:
        return None
    return f"{'-'.join(date.groups())}T{':'.join(time.groups()[:3])}{time[4] or ''}"


def iptc_of_resources(parts: list[Bytes]) -> bytes:
    """The IPTC block (0x0404) among Photoshop's image resources, which come in several parts."""
    data = b"".join(part.at(0, min(part.size, MAX_XMP_BYTES)) for part in parts[:64])
    at = 0
    for _ in range(MAX_RECORDS):
        if data[at : at + 4] not in (b"8BIM", b"8BPS", b"MeSa", b"AgHg", b"PHUT", b"DCSR"):
            break
        kind, name = int.from_bytes(data[at + 4 : at + 6]), data[at + 6 : at + 7]
        start = at + 6 + (len(name) and (name[0] + 2) // 2 * 2)  # a Pascal string, even in all
        size = int.from_bytes(data[start : start + 4])
        if kind == 0x0404:
            return data[start + 4 : start + 4 + size]
        at = start + 4 + size + (size & 1)
    return b""
