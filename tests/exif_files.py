"""Files with EXIF, XMP and PNG texts, made here."""

import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import piexif
from PIL import Image

from geophoto import labels

SCRIPT = Path(__file__).parents[1] / "exif_extractor.py"


def picture(height=40, width=64) -> np.ndarray:
    """Four coloured quarters: every turn and mirroring looks different."""
    array = np.zeros((height, width, 3), np.uint8)
    array[: height // 2, : width // 2] = (255, 0, 0)
    array[: height // 2, width // 2 :] = (0, 255, 0)
    array[height // 2 :, : width // 2] = (0, 0, 255)
    array[height // 2 :, width // 2 :] = (255, 255, 255)
    return array


def ratio(value: float, below: int = 1_000_000) -> tuple[int, int]:
    fraction = Fraction(value).limit_denominator(below)
    return fraction.numerator, fraction.denominator


def exif_bytes(main=None, exif=None, gps=None) -> bytes:
    return piexif.dump({"0th": main or {}, "Exif": exif or {}, "GPS": gps or {}})


def gps_of(lat: float, lon: float, **more) -> dict:
    def parts(value):
        value = abs(value)
        minutes = value % 1 * 60
        return (int(value), 1), (int(minutes), 1), ratio(minutes % 1 * 60, 10_000_000)

    return {
        1: b"S" if lat < 0 else b"N",
        2: parts(lat),
        3: b"W" if lon < 0 else b"E",
        4: parts(lon),
    } | {int(key[1:]): value for key, value in more.items()}


def save(path: Path, exif: bytes = b"", **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture()).save(path, **({"exif": exif} if exif else {}), **options)
    return path


def read(path: Path, sidecar: Path | str = "", takeout: Path | str = "") -> dict:
    """One finished row."""
    raw = labels.read_photo(str(path), str(sidecar), str(takeout))
    return labels.finish_row(path.name, raw)


def codes(row: dict) -> set[str]:
    return set((row["warnings"] or "").split(";")) - {""}


def xmp_packet(**values) -> bytes:
    inside = " ".join(f'exif:{key}="{value}"' for key, value in values.items())
    return (
        '<?xpacket begin="\ufeff"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        f'xmlns:exif="http://ns.adobe.com/exif/1.0/" {inside}/></rdf:RDF></x:xmpmeta>'
    ).encode()


SPACES = {
    "exif": "http://ns.adobe.com/exif/1.0/",
    "tiff": "http://ns.adobe.com/tiff/1.0/",
    "photoshop": "http://ns.adobe.com/photoshop/1.0/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
}


def xmp_of(properties: dict, as_elements: bool = False) -> bytes:
    """An XMP packet of properties such as {"exif:GPSLatitude": "48,30.0N"}."""
    spaces = " ".join(f'xmlns:{short}="{uri}"' for short, uri in SPACES.items())
    if as_elements:
        inside = ">" + "".join(f"<{k}>{v}</{k}>" for k, v in properties.items())
    else:
        inside = " " + " ".join(f'{k}="{v}"' for k, v in properties.items()) + ">"
    return (
        '<?xpacket begin="\ufeff" id="W5M0"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" {spaces}{inside}</rdf:Description></rdf:RDF></x:xmpmeta>'
        '<?xpacket end="w"?>'
    ).encode()


def jpeg_with(path: Path, marker: int, body: bytes, exif: bytes = b"") -> Path:
    """A JPEG with one more segment behind its first marker."""
    save(path, exif)
    data = path.read_bytes()
    segment = bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body
    path.write_bytes(data[:2] + segment + data[2:])
    return path


def jpeg_with_xmp(path: Path, packet: bytes, exif: bytes = b"") -> Path:
    return jpeg_with(path, 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + packet, exif)


def iptc_block(**texts: str) -> bytes:
    """Records of the application record: iptc_block(_55="20110203", _60="040506+0100")."""
    return b"".join(
        struct.pack(">BBBH", 0x1C, 2, int(key[1:]), len(value)) + value.encode()
        for key, value in texts.items()
    )


def resource(kind: int, data: bytes, name: bytes = b"") -> bytes:
    """One of Photoshop's image resources."""
    label = bytes((len(name),)) + name
    label += b"\0" * (len(label) % 2)
    return (
        b"8BIM"
        + struct.pack(">H", kind)
        + label
        + struct.pack(">I", len(data))
        + data
        + (b"\0" * (len(data) % 2))
    )


def tiff_block(main: list, gps: list = (), order: str = "<") -> bytes:
    """An EXIF block of raw entries (tag, type, count, bytes), which piexif would not write."""

    def directory(entries: list, start: int) -> bytes:
        rest = start + 2 + 12 * len(entries) + 4
        head, values = struct.pack(order + "H", len(entries)), b""
        for tag, kind, count, value in sorted(entries):
            inline = value.ljust(4, b"\0")
            if len(value) > 4:
                inline, values = struct.pack(order + "I", rest + len(values)), values + value
            head += struct.pack(order + "HHI", tag, kind, count) + inline
        return head + bytes(4) + values

    size = len(directory([*main, (0x8825, 4, 1, bytes(4))] if gps else main, 8))
    if gps:
        main = [*main, (0x8825, 4, 1, struct.pack(order + "I", 8 + size))]
    magic = b"II*\0\x08\0\0\0" if order == "<" else b"MM\0*\0\0\0\x08"
    return magic + directory(main, 8) + (directory(gps, 8 + size) if gps else b"")


def jpeg_with_blocks(path: Path, *bodies: bytes) -> Path:
    """A JPEG with these bodies of APP1 segments, each behind Exif's marker, in this order."""
    data = save(path).read_bytes()
    segments = (b"\xff\xe1" + struct.pack(">H", len(b) + 8) + b"Exif\0\0" + b for b in bodies)
    path.write_bytes(data[:2] + b"".join(segments) + data[2:])
    return path


def folder(tmp_path, photos=6) -> tuple[Path, Path]:
    images = tmp_path / "images"
    for number in range(photos):
        exif = exif_bytes({0x0112: 1, 0x010F: b"Maker"},
                          {0x9003: b"2020:01:02 03:04:%02d" % (number % 60)},
                          gps_of(45 + number / 100, 7, _6=(100 + number, 1)))  # fmt: skip
        save(images / f"{number % 3}" / f"{number:04d}.jpg", exif)
    return images, tmp_path / "data"
