"""Containers: EXIF and XMP wherever a format can hold them."""

import struct
import time
import zlib
from pathlib import Path

import pytest
from exif_files import exif_bytes, gps_of, jpeg_with_blocks, read, save, tiff_block, xmp_packet


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


# ---------------------------------------------------------------- EXIF in several parts


@pytest.mark.parametrize("note", [100_000, 300_000, 1_200_000])
@pytest.mark.parametrize("size", [65_527, 65_000, 30_001])
def test_exif_of_more_than_a_segment_goes_on_in_the_next(tmp_path, note, size):
    """Directories and values before and behind the long one: none is lost."""
    exif = exif_bytes(
        {0x010F: b"Maker"}, {0x9003: b"2020:01:02 03:04:05", 0x9286: bytes(note)},
        gps_of(48.2, 16.37, _6=(171, 1)),
    )[6:]  # fmt: skip
    parts = [exif[at : at + size] for at in range(0, len(exif), size)]
    assert len(parts) > 1
    row = read(jpeg_with_blocks(tmp_path / "a.jpg", *parts))
    assert (row["gps_latitude"], row["gps_longitude"]) == pytest.approx((48.2, 16.37))
    assert (row["gps_altitude"], row["datetime"]) == (171, "2020-01-02T03:04:05")
    row = read(jpeg_with_blocks(tmp_path / "b.jpg", parts[0]))  # the rest is lost
    assert row["camera_make"] == "Maker"


def webp_with(path: Path, *blocks: bytes) -> Path:
    """As encoders write it, but with several EXIF chunks."""
    data = save(path, exif_bytes({0x0131: b"x"})).read_bytes()
    begin = data.index(b"EXIF")
    chunks = b"".join(
        b"EXIF" + struct.pack("<I", len(block)) + block + b"\0" * (len(block) % 2)
        for block in blocks
    )
    path.write_bytes(b"RIFF" + struct.pack("<I", begin + len(chunks) - 8) + data[8:begin] + chunks)
    return path


def with_blocks(path: Path, kind: str, first: bytes, second: bytes) -> Path:
    if kind == "jpeg":
        return jpeg_with_blocks(path.with_suffix(".jpg"), first[6:], second[6:])
    if kind == "webp":
        return webp_with(path.with_suffix(".webp"), first[6:], second[6:])
    text = (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile(b"exif", second)))
    chunks = [(b"eXIf", first[6:]), text]
    return png_with(path.with_suffix(".png"), *(chunks if kind == "png" else chunks[::-1]))


@pytest.mark.parametrize("kind", ["jpeg", "webp", "png", "png text first"])
def test_a_second_block_fills_what_the_first_lacks(tmp_path, kind):
    time, place = {0x9003: b"2020:01:02 03:04:05", 0x9011: b"+01:00"}, gps_of(45, 7, _6=(3, 1))
    full = exif_bytes({0x010F: b"Second", 0x0112: 6}, time, place)
    row = read(with_blocks(tmp_path / "a", kind, exif_bytes({0x010F: b"First"}), full))
    assert (row["camera_make"], row["orientation_tag"]) == ("First", 6)
    assert (row["datetime"], row["utc_offset_minutes"]) == ("2020-01-02T03:04:05", 60)
    assert (row["gps_latitude"], row["gps_longitude"], row["gps_altitude"]) == (45, 7, 3)
    row = read(with_blocks(tmp_path / "b", kind, full, exif_bytes({0x010F: b"First"})))
    assert (row["camera_make"], row["gps_altitude"]) == ("Second", 3)
    row = read(with_blocks(tmp_path / "c", kind, full[:14], full))  # the first one is cut off
    assert (row["camera_make"], row["warnings"]) == ("Second", None)


@pytest.mark.parametrize("kind", ["jpeg", "webp", "png", "png text first"])
def test_blocks_are_not_mixed_within_a_time_or_a_place(tmp_path, kind):
    half = {1: b"N", 2: ((5, 1), (0, 1), (0, 1))}
    first = exif_bytes({}, {0x9003: b"2020:01:02 03:04:05"}, half)
    dates = {0x9003: b"2019:01:02 03:04:05", 0x9011: b"+01:00", 0x9291: b"5"}
    second = exif_bytes({}, dates, gps_of(1, 2, _6=(9, 1)))
    row = read(with_blocks(tmp_path / "a", kind, first, second))
    assert (row["datetime"], row["utc_offset_minutes"]) == ("2020-01-02T03:04:05", None)
    assert row["gps_latitude"] is None and "gps_incomplete" in row["warnings"]
    assert row["gps_altitude"] == 9


# ---------------------------------------------------------------- damage and emptiness

UNWANTED = [(0x010E, 2, 8, b"a title\0"), (0x011A, 5, 1, struct.pack("<II", 72, 1))]
MAKER = (0x010F, 2, 6, b"Maker\0")
SOUND = {
    "tags nobody wants": tiff_block(UNWANTED),
    "no entries": tiff_block([]),
    "one wanted": tiff_block([MAKER]),
    "unwanted value far off": tiff_block([(0x010E, 2, 5000, b"short title\0")]),
}
DAMAGED = {
    "cut in the directory": tiff_block(UNWANTED)[:20],
    "cut before the directory": tiff_block(UNWANTED)[:8],
    "header alone": b"II*\0",
    "points nowhere": b"II*\0" + struct.pack("<I", 90_000) + bytes(40),
    "wanted value cut off": tiff_block([MAKER])[:-4],
    "wanted value too long": tiff_block([(0x010F, 2, 0x0FFFFFFF, b"Maker\0")]),
    "types that are none": tiff_block([*UNWANTED, (0x0200, 99, 1, b"")]),
    "noise": b"II" + bytes(range(40, 120)),
}


@pytest.mark.parametrize("name", [*SOUND, *DAMAGED])
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_damage_and_emptiness_are_told_apart(tmp_path, kind, name):
    block = (SOUND | DAMAGED)[name]
    if kind == "jpeg":
        path = jpeg_with_blocks(tmp_path / "a.jpg", block)
    elif kind == "png":
        path = png_with(tmp_path / "a.png", (b"eXIf", block))
    else:
        path = webp_with(tmp_path / "a.webp", block)
    assert ("exif_damaged" in (read(path)["warnings"] or "")) == (name in DAMAGED)


# ---------------------------------------------------------------- HEIC


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body) + 8, kind) + body


def heic_of(items: int, exif: bytes, turn: int | None = None) -> bytes:
    """The header of a HEIC of many tiles, with EXIF as its last item and in its file's end."""
    wide = items > 65_535
    number = ">I" if wide else ">H"
    infos = b"".join(
        box(b"infe", bytes((3 if wide else 2, 0, 0, 0)) + struct.pack(number, item) + b"\0\0"
            + (b"Exif\0" if item == items else b"hvc1\0"))
        for item in range(1, items + 1)
    )  # fmt: skip
    count = (bytes((1, 0, 0, 0)) + struct.pack(">I", items)) if wide else (
        bytes(4) + struct.pack(">H", items))  # fmt: skip
    version = 2 if wide else 0
    size = bytes((0x44, 0x00))
    body = struct.pack(">I", 0) + exif

    def meta(start: int) -> bytes:
        places = b"".join(
            struct.pack(number, item) + (b"\0\0" if wide else b"") + b"\0\0" + struct.pack(
                ">HII", 1, start if item == items else 0, len(body) if item == items else 0)
            for item in range(1, items + 1)
        )  # fmt: skip
        iloc = bytes((version, 0, 0, 0)) + size + struct.pack(number, items) + places
        properties = box(b"ispe", bytes(4) + struct.pack(">II", 640, 400))
        if turn is not None:
            properties += box(b"irot", bytes((turn,)))
        used = bytes((1, 2)) if turn is not None else bytes((1,))
        ipma = bytes(4) + struct.pack(">IHB", 1, 1, len(used)) + used
        iprp = box(b"iprp", box(b"ipco", properties) + box(b"ipma", ipma))
        pitm = box(b"pitm", bytes(4) + struct.pack(">H", 1))
        listing = box(b"iinf", count + infos) + box(b"iloc", iloc)
        return box(b"meta", bytes(4) + pitm + listing + iprp)

    head = box(b"ftyp", b"heic" + bytes(4) + b"mif1heic")
    return head + meta(len(head) + len(meta(0))) + body


@pytest.mark.parametrize("items", [2, 999, 1001, 5000, 30_000])
def test_heic_of_many_items(tmp_path, items):
    exif = exif_bytes({0x010F: b"Maker"}, {}, gps_of(49.5, 11.25))
    (tmp_path / "a.heic").write_bytes(heic_of(items, exif))
    row = read(tmp_path / "a.heic")
    assert (row["camera_make"], row["gps_latitude"], row["gps_longitude"]) == ("Maker", 49.5, 11.25)
    assert (row["image_width"], row["image_height"]) == (640, 400)


def test_an_xmp_item_after_the_exif_of_many_pictures_is_read(tmp_path):
    """A burst in one file: what is there already is not opened again, so nothing is given up."""
    exif, count = exif_bytes({0x010F: b"Maker"}), 31
    packet = xmp_packet(DateTimeOriginal="2020-01-02T03:04:05")
    body = [bytes(4) + exif] * (count - 1) + [packet]

    def entry(item: int) -> bytes:
        sort = b"mime\0application/rdf+xml\0" if item == count else b"Exif\0"
        return box(b"infe", bytes((2, 0, 0, 0)) + struct.pack(">H", item) + b"\0\0" + sort)

    def meta(start: int) -> bytes:
        places = b""
        for item, content in enumerate(body, 1):
            places += struct.pack(">HHHII", item, 0, 1, start, len(content))
            start += len(content)
        listed = struct.pack(">H", count)
        iinf = box(b"iinf", bytes(4) + listed + b"".join(map(entry, range(1, count + 1))))
        iloc = box(b"iloc", bytes(4) + bytes((0x44, 0)) + listed + places)
        return box(b"meta", bytes(4) + box(b"pitm", bytes(4) + struct.pack(">H", 1)) + iinf + iloc)

    head = box(b"ftyp", b"heic" + bytes(4) + b"mif1heic")
    (tmp_path / "a.heic").write_bytes(head + meta(len(head) + len(meta(0))) + b"".join(body))
    row = read(tmp_path / "a.heic")
    assert (row["camera_make"], row["datetime"]) == ("Maker", "2020-01-02T03:04:05")


@pytest.mark.parametrize("turn", [None, 0, 1, 2, 3])
@pytest.mark.parametrize("tag", [None, 1, 3, 6, 8, 9])
def test_the_turn_of_a_heic_is_its_containers_or_else_that_of_exif(tmp_path, turn, tag):
    exif = exif_bytes({0x010F: b"Maker"} | ({0x0112: tag} if tag else {}))
    (tmp_path / "a.heic").write_bytes(heic_of(3, exif, turn))
    row = read(tmp_path / "a.heic")
    told = 1 if tag == 9 else tag
    assert row["orientation_tag"] == (told if turn is None else 1)
    swapped = turn in (1, 3)  # the decoder does that
    assert (row["image_width"], row["image_height"]) == ((400, 640) if swapped else (640, 400))
