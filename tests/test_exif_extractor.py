"""exif_extractor: photographs with known truth in, the same truth out of the table."""

import csv
import importlib.resources
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tarfile
import time
import unicodedata
import zlib
import zoneinfo
from datetime import datetime, timedelta
from fractions import Fraction
from pathlib import Path

import numpy as np
import piexif
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

import exif_extractor
from tests import exif_agreement

SCRIPT = Path(__file__).parents[1] / "exif_extractor.py"
SHARED = Path(__file__).parents[2] / "shared"


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


def read(path: Path) -> dict:
    """One finished row."""
    return exif_extractor.finish_row(path.name, exif_extractor.read_photo(str(path)))


def xmp_packet(**values) -> bytes:
    inside = " ".join(f'exif:{key}="{value}"' for key, value in values.items())
    return (
        '<?xpacket begin="\ufeff"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        f'xmlns:exif="http://ns.adobe.com/exif/1.0/" {inside}/></rdf:RDF></x:xmpmeta>'
    ).encode()


def jpeg_with_xmp(path: Path, packet: bytes, exif: bytes = b"") -> Path:
    save(path, exif)
    data = path.read_bytes()
    body = b"http://ns.adobe.com/xap/1.0/\0" + packet
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:])
    return path


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


# ---------------------------------------------------------------- orientation


@pytest.mark.parametrize("tag", range(1, 9))
def test_one_table_of_turns_agrees_with_pillow(tag):
    mirrored, quarters, name = exif_extractor.ORIENTATIONS[tag]
    stored = picture()
    image = Image.fromarray(stored)
    image.getexif()[0x0112] = tag
    upright = np.asarray(ImageOps.exif_transpose(image))
    ours = np.asarray(exif_extractor._turn_image(Image.fromarray(stored), tag))
    assert np.array_equal(ours, upright)
    back = exif_extractor._turn_image(Image.fromarray(upright), tag, back=True)
    assert np.array_equal(np.asarray(back), stored)
    if name is None:
        assert tag in (5, 7) and mirrored and quarters in (1, 3)
        return
    assert exif_extractor.ORIENTATION_TAG[name] == tag
    assert np.array_equal(exif_extractor.turn_upright(stored, name), upright)
    assert np.array_equal(exif_extractor.store_as(upright, name), stored)
    assert np.array_equal(exif_extractor.turn_upright(stored[..., 0], name), upright[..., 0])


def test_class_order_is_that_of_the_model():
    assert exif_extractor.ORIENTATION_CLASSES == (
        "Normal", "Rotated 90°", "Rotated 180°", "Rotated 270°", "Flipped H", "Flipped V",
    )  # fmt: skip


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "avif"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_every_format_opens_upright_and_as_stored(tmp_path, suffix, tag):
    mirrored, quarters, name = exif_extractor.ORIENTATIONS[tag]
    stored = np.rot90(picture(), quarters)
    stored = np.ascontiguousarray(stored[:, ::-1] if mirrored else stored)
    exif = Image.Exif()
    exif[0x0112] = tag
    path = tmp_path / f"photo.{suffix}"
    lossy = {} if suffix in ("png", "tif") else {"quality": 95}
    Image.fromarray(stored).save(path, exif=exif, **lossy)
    row = read(path)
    if (suffix, tag) != ("avif", 1):  # Pillow then writes neither irot nor EXIF: nothing is stated
        assert (row["orientation_tag"], row["orientation"]) == (tag, name)
    assert ("orientation_transposed" in (row["warnings"] or "")) == (tag in (5, 7))
    assert (row["image_height"], row["image_width"]) == stored.shape[:2]
    for opened, truth in (
        (exif_extractor.open_upright(path), picture()),
        (exif_extractor.open_stored(path), stored),
    ):
        pixels = np.asarray(opened).astype(float)
        assert pixels.shape == truth.shape
        assert np.abs(pixels - truth).mean() < 6


@pytest.mark.parametrize("tag", range(1, 9))
def test_heic_arrives_upright_and_is_not_turned_twice(tmp_path, tag):
    """As phones write it: the container turns the picture, EXIF repeats the tag."""
    pillow_heif = pytest.importorskip("pillow_heif")
    mirrored, quarters, _ = exif_extractor.ORIENTATIONS[tag]
    stored = np.rot90(picture(), quarters)
    stored = np.ascontiguousarray(stored[:, ::-1] if mirrored else stored)
    exif = exif_bytes({0x0112: tag, 0x010F: b"Maker"}, {0x9003: b"2020:01:02 03:04:05"})
    path = tmp_path / "phone.HEIC"
    pillow_heif.from_pillow(Image.fromarray(stored)).save(path, quality=90, exif=exif)
    row = read(path)
    assert (row["orientation"], row["orientation_tag"]) == ("Normal", 1)
    assert (row["camera_make"], row["datetime"]) == ("Maker", "2020-01-02T03:04:05")
    assert (row["image_height"], row["image_width"]) == (40, 64)
    for opened in (exif_extractor.open_upright(path), exif_extractor.open_stored(path)):
        pixels = np.asarray(opened).astype(float)
        assert pixels.shape == (40, 64, 3) and np.abs(pixels - picture()).mean() < 8


# ---------------------------------------------------------------- opening


def test_unusual_pixels_become_sensible_rgb(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 40).reshape(40, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    Image.fromarray(ramp).save(tmp_path / "deep.tif")
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tif")
    for name in ("deep.png", "deep.tif", "float.tif"):
        pixels = np.asarray(exif_extractor.open_upright(tmp_path / name)).astype(float)
        assert np.abs(pixels[..., 0] - ramp / 257).max() <= 1, name
    Image.fromarray(picture()).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    Image.fromarray(picture()).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "p.png")
    for name in ("cmyk.jpg", "p.png"):
        pixels = np.asarray(exif_extractor.open_upright(tmp_path / name)).astype(float)
        assert np.abs(pixels - picture()).mean() < 8, name
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert exif_extractor.open_upright(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert exif_extractor.open_upright(tmp_path / "moving.webp").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_max_side_bounds_the_longer_side_and_never_enlarges(tmp_path, name):
    Image.fromarray(picture(300, 800)).save(tmp_path / name)
    assert exif_extractor.open_upright(tmp_path / name, max_side=200).size == (200, 75)
    assert exif_extractor.open_upright(tmp_path / name, max_side=5000).size == (800, 300)


def test_unreadable_photos_raise_with_name_and_reason(tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    whole = save(tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = (
        struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    )
    idat = b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + idat)
    for name in ("text.jpg", "cut.jpg", "bomb.png", "absent.jpg"):
        with pytest.raises((ValueError, OSError), match=re.escape(name)):
            exif_extractor.open_upright(tmp_path / name)
    assert read(tmp_path / "bomb.png")["image_width"] == 60000


# ---------------------------------------------------------------- photos on disk


def test_find_photos_spells_names_in_nfc_and_skips_what_is_no_photo(tmp_path, capsys):
    decomposed = unicodedata.normalize("NFD", "été/Zoë.JPG")
    for name in ("b.JPG", "a.jpeg", "sub/deep/c.TIF", decomposed, ".hidden/x.jpg", "._b.jpg"):
        save(tmp_path / name, format="JPEG")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "raw.CR2").touch()
    (tmp_path / "folder.jpg").mkdir()
    os.symlink(tmp_path, tmp_path / "sub" / "loop")
    photos = exif_extractor.find_photos(tmp_path)
    assert list(photos) == ["a.jpeg", "b.JPG", "sub/deep/c.TIF", "été/Zoë.JPG"]
    assert all(path.is_file() for path in photos.values())
    assert exif_extractor.photo_file(tmp_path, "été/Zoë.JPG").is_file()
    assert exif_extractor.scan(tmp_path)[2] == ["raw.CR2"]
    save(tmp_path / "été" / "Zoë.JPG", format="JPEG")
    save(
        tmp_path / unicodedata.normalize("NFC", "été") / unicodedata.normalize("NFD", "Zoë.JPG"),
        format="JPEG",
    )
    assert list(exif_extractor.find_photos(tmp_path)).count("été/Zoë.JPG") == 1
    assert "same name after NFC" in capsys.readouterr().err


def test_content_decides_the_type(tmp_path):
    save(tmp_path / "really.jpg", exif_bytes({0x010F: b"Maker"})).rename(tmp_path / "claims.png")
    row = read(tmp_path / "claims.png")
    assert (row["status"], row["camera_make"], row["image_width"]) == ("ok", "Maker", 64)


# ---------------------------------------------------------------- round trip


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lat=st.floats(-89.9, 89.9), lon=st.floats(-179.9, 179.9), metres=st.floats(-400, 8800),
    when=st.datetimes(datetime(1950, 1, 1), datetime(2037, 1, 1)), fraction=st.integers(0, 999),
    minutes=st.integers(-48, 56).map(lambda quarter: quarter * 15), tag=st.integers(1, 8),
)  # fmt: skip
def test_what_piexif_writes_is_what_the_table_says(
    tmp_path, lat, lon, metres, when, fraction, minutes, tag
):
    hours, rest = divmod(abs(minutes), 60)
    zone = f"{'-' if minutes < 0 else '+'}{hours:02d}:{rest:02d}"
    exif = exif_bytes(
        {0x010F: "Fabricant é".encode(), 0x0110: b"M 1", 0x0112: tag},
        {0x9003: when.strftime("%Y:%m:%d %H:%M:%S").rjust(19, "0").encode(), 0x9011: zone.encode(),
         0x9291: f"{fraction:03d}".encode(), 0x829A: (1, 250), 0x829D: (28, 10), 0x8827: 200,
         0x920A: (50, 1), 0xA405: 75, 0xA434: b"Lens 50mm"},
        gps_of(lat, lon, _5=int(metres < 0), _6=ratio(abs(metres), 1000), _16=b"T",
               _17=(12345, 100), _31=(5, 1)),
    )  # fmt: skip
    row = read(save(tmp_path / "photo.jpg", exif))
    assert row["gps_latitude"] == pytest.approx(lat, abs=1e-7)
    assert row["gps_longitude"] == pytest.approx(lon, abs=1e-7)
    assert row["gps_altitude"] == pytest.approx(metres, abs=1e-3)
    when = when.replace(microsecond=fraction * 1000)
    assert datetime.fromisoformat(row["datetime"]) == when
    assert (row["utc_offset_minutes"], row["utc_source"]) == (minutes, "offset_tag")
    assert datetime.fromisoformat(row["datetime_utc"]) == when - timedelta(minutes=minutes)
    assert row["orientation_tag"] == tag
    assert (row["camera_make"], row["camera_model"], row["lens_model"]) == (
        "Fabricant é",
        "M 1",
        "Lens 50mm",
    )
    assert (row["exposure_time_s"], row["f_number"], row["iso"]) == (0.004, 2.8, 200)
    assert (row["focal_length_mm"], row["focal_length_35mm"]) == (50, 75)
    assert (row["gps_img_direction"], row["gps_accuracy_m"]) == (123.45, 5)
    if (row["gps_latitude"], row["gps_longitude"]) != (0, 0):  # that is no place
        assert -90 <= row["sun_elevation_deg"] <= 90 and 0 <= row["sun_azimuth_deg"] < 360


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "avif", "heic"])
def test_every_container_and_byte_order(tmp_path, suffix, order):
    if suffix == "heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    exif = Image.Exif()
    exif.endian = order
    exif[0x010F] = "Maker"
    exif.get_ifd(0x8769)[0x9003] = "2020:06:01 12:00:00"
    exif.get_ifd(0x8825).update({1: "S", 2: (33.0, 30.0, 36.0), 3: "E", 4: (18.0, 15.0, 0.0)})
    path = tmp_path / f"photo.{suffix}"
    if suffix == "tif":  # Pillow writes no Exif directory into TIFF; an EXIF block is a TIFF file
        exif[0x0100], exif[0x0101] = 64, 40
        path.write_bytes(exif.tobytes()[6:])
    else:
        Image.fromarray(picture()).save(path, exif=exif)
    row = read(path)
    assert (row["status"], row["camera_make"], row["datetime"]) == (
        "ok",
        "Maker",
        "2020-06-01T12:00:00",
    )
    assert (row["gps_latitude"], row["gps_longitude"]) == pytest.approx((-33.51, 18.25))
    assert (row["image_width"], row["image_height"]) == (64, 40)
    assert (row["utc_source"], row["utc_offset_minutes"]) == ("position_timezone", 120)


def test_photos_without_metadata_and_broken_files_keep_their_row(tmp_path):
    images = tmp_path / "images"
    for suffix in ("jpg", "png", "bmp", "tif", "webp"):
        save(images / f"plain.{suffix}")
    (images / "empty.jpg").touch()
    (images / "page.jpg").write_text("<html>")
    locked = save(images / "locked.jpg")
    locked.chmod(0)
    exif_extractor.extract(images, tmp_path, workers=1)
    rows = {
        row["filename"]: row for row in exif_extractor.read_records(tmp_path / "exif_data.json")
    }
    assert len(rows) == 8
    for suffix in ("jpg", "png", "bmp", "tif", "webp"):
        row = rows[f"plain.{suffix}"]
        assert (row["status"], row["image_width"], row["image_height"]) == ("no_exif", 64, 40)
    assert (rows["empty.jpg"]["status"], rows["empty.jpg"]["warnings"]) == (
        "unreadable",
        "empty_file",
    )
    assert (rows["page.jpg"]["status"], rows["page.jpg"]["warnings"]) == (
        "unreadable",
        "not_an_image",
    )
    if os.getuid():
        assert rows["locked.jpg"]["warnings"] == "cannot_open"


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


# ---------------------------------------------------------------- position


def test_odd_positions(tmp_path):
    good = gps_of(10.5, 20.25)
    cases = {
        "seconds 0/0": (good | {2: ((10, 1), (30, 1), (0, 0))}, (10.5, 20.25)),
        "all 0/0": (good | {2: ((0, 0), (0, 0), (0, 0))}, None),
        "x/0": (good | {2: ((10, 0), (0, 1), (0, 1))}, None),
        "no reference": ({key: value for key, value in good.items() if key != 1}, None),
        "one value": ({key: value for key, value in good.items() if key != 4}, None),
        "out of range": (good | {2: ((91, 1), (0, 1), (0, 1))}, None),
        "lower case": (good | {1: b"s"}, (-10.5, 20.25)),
        "zero": (gps_of(0, 0), (0.0, 0.0)),
        "void": (good | {9: b"V"}, (10.5, 20.25)),
        "pole": (gps_of(-90, -180), (-90.0, -180.0)),
    }
    flags = {
        "zero": "gps_zero",
        "void": "gps_void",
        "out of range": "gps_out_of_range",
        "one value": "gps_incomplete",
    }
    for name, (gps, expected) in cases.items():
        row = read(save(tmp_path / "photo.jpg", exif_bytes(gps=gps)))
        found = row["gps_latitude"], row["gps_longitude"]
        assert found == pytest.approx(expected) if expected else found == (None, None), name
        assert flags.get(name, "") in (row["warnings"] or ""), name
        assert row["gps_source"] == ("exif" if expected else None), name


@pytest.mark.parametrize(
    ("value", "degrees"),
    [
        (b"52,50.5\0", 52.841666667), (b"52,00000,50,00000,34,01180\0", 52.842781056),
        (b"52/1 50/1 3401180/100000\0", 52.842781056), (b"52/1 50/1 0/0", 52.833333333),
        (b"52/0 0/1", None), (b"0/0 0/0 0/0", None), (b"52.5", 52.5), (b"52 30 36", 52.51),
        ((52.0, 30.0, 36.0), 52.51), ((-52.0, 30.0), 52.5), ((52.5,), 52.5), (b"", None),
        ((), None),
        (b"north", None), (None, None), ((float("nan"),) * 3, None), ((1.0, float("inf")), None),
    ],
)  # fmt: skip
def test_angles_as_rationals_text_and_commas(value, degrees):
    found = exif_extractor.angle(value)
    assert found is None if degrees is None else found == pytest.approx(degrees, abs=1e-8)


def test_altitude_rules(tmp_path):
    for gps, expected in (
        ({6: (1005, 10)}, 100.5), ({5: 1, 6: (1005, 10)}, -100.5), ({5: 0, 6: (3, 1)}, 3),
        ({5: 0, 6: (0, 0)}, None), ({5: 3, 6: (7, 1)}, -7), ({5: 1}, None), ({5: 1, 6: (0, 1)}, 0),
    ):  # fmt: skip
        row = read(save(tmp_path / "photo.jpg", exif_bytes(gps=gps)))
        assert row["gps_altitude"] == expected
        assert "-0.0" not in json.dumps(row)
    for high, doubtful in (((-431, 1), False), ((40_000, 1), False), ((4294967295, 1), True)):
        gps = {5: int(high[0] < 0), 6: (abs(high[0]), high[1])}
        row = read(save(tmp_path / "photo.jpg", exif_bytes(gps=gps)))
        assert ("altitude_doubtful" in (row["warnings"] or "")) == doubtful
        assert row["gps_altitude"] == high[0]  # the table says what the file says


def test_heading_and_receiver_notes(tmp_path):
    base = gps_of(1, 2)
    row = read(save(tmp_path / "a.jpg", exif_bytes(gps=base | {16: b"M", 17: (90, 1)})))
    assert row["gps_img_direction"] is None and "direction_magnetic" in row["warnings"]
    row = read(save(tmp_path / "b.jpg", exif_bytes(gps=base | {16: b"T", 17: (360, 1), 30: 1})))
    assert row["gps_img_direction"] == 0 and "gps_differential" in row["warnings"]
    row = read(save(tmp_path / "c.jpg", exif_bytes(gps=base | {17: (400, 1)})))
    assert row["gps_img_direction"] is None


def test_xmp_fills_what_exif_lacks_and_never_overrides(tmp_path):
    packet = xmp_packet(GPSLatitude="48,37.9084N", GPSLongitude="1,30.5W", GPSAltitude="926/10",
                        GPSAltitudeRef="1",
                        DateTimeOriginal="2010-07-11T13:53:00+02:00")  # fmt: skip
    row = read(jpeg_with_xmp(tmp_path / "a.jpg", packet))
    assert (row["gps_latitude"], row["gps_longitude"]) == pytest.approx(
        (48.631806667, -1.508333333)
    )
    assert (row["gps_altitude"], row["gps_source"], row["utc_offset_minutes"]) == (
        -92.6,
        "xmp",
        120,
    )
    row = read(jpeg_with_xmp(tmp_path / "b.jpg", packet, exif_bytes(gps=gps_of(-5, 6))))
    assert (row["gps_latitude"], row["gps_source"]) == (-5, "exif")
    for packed in (packet.decode().encode("utf-16"), packet[: packet.index(b"/></rdf")] + b">"):
        assert read(jpeg_with_xmp(tmp_path / "c.jpg", packed))["gps_source"] == "xmp"
    nested = packet.replace(
        b"<rdf:Description ", b"<rdf:Description><e:Place xmlns:e='e'><rdf:Description "
    )
    nested = nested.replace(b"</rdf:RDF>", b"</e:Place></rdf:Description></rdf:RDF>")
    assert read(jpeg_with_xmp(tmp_path / "d.jpg", nested))["gps_latitude"] is None
    laughs = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>' + packet
    assert read(jpeg_with_xmp(tmp_path / "e.jpg", laughs))["gps_latitude"] is None


# ---------------------------------------------------------------- text and dates


def test_text_is_decoded_safely():
    assert exif_extractor.text(b"Caf\xc3\xa9\0rest") == "Café"
    assert exif_extractor.text(b"Caf\xe9 \0") == "Café"
    assert exif_extractor.text(b"a\x01b\n") == "a b"
    assert exif_extractor.text(b"\0\0") is None and exif_extractor.text(b"   ") is None
    assert exif_extractor.text((67, 97)) == "Ca"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2020:01:02 03:04:05", "2020-01-02T03:04:05"),
        ("2020-01-02T03:04:05.25", "2020-01-02T03:04:05.250"),
        ("2020: 1: 2  3: 4: 5", "2020-01-02T03:04:05"), ("2020:02:30 03:04:05", None),
        ("0000:00:00 00:00:00", None), ("    :  :     :  :  ", None),
        ("2020:01:02", None), ("2020:01:02 24:00:00", None), ("", None), (None, None),
    ],
)  # fmt: skip
def test_dates_are_validated(written, expected):
    found = exif_extractor.read_date(written)
    assert (exif_extractor._iso(found[0]) if found else None) == expected


def test_order_of_dates_and_sub_seconds(tmp_path):
    taken, digitised = b"2020:01:02 03:04:05", b"2019:01:02 03:04:05"
    row = read(
        save(tmp_path / "a.jpg", exif_bytes(exif={0x9003: taken, 0x9004: digitised, 0x9291: b"5 "}))
    )
    assert row["datetime"] == "2020-01-02T03:04:05.500"
    row = read(
        save(
            tmp_path / "b.jpg", exif_bytes(exif={0x9003: b"2020:13:02 03:04:05", 0x9004: digitised})
        )
    )
    assert row["datetime"] == "2019-01-02T03:04:05" and "date_invalid" in row["warnings"]
    row = read(save(tmp_path / "c.jpg", exif_bytes({0x0132: taken})))
    assert row["datetime"] is None  # the time of editing is not the time of the photo


@pytest.mark.parametrize(
    ("written", "minutes"),
    [("+02:00", 120), ("-0530", -330), ("Z", 0), ("+14:00", 840), ("+14:15", None),
     ("-12:30", None),
     ("   :  ", None), ("+02:75", None), ("", None)],
)  # fmt: skip
def test_offsets(written, minutes):
    assert exif_extractor.read_offset(written) == minutes


# ---------------------------------------------------------------- UTC and the sun


def stamped(tmp_path, local, gps_time=None, gps_date=None, place=(48.2, 16.37)):
    gps = gps_of(*place) if place else {}
    if gps_time:
        gps[7] = tuple((part, 1) for part in gps_time)
    if gps_date:
        gps[29] = gps_date
    return read(save(tmp_path / "photo.jpg", exif_bytes({}, {0x9003: local}, gps)))


def test_three_sources_of_utc_in_order(tmp_path):
    noon = b"2020:07:01 12:00:00"
    gps = gps_of(48.2, 16.37) | {7: ((9, 1), (58, 1), (0, 1)), 29: b"2020:07:01"}
    row = read(save(tmp_path / "a.jpg", exif_bytes({}, {0x9003: noon, 0x9011: b"+05:45"}, gps)))
    assert (row["utc_source"], row["utc_offset_minutes"]) == ("offset_tag", 345)
    assert row["datetime_utc"] == "2020-07-01T06:15:00" and "gps_time_differs" in row["warnings"]
    row = stamped(tmp_path, noon, (9, 58, 0), b"2020:07:01")
    assert (row["utc_source"], row["datetime_utc"]) == ("gps_time", "2020-07-01T10:00:00")
    row = stamped(tmp_path, noon, (9, 50, 0), None)  # no date, ten minutes stale: the zone confirms
    assert (row["utc_source"], row["utc_offset_minutes"]) == ("gps_time", 120)
    row = stamped(tmp_path, noon, (9, 58, 0), b"2000:11:14")  # week rollover of an old receiver
    assert (row["utc_source"], row["utc_offset_minutes"]) == ("position_timezone", 120)
    assert "gps_time_differs" in row["warnings"]
    row = stamped(tmp_path, noon)
    assert (row["utc_source"], row["utc_offset_minutes"]) == ("position_timezone", 120)
    row = stamped(tmp_path, noon, place=None)
    assert (row["utc_source"], row["datetime_utc"], row["sun_elevation_deg"]) == (None, None, None)
    row = stamped(tmp_path, noon, place=(0, 0))  # no place at all: no zone, no sun
    assert (row["utc_source"], row["sun_elevation_deg"]) == (None, None)
    row = stamped(tmp_path, b"", (9, 58, 0), b"2020:07:01")
    assert (row["datetime"], row["datetime_utc"]) == (None, "2020-07-01T09:58:00")


def test_gaps_and_folds_of_daylight_saving_are_flagged(tmp_path):
    row = stamped(tmp_path, b"2024:03:31 02:30:00")
    assert row["warnings"] == "dst_gap" and row["utc_offset_minutes"] == 60
    row = stamped(tmp_path, b"2024:10:27 02:30:00")
    assert row["warnings"] == "dst_fold" and row["utc_offset_minutes"] == 120
    row = stamped(
        tmp_path, b"2024:10:06 02:15:00", place=(-31.55, 159.08)
    )  # half an hour: Lord Howe
    assert row["warnings"] == "dst_gap" and row["utc_offset_minutes"] == 630
    row = stamped(
        tmp_path, b"2011:12:30 12:00:00", place=(-13.83, -171.77)
    )  # Samoa skipped this day
    assert row["warnings"] == "dst_gap"
    assert (
        stamped(tmp_path, b"2024:05:05 02:30:00", place=(43.8, 87.58))["warnings"]
        == "zone_disputed"
    )


def zone_places():
    """(zone, lat, lon) of every place in the time zone database: its own table of coordinates."""
    listing = importlib.resources.files("tzdata").joinpath("zoneinfo/zone.tab").read_text()
    for line in listing.splitlines():
        if line and not line.startswith("#"):
            _, written, zone = line.split("\t")[:3]
            parts = []
            for sign, digits in re.findall(r"([+-])(\d+)", written):
                wide = len(digits) - (4 if len(digits) > 5 else 2)
                value = int(digits[:wide]) + int(digits[wide : wide + 2]) / 60
                parts.append(
                    (-1 if sign == "-" else 1) * (value + int(digits[wide + 2 :] or 0) / 3600)
                )
            yield zone, *parts


def test_zone_offsets_of_all_places_of_the_time_zone_database():
    checked, wrong = 0, []
    for zone, lat, lon in zone_places():
        for when in (datetime(2005, 1, 15, 12), datetime(2015, 7, 15, 12), datetime(2023, 4, 1, 9),
                     datetime(2024, 10, 20, 9)):  # fmt: skip
            delta = zoneinfo.ZoneInfo(zone).utcoffset(when)
            found = exif_extractor.zone_offset(lat, lon, when)
            checked += 1
            if found is None or found[0] != round(delta.total_seconds() / 60):
                wrong.append((zone, found))
    assert checked > 1600
    # In Urumqi two clocks are in use; the official one is taken and the row says so.
    assert all(zone == "Asia/Urumqi" and found[1] == "zone_disputed" for zone, found in wrong), (
        wrong
    )


def test_sun_agrees_with_pvlib():
    solarposition = pytest.importorskip("pvlib.solarposition")
    import pandas as pd

    random = np.random.default_rng(0)
    for _ in range(150):
        lat, lon = (
            float(np.degrees(np.arcsin(random.uniform(-1, 1)))),
            float(random.uniform(-180, 180)),
        )
        when = datetime(1990, 1, 1) + timedelta(seconds=int(random.uniform(0, 1.4e9)))
        up, around = exif_extractor.sun_position(lat, lon, when)
        truth = solarposition.get_solarposition(
            pd.DatetimeIndex([when], tz="UTC"), lat, lon, method="nrel_numpy"
        ).iloc[0]
        aside = abs((around - truth.azimuth + 180) % 360 - 180) * np.cos(np.radians(up))
        assert abs(up - truth.elevation) < 0.05 and aside < 0.05
    for lat in (90.0, -90.0):
        assert np.isfinite(exif_extractor.sun_position(lat, 0.0, datetime(2020, 6, 1))).all()


# ---------------------------------------------------------------- the table


def folder(tmp_path, photos=6) -> tuple[Path, Path]:
    images = tmp_path / "images"
    for number in range(photos):
        exif = exif_bytes({0x0112: 1, 0x010F: b"Maker"},
                          {0x9003: b"2020:01:02 03:04:%02d" % (number % 60)},
                          gps_of(45 + number / 100, 7, _6=(100 + number, 1)))  # fmt: skip
        save(images / f"{number % 3}" / f"{number:04d}.jpg", exif)
    return images, tmp_path / "data"


def run_script(*arguments, check=0, **options):
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, **options
    )
    assert done.returncode == check, done.stderr + done.stdout
    return done


def test_table_reads_back_with_the_columns_of_the_contract(tmp_path):
    images, data = folder(tmp_path)
    (images / "=cmd.jpg").write_bytes(b"")
    exif_extractor.extract(images, data, workers=2)
    table = exif_extractor.read_table(data, images)
    assert tuple(table.columns) == exif_extractor.COLUMNS and len(table) == 7
    assert str(table["gps_latitude"].dtype) == "float64" and table["gps_latitude"].isna().sum() == 1
    assert table["orientation"].isna().sum() == 1
    assert list(table["filename"]) == list(exif_extractor.find_photos(images))
    raw = (data / "exif_data.csv").read_bytes().decode()
    assert raw.count("\r\n") == 8 and "'=cmd.jpg" in raw
    with open(data / "exif_data.csv", encoding="utf-8", newline="") as file:
        sheet = list(csv.DictReader(file))
    for row, record in zip(
        sheet, exif_extractor.read_records(data / "exif_data.json"), strict=True
    ):
        for column in exif_extractor.COLUMNS:
            value = "" if record[column] is None else str(record[column])
            assert row[column].removeprefix("'") == value
    records = json.loads((data / "exif_data.json").read_text(encoding="utf-8"))
    (data / "exif_data.json").write_text(json.dumps(records, indent=1))  # written by another tool
    assert len(exif_extractor.read_table(data)) == 7


@pytest.mark.parametrize(
    "content", [None, "", "[{", '[{"filename": "a.jpg"}]', '{"a": 1}', "[1]", '"x"']
)
def test_a_table_that_cannot_be_used_ends_with_one_line(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "exif_data.json").write_text(content)
    with pytest.raises(SystemExit) as stopped:
        exif_extractor.read_table(tmp_path)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert "exif_data.json" in error and "python exif_extractor.py" in error


def test_an_empty_folder_gives_an_empty_table(tmp_path):
    (tmp_path / "images").mkdir()
    assert exif_extractor.main(["--data-dir", str(tmp_path)]) == 0
    assert len(exif_extractor.read_table(tmp_path)) == 0


def test_unchanged_files_are_not_read_again(tmp_path):
    images, data = folder(tmp_path, 8)

    def again(**options):
        return exif_extractor.extract(images, data, 1, **options)["read"]

    assert again() == 8 and again() == 0
    before = (data / "exif_data.json").read_bytes()
    os.utime(images / "1" / "0001.jpg", ns=(0, 0))
    save(images / "new.jpg")
    (images / "2" / "0005.jpg").unlink()
    assert again() == 2 and again() == 0
    names = [row["filename"] for row in exif_extractor.read_records(data / "exif_data.json")]
    assert names == list(exif_extractor.find_photos(images)) and len(names) == 8
    assert (data / "exif_data.json").read_bytes() != before
    assert again(overwrite=True) == 8
    assert again(round_km=1.0) == 8  # coarse rows are never taken for exact ones
    assert again() == 8
    (data / "exif_data.csv").unlink()
    again()
    assert (data / "exif_data.csv").exists()


def test_a_new_format_of_rows_reads_everything_again(tmp_path, monkeypatch):
    images, data = folder(tmp_path)
    exif_extractor.extract(images, data, 1)
    monkeypatch.setattr(exif_extractor, "TABLE_FORMAT", 999)
    assert exif_extractor.extract(images, data, 1)["read"] == 6


def test_results_come_in_order_also_behind_many_known_blocks(tmp_path):
    path = str(save(tmp_path / "a.jpg"))
    blocks = [(number, [path] * (number % 9 == 8)) for number in range(30)]
    found = list(exif_extractor.Crew(iter(blocks), workers=2).results())
    assert [block for block, _ in found] == list(range(30))
    assert [len(rows) for _, rows in found] == [len(paths) for _, paths in blocks]


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    images, data = folder(tmp_path, 4)
    for number in range(1500):
        os.link(images / "0" / "0000.jpg", images / f"{number:05d}.jpg")
    slow = (
        "import sys, time, exif_extractor as e\n"
        "read = e.read_photo\n"
        "def slowly(path):\n    time.sleep(0.002)\n    return read(path)\n"
        "e.read_photo = slowly\n"
        f"e.main(['--image-dir', {str(images)!r}, '--data-dir', {str(data)!r}, '--workers', '2'])\n"
    )
    done = 0
    for _ in range(2):
        child = subprocess.Popen(
            [sys.executable, "-c", slow], cwd=SCRIPT.parent, start_new_session=True
        )
        limit = time.monotonic() + 60
        while time.monotonic() < limit:
            lines = sum(
                len(p.read_bytes().splitlines()) - 1 for p in data.glob(".exif_data.*.journal")
            )
            if lines > done:
                break
            time.sleep(0.01)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        assert not (data / "exif_data.json").exists()
        done = sum(len(p.read_bytes().splitlines()) - 1 for p in data.glob(".exif_data.*.journal"))
        assert done
    result = exif_extractor.extract(images, data, 1)
    assert result["photos"] == 1504 and result["read"] <= 1504 - done + 2
    names = [row["filename"] for row in exif_extractor.read_records(data / "exif_data.json")]
    assert names == list(exif_extractor.find_photos(images))
    assert not list(data.glob(".exif_data.*.journal"))


@pytest.mark.parametrize("trouble", ["dies", "spins", "hoards"])
def test_a_hostile_file_costs_one_row(tmp_path, monkeypatch, trouble):
    images, data = folder(tmp_path, 20)
    read_photo = exif_extractor.read_photo

    def hostile(path):
        if path.endswith("0007.jpg"):
            if trouble == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            while trouble == "spins":
                re.match("(a+)+$", "a" * 26 + "b")  # in C: no Python handler would run
            if trouble == "hoards":
                raise MemoryError
        return read_photo(path)

    monkeypatch.setattr(exif_extractor, "read_photo", hostile)
    monkeypatch.setattr(exif_extractor, "FILE_CPU_S", 0.2)
    begun = time.monotonic()
    result = exif_extractor.extract(images, data, 2)
    assert time.monotonic() - begun < 60
    assert (result["photos"], result["unreadable"]) == (20, 1)
    rows = list(exif_extractor.read_records(data / "exif_data.json"))
    assert [row["filename"] for row in rows if row["status"] == "unreadable"] == ["1/0007.jpg"]
    monkeypatch.undo()
    assert exif_extractor.extract(images, data, 2)["unreadable"] == 0  # tried again next time


def test_readers_may_not_take_more_memory_than_allowed(tmp_path, monkeypatch):
    if sys.platform != "linux":
        pytest.skip("address space limits are Linux only")
    monkeypatch.setattr(exif_extractor, "read_container", lambda data: bytes(1 << 30))
    save(tmp_path / "images" / "a.jpg")
    exif_extractor.extract(tmp_path / "images", tmp_path, 1)
    assert (
        next(exif_extractor.read_records(tmp_path / "exif_data.json"))["warnings"]
        == "out_of_memory"
    )


def test_the_decoder_does_not_talk_of_metadata(tmp_path):
    damaged = b"II*\0" + struct.pack("<IHHHII", 8, 1, 0x0132, 2, 20, 5000) + b"\0" * 4
    path = str(save(tmp_path / "a.jpg", b"Exif\0\0" + damaged))
    by_itself = "from PIL import Image; Image.open(sys.argv[1]).load()"
    ours = "import exif_extractor; exif_extractor.open_upright(sys.argv[1])"
    for code, talks in ((by_itself, True), (ours, False)):
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; {code}", path],
            cwd=SCRIPT.parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert ("Warning" in done.stderr) == talks, done.stderr


# ---------------------------------------------------------------- as people use it


def test_command_line_end_to_end(tmp_path):
    images, data = folder(tmp_path, 5)
    (images / "broken.jpg").write_bytes(b"nothing")
    (images / "raw.NEF").touch()
    common = ("--image-dir", images, "--data-dir", data)
    done = run_script(*common, "--geojson")
    assert "6 photos: 5 with metadata, 0 without, 1 unreadable" in done.stdout
    for words in (
        "position 5",
        "altitude 5",
        "Normal 5",
        "Maker (5)",
        "broken.jpg: not_an_image",
        "raw.NEF",
    ):
        assert words in done.stdout
    folders = f"--data-dir {data} --image-dir {images}"
    assert done.stdout.endswith(f"next: python depth_map_generator.py {folders}\n")
    shapes = json.loads((data / "exif_data.geojson").read_text())
    assert [round(f["geometry"]["coordinates"][1], 6) for f in shapes["features"]] == [
        45,
        45.03,
        45.01,
        45.04,
        45.02,
    ]
    done = run_script(*common, "--strict", check=1)
    assert "6 unchanged" in done.stdout
    done = run_script("--data-dir", tmp_path / "nowhere", check=2)
    assert done.stderr.count("\n") == 1 and "nowhere" in done.stderr
    run_script(*common, "--workers", "0", check=2)
    assert "Exit codes" in run_script("--help").stdout


def test_rounding_hides_places_also_from_the_sun(tmp_path):
    images = tmp_path / "images"
    for number in range(12):
        gps = gps_of(46.0 + number * 0.0003, 7.0, _31=(3, 1))
        save(images / f"{number}.jpg", exif_bytes({}, {0x9003: b"2020:01:02 12:00:00"}, gps))
    exif_extractor.extract(images, tmp_path, 2, round_km=1.0)
    rows = list(exif_extractor.read_records(tmp_path / "exif_data.json"))
    places = {(row["gps_latitude"], row["gps_longitude"]) for row in rows}
    assert len(places) <= 2 and len({row["sun_elevation_deg"] for row in rows}) == len(places)
    assert all(row["gps_accuracy_m"] >= 1000 for row in rows)
    assert all(abs(row["gps_latitude"] - 46) < 0.03 for row in rows)


def test_importing_is_cheap():
    code = (
        "import sys, exif_extractor;"
        "heavy = {'numpy._core', 'pandas', 'PIL', 'astral', 'tzfpy', 'torch', 'h3', 'tqdm'};"
        "heavy &= set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parent, check=True)


# ---------------------------------------------------------------- real files


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    packed = SHARED / "exif_corpus" / "public.tar.gz"
    if not packed.exists():
        pytest.skip("no corpus beside the repository")
    place = tmp_path_factory.mktemp("corpus")
    with tarfile.open(packed) as archive:
        archive.extractall(place, filter="data")
    return next(place.rglob("oracle.json")).parent


def test_agreement_with_exiftool_on_real_files(corpus):
    counts, named, rows = exif_agreement.compare(corpus)
    oracle = json.loads((corpus / "oracle.json").read_text())
    assert len(rows) == len(oracle)
    assert not [row for row in rows if "reader_" in (row["warnings"] or "")]
    unexplained = [line for line in named if not exif_agreement.reason(line)]
    assert not unexplained, "\n".join(unexplained)
    for field in exif_agreement.STRICT:
        assert counts[field]["missing"] == counts[field]["different"] == 0


@pytest.mark.parametrize("name", ["ground_open", "aerial_odm_cc0"])
def test_labels_of_real_photos(tmp_path, name):
    source = SHARED / "photos" / name
    if not source.exists():
        pytest.skip("no photos beside the repository")
    exif_extractor.extract(source / "images", tmp_path, 2)
    rows = {
        row["filename"]: row for row in exif_extractor.read_records(tmp_path / "exif_data.json")
    }
    with open(source / "labels.csv", encoding="utf-8") as file:
        labels = list(csv.DictReader(file))
    assert len(rows) == len(labels)
    for label in labels:
        row = rows[label["file"].removeprefix("images/")]
        if row["gps_latitude"] is not None:
            assert row["gps_latitude"] == pytest.approx(float(label["lat"]), abs=1e-5)
            assert row["gps_longitude"] == pytest.approx(float(label["lon"]), abs=1e-5)
        if row["gps_altitude"] is not None:
            assert row["gps_altitude"] == pytest.approx(float(label["altitude_m"]), abs=0.06)
        if row["datetime"]:
            assert (
                row["datetime"][:19].replace("-", ":").replace("T", " ")
                == label["datetime_original"]
            )
        assert str(int(row["orientation_tag"] or 1)) == (label["orientation"] or "1")
        if label["utc"] and row["datetime_utc"]:
            utc = datetime.fromisoformat(label["utc"]).replace(tzinfo=None)
            apart = utc - datetime.fromisoformat(row["datetime_utc"])
            assert abs(apart) <= timedelta(minutes=16), row["filename"]
