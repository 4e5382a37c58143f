"""Bytes of a file → format, size, own turn, and where its EXIF and XMP lie.

JPEG, PNG, TIFF, BMP, WebP, HEIC and AVIF, told apart by their first bytes. In: Bytes. Out: Photo.
Reads header bytes only, a few kilobytes a file; what is damaged is a warning, never an error.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

from geophoto.orientations import ORIENTATIONS

MAX_XMP_BYTES = 2_000_000  # an XMP packet longer than this is cut; inflated profiles too
NOT_HEX = bytes(set(range(256)) - set(b"0123456789abcdefABCDEF"))
MAX_TEXTS = 16  # metadata texts or items opened in one file
MAX_PARTS = 40_000  # segments, chunks or boxes walked in one file before giving up


class OpenFile:
    """An open file that remembers the last bytes read: headers are asked for in small pieces."""

    __slots__ = ("begin", "file", "window")

    def __init__(self, file: Any):
        self.file, self.begin, self.window = file, 0, b""

    def read(self, begin: int, count: int) -> bytes:
        skip = begin - self.begin
        if skip < 0 or skip + count > len(self.window):
            self.file.seek(begin)
            self.begin, self.window, skip = begin, self.file.read(max(count, 1024)), 0
        return self.window[skip : skip + count]


class Bytes:
    """Part of a file, read only where it is asked for; past the end come fewer bytes, no error."""

    __slots__ = ("file", "head", "near", "size", "start")

    def __init__(
        self, head: bytes, file: OpenFile | None = None, start: int = 0, size: int | None = None
    ):
        self.head, self.file, self.start = head, file, start
        self.size = len(head) - start if size is None else max(size, 0)
        self.near = min(self.size, len(head) - start)  # bytes of it that are in memory

    def at(self, offset: int, count: int) -> bytes:
        begin, end = self.start + offset, offset + count
        if 0 <= offset < end <= self.near:  # nearly always
            return self.head[begin : begin + count]
        count = min(count, self.size - offset)
        if offset < 0 or count <= 0:
            return b""
        if self.file is None or begin + count <= len(self.head):
            return self.head[begin : begin + count]
        return self.file.read(begin, count)

    def whole(self) -> bytes:
        return self.at(0, self.size)

    def part(self, offset: int, count: int) -> Bytes:
        offset = max(offset, 0)
        return Bytes(self.head, self.file, self.start + offset, min(count, self.size - offset))


class Photo:
    """What a container says: kind, stored size, where EXIF and XMP lie, its own turn if any."""

    __slots__ = ("exif", "height", "kind", "resources", "turn", "warnings", "width", "xmp")

    def __init__(self) -> None:
        self.kind: str | None = None
        self.width: float | None = None
        self.height: float | None = None
        self.turn: int | None = None
        self.exif: list[Bytes] = []  # what the first block lacks may stand in the next
        self.xmp: bytes | None = None
        self.resources: list[Bytes] = []  # Photoshop's image resources, in parts: IPTC is in them
        self.warnings: list[str] = []


def read_container(data: Bytes) -> Photo:
    """Tell the format by its first bytes (never by its name) and find size, EXIF and XMP."""
    photo, magic = Photo(), data.at(0, 16)
    if magic[:2] == b"\xff\xd8":
        _read_jpeg(data, photo, 2)
    elif magic[:8] == b"\x89PNG\r\n\x1a\n":
        _read_png(data, photo)
    elif magic[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        photo.kind, photo.exif = "tiff", [data]
    elif magic[:4] == b"RIFF" and magic[8:12] == b"WEBP":
        _read_webp(data, photo)
    elif magic[4:8] == b"ftyp":
        _read_heif(data, photo)
    elif magic[:2] == b"BM":
        _read_bmp(data, photo)
    elif magic[:4] == b"GIF8":
        photo.kind, (photo.width, photo.height) = "gif", struct.unpack("<HH", magic[6:10])
    elif magic[:7] == b"\xff\x01Exiv2":  # Exiv2's metadata file: JPEG segments without a picture
        _read_jpeg(data, photo, 7)
    else:
        begin = data.at(0, 1024).find(b"\xff\xd8\xff")
        if begin > 0:
            photo.warnings.append("leading_garbage")
            _read_jpeg(data.part(begin, data.size), photo, 2)
    return photo


# ---------------------------------------------------------------- pictures


def _read_jpeg(data: Bytes, photo: Photo, position: int) -> None:
    """Walk the segments up to the pixels (SOS). ITU-T T.81 annex B; APP1 per EXIF 3.0, 4.7.2.

    EXIF of more than 64 KB goes on in segments that have no TIFF header of their own.
    """
    photo.kind = "jpeg"
    for _ in range(MAX_PARTS):
        head = data.at(position, 4)
        if len(head) < 4:
            return
        if head[0] != 0xFF or head[1] in (0x00, 0xFF):  # fill bytes, or lost: next marker
            found = data.at(position + 1, 4096).find(b"\xff")
            position += 1 + (found if found >= 0 else 4096)
            continue
        marker = head[1]
        if marker in (0xDA, 0xD9):
            return
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # stand alone, without a length
            position += 2
            continue
        size = head[2] << 8 | head[3]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and photo.width is None:
            frame = data.at(position + 5, 4)
            if len(frame) == 4:
                photo.height, photo.width = struct.unpack(">HH", frame)
        elif marker == 0xE1:
            start = data.at(position + 4, 28)
            if start[:5] == b"Exif\0":
                if position + 2 + size > data.size:
                    photo.warnings.append("exif_truncated")
                part = data.part(position + 10, size - 8)
                if start[6:8] in (b"II", b"MM"):
                    photo.exif.append(part)
                elif photo.exif and photo.exif[-1].size < MAX_XMP_BYTES:
                    photo.exif[-1] = Bytes(photo.exif[-1].whole() + part.whole())
            elif start == b"http://ns.adobe.com/xap/1.0/" and photo.xmp is None:
                photo.xmp = data.at(position + 33, size - 31)
        elif marker == 0xED and data.at(position + 4, 14) == b"Photoshop 3.0\0":
            photo.resources.append(data.part(position + 18, size - 16))
        position += 2 + max(size, 2)


def _read_png(data: Bytes, photo: Photo) -> None:
    """Walk all chunks, those after the pixels too: eXIf (PNG 3.0, 11.3.3.4) may come last."""
    photo.kind, position, texts = "png", 8, 0
    for _ in range(MAX_PARTS):
        head = data.at(position, 16)
        if len(head) < 8:
            return
        size, kind = struct.unpack(">I4s", head[:8])
        if kind == b"IHDR" and len(head) == 16:
            photo.width, photo.height = struct.unpack(">II", head[8:])
        elif kind == b"eXIf":
            photo.exif = _exif_blocks(data.part(position + 8, size)) + photo.exif
        elif kind in (b"tEXt", b"zTXt", b"iTXt") and texts < MAX_TEXTS:
            key = data.at(position + 8, min(size, 80)).partition(b"\0")[0].lower()
            if key == b"xml:com.adobe.xmp" or key.startswith(b"raw profile type "):
                texts += 1
                start, size_left = position + 9 + len(key), size - len(key) - 1
                _read_png_text(kind, key, data.at(start, min(size_left, MAX_XMP_BYTES)), photo)
        elif kind == b"IEND":
            return
        position += 12 + size


def _read_png_text(kind: bytes, key: bytes, rest: bytes, photo: Photo) -> None:
    """Take XMP, and EXIF written as ImageMagick's hexadecimal "Raw profile type", from a text."""
    packed = kind == b"zTXt" or (kind == b"iTXt" and rest[:1] == b"\1")
    if kind == b"iTXt":
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]  # past language and translation
    elif packed:
        rest = rest[1:]
    if packed:
        try:
            rest = zlib.decompressobj().decompress(rest, MAX_XMP_BYTES)
        except zlib.error:
            photo.warnings.append("png_text_damaged")
            return
    if key.startswith(b"raw profile"):  # "\nname\n   length\nhex digits in lines"
        digits = rest.split(b"\n", 3)[-1].translate(None, NOT_HEX)
        rest = bytes.fromhex(digits[: len(digits) // 2 * 2].decode())
    if rest.startswith(b"http://ns.adobe.com/xap/1.0/"):
        rest, key = rest[29:], b"xmp"
    if key.endswith(b"xmp"):
        photo.xmp = photo.xmp or rest
    elif key.endswith((b"exif", b"app1")):
        photo.exif += _exif_blocks(Bytes(rest))


def _exif_blocks(data: Bytes) -> list[Bytes]:
    """The TIFF block of an EXIF chunk, behind the "Exif" marker that some writers leave."""
    data = data.part(6, data.size) if data.at(0, 5) == b"Exif\0" else data
    return [data] if data.at(0, 2) in (b"II", b"MM") else []


def _read_webp(data: Bytes, photo: Photo) -> None:
    """RIFF chunks of a WebP file (RFC 9649, section 2)."""
    photo.kind, position = "webp", 12
    for _ in range(MAX_PARTS):
        head = data.at(position, 8)
        if len(head) < 8:
            return
        kind, size = struct.unpack("<4sI", head)
        body = data.at(position + 8, 10)
        if kind == b"VP8X" and len(body) == 10:
            photo.width = 1 + int.from_bytes(body[4:7], "little")
            photo.height = 1 + int.from_bytes(body[7:10], "little")
        elif kind == b"VP8 " and photo.width is None and len(body) == 10:
            photo.width, photo.height = (side & 0x3FFF for side in struct.unpack("<HH", body[6:10]))
        elif kind == b"VP8L" and photo.width is None and len(body) == 10:
            bits = int.from_bytes(body[1:5], "little")
            photo.width, photo.height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        elif kind == b"EXIF":
            photo.exif += _exif_blocks(data.part(position + 8, size))
        elif kind == b"XMP " and photo.xmp is None:
            photo.xmp = data.at(position + 8, min(size, MAX_XMP_BYTES))
        position += 8 + size + (size & 1)


def _read_bmp(data: Bytes, photo: Photo) -> None:
    head = data.at(14, 12)
    size = int.from_bytes(head[:4], "little")
    if len(head) < 12 or size not in (12, 16, 40, 52, 56, 64, 108, 124):
        return
    photo.kind = "bmp"
    width, height = struct.unpack_from("<HH" if size == 12 else "<ii", head, 4)
    photo.width, photo.height = width, abs(height)  # a negative height: rows run downwards


# ---------------------------------------------------------------- heif


def _uint(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big")


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, start of content, end) of the ISO 14496-12 boxes in a range."""
    for _ in range(MAX_PARTS):
        if at + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, at)
        start = at + (16 if size == 1 else 8)
        size = _uint(data, at + 8, 8) if size == 1 else size or end - at
        at = min(at + size, end)
        if at < start:
            return
        yield kind, start, at


def _read_heif(data: Bytes, photo: Photo) -> None:
    """Find size, turn, EXIF and XMP of the primary item of a HEIC or AVIF file (ISO 23008-12)."""
    at, bodies = 0, {}
    for _ in range(1000):
        head = data.at(at, 16)
        if len(head) < 8 or b"meta" in bodies:
            break
        size, kind = _uint(head, 0, 4), head[4:8]
        if kind in (b"ftyp", b"meta"):
            bodies[kind] = data.at(at + 8, min(max(size, 8) - 8, MAX_XMP_BYTES))
        at += max(_uint(head, 8, 8) if size == 1 else size or data.size, 8)
    brands = bodies.get(b"ftyp", b"")
    names = {brands[k : k + 4] for k in range(0, len(brands), 4) if k != 4}
    if names & {b"avif", b"avis"}:
        photo.kind = "avif"
    elif names & {
        b"heic",
        b"heix",
        b"heim",
        b"heis",
        b"hevc",
        b"hevx",
        b"hevm",
        b"hevs",
        b"mif1",
        b"msf1",
    }:
        photo.kind = "heic"
    if photo.kind:
        try:
            _read_items(data, bodies.get(b"meta", b""), photo)
        except (struct.error, IndexError):
            photo.warnings.append("damaged_header")


def _read_items(data: Bytes, meta: bytes, photo: Photo) -> None:
    parts = {kind: (start, end) for kind, start, end in _boxes(meta, 4, len(meta))}
    start = parts.get(b"pitm", (0, 0))[0]
    primary = _uint(meta, start + 4, 4 if meta[start] else 2)
    if b"iprp" in parts:
        _read_properties(meta, *parts[b"iprp"], primary, photo)
    if b"iinf" not in parts or b"iloc" not in parts:
        return
    places = _item_places(meta, *parts[b"iloc"])
    (start, end), opened = parts[b"iinf"], 0
    for kind, at, past in _boxes(meta, start + (8 if meta[start] else 6), end):
        wide = 4 if meta[at] > 2 else 2  # bytes of an item number
        sort = meta[at + 6 + wide : at + 10 + wide]
        method, offset, size = places.get(_uint(meta, at + 4, wide), (None, 0, 0))
        if kind != b"infe" or meta[at] < 2 or method not in (0, 1):
            continue
        packet = sort == b"mime" and b"rdf+xml" in meta[at:past]
        lacking = (sort == b"Exif" and not photo.exif) or (packet and not photo.xmp)
        if not lacking:  # what comes later may be of other pictures
            continue
        opened += 1
        if opened > MAX_TEXTS:
            return
        place = data.part(offset, size)
        if method == 1:  # inside meta itself
            place = Bytes(meta, None, parts.get(b"idat", (0, 0))[0] + offset, size)
        if packet:
            photo.xmp = place.at(0, MAX_XMP_BYTES)
        else:
            photo.exif = _exif_blocks(place.part(4 + _uint(place.at(0, 4), 0, 4), size))


def _item_places(meta: bytes, at: int, end: int) -> dict[int, tuple[int, int, int]]:
    """Item number → (0 = in the file or 1 = in idat, offset, size) of its first extent."""
    version, sizes = meta[at], _uint(meta, at + 4, 2)
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version else 0
    wide = 4 if version == 2 else 2
    count, places = _uint(meta, at + 6, wide), {}
    at += 6 + wide
    for _ in range(min(count, MAX_PARTS)):
        item, method = _uint(meta, at, wide), _uint(meta, at + wide, 2) & 15 if version else 0
        at += wide + (4 if version else 2)
        base, extents = _uint(meta, at, base_size), _uint(meta, at + base_size, 2)
        at += base_size + 2
        offset = base + _uint(meta, at + index_size, offset_size)
        size = _uint(meta, at + index_size + offset_size, length_size)
        at += extents * (index_size + offset_size + length_size)
        if at > end:
            break
        places[item] = (method, offset, size)
    return places


def _read_properties(meta: bytes, start: int, end: int, primary: int, photo: Photo) -> None:
    """Size (ispe, clap), quarter turns (irot) and mirror (imir) of the primary item."""
    parts = {kind: (begin, past) for kind, begin, past in _boxes(meta, start, end)}
    if b"ipco" not in parts or b"ipma" not in parts:
        return
    properties = list(_boxes(meta, *parts[b"ipco"]))
    mirrored, quarters, turned = False, 0, False
    for number in _associated(meta, *parts[b"ipma"], primary):
        kind, at, _ = properties[number - 1] if 0 < number <= len(properties) else (b"", 0, 0)
        if kind == b"ispe":
            photo.width, photo.height = struct.unpack_from(">II", meta, at + 4)
        elif kind == b"clap":  # clean aperture: encoders pad small pictures
            wide, below, high, under = struct.unpack_from(">IIII", meta, at)
            photo.width, photo.height = wide // (below or 1), high // (under or 1)
        elif kind == b"irot":  # anticlockwise
            quarters, turned = quarters - meta[at] % 4, True
        elif kind == b"imir":  # axis 1: left-right; axis 0: top-bottom, a half turn more
            mirrored, quarters = not mirrored, (0 if meta[at] & 1 else 2) - quarters
            turned = True
    steps = {(mirror, turn): tag for tag, (mirror, turn, _) in ORIENTATIONS.items()}
    photo.turn = steps[mirrored, quarters % 4] if turned else None


def _associated(meta: bytes, at: int, end: int, primary: int) -> Iterator[int]:
    """Numbers of the properties of the primary item, in the order they apply (box ipma)."""
    id_size, size = 4 if meta[at] else 2, 2 if meta[at + 3] & 1 else 1
    entries = _uint(meta, at + 4, 4)
    at += 8
    for _ in range(min(entries, MAX_PARTS)):
        if at + id_size >= end:
            return
        item, count = _uint(meta, at, id_size), meta[at + id_size]
        at += id_size + 1
        for place in range(at, at + count * size, size) if item == primary else ():
            yield _uint(meta, place, size) & (0x7FFF if size == 2 else 0x7F)
        at += count * size
