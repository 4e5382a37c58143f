"""Reading processes, and files that mean harm: each costs one row within bounds."""

import functools
import json
import multiprocessing
import os
import random
import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import piexif
import pytest
from exif_files import SCRIPT, folder, save
from PIL import Image

import exif_extractor
from geophoto import labels, pictures, readers
from geophoto.table import read_records

# ---------------------------------------------------------------- the table


def test_results_come_in_order_also_behind_many_known_blocks(tmp_path):
    path = str(save(tmp_path / "a.jpg"))
    blocks = [(number, [(path,)] * (number % 9 == 8)) for number in range(30)]
    found = list(readers.read_blocks(blocks, 2, lambda: None))
    assert [block for block, _ in found] == list(range(30))
    assert [len(rows) for _, rows in found] == [len(paths) for _, paths in blocks]


@pytest.mark.parametrize("trouble", ["dies", "spins", "hoards"])
def test_a_hostile_file_costs_one_row(tmp_path, monkeypatch, trouble):
    images, data = folder(tmp_path, 20)
    read_photo = labels.read_photo

    def hostile(path):
        if path.endswith("0007.jpg"):
            if trouble == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            while trouble == "spins":
                re.match("(a+)+$", "a" * 26 + "b")  # in C: no Python handler would run
            if trouble == "hoards":
                raise MemoryError
        return read_photo(path)

    monkeypatch.setattr(readers, "read_photo", hostile)
    monkeypatch.setattr(readers, "FILE_CPU_S", 0.2)
    begun = time.monotonic()
    result = exif_extractor.extract(images, data, 2)
    assert time.monotonic() - begun < 60
    assert (result["photos"], result["unreadable"]) == (20, 1)
    rows = list(read_records(data / "exif_data.json"))
    assert [row["filename"] for row in rows if row["status"] == "unreadable"] == ["1/0007.jpg"]
    monkeypatch.undo()
    assert exif_extractor.extract(images, data, 2)["unreadable"] == 0  # tried again next time


def test_readers_that_die_between_two_blocks_are_replaced(tmp_path):
    paths = [(str(save(tmp_path / f"{number}.jpg")),) for number in range(3)]

    def blocks():
        for number in range(6):
            yield number, paths
            for child in multiprocessing.active_children():  # as the system does when memory ends
                child.kill()
                child.join()

    found = list(readers.read_blocks(blocks(), 2, lambda: None))
    assert [block for block, _ in found] == list(range(6))
    assert {row["status"] for _, rows in found for row in rows} == {"no_exif"}


def test_readers_work_where_processes_are_not_forked(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    paths = [(str(save(tmp_path / f"{number}.jpg")),) for number in range(3)]
    found = list(readers.read_blocks([(0, paths), (1, paths[:1])], 2, lambda: None))
    assert [(block, len(rows)) for block, rows in found] == [(0, 3), (1, 1)]
    assert {row["image_width"] for _, rows in found for row in rows} == {64}


@pytest.mark.parametrize("busy", [False, True])
def test_readers_do_not_outlive_a_killed_run(tmp_path, busy):
    """Neither those that wait for work nor those that read."""
    if not Path("/proc/self/task").exists():
        pytest.skip("children are listed on Linux only")
    path = save(tmp_path / "a.jpg")
    code = (
        "import sys, time\nfrom geophoto import readers\n"
        "read = readers.read_photo\n"
        f"readers.read_photo = lambda path: time.sleep({0.3 * busy}) or read(path)\n"
        f"blocks = ((n, [({str(path)!r},)]) for n in range(9))\n"
        "for block, _ in readers.read_blocks(blocks, 3, lambda: None):\n"
        "    print(block, flush=True)\n    time.sleep(9 * (block == 3))\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code], cwd=SCRIPT.parent, stdout=subprocess.PIPE, text=True
    )
    while run.stdout.readline() != "3\n":
        pass
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    assert len(children) == 3
    run.kill()
    run.wait()
    limit = time.monotonic() + 10
    while any(Path(f"/proc/{child}/cmdline").exists() for child in children):
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_readers_may_not_take_more_memory_than_allowed(tmp_path, monkeypatch):
    if sys.platform != "linux":
        pytest.skip("address space limits are Linux only")
    monkeypatch.setattr(labels, "read_container", lambda data: bytes(1 << 30))
    save(tmp_path / "images" / "a.jpg")
    exif_extractor.extract(tmp_path / "images", tmp_path, 1)
    assert next(read_records(tmp_path / "exif_data.json"))["warnings"] == "out_of_memory"


SECONDS, MEMORY_MB = 2.0, 512


def seeds(folder: Path) -> dict[str, bytes]:
    """One good file of each format, with EXIF, XMP and position where the format has room."""
    import pillow_heif

    pillow_heif.register_heif_opener()
    exif = piexif.dump(
        {
            "0th": {0x010F: b"Maker", 0x0110: b"Model", 0x0112: 6},
            "Exif": {0x9003: b"2020:01:02 03:04:05", 0x9011: b"+02:00", 0x829A: (1, 60)},
            "GPS": {1: b"N", 2: ((1, 1), (2, 1), (3, 1)), 3: b"E", 4: ((4, 1), (5, 1), (6, 1)),
                    6: (7, 1), 7: ((1, 1), (4, 1), (5, 1)), 29: b"2020:01:02"},
        }
    )  # fmt: skip
    packet = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-'
        b'rdf-syntax-ns#"><rdf:Description xmlns:exif="http://ns.adobe.com/exif/1.0/" '
        b'exif:GPSLatitude="48,37.9N" exif:GPSLongitude="1,30.5W" exif:DateTimeOriginal='
        b'"2010-07-11T13:53:00+02:00"/></rdf:RDF></x:xmpmeta>'
    )
    image, found = Image.linear_gradient("L").resize((24, 16)).convert("RGB"), {}
    for suffix in ("jpg", "png", "webp", "avif", "heic", "tif", "bmp"):
        path = folder / f"seed.{suffix}"
        image.save(path, **({} if suffix in ("tif", "bmp") else {"exif": exif}))
        found[suffix] = path.read_bytes()
    body = b"http://ns.adobe.com/xap/1.0/\0" + packet
    marker = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    plain = found["jpg"]
    found["xmp.jpg"] = plain[:2] + marker + plain[plain.index(b"\xff\xdb") :]
    digits = exif.hex().encode()
    text = zlib.compress(b"\nexif\n%8d\n%s\n" % (len(exif), digits))
    found["text.png"] = png_chunk(found["png"], b"zTXt", b"Raw profile type exif\0\0" + text)
    found["exif.tif"] = exif[6:]
    return found


def png_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return png[:33] + chunk + png[33:]


def mutate(data: bytes, chance: random.Random) -> bytes:
    """A few random edits: bits, bytes, sizes, cuts, repeats, numbers that parsers trip over."""
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16, 64))):
        if not data:
            break
        at = chance.randrange(len(data))
        kind = chance.randrange(8)
        if kind == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))
        elif kind == 2:
            number = chance.choice(
                (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x0FFFFFFF, len(data))
            )
            data[at : at + 4] = struct.pack(chance.choice("<>") + "I", number)
        elif kind == 3:
            del data[at : at + chance.randrange(1, 64)]
        elif kind == 4:
            data[at:at] = chance.randbytes(chance.randrange(1, 64))
        elif kind == 5:
            del data[at:]
        elif kind == 6:
            data[at:at] = data[at : at + chance.randrange(1, 256)]
        else:
            data[at : at + 2] = struct.pack(chance.choice("<>") + "H", chance.randrange(65536))
    return bytes(data)


def check(folder: Path, tmp_path: Path, count: int, seed: int) -> None:
    images, data, chance = tmp_path / "images", tmp_path / "data", random.Random(seed)
    originals = seeds(folder)
    names = sorted(originals)
    for number in range(count):
        name = names[number % len(names)]
        path = images / f"{number // 1000}" / f"{number:06d}.{name.rpartition('.')[2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mutate(originals[name], chance))
    begun = time.monotonic()
    result = exif_extractor.extract(images, data, 2)
    taken = time.monotonic() - begun
    rows = list(read_records(data / "exif_data.json"))
    assert result["photos"] == len(rows) == count
    assert [row["filename"] for row in rows] == list(pictures.find_photos(images))
    for row in rows:
        assert row["status"] in ("ok", "empty_exif", "no_exif", "unreadable")
        assert row["warnings"] or row["status"] != "unreadable"
        assert "reader_" not in (row["warnings"] or ""), row
        if row["gps_latitude"] is not None:
            assert abs(row["gps_latitude"]) <= 90 and abs(row["gps_longitude"]) <= 180
        assert row["orientation_tag"] in (None, *range(1, 9))
    json.loads((data / "exif_data.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert taken < max(10, count / 200), f"{taken:.1f} s for {count} files"


def test_a_thousand_mutated_files(tmp_path, tmp_path_factory):
    check(tmp_path_factory.mktemp("seeds"), tmp_path, 1000, seed=1)


@pytest.mark.slow
def test_twenty_thousand_mutated_files(tmp_path, tmp_path_factory):
    check(tmp_path_factory.mktemp("seeds"), tmp_path, 20_000, seed=20)


@functools.cache
def bombs() -> dict[str, bytes]:
    """Small files that ask for much."""
    seed = struct.pack("<2sHIH", b"II", 42, 8, 1)
    count = seed + struct.pack("<HHII", 0x010F, 4, 0x0FFFFFFF, 0) + b"\0" * 653
    app1 = b"Exif\0\0" + count[:679]
    jpeg = b"\xff\xd8\xff\xe1" + struct.pack(">H", len(app1) + 2) + app1 + b"\xff\xd9"
    full = struct.pack("<2sHIH", b"II", 42, 8, 65535)
    entries = b"".join(struct.pack("<HHII", 0x010F, 2, 4000, 8) for _ in range(65535))
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 6, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    )
    inflating = zlib.compress(bytes(200_000_000), 9)
    frame = b"ANMF" + struct.pack("<I", 24) + bytes(24)
    moving = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(10) + frame * 10_000
    boxes = struct.pack(">I4s4sI", 16, b"ftyp", b"heic", 0)
    nested = b"".join(struct.pack(">I4s", 8, b"free") for _ in range(200_000))
    places = struct.pack(">I4sI", 12 + 16, b"meta", 0) + struct.pack(
        ">I4sII", 16, b"iloc", 0, 0xFFFFFFFF
    )
    ring = struct.pack("<2sHIHHHIIHHII", b"II", 42, 8, 2, 0x8769, 4, 1, 8, 0x8825, 4, 1, 8)
    laughs = b'<!DOCTYPE x [<!ENTITY a "ha">' + b"".join(
        b'<!ENTITY %c "%s">' % (98 + i, b"&%c;" % (97 + i) * 10) for i in range(12)
    )
    packet = laughs + b"]><rdf:RDF><rdf:Description exif:Make='&m;' tiff:Make='&m;'/></rdf:RDF>"
    xmp = b"http://ns.adobe.com/xap/1.0/\0" + packet
    deep = b"http://ns.adobe.com/xap/1.0/\0" + b"<rdf:RDF tiff:Make=''>" + b"<a>" * 21_000

    def segment(body: bytes) -> bytes:
        return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body

    def box(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I4s", len(body) + 8, kind) + body

    def items(entry: bytes) -> bytes:
        """A HEIC file that lists as many items of one sort as a header may hold."""
        location = box(b"iloc", bytes(4) + b"\x44\0\0\1\0\1\0\0" + bytes(10))
        listed = box(b"iinf", bytes(4) + b"\xff\xff" + 95_000 * box(b"infe", entry))
        return boxes + box(b"meta", bytes(4) + box(b"pitm", bytes(4) + b"\0\1") + location + listed)

    return {
        "one_long.jpg": jpeg,
        "one_long.tif": count,
        "entries.tif": full + entries,
        "60000.png": png,
        "inflating.png": png_chunk(png, b"zTXt", b"Raw profile type exif\0\0" + inflating),
        "inflating_xmp.png": png_chunk(png, b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + inflating),
        "frames.webp": b"RIFF" + struct.pack("<I", len(moving)) + moving,
        "boxes.heic": boxes + nested,
        "places.heic": boxes + places,
        "ring.tif": ring,
        "laughs.jpg": b"\xff\xd8" + segment(xmp) + b"\xff\xd9",
        "deep.jpg": b"\xff\xd8" + segment(deep) + b"\xff\xd9",
        "segments.jpg": b"\xff\xd8" + b"\xff\xe0\0\2" * 3_000_000,
        "continued.jpg": b"\xff\xd8" + segment(app1) + segment(b"Exif\0\0" + bytes(65_000)) * 200,
        "blocks.jpg": b"\xff\xd8" + segment(b"Exif\0\0" + (full + entries)[:65_000]) * 200,
        "items_exif.heic": items(b"\2\0\0\0\0\1\0\0Exif"),
        "items_mime.heic": items(b"\2\0\0\0\0\1\0\0mime"),
        "items_xmp.heic": items(b"\2\0\0\0\0\1\0\0mimerdf+xml"),
        "items_else.heic": items(b"\2\0\0\0\0\1\0\0hvc1"),
        "fill.jpg": b"\xff\xd8" + b"\xff" * 8_000_000,
        "zeros.jpg": b"\xff\xd8" + bytes(50_000_000),
        "chunks.png": png[:33] + b"\0\0\0\0tEXt\0\0\0\0" * 1_000_000,
        "texts.png": png[:33]
        + png_chunk(b"", b"tEXt", b"Raw profile type exif\0" + b"\n" * 900_000) * 20,
    }


@pytest.mark.parametrize("name", sorted(bombs()))
def test_bombs_stay_within_time_and_memory(tmp_path, name):
    path = tmp_path / "images" / name
    path.parent.mkdir()
    path.write_bytes(bombs()[name])
    taken, peak = measure(path)
    assert taken < SECONDS and peak < MEMORY_MB, f"{taken:.2f} s, {peak:.0f} MB"
    result = exif_extractor.extract(path.parent, tmp_path, 1)
    assert result["photos"] == 1
    row = next(read_records(tmp_path / "exif_data.json"))
    assert "reader_" not in (row["warnings"] or "")


def measure(path: Path) -> tuple[float, float]:
    """Processor seconds and growth of peak memory (MB) of reading one file in a fresh process."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        import resource

        before = resource.getrusage(resource.RUSAGE_SELF)
        labels.read_photo(str(path))
        after = resource.getrusage(resource.RUSAGE_SELF)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        os.write(send, f"{seconds} {(after.ru_maxrss - before.ru_maxrss) / 1e3}".encode())
        os._exit(0)
    os.close(send)
    os.waitpid(child, 0)
    with os.fdopen(receive, "rb") as pipe:
        return tuple(map(float, pipe.read().split()))


def test_what_is_no_regular_file_is_never_opened(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    os.mkfifo(images / "pipe.jpg")
    os.symlink("/dev/zero", images / "zero.jpg")
    os.symlink(images / "nowhere", images / "gone.jpg")
    assert exif_extractor.extract(images, tmp_path, 1)["photos"] == 0


def test_a_file_that_grows_or_vanishes_meanwhile(tmp_path):
    row = labels.read_photo(str(tmp_path / "gone.jpg"))
    assert (row["status"], row["warnings"]) == ("unreadable", "cannot_open")
