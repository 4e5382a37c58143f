"""Where, when and how each photo was taken: one table row per image file, from its header alone.

Reads data/images/ (any tree of JPEG, PNG, BMP, TIFF, WebP, AVIF and HEIC files; never changes one),
writes data/exif_data.json and data/exif_data.csv. Unchanged files are not read again.

    python exif_extractor.py
    python exif_extractor.py --image-dir ~/Pictures --data-dir trip --geojson
"""

import argparse
import contextlib
import csv
import itertools
import json
import math
import os
import re
import shlex
import struct
import sys
import time
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from density import cell_centre, stop, sweep_temporaries, write_atomically

if TYPE_CHECKING:  # imported where they are used: starting up must cost less than reading
    import numpy as np
    import pandas as pd
    from PIL import Image

# ---------------------------------------------------------------- settings
DATA_DIR = "data"  # the table is written here
IMAGE_DIR = None  # folder of photos; None = DATA_DIR/images
WORKERS = min(os.cpu_count() or 1, 8)  # reading processes; reading headers is mostly disk beyond 8
# ------------------------------------------------------------------------

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff",
                  ".webp", ".avif", ".heic", ".heif")  # fmt: skip
RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".srw", ".orf", ".rw2", ".raf",
                ".pef", ".3fr", ".iiq", ".x3f")  # fmt: skip
COLUMNS = (
    "filename", "status", "warnings", "datetime", "utc_offset_minutes", "datetime_utc",
    "utc_source", "gps_latitude", "gps_longitude", "gps_source", "gps_altitude", "gps_accuracy_m",
    "gps_img_direction", "sun_elevation_deg", "sun_azimuth_deg", "orientation", "orientation_tag",
    "camera_make", "camera_model", "lens_model", "focal_length_mm", "focal_length_35mm",
    "exposure_time_s", "f_number", "iso", "image_width", "image_height", "file_size", "file_mtime",
)  # fmt: skip
TEXT_COLUMNS = ("filename", "status", "warnings", "datetime", "datetime_utc", "utc_source",
                "gps_source", "orientation", "camera_make", "camera_model", "lens_model",
                "file_mtime")  # fmt: skip
TABLE_FORMAT = 3  # raised when the same bytes would give other rows: old rows are then read again

# EXIF orientation (tag 0x0112) → the viewer's steps that set the stored picture upright:
# (mirror left-right first?, then quarter turns clockwise), and the class name. EXIF 3.0, 4.6.5.1.
ORIENTATIONS = {
    1: (False, 0, "Normal"),
    6: (False, 1, "Rotated 90°"),
    3: (False, 2, "Rotated 180°"),
    8: (False, 3, "Rotated 270°"),
    2: (True, 0, "Flipped H"),
    4: (True, 2, "Flipped V"),
    5: (True, 3, None),
    7: (True, 1, None),
}
ORIENTATION_TAG = {name: tag for tag, (_, _, name) in ORIENTATIONS.items() if name}
ORIENTATION_CLASSES = tuple(ORIENTATION_TAG)  # the class index of the model is the place in here

JPEG_PIXEL_LIMIT = 300_000_000  # a JPEG decodes smaller through `draft`; the largest phones: 200 MP
PIXEL_LIMIT = 89_478_485  # of all other formats: Pillow's own bomb warning, here an error
MAX_VALUE_BYTES = 4096  # longest tag value read; the longest that matters is a lens name
MAX_XMP_BYTES = 2_000_000  # an XMP packet longer than this is cut; inflated profiles too
NOT_HEX = bytes(set(range(256)) - set(b"0123456789abcdefABCDEF"))
MAX_TEXTS = 16  # metadata texts read in one PNG
MAX_PARTS = 100_000  # segments, chunks or boxes walked in one file before giving up
ALTITUDES = (-500.0, 50_000.0)  # m; the Dead Sea's shore to balloons: others are doubtful
STALE_MINUTES = 15  # a GPS fix this old still tells the zone (they differ by 15 min at least)
FILE_CPU_S = 0.9  # processor time for one file, twice (in its chunk, then alone): about 2 s
FILE_WAIT_S = 30.0  # longest silence of a reader, slow disks included
FILE_MEMORY = 512 << 20  # bytes a reader may take on top of what it starts with

# ---------------------------------------------------------------- orientation


def turn_upright(array: "np.ndarray", name: str) -> "np.ndarray":
    """Do what a viewer does with stored pixels (H, W[, C]) of orientation class `name`."""
    import numpy as np

    mirrored, quarters, _ = ORIENTATIONS[ORIENTATION_TAG[name]]
    return np.ascontiguousarray(np.rot90(array[:, ::-1] if mirrored else array, -quarters))


def store_as(array: "np.ndarray", name: str) -> "np.ndarray":
    """Turn upright pixels (H, W[, C]) into the stored pixels of orientation class `name`."""
    import numpy as np

    mirrored, quarters, _ = ORIENTATIONS[ORIENTATION_TAG[name]]
    array = np.rot90(array, quarters)
    return np.ascontiguousarray(array[:, ::-1] if mirrored else array)


def _turn_image(image: "Image.Image", tag: int, back: bool = False) -> "Image.Image":
    from PIL.Image import Transpose

    clockwise = (None, Transpose.ROTATE_270, Transpose.ROTATE_180, Transpose.ROTATE_90)
    mirrored, quarters, _ = ORIENTATIONS[tag]
    steps = [Transpose.FLIP_LEFT_RIGHT if mirrored else None, clockwise[quarters]]
    if back:
        steps = [clockwise[-quarters % 4], steps[0]]
    for step in steps:
        image = image.transpose(step) if step is not None else image
    return image


# ---------------------------------------------------------------- photos on disk


def scan(image_dir: str | Path) -> tuple[list[str], dict[str, str], list[str], list[str]]:
    """List a photo folder: table names, odd disk names, RAW files, names that collide.

    Table names are relative, POSIX and NFC, sorted; the second value maps those that the disk
    spells otherwise (NFD, as macOS writes) to their disk name. Hidden files and folders are left
    out; linked folders are followed once, so a loop of links ends.
    """
    root = os.fspath(image_dir)
    about = os.stat(root)
    disk, raw, names, folders, seen = {}, [], [], [""], {(about.st_dev, about.st_ino)}
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(os.path.join(root, folder) if folder else root))
        except OSError as error:
            print(f"exif_extractor: folder not read: {folder}: {error.strerror}", file=sys.stderr)
            continue
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                about = entry.stat()
                if (about.st_dev, about.st_ino) not in seen:
                    seen.add((about.st_dev, about.st_ino))
                    folders.append(name)
                continue
            suffix = os.path.splitext(entry.name)[1].lower()
            if suffix in IMAGE_SUFFIXES and entry.is_file():
                names.append(name)
            elif suffix in RAW_SUFFIXES:
                raw.append(name)
    names.sort()
    table, collisions = [], []
    for name in names:
        # Bytes that are no UTF-8 arrive as lone surrogates, which no JSON or CSV file may hold.
        spelled = name if name.isascii() else unicodedata.normalize("NFC", name)
        spelled = spelled.encode("utf-8", "replace").decode("utf-8")
        if spelled != name and (spelled in disk or os.path.lexists(os.path.join(root, spelled))):
            collisions.append(name)
            continue
        if spelled != name:
            disk[spelled] = name
        table.append(spelled)
    table.sort()
    return table, disk, sorted(raw), collisions


def find_photos(image_dir: str | Path) -> dict[str, Path]:
    """Map each table name (relative, POSIX, NFC) to its file, sorted by name."""
    names, disk, _, collisions = scan(image_dir)
    for name in collisions:
        print(f"exif_extractor: left out, same name after NFC: {name!r}", file=sys.stderr)
    return {name: Path(image_dir, disk.get(name, name)) for name in names}


def next_command(
    script: str, data_dir: Path, image_dir: Path, checkpoint_dir: str | Path = "checkpoints"
) -> str:
    """The line that names the next command, with a flag for every folder that is not usual."""
    folders = (("data", data_dir, "data"), ("image", image_dir, data_dir / "images"),
               ("checkpoint", checkpoint_dir, "checkpoints"))  # fmt: skip
    flags = [f" --{name}-dir {shlex.quote(str(folder))}" for name, folder, usual in folders
             if Path(folder) != Path(usual)]  # fmt: skip
    return f"next: python {script}.py{''.join(flags)}"


def photo_file(image_dir: str | Path, filename: str) -> Path:
    """Find the file of a table name, also where the disk spells it with decomposed accents."""
    path = Path(image_dir, filename)
    if path.exists() or filename.isascii():
        return path
    for form in ("NFD", "NFC"):
        other = Path(image_dir, unicodedata.normalize(form, filename))
        if other.exists():
            return other
    return find_photos(image_dir).get(filename, path)


# ---------------------------------------------------------------- opening a photo


def open_upright(path: str | Path, max_side: int | None = None) -> "Image.Image":
    """Decode a photo to RGB, turned upright by its tag; never larger than `max_side`.

    Raises ValueError or OSError with the file's name and the reason.
    """
    return _open(Path(path), max_side, upright=True)


def open_stored(path: str | Path, max_side: int | None = None) -> "Image.Image":
    """Decode a photo to RGB as its pixels are stored (HEIC: as the decoder gives it, upright)."""
    return _open(Path(path), max_side, upright=False)


def _open(path: Path, max_side: int | None, upright: bool) -> "Image.Image":
    import warnings

    from PIL import Image

    Image.MAX_IMAGE_PIXELS = JPEG_PIXEL_LIMIT  # the limit by format is checked below, per file
    warnings.filterwarnings("ignore", module=r"PIL\.")  # on metadata: the table has its own codes
    about = read_photo(os.fspath(path))
    try:
        if about["_kind"] == "heic":
            import pillow_heif

            pillow_heif.register_heif_opener()
        with Image.open(path) as image:
            jpeg = image.format in ("JPEG", "MPO")
            if image.width * image.height > (JPEG_PIXEL_LIMIT if jpeg else PIXEL_LIMIT):
                raise ValueError(f"{image.width}×{image.height} pixels are too many")
            if max_side and jpeg:
                image.draft("RGB", (max_side, max_side))
            rgb = _to_rgb(image)
            arrives_upright = image.format == "TIFF"  # Pillow turns TIFF while loading
    except OSError as error:
        raise OSError(f"{path}: {error}") from error
    except MemoryError as error:
        raise ValueError(f"{path}: not enough memory") from error
    except Exception as error:  # hostile files raise whatever the decoder stumbled on
        raise ValueError(f"{path}: {error or type(error).__name__}") from error
    tag = about["orientation_tag"] or 1
    if max_side and max(rgb.size) > max_side:
        rgb.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    if arrives_upright == upright:
        return rgb
    return _turn_image(rgb, tag, back=arrives_upright)


def _to_rgb(image: "Image.Image") -> "Image.Image":
    """First frame as 8-bit RGB: deep greys are scaled, transparency lies on white."""
    from PIL import Image

    image.load()
    if image.mode.startswith("I") or image.mode == "F":
        import numpy as np

        grey = np.nan_to_num(np.asarray(image, dtype=np.float64))
        low, high = (float(grey.min()), float(grey.max())) if image.mode == "F" else (0.0, 65535.0)
        grey = np.clip((grey - low) * (255.0 / max(high - low, 1e-12)), 0, 255)
        return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


# ---------------------------------------------------------------- bytes and containers


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

    __slots__ = ("file", "head", "size", "start")

    def __init__(
        self, head: bytes, file: OpenFile | None = None, start: int = 0, size: int | None = None
    ):
        self.head, self.file, self.start = head, file, start
        self.size = len(head) - start if size is None else max(size, 0)

    def at(self, offset: int, count: int) -> bytes:
        count = min(count, self.size - offset)
        if offset < 0 or count <= 0:
            return b""
        begin = self.start + offset
        if self.file is None or begin + count <= len(self.head):
            return self.head[begin : begin + count]
        return self.file.read(begin, count)

    def part(self, offset: int, count: int) -> "Bytes":
        offset = max(offset, 0)
        return Bytes(self.head, self.file, self.start + offset, min(count, self.size - offset))


class Photo:
    """What a container says: kind, stored size, where EXIF and XMP lie, its own turn if any."""

    __slots__ = ("exif", "height", "kind", "turn", "warnings", "width", "xmp")

    def __init__(self) -> None:
        self.kind: str | None = None
        self.width = self.height = self.turn = None
        self.exif: Bytes | None = None
        self.xmp: bytes | None = None
        self.warnings: list[str] = []


def read_container(data: Bytes) -> Photo:
    """Tell the format by its first bytes (never by its name) and find size, EXIF and XMP."""
    photo, magic = Photo(), data.at(0, 16)
    if magic[:2] == b"\xff\xd8":
        _read_jpeg(data, photo, 2)
    elif magic[:8] == b"\x89PNG\r\n\x1a\n":
        _read_png(data, photo)
    elif magic[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        photo.kind, photo.exif = "tiff", data
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


def _read_jpeg(data: Bytes, photo: Photo, position: int) -> None:
    """Walk the segments up to the pixels (SOS). ITU-T T.81 annex B; APP1 per EXIF 3.0, 4.7.2."""
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
            if start[:5] == b"Exif\0" and photo.exif is None and start[6:8] in (b"II", b"MM"):
                if position + 2 + size > data.size:
                    photo.warnings.append("exif_truncated")
                photo.exif = data.part(position + 10, size - 8)
            elif start == b"http://ns.adobe.com/xap/1.0/" and photo.xmp is None:
                photo.xmp = data.at(position + 33, size - 31)
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
            photo.exif = _exif_block(data.part(position + 8, size)) or photo.exif
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
        photo.exif = photo.exif or _exif_block(Bytes(rest))


def _exif_block(data: Bytes) -> Bytes | None:
    """The TIFF block of an EXIF chunk, behind the "Exif" marker that some writers leave."""
    data = data.part(6, data.size) if data.at(0, 5) == b"Exif\0" else data
    return data if data.at(0, 2) in (b"II", b"MM") else None


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
        elif kind == b"EXIF" and photo.exif is None:
            photo.exif = _exif_block(data.part(position + 8, size))
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


def _uint(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big")


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, start of content, end) of the ISO 14496-12 boxes in a range."""
    for _ in range(1000):
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
    elif names & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
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
    start, end = parts[b"iinf"]
    for kind, at, past in _boxes(meta, start + (8 if meta[start] else 6), end):
        wide = 4 if meta[at] > 2 else 2  # bytes of an item number
        sort = meta[at + 6 + wide : at + 10 + wide]
        method, offset, size = places.get(_uint(meta, at + 4, wide), (None, 0, 0))
        if kind != b"infe" or meta[at] < 2 or method not in (0, 1):
            continue
        place = data.part(offset, size)
        if method == 1:  # inside meta itself
            place = Bytes(meta, None, parts.get(b"idat", (0, 0))[0] + offset, size)
        if sort == b"Exif":
            photo.exif = photo.exif or _exif_block(
                place.part(4 + _uint(place.at(0, 4), 0, 4), size)
            )
        elif sort == b"mime" and b"rdf+xml" in meta[at:past]:
            photo.xmp = photo.xmp or place.at(0, MAX_XMP_BYTES)


def _item_places(meta: bytes, at: int, end: int) -> dict[int, tuple[int, int, int]]:
    """Item number → (0 = in the file or 1 = in idat, offset, size) of its first extent."""
    version, sizes = meta[at], _uint(meta, at + 4, 2)
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version else 0
    wide = 4 if version == 2 else 2
    count, places = _uint(meta, at + 6, wide), {}
    at += 6 + wide
    for _ in range(min(count, 4096)):
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
    for _ in range(min(entries, 4096)):
        if at + id_size >= end:
            return
        item, count = _uint(meta, at, id_size), meta[at + id_size]
        at += id_size + 1
        for place in range(at, at + count * size, size) if item == primary else ():
            yield _uint(meta, place, size) & (0x7FFF if size == 2 else 0x7F)
        at += count * size


# ---------------------------------------------------------------- TIFF directories

TYPE_CODES = {1: "B", 3: "H", 4: "I", 5: "II", 6: "b", 8: "h", 9: "i", 10: "ii", 11: "f",
              12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q"}  # fmt: skip
TYPE_SIZES = {code: struct.calcsize("=" + letters) for code, letters in TYPE_CODES.items()}
TYPE_SIZES |= {2: 1, 7: 1, 129: 1}  # text, undefined, UTF-8 (EXIF 3.0): kept as bytes

MAKE, MODEL, TURN, MODIFIED = 0x010F, 0x0110, 0x0112, 0x0132
EXIF_IFD, GPS_IFD, XMP_TAG, ZONE_HOURS = 0x8769, 0x8825, 0x02BC, 0x882A
WIDTH, HEIGHT = 0x0100, 0x0101
TAKEN, DIGITISED = 0x9003, 0x9004
ZONE_MODIFIED, ZONE_TAKEN, ZONE_DIGITISED = 0x9010, 0x9011, 0x9012
FRACTION_TAKEN, FRACTION_DIGITISED = 0x9291, 0x9292
EXPOSURE, F_NUMBER, ISO, FOCAL, FOCAL_35, LENS = 0x829A, 0x829D, 0x8827, 0x920A, 0xA405, 0xA434
EXIF_TAGS = frozenset((TAKEN, DIGITISED, ZONE_MODIFIED, ZONE_TAKEN, ZONE_DIGITISED, FRACTION_TAKEN,
                       FRACTION_DIGITISED, EXPOSURE, F_NUMBER, ISO, FOCAL, FOCAL_35, LENS,
                       ZONE_HOURS))  # fmt: skip
MAIN_TAGS = EXIF_TAGS | {MAKE, MODEL, TURN, MODIFIED, EXIF_IFD, GPS_IFD, XMP_TAG, WIDTH, HEIGHT}
(LAT_REF, LAT, LON_REF, LON, ALT_REF, ALT, GPS_TIME, GPS_STATUS) = (1, 2, 3, 4, 5, 6, 7, 9)
(DIRECTION_REF, DIRECTION, GPS_DATE, DIFFERENTIAL, ACCURACY) = (16, 17, 29, 30, 31)
GPS_TAGS = frozenset((LAT_REF, LAT, LON_REF, LON, ALT_REF, ALT, GPS_TIME, GPS_STATUS,
                      DIRECTION_REF, DIRECTION, GPS_DATE, DIFFERENTIAL, ACCURACY))  # fmt: skip

Value = bytes | tuple


def read_ifd(data: Bytes, offset: int, order: str, wanted: frozenset, big: bool = False) -> dict:
    """Read the wanted tags of one TIFF directory; values out of bounds are left out.

    A directory that is cut off or begins with an unknown type is taken for noise, as ExifTool does.
    Text and undefined values come as bytes, numbers as tuples, 0/0 as nan, x/0 as infinity.
    """
    count_size, entry, entry_size = (8, "HHQ8s", 20) if big else (2, "HHI4s", 12)
    count = int.from_bytes(data.at(offset, count_size), "little" if order == "<" else "big")
    block = data.at(offset + count_size, min(count, 4096) * entry_size)
    found = {}
    if not count or len(block) < min(count, 4096) * entry_size:
        return found
    if struct.unpack_from(order + "H", block, 2)[0] not in TYPE_SIZES:
        return found
    for tag, kind, number, inline in struct.iter_unpack(order + entry, block):
        if tag not in wanted or tag in found or kind not in TYPE_SIZES or number == 0:
            continue
        size = TYPE_SIZES[kind] * number
        if size > len(inline):
            place = struct.unpack(order + ("Q" if big else "I"), inline)[0]
            if tag == XMP_TAG:
                found[tag] = data.at(place, min(size, MAX_XMP_BYTES))
                continue
            if place + size > data.size or (kind not in (2, 7, 129) and number > 64):
                continue
            raw = data.at(place, min(size, MAX_VALUE_BYTES))
        else:
            raw = inline[:size]
        found[tag] = _unpack(raw, kind, order)
    return found


def _unpack(raw: bytes, kind: int, order: str) -> Value:
    letters = TYPE_CODES.get(kind)
    if letters is None:
        return raw
    values = struct.unpack(order + letters * (len(raw) // TYPE_SIZES[kind]), raw)
    if len(letters) == 1:
        return values
    pairs = zip(values[::2], values[1::2], strict=True)
    return tuple(_divide(above, below) for above, below in pairs)


def read_exif(data: Bytes) -> tuple[dict, dict, dict]:
    """Read IFD0, the Exif IFD and the GPS IFD of a TIFF block; IFD1 (thumbnail) is never used."""
    magic = data.at(0, 16)
    order = {b"II": "<", b"MM": ">"}.get(magic[:2])
    if order is None or len(magic) < 8:
        return {}, {}, {}
    version, offset = struct.unpack(order + "HI", magic[2:8])
    big = version == 43
    if big and len(magic) == 16:  # BigTIFF: 8-byte offsets and counts
        offset = struct.unpack(order + "Q", magic[8:])[0]
    main = read_ifd(data, offset, order, MAIN_TAGS, big)
    parts = []
    for pointer, wanted in ((EXIF_IFD, EXIF_TAGS | {GPS_IFD}), (GPS_IFD, GPS_TAGS)):
        place = main.get(pointer, parts[0].get(pointer) if parts else None)
        if isinstance(place, tuple) and isinstance(place[0], int) and place[0] > 0:
            parts.append(read_ifd(data, place[0], order, wanted, big))
        else:
            parts.append({})
    return main, parts[0], parts[1]


def text(value: Value | None) -> str | None:
    """Decode a text tag: up to the first NUL, UTF-8 or else Windows-1252, no control characters."""
    if isinstance(value, tuple):  # text stored as BYTE
        if not all(isinstance(item, int) and 0 <= item < 256 for item in value):
            return None
        value = bytes(value)
    if not value:
        return None
    value = value.partition(b"\0")[0]
    try:
        decoded = value.decode("utf-8")
    except UnicodeDecodeError:
        decoded = value.decode("cp1252", "replace")
    if not decoded.isprintable():
        decoded = "".join(c if c.isprintable() else " " for c in decoded)
    return decoded.strip() or None


def number(value: Value | None) -> float | None:
    """First value of a numeric tag (also written as text) if it is finite."""
    if isinstance(value, bytes):
        if len(value) == 1 and not value.isdigit():
            return float(value[0])
        value = _numbers(text(value) or "")
    return value[0] if value and math.isfinite(value[0]) else None


def positive(value: Value | None) -> float | None:
    """Like `number`, but 0 means unknown, as EXIF has it for lens, aperture and exposure."""
    result = number(value)
    return round(result, 10) if result and result > 0 else None


def _numbers(written: str) -> list[float]:
    """Numbers in a text: "52/1 50/1", "52,50.5", "52;50;34", "52,00000,50,00000,34,01180"."""
    parts = re.findall(r"[+-]?\d+(?:\.\d+)?(?:/\d+)?", written[:200])
    if len(parts) == 6 and written.count(",") == 5:  # commas are decimal points as well
        parts = [f"{whole}.{part}" for whole, part in zip(parts[::2], parts[1::2], strict=True)]
    pairs = ((float(a), float(b or 1)) for a, _, b in (part.partition("/") for part in parts))
    return [_divide(above, below) for above, below in pairs]


def _divide(above: float, below: float) -> float:
    return above / below if below else math.inf if above else math.nan


# ---------------------------------------------------------------- position


def angle(value: Value | None) -> float | None:
    """Degrees from (degrees[, minutes[, seconds]]); 0/0 minutes or seconds count as 0."""
    if isinstance(value, bytes):
        value = tuple(_numbers(text(value) or ""))
    if not value or math.isnan(value[0]) or any(math.isinf(part) for part in value[:3]):
        return None
    parts = [0.0 if math.isnan(part) else abs(part) for part in value[:3]]
    return sum(part / scale for part, scale in zip(parts, (1, 60, 3600), strict=False))


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
    place = position(angle(gps.get(LAT)), _reference(gps.get(LAT_REF)),
                     angle(gps.get(LON)), _reference(gps.get(LON_REF)), warnings)  # fmt: skip
    if place:
        row["gps_latitude"], row["gps_longitude"], row["gps_source"] = *place, "exif"
    elif LAT in gps or LON in gps:
        warnings.append("gps_incomplete")
    row["gps_altitude"] = altitude(gps.get(ALT), gps.get(ALT_REF))
    accuracy = number(gps.get(ACCURACY))
    row["gps_accuracy_m"] = round(accuracy, 4) if accuracy and accuracy > 0 else None
    heading = number(gps.get(DIRECTION))
    if heading is not None and 0 <= heading <= 360:
        if _reference(gps.get(DIRECTION_REF)) == "M":
            warnings.append("direction_magnetic")
        else:
            row["gps_img_direction"] = round(heading % 360, 4)
    if _reference(gps.get(GPS_STATUS)) == "V":
        warnings.append("gps_void")
    if number(gps.get(DIFFERENTIAL)) == 1:
        warnings.append("gps_differential")


def altitude(value: Value | None, below: Value | None) -> float | None:
    """Metres; reference 1 (EXIF 3.0: also 3) means below sea level, a missing one above."""
    height = number(value)
    if height is None:
        return None
    return round(-abs(height) if number(below) in (1, 3) else height, 4) + 0.0


# ---------------------------------------------------------------- XMP

XMP_NAMES = {
    "gps_latitude": ("GPSLatitude", "GPSLongitude"),
    "gps_altitude": ("GPSAltitude", "GPSAltitudeRef"),
    "datetime": ("DateTimeOriginal",),
    "_gps_time": ("GPSTimeStamp",),
    "camera_make": ("Make",),
    "camera_model": ("Model",),
}
XMP_SPACES = ("http://ns.adobe.com/exif/1.0/", "http://ns.adobe.com/tiff/1.0/")


def add_xmp(row: dict, packet: bytes, warnings: list) -> None:
    """Fill what EXIF left empty from an XMP packet (ISO 16684-1)."""
    wanted = set()
    for column, names in XMP_NAMES.items():
        if row[column] is None:
            wanted.update(names)
    xmp = read_xmp(packet, wanted)
    if "GPSLatitude" in xmp and "GPSLongitude" in xmp:
        lat, lon = _xmp_angle(xmp["GPSLatitude"], "NS"), _xmp_angle(xmp["GPSLongitude"], "EW")
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
    if fix and not row["_gps_time"]:
        with contextlib.suppress(OverflowError):
            when = fix[0] - timedelta(minutes=fix[1] or 0)
            seconds = when.hour * 3600 + when.minute * 60 + when.second
            row["_gps_time"] = when.date().isoformat(), seconds
    for column, name in (("camera_make", "Make"), ("camera_model", "Model")):
        row[column] = row[column] or xmp.get(name)


def read_xmp(packet: bytes, wanted: set[str]) -> dict[str, str]:
    """Find EXIF and TIFF properties of the picture by name, as attributes or elements.

    Only direct properties count, not those of places told inside other structures. What stands
    before damage is kept; a packet that declares entities is not followed.
    """
    plain = packet.replace(b"\0", b"")
    if not any(name.encode() in plain for name in wanted):
        return {}
    from xml.parsers import expat

    found: dict[str, str] = {}
    path: list[str] = ["", ""]
    spaces = {"exif": XMP_SPACES[0], "tiff": XMP_SPACES[1]}
    written: list[str] = []

    def keep(name: str, value: str) -> None:
        prefix, _, local = name.rpartition(":")
        if local in wanted and spaces.get(prefix) in XMP_SPACES and value.strip():
            found.setdefault(local, value.strip()[:200])

    def start(name: str, attributes: dict) -> None:
        for key, uri in attributes.items():
            if key.startswith("xmlns:"):
                spaces[key[6:]] = uri
        if name.endswith("Description") and path[-1].endswith("RDF"):
            for key, value in attributes.items():
                keep(key, value)
        path.append(name)
        written.clear()

    def end(name: str) -> None:
        path.pop()
        if path[-1].endswith("Description") and path[-2].endswith("RDF"):
            keep(name, "".join(written))
        written.clear()

    def refuse(*_: Any) -> None:
        raise ValueError("entity")

    parser = expat.ParserCreate("utf-8")
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.EntityDeclHandler = written.append, refuse
    with contextlib.suppress(expat.ExpatError, ValueError):
        parser.Parse(_xmp_text(packet).encode(), True)
    return found


def _xmp_text(packet: bytes) -> str:
    """Decode UTF-8 or UTF-16 and drop what XML forbids: a bad byte costs one character."""
    code = "utf-8"
    if packet[:2] in (b"\xfe\xff", b"\xff\xfe") or b"\0" in packet[:4]:
        code = "utf-16-be" if packet[:1] in (b"\xfe", b"\0") else "utf-16-le"
    written = packet.decode(code, "replace").lstrip("\ufeff")
    begin = max(written.find("<"), 0)
    return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f]", " ", written[begin : written.rfind(">") + 1])


def _xmp_angle(written: str, letters: str) -> tuple[float | None, str]:
    """Read "48,37.9084N" (XMP GPSCoordinate), else signed degrees: (degrees, reference)."""
    sign = letters[1] if written[:1] == "-" else letters[0]
    reference = next((c for c in written.upper() if c in letters), sign)
    return angle(written.encode()), reference


# ---------------------------------------------------------------- time

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


def add_time(row: dict, main: dict, exif: dict, gps: dict, warnings: list) -> None:
    """Fill `datetime` from DateTimeOriginal or DateTimeDigitized, and what bears on UTC."""
    row["_gps_time"] = _gps_time(gps)
    for tag, source, fraction, zone in (
        (TAKEN, exif, FRACTION_TAKEN, ZONE_TAKEN),
        (TAKEN, main, FRACTION_TAKEN, ZONE_TAKEN),
        (DIGITISED, exif, FRACTION_DIGITISED, ZONE_DIGITISED),
    ):
        written = text(source.get(tag))
        taken = read_date(written, text(source.get(fraction)))
        if taken:
            offset = read_offset(text(source.get(zone)))
            if offset is None and text(main.get(MODIFIED)) == written:
                offset = read_offset(text(source.get(ZONE_MODIFIED)))
            hours = number(source.get(ZONE_HOURS, main.get(ZONE_HOURS)))  # TIFF/EP, hours
            if offset is None and taken[1] is None and hours is not None and -12 <= hours <= 14:
                offset = int(hours * 60)
            _set_time(row, taken[0], taken[1] if offset is None else offset)
            return
        if written and any(c.isdigit() and c != "0" for c in written):
            warnings.append("date_invalid")


def _set_time(row: dict, when: datetime, offset: int | None) -> None:
    row["datetime"] = _iso(when)
    if offset is not None:
        row["utc_offset_minutes"], row["utc_source"] = offset, "offset_tag"


def _gps_time(gps: dict) -> tuple[str | None, float] | None:
    """(UTC date or None, seconds of the day) of the GPS fix: tags 0x001D and 0x0007."""
    value = gps.get(GPS_TIME)
    if isinstance(value, bytes):
        value = tuple(_numbers((text(value) or "").replace(":", " ")))
    if not value or len(value) < 3 or math.isnan(value[0]):
        return None
    parts = [0.0 if math.isnan(part) else part for part in value[:3]]
    seconds = sum(part * scale for part, scale in zip(parts, (3600, 60, 1), strict=True))
    if not 0 <= seconds < 86400:
        return None
    date = re.match(r"(\d{4})\D(\d{1,2})\D(\d{1,2})", text(gps.get(GPS_DATE)) or "")
    try:
        return datetime(*map(int, date.groups())).date().isoformat() if date else None, seconds
    except ValueError:
        return None, seconds


# ---------------------------------------------------------------- one photo


def empty_row(status: str, reason: str) -> dict:
    return dict.fromkeys(COLUMNS) | {
        "status": status,
        "warnings": reason,
        "_kind": None,
        "_gps_time": None,
    }


def read_photo(path: str) -> dict:
    """Read one file's header into a table row (without its name, UTC and sun); never raises."""
    try:
        with open(path, "rb", buffering=0) as file:
            about = os.fstat(file.fileno())
            row = _read_open_file(file, about.st_size)
    except OSError as error:
        row = empty_row("unreadable", "cannot_open")
        row["_kind"] = error.strerror
        try:
            about = os.stat(path)
        except OSError:
            return row
    row["file_size"], row["file_mtime"] = about.st_size, utc_text(about.st_mtime_ns)
    return row


def utc_text(nanoseconds: int) -> str | None:
    """ISO 8601 UTC to the microsecond, without "Z": spreadsheets then see a date, not a text."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    try:
        return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest // 1000:06d}"
    except (ValueError, OverflowError, OSError):
        return None


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
    main, exif, gps = read_exif(photo.exif) if photo.exif else ({}, {}, {})
    if photo.exif and not main and photo.kind != "tiff":
        warnings.append("exif_damaged")
    if gps:
        add_position(row, gps, warnings)
    if main:
        add_time(row, main, exif, gps, warnings)
        row["camera_make"], row["camera_model"] = text(main.get(MAKE)), text(main.get(MODEL))
        for column, tag in (("focal_length_mm", FOCAL), ("focal_length_35mm", FOCAL_35),
                            ("exposure_time_s", EXPOSURE), ("f_number", F_NUMBER),
                            ("iso", ISO)):  # fmt: skip
            row[column] = positive(exif.get(tag, main.get(tag)))
        row["lens_model"] = text(exif.get(LENS, main.get(LENS)))
    if photo.kind == "tiff":
        photo.width, photo.height = number(main.get(WIDTH)), number(main.get(HEIGHT))
        photo.xmp = main.get(XMP_TAG)
    if isinstance(photo.xmp, bytes):
        add_xmp(row, photo.xmp, warnings)
    if row["gps_altitude"] is not None and not ALTITUDES[0] <= row["gps_altitude"] <= ALTITUDES[1]:
        warnings.append("altitude_doubtful")
    row["image_width"], row["image_height"] = photo.width or None, photo.height or None
    if TURN in main or any(row[column] is not None for column in COLUMNS[3:25]):
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
    tag = main.get(TURN)
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


# ---------------------------------------------------------------- UTC and the sun

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
        row["datetime_utc"] = _iso(when - timedelta(minutes=minutes))
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


def _iso(when: datetime) -> str:
    fine = when.microsecond % 1000 or not when.microsecond
    return when.isoformat(timespec="auto" if fine else "milliseconds")


def sun_position(lat: float, lon: float, utc: datetime) -> tuple[float, float]:
    """Geometric (not refracted) elevation and azimuth of the sun, degrees; clockwise from north."""
    import astral.sun

    zenith, azimuth = astral.sun.zenith_and_azimuth(
        astral.Observer(lat, lon), utc.replace(tzinfo=UTC), with_refraction=False
    )
    return 90.0 - zenith, azimuth


def finish_row(filename: str, raw: dict, round_km: float = 0.0) -> dict:
    """Give a raw row its name, UTC and sun; coarsen its position first where that is asked for.

    The sun is computed from the coarsened position: the exact one could be solved for from it.
    """
    row = {column: raw[column] for column in COLUMNS} | {"filename": filename}
    warnings = row["warnings"].split(";") if row["warnings"] else []
    add_utc(row, raw["_gps_time"], warnings)
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


# ---------------------------------------------------------------- reading processes


def _limit_resources() -> None:
    """Let the system end a reader that a hostile file sends astray, in C code too."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + FILE_MEMORY, used + FILE_MEMORY))
    except (ImportError, OSError, ValueError):
        pass  # not Linux: the parsers' own bounds remain


def _serve(connection: Any, parent: int) -> None:
    """Loop of a reading process: receive paths, send raw rows, until the other end goes away."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's business
    _limit_resources()
    timer = getattr(signal, "setitimer", None)
    try:
        while True:
            while not connection.poll(1.0):
                if os.getppid() != parent:  # killed: siblings may hold the pipe open
                    return
            rows = []
            for path in connection.recv():
                if timer:
                    timer(signal.ITIMER_PROF, FILE_CPU_S)  # unhandled SIGPROF ends the process
                rows.append(read_photo(path))
            if timer:
                timer(signal.ITIMER_PROF, 0)
            connection.send(rows)
    except (EOFError, OSError):
        return


class Reader:
    """A reading process and its pipe."""

    def __init__(self) -> None:
        import multiprocessing

        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, os.getpid()), daemon=True)
        self.process.start()
        other.close()
        self.deadline = math.inf
        self.task: Any = None

    def hand(self, task: Any, paths: list[str]) -> None:
        self.task, self.deadline = task, time.monotonic() + FILE_WAIT_S
        self.pipe.send(paths)

    def take(self) -> list[dict] | None:
        """The rows, or None when the process died."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            return None

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _read_alone(path: str) -> dict:
    """Read one file of a chunk that killed or stalled its reader; the culprit becomes a row."""
    reader = Reader()
    try:
        reader.hand(None, [path])
        if not reader.pipe.poll(FILE_WAIT_S):
            return empty_row("unreadable", "reader_timeout")
        rows = reader.take()
        return rows[0] if rows else empty_row("unreadable", "reader_died")
    finally:
        reader.end()


class Crew:
    """Reading processes that work on (block, paths) in turn; results come in the order given."""

    def __init__(self, blocks: Iterator[tuple[Any, list[str]]], workers: int) -> None:
        self.numbered, self.workers = enumerate(blocks), workers
        self.idle: list[Reader] = []
        self.busy: dict[Any, Reader] = {}
        self.done: dict[int, tuple] = {}
        self.next, self.ended = 0, False
        self.hand_out()

    def hand_out(self) -> None:
        """Keep every process busy, but run at most a few blocks ahead of the results taken."""
        while not self.ended and len(self.busy) < self.workers:
            if len(self.done) >= 4 * self.workers:
                return
            step = next(self.numbered, None)
            if step is None:
                self.ended = True
                return
            place, (block, paths) = step
            if not paths:
                self.done[place] = (block, [])
                continue
            reader = self.idle.pop() if self.idle else Reader()
            reader.hand((place, block, paths), paths)
            self.busy[reader.pipe] = reader

    def collect(self) -> None:
        """Wait for rows; a process that died or fell silent is replaced, its chunk read singly."""
        from multiprocessing.connection import wait

        ready = wait(list(self.busy), timeout=0.5)
        now = time.monotonic()
        late = [pipe for pipe, reader in self.busy.items() if reader.deadline < now]
        for pipe in {*ready, *late}:
            reader = self.busy.pop(pipe)
            place, block, paths = reader.task
            rows = reader.take() if pipe in ready else None
            if rows is None:
                reader.end()
                rows = [_read_alone(path) for path in paths]
            else:
                self.idle.append(reader)
            self.done[place] = (block, rows)

    def results(self) -> Iterator[tuple]:
        try:
            while True:
                self.hand_out()  # before yielding: they read while the taker works
                if self.next in self.done:
                    yield self.done.pop(self.next)
                    self.next += 1
                elif self.busy:
                    self.collect()
                else:
                    return
        finally:
            for reader in [*self.idle, *self.busy.values()]:
                reader.end()


# ---------------------------------------------------------------- the table

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def harmless_cell(value: Any) -> Any:
    """A CSV cell that no spreadsheet runs as a formula: such text gets a leading apostrophe."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return "'" + value
    return value


def _write_table(records: Iterable[tuple[str, dict]], data_dir: Path) -> None:
    """Write (record as JSON, the same as a row) to exif_data.json, one a line, and exif_data.csv.

    Records may come from a generator: memory does not grow with their number.
    """
    with (
        write_atomically(data_dir / "exif_data.json", "w", encoding="utf-8", newline="\n") as table,
        write_atomically(data_dir / "exif_data.csv", "w", encoding="utf-8", newline="") as sheet,
    ):
        writer = csv.writer(sheet, lineterminator="\r\n")
        writer.writerow(COLUMNS)
        before = "[\n"
        for record, row in records:
            table.write(before + record)
            writer.writerow([harmless_cell(row[column]) for column in COLUMNS])
            before = ",\n"
        table.write("[]\n" if before == "[\n" else "\n]\n")


def read_records(path: Path) -> Iterator[dict]:
    """Yield the records of a table, line by line where they were written so."""
    with open(path, encoding="utf-8") as file:
        if file.readline() == "[\n" and file.read(13) == '{"filename": ':
            file.seek(2)
            while (line := file.readline().strip().rstrip(",")) != "]":
                yield json.loads(line)
            return
        file.seek(0)
        yield from json.load(file)


def read_table(data_dir: str | Path, image_dir: str | Path | None = None) -> "pd.DataFrame":
    """Read exif_data.json with exactly COLUMNS: numbers as float64 (NaN), texts as object (None).

    Without a usable table the run ends with exit code 2 and says what to run.
    """
    import pandas as pd

    path = Path(data_dir, "exif_data.json")
    again = f"python exif_extractor.py --data-dir {data_dir}" + (
        f" --image-dir {image_dir}" if image_dir else ""
    )
    columns: dict[str, list] = {column: [] for column in COLUMNS}
    try:
        for record in read_records(path):
            for column, values in columns.items():
                values.append(record[column])
    except FileNotFoundError:
        stop(f"no table of photos: {path} does not exist; run: {again}")
    except KeyError as error:
        stop(f"{path} lacks the column {error}; run: {again} --overwrite")
    except (ValueError, TypeError, AttributeError, OSError) as error:
        stop(f"{path} cannot be read ({error}); run: {again} --overwrite")
    return pd.DataFrame(
        {
            column: pd.Series(values, dtype=object if column in TEXT_COLUMNS else "float64")
            for column, values in columns.items()
        }
    )


def write_geojson(data_dir: str | Path) -> Path:
    """Write the positions of the table as points (RFC 7946), for QGIS or geojson.io."""
    path = Path(data_dir, "exif_data.geojson")
    with write_atomically(path, "w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        before = "\n"
        for row in read_records(Path(data_dir, "exif_data.json")):
            place = [row.pop("gps_longitude"), row.pop("gps_latitude")]
            if place[0] is None or place[1] is None:
                continue
            if row["gps_altitude"] is not None:
                place.append(row["gps_altitude"])
            row = {key: value for key, value in row.items() if value is not None}
            feature = {
                "type": "Feature",
                "geometry": {"type": "Point", "coordinates": place},
                "properties": row,
            }
            file.write(before + _encode(feature))
            before = ",\n"
        file.write("\n]}\n")
    return path


# ---------------------------------------------------------------- what is already known


class Known:
    """Rows written earlier, in order of name: the last table, or the journal of a killed run."""

    RETRY = ("cannot_open", "out_of_memory", "reader_died", "reader_timeout")

    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, self._lines(path)
        self.current = next(self.lines, None)

    @staticmethod
    def _lines(path: Path) -> Iterator[tuple[str, str, str]]:
        """Yield (name, "size, mtime" as written, the record's text)."""
        with open(path, encoding="utf-8", errors="replace") as file:
            next(file, None)  # "[" or the header of a journal
            for line in file:
                if not line.endswith("\n") or line[0] != "{":
                    return  # a line cut by a kill, or the end
                line = line.rstrip(",\n")
                name = line[14 : line.index('", "status": ')]
                if "\\" in name:
                    name = json.loads(f'"{name}"')
                yield name, line[line.rindex('"file_size": ') :], line

    def find(self, name: str) -> tuple[str, str] | None:
        """Names must be asked for in order; they may be skipped."""
        while self.current and self.current[0] < name:
            self.current = next(self.lines, None)
        if self.current and self.current[0] == name:
            return self.current[1:]
        return None


def _stamp(path: str) -> str | None:
    """Size and time of a file, as they end its record."""
    try:
        about = os.stat(path)
    except OSError:
        return None
    return f'"file_size": {about.st_size}, "file_mtime": "{utc_text(about.st_mtime_ns)}"}}'


def _reusable(name: str, path: str, known: list[Known]) -> str | None:
    """The record text of a file that has not changed since it was read."""
    stamp = None
    for rows in known:
        found = rows.find(name)
        if found:
            stamp = stamp or _stamp(path)
            if found[0] == stamp and '"status": "unreadable"' not in found[1]:
                return found[1]
            if found[0] == stamp and not any(code in found[1] for code in Known.RETRY):
                return found[1]
    return None


# ---------------------------------------------------------------- summary


class Summary:
    """Counts over the rows, kept small: positions as 16 bytes a photo, no rows."""

    NAMED = 20  # unreadable files named one by one before only their number is told

    def __init__(self) -> None:
        from array import array
        from collections import Counter

        self.photos, self.counts, self.cameras = 0, Counter(), Counter()
        self.orientations, self.sources, self.warnings = Counter(), Counter(), Counter()
        self.unreadable: list[str] = []
        self.moments = array("q")
        self.extremes: dict[int, tuple[float, tuple]] = {}

    def add(self, row: dict, fresh: bool = True) -> None:
        self.photos += 1
        self.counts["fresh"] += fresh
        self.counts[row["status"]] += 1
        for column in ("gps_latitude", "datetime", "gps_altitude", "datetime_utc"):
            self.counts[column] += row[column] is not None
        self.orientations[
            row["orientation"] or ("no class" if row["orientation_tag"] else "no tag")
        ] += 1
        if row["utc_source"]:
            self.sources[row["utc_source"]] += 1
        if row["camera_model"] or row["camera_make"]:
            self.cameras[row["camera_make"], row["camera_model"]] += 1
        if row["status"] == "unreadable":
            if len(self.unreadable) < self.NAMED:
                self.unreadable.append(f"{row['filename']}: {row['warnings']}")
        elif row["warnings"]:
            self.warnings.update(row["warnings"].split(";"))
        if row["gps_latitude"] is not None and "gps_zero" not in (row["warnings"] or ""):
            self._add_place(row["gps_latitude"], row["gps_longitude"], row["datetime"])

    def _add_place(self, lat: float, lon: float, moment: str | None) -> None:
        if moment:
            self.moments.append(hash((lat, lon, moment[:19])))
        y, x = math.radians(lat), math.radians(lon)
        point = (math.cos(y) * math.cos(x), math.cos(y) * math.sin(x), math.sin(y))
        for number, along in enumerate(_DIRECTIONS):
            reach = along[0] * point[0] + along[1] * point[1] + along[2] * point[2]
            if number not in self.extremes or reach > self.extremes[number][0]:
                self.extremes[number] = (reach, point)

    def span_km(self) -> float:
        """Largest distance between two photos, of the outermost in 26 directions."""
        points = [point for _, point in self.extremes.values()]
        chord = max((math.dist(a, b) for a in points for b in points), default=0.0)
        return 2 * _EARTH_RADIUS_KM * math.asin(min(chord / 2, 1.0))

    def repeated(self) -> int:
        """Photos that share position and second with an earlier one."""
        moments = sorted(self.moments)
        return sum(a == b for a, b in itertools.pairwise(moments))

    def lines(self) -> list[str]:
        count = self.counts
        told = [
            f"{self.photos} photos: {count['ok']} with metadata, {count['no_exif']} without, "
            f"{count['unreadable']} unreadable",
            f"  position {count['gps_latitude']}  altitude {count['gps_altitude']}  "
            f"time {count['datetime']}  UTC {count['datetime_utc']}"
            + "".join(f"  {name} {self.sources[name]}" for name in sorted(self.sources)),
            "  orientation: " + ", ".join(
                f"{name} {self.orientations[name]}"
                for name in (*ORIENTATION_CLASSES, "no class", "no tag") if self.orientations[name]
            ),
        ]  # fmt: skip
        if self.cameras:
            best = self.cameras.most_common(3)
            names = ", ".join(f"{' '.join(filter(None, camera))} ({n})" for camera, n in best)
            most = "most: " if len(self.cameras) > 3 else ""
            told.append(f"  cameras: {len(self.cameras)} ({most}{names})")
        if self.extremes:
            told.append(
                f"  span {self.span_km():.3g} km, "
                f"{self.repeated()} repeat another's position and second"
            )
        if self.warnings:
            told.append(
                "  warnings: " + ", ".join(f"{code} {n}" for code, n in self.warnings.most_common())
            )
        told += [f"  unreadable: {line}" for line in self.unreadable]
        rest = count["unreadable"] - len(self.unreadable)
        return told + [f"  … and {rest} more: see status and warnings in the table"] * (rest > 0)


_EARTH_RADIUS_KM = 6371.0088  # as in density.py, which is imported only to write (it loads numpy)
_DIRECTIONS = tuple(
    (x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1) if (x, y, z) != (0, 0, 0)
)

# ---------------------------------------------------------------- the run


def extract(
    image_dir: Path, data_dir: Path, workers: int, overwrite: bool = False, round_km: float = 0.0
) -> dict:
    """Bring the table up to date; return {"lines": summary, "unreadable": n, "read": n}.

    Rows of unchanged files (size and time) are taken over. A killed run leaves a journal from
    which the next one goes on.
    """
    if any(data_dir.glob(".exif_data*.tmp")):  # a killed run's; the search below it takes long
        sweep_temporaries(data_dir)
    table, state_file = data_dir / "exif_data.json", data_dir / ".exif_data.state.json"
    names, disk, raw, collisions = scan(image_dir)
    settings = {"format": TABLE_FORMAT, "round_km": round_km, "image_dir": str(image_dir.resolve())}
    journals = sorted(data_dir.glob(".exif_data.*.journal"))
    for journal in journals if overwrite else []:
        journal.unlink()
    state = {} if overwrite else _read_state(state_file, table)
    current = bool(state) and {key: state.get(key) for key in settings} == settings
    paths = _Paths(image_dir, disk)
    if current and _all_unchanged(names, paths, table, state["summary"]["photos"]):
        result = state["summary"] | {"read": 0}
    else:
        known = [Known(table)] if current else []
        for journal in journals if not overwrite else []:
            if _header(journal) == settings:
                known.append(Known(journal))
        result = _rebuild(names, paths, data_dir, known, settings, workers)
        about = table.stat()
        state = settings | {"size": about.st_size, "mtime_ns": about.st_mtime_ns, "summary": result}

        with write_atomically(state_file, "w", encoding="utf-8") as file:
            json.dump(state, file)
        for journal in data_dir.glob(".exif_data.*.journal"):
            journal.unlink()
    lines = [*result["lines"]]
    if raw:
        lines.append(
            f"  RAW, not supported: {len(raw)}: {', '.join(raw[:20])}{' …' * (len(raw) > 20)}"
        )
    lines += [f"  left out, name equal to another's after NFC: {name!r}" for name in collisions]
    return result | {"lines": lines}


class _Paths:
    """File of a table name, as text: a Path object each would cost more than reading it."""

    def __init__(self, image_dir: Path, disk: dict[str, str]) -> None:
        self.root, self.disk = os.path.join(image_dir, ""), disk

    def __getitem__(self, name: str) -> str:
        return self.root + self.disk.get(name, name)


def _header(journal: Path) -> dict | None:
    try:
        with open(journal, encoding="utf-8") as file:
            return json.loads(file.readline())
    except (OSError, ValueError):
        return None


def _read_state(state_file: Path, table: Path) -> dict:
    """What the last run noted, if the table is still the one it wrote."""
    try:
        state, about = json.loads(state_file.read_text(encoding="utf-8")), table.stat()
        same = (state["size"], state["mtime_ns"]) == (about.st_size, about.st_mtime_ns)
        return state if same else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _all_unchanged(names: list[str], paths: _Paths, table: Path, photos: int) -> bool:
    if len(names) != photos or not (table.parent / "exif_data.csv").exists():
        return False
    known = [Known(table)]
    return all(_reusable(name, paths[name], known) for name in names)


def _rebuild(
    names: list[str],
    paths: _Paths,
    data_dir: Path,
    known: list[Known],
    settings: dict,
    workers: int,
) -> dict:
    """Write the table from known and freshly read rows, keeping a journal of the fresh ones."""
    data_dir.mkdir(parents=True, exist_ok=True)
    size = max(16, min(256, len(names) // workers + 1))  # files handed to a reader at once
    crew = Crew(_blocks(names, paths, known, size), workers)
    if crew.busy:  # load what the rows will need while the first files are being read
        zone_offset(0.0, 0.0, datetime(2000, 1, 1))
    summary, progress = Summary(), _Progress(len(names))
    number = 1 + len(list(data_dir.glob(".exif_data.*.journal")))
    journal_file = data_dir / f".exif_data.{number:04d}.journal"

    def records(journal: Any) -> Iterator[tuple[str, dict]]:
        for block, raw in crew.results():
            fresh = dict(zip((n for n, record in block if record is None), raw, strict=True))
            for name, record in block:
                if record is None:
                    row = finish_row(name, fresh[name], settings["round_km"])
                    record = _encode(row)
                    journal.write(record + "\n")
                else:
                    row = json.loads(record)
                summary.add(row, fresh=name in fresh)
                yield record, row
            journal.flush()
            progress.add(len(block))

    with open(journal_file, "w", encoding="utf-8", newline="\n") as journal:
        journal.write(json.dumps(settings) + "\n")
        _write_table(records(journal), data_dir)
    progress.close()
    return {
        "lines": summary.lines(), "photos": summary.photos,
        "unreadable": summary.counts["unreadable"], "read": summary.counts["fresh"],
    }  # fmt: skip


def _blocks(
    names: list[str], paths: _Paths, known: list[Known], size: int
) -> Iterator[tuple[list, list[str]]]:
    """Yield ([(name, known record or None), …], files to read) in order of name."""
    block, files = [], []
    for name in names:
        line = _reusable(name, paths[name], known) if known else None
        block.append((name, line))
        if line is None:
            files.append(paths[name])
        if len(files) >= size or len(block) >= 1024:
            yield block, files
            block, files = [], []
    if block:
        yield block, files


class _Progress:
    """A bar on stderr, from the second second on: importing it takes longer than small runs."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.begun, self.bar = total, 0, time.monotonic(), None

    def add(self, count: int) -> None:
        self.done += count
        if self.bar is None and time.monotonic() - self.begun > 1:
            from tqdm import tqdm

            self.bar = tqdm(total=self.total, unit=" photos", desc="exif", file=sys.stderr)
            self.bar.update(self.done)
        elif self.bar is not None:
            self.bar.update(count)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def report(result: dict, data_dir: Path, image_dir: Path, geojson: bool) -> None:
    """Print counts, files written and the next command."""
    print("\n".join(result["lines"]))
    print(f"{result['read']} files read, {result['photos'] - result['read']} unchanged")
    written = [data_dir / "exif_data.json", data_dir / "exif_data.csv"]
    if geojson:
        written.append(write_geojson(data_dir))
    print("written: " + ", ".join(map(str, written)))
    print(next_command("depth_map_generator", data_dir, image_dir))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit codes: 0 done (unreadable photos keep their row and are named), "
        "1 done, but with --strict some photos were unreadable, 2 you must change something.",
    )  # fmt: skip
    parser.add_argument(
        "--data-dir", default=DATA_DIR, help=f"where the table is written ({DATA_DIR})"
    )
    parser.add_argument("--image-dir", default=IMAGE_DIR, help="folder of photos (DATA_DIR/images)")
    parser.add_argument(
        "--workers", type=int, default=WORKERS, help=f"reading processes ({WORKERS})"
    )
    parser.add_argument("--overwrite", action="store_true", help="read unchanged files again too")
    parser.add_argument(
        "--geojson", action="store_true", help="also write positions to exif_data.geojson"
    )
    parser.add_argument("--strict", action="store_true", help="exit 1 when any photo is unreadable")
    parser.add_argument(
        "--round-km", type=float, default=0.0, metavar="KM",
        help="for sharing: move positions to the centres of H3 cells about KM wide (0: exact); "
        "the sun is computed there too; file names, times and altitudes stay as they are",
    )  # fmt: skip
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    data_dir = Path(args.data_dir)
    image_dir = Path(args.image_dir) if args.image_dir else data_dir / "images"
    if not image_dir.is_dir():
        stop(f"no photos: {image_dir} is no folder; put them there or name theirs by --image-dir")
    if args.workers < 1 or not 0 <= args.round_km < 1000:
        stop("--workers must be at least 1, --round-km between 0 and 1000")
    result = extract(image_dir, data_dir, args.workers, args.overwrite, args.round_km)
    report(result, data_dir, image_dir, args.geojson)
    return 1 if args.strict and result["unreadable"] else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("exif_extractor: interrupted; the same command goes on from here")
