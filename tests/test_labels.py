"""One photo's row: positions, altitudes, times and XMP with known truth in, the same truth out."""

import json
import os
import struct
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from exif_files import exif_bytes, gps_of, picture, ratio, read, save, xmp_packet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import exif_extractor
from geophoto.table import read_records


def jpeg_with_xmp(path: Path, packet: bytes, exif: bytes = b"") -> Path:
    save(path, exif)
    data = path.read_bytes()
    body = b"http://ns.adobe.com/xap/1.0/\0" + packet
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:])
    return path


# ---------------------------------------------------------------- round trip


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lat=st.floats(-89.9, 89.9), lon=st.floats(-179.9, 179.9), metres=st.floats(-400, 8800),
    when=st.datetimes(datetime(1826, 1, 1), datetime(datetime.now().year + 2, 1, 1))
    .filter(lambda when: when.year <= datetime.now().year + 1), fraction=st.integers(0, 999),
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
    rows = {row["filename"]: row for row in read_records(tmp_path / "exif_data.json")}
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
