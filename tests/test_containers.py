"""Containers: EXIF and XMP wherever a format can hold them."""

import struct
import time
import zlib
from pathlib import Path

from exif_files import exif_bytes, read, save, xmp_packet


def png_with(path: Path, *chunks: tuple[bytes, bytes], last=True) -> Path:
    save(path)
    data = path.read_bytes()
    packed = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    cut = len(data) - 12 if last else 33  # before IEND, or right after IHDR
    path.write_bytes(data[:cut] + packed + data[cut:])
    return path


# ---------------------------------------------------------------- PNG texts


def profile(kind: bytes, exif: bytes) -> bytes:
    digits = exif.hex().encode()
    lines = b"\n".join(digits[i : i + 72] for i in range(0, len(digits), 72))
    return b"\n%s\n%8d\n%s\n" % (kind, len(exif), lines)


def test_png_metadata_in_every_chunk_that_can_hold_it(tmp_path):
    exif = exif_bytes({0x010F: b"Maker"}, {0x9003: b"2020:01:02 03:04:05"})
    bare = exif[6:]
    packet = xmp_packet(DateTimeOriginal="2020-01-02T03:04:05")
    texts = [
        (b"eXIf", bare),
        (b"eXIf", exif),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile(b"exif", exif))),
        (b"tEXt", b"Raw profile type APP1\0" + profile(b"APP1", exif)),
        (b"iTXt", b"Raw profile type exif\0\1\0\0\0" + zlib.compress(profile(b"exif", exif))),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet),
        (b"zTXt", b"Raw profile type xmp\0\0" + zlib.compress(profile(b"xmp", packet))),
    ]
    for number, chunk in enumerate(texts):
        for last in (False, True):
            row = read(png_with(tmp_path / f"{number}{last}.png", chunk, last=last))
            assert (row["status"], row["datetime"]) == ("ok", "2020-01-02T03:04:05"), chunk[1][:25]
    bomb = zlib.compress(b"\0" * 300_000_000, 9)
    begun = time.perf_counter()
    row = read(png_with(tmp_path / "bomb.png", (b"zTXt", b"Raw profile type exif\0\0" + bomb)))
    assert row["status"] == "no_exif" and time.perf_counter() - begun < 1
