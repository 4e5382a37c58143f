"""One photo's row: positions, altitudes, times and XMP with known truth in, the same truth out."""

import json
import os
import struct
from datetime import datetime, timedelta

import pytest
from exif_files import (
    codes,
    exif_bytes,
    gps_of,
    iptc_block,
    jpeg_with,
    jpeg_with_blocks,
    jpeg_with_xmp,
    picture,
    ratio,
    read,
    resource,
    save,
    tiff_block,
    xmp_of,
    xmp_packet,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

import exif_extractor
from geophoto.table import read_records

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


@pytest.mark.parametrize(
    ("kind", "value", "below"),
    [
        (1, b"\1", True), (1, b"\0", False), (2, b"\1\0", True), (2, b"1\0", True),
        (2, b"0\0", False), (2, b"\0\0", False), (7, b"\1", True), (7, b"\0", False),
        (7, b"1", True),
        (7, b"\1\0\0\0", True), (7, b"\0\0\0\1", True), (3, b"\1\0", True), (2, b"3\0", True),
        (2, b"Below Sea Level\0", True), (2, b"Above Sea Level\0", False), (4, b"\1\0\0\0", True),
    ],
)  # fmt: skip
def test_the_reference_of_the_altitude_in_every_type(tmp_path, kind, value, below):
    size = {3: 2, 4: 4}.get(kind, 1)
    gps = [(5, kind, len(value) // size, value), (6, 5, 1, struct.pack("<II", 4305, 10))]
    path = jpeg_with_blocks(tmp_path / "a.jpg", tiff_block([], gps))
    assert read(path)["gps_altitude"] == (-430.5 if below else 430.5)


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


ORDER = (  # of the sources of the time of capture, each with a year of its own
    ("sidecar", "exif:DateTimeOriginal", 2001), ("sidecar", "photoshop:DateCreated", 2002),
    ("exif", 0x9003, 2003), ("xmp", "exif:DateTimeOriginal", 2004),
    ("xmp", "photoshop:DateCreated", 2005), ("iptc", (55, 60), 2006), ("exif", 0x9004, 2007),
    ("iptc", (62, 63), 2008), ("sidecar", "xmp:CreateDate", 2009), ("xmp", "xmp:CreateDate", 2010),
)  # fmt: skip


def photo_of_dates(tmp_path, sources, day="-03-04", time="T05:06:07"):
    told = {"sidecar": {}, "xmp": {}, "exif": {}, "iptc": {}}
    for source, key, year in sources:
        if source == "exif":
            told["exif"][key] = f"{year}{day}{time}".replace("-", ":").replace("T", " ").encode()
        elif source == "iptc":
            told["iptc"] |= {f"_{key[0]}": f"{year}{day}".replace("-", "")}
            told["iptc"] |= {f"_{key[1]}": time.replace(":", "").lstrip("T")} if time else {}
        else:
            told[source][key] = f"{year}{day}{time}"
    exif = exif_bytes(exif=told["exif"]) if told["exif"] else b""
    path = jpeg_with_xmp(tmp_path / "a.jpg", xmp_of(told["xmp"]), exif)
    if told["iptc"]:
        block = b"Photoshop 3.0\0" + resource(0x0404, iptc_block(**told["iptc"]))
        data = path.read_bytes()
        segment = b"\xff\xed" + len(block + b"12").to_bytes(2) + block
        path.write_bytes(data[:2] + segment + data[2:])
    sidecar = ""
    if told["sidecar"]:
        sidecar = tmp_path / "a.jpg.xmp"
        sidecar.write_bytes(xmp_of(told["sidecar"], as_elements=True))
    return read(path, sidecar)


@pytest.mark.parametrize("first", range(len(ORDER)))
def test_the_first_source_that_knows_the_time_counts(tmp_path, first):
    row = photo_of_dates(tmp_path, ORDER[first:])
    assert row["datetime"] == f"{ORDER[first][2]}-03-04T05:06:07"
    row = photo_of_dates(tmp_path, [*ORDER[first::2]])
    assert row["datetime"] == f"{ORDER[first][2]}-03-04T05:06:07"


@pytest.mark.parametrize("one", range(len(ORDER)))
def test_a_date_without_a_time_of_day_is_no_time(tmp_path, one):
    row = photo_of_dates(tmp_path, [ORDER[one]], time="")
    assert row["datetime"] is None
    assert codes(row) <= {"date_invalid"}


@pytest.mark.parametrize("one", range(len(ORDER)))
@pytest.mark.parametrize("year", ["0001", "1066", "1825", "2563", "9999"])
def test_years_of_dead_clocks_and_other_calendars_are_no_time(tmp_path, one, year):
    source, key, _ = ORDER[one]
    row = photo_of_dates(tmp_path, [(source, key, year)])
    assert row["datetime"] is None and row["datetime_utc"] is None
    assert "date_doubtful" in codes(row)


def test_a_doubtful_date_leaves_the_next_source_its_turn(tmp_path):
    row = photo_of_dates(tmp_path, [("exif", 0x9003, "2563"), ("exif", 0x9004, 2007)])
    assert row["datetime"] == "2007-03-04T05:06:07" and "date_doubtful" in codes(row)
    coming = datetime.now().year + 1
    assert photo_of_dates(tmp_path, [("exif", 0x9003, coming)])["datetime"]
    assert photo_of_dates(tmp_path, [("exif", 0x9003, coming + 1)])["datetime"] is None
    assert photo_of_dates(tmp_path, [("exif", 0x9003, 1826)])["datetime"]


def test_offsets_written_behind_a_date_count(tmp_path):
    for key, zone, minutes in (
        ("photoshop:DateCreated", "+01:00", 60), ("exif:DateTimeOriginal", "-03:30", -210),
        ("xmp:CreateDate", "Z", 0), ("exif:DateTimeDigitized", "+05:45", 345),
    ):  # fmt: skip
        row = photo_of_dates(tmp_path, [("xmp", key, 2019)], time=f"T12:40:50{zone}")
        assert (row["utc_offset_minutes"], row["utc_source"]) == (minutes, "offset_tag")
        utc = datetime(2019, 3, 4, 12, 40, 50) - timedelta(minutes=minutes)
        assert datetime.fromisoformat(row["datetime_utc"]) == utc
    packet = xmp_of({"exif:DateTimeOriginal": "2019-03-04T12:40",
                     "exif:OffsetTimeOriginal": "+09:00"})  # fmt: skip
    row = read(jpeg_with_xmp(tmp_path / "b.jpg", packet))
    assert (row["datetime"], row["utc_offset_minutes"]) == ("2019-03-04T12:40:00", 540)


def test_a_sidecar_that_repeats_the_time_of_exif_keeps_its_fraction_and_offset(tmp_path):
    exif = exif_bytes(
        {}, {0x9003: b"2020:01:02 03:04:05", 0x9291: b"25", 0x9011: b"+02:00"}, gps_of(47, 8)
    )
    path, sidecar = save(tmp_path / "a.jpg", exif), tmp_path / "a.jpg.xmp"
    sidecar.write_bytes(xmp_of({"exif:DateTimeOriginal": "2020-01-02T03:04:05"}))
    row = read(path, sidecar)
    assert (row["datetime"], row["utc_offset_minutes"]) == ("2020-01-02T03:04:05.250", 120)
    sidecar.write_bytes(xmp_of({"exif:DateTimeOriginal": "2020-01-02T04:04:05"}))  # corrected
    row = read(path, sidecar)
    assert (row["datetime"], row["utc_source"]) == ("2020-01-02T04:04:05", "position_timezone")


# ---------------------------------------------------------------- IPTC


@pytest.mark.parametrize(
    ("date", "time", "expected", "minutes"),
    [
        ("20110203", "040506+0100", "2011-02-03T04:05:06", 60),
        ("20110203", "040506-0930", "2011-02-03T04:05:06", -570),
        ("20110203", "040506", "2011-02-03T04:05:06", None),
        ("2011-02-03", "04:05:06+01:00", "2011-02-03T04:05:06", 60),
        ("20110203", "", None, None), ("", "040506+0100", None, None),
        ("20110000", "040506+0100", None, None), ("20110203", "250000", None, None),
        ("00000000", "000000", None, None), ("2011", "04", None, None),
    ],
)  # fmt: skip
def test_iptc_dates_in_jpeg_and_tiff(tmp_path, date, time, expected, minutes):
    block = iptc_block(_5="title", _55=date, _60=time)
    resources = resource(0x03ED, b"odd") + resource(0x0404, block, b"name") + resource(0x0425, b"x")
    rows = [read(jpeg_with(tmp_path / "a.jpg", 0xED, b"Photoshop 3.0\0" + resources))]
    for tag, value in ((0x83BB, block), (0x8649, resources)):
        ifd = TiffImagePlugin.ImageFileDirectory_v2()
        ifd[tag], ifd.tagtype[tag] = value, 7
        Image.fromarray(picture()).save(tmp_path / "a.tif", tiffinfo=ifd)
        rows.append(read(tmp_path / "a.tif"))
    for row in rows:
        assert (row["datetime"], row["utc_offset_minutes"]) == (expected, minutes)


def test_iptc_that_is_cut_split_turned_or_long(tmp_path):
    block = iptc_block(_55="20110203", _60="040506+0100")
    whole = resource(0x0404, block)
    path = jpeg_with(tmp_path / "a.jpg", 0xED, b"Photoshop 3.0\0" + whole[20:])
    data = path.read_bytes()
    part = b"Photoshop 3.0\0" + whole[:20]  # a resource that goes on in the next segment
    path.write_bytes(data[:2] + b"\xff\xed" + (len(part) + 2).to_bytes(2) + part + data[2:])
    assert read(path)["datetime"] == "2011-02-03T04:05:06"
    long = b"\x1c\x02\x37\x80\x04" + (8).to_bytes(4) + b"20110203" + iptc_block(_60="040506")
    for body in (long, b"\x1c\x01\x5a\0\3\x1b%G" + block):
        path = jpeg_with(tmp_path / "b.jpg", 0xED, b"Photoshop 3.0\0" + resource(0x0404, body))
        assert read(path)["datetime"] == "2011-02-03T04:05:06"
    for size in range(len(whole)):
        path = jpeg_with(tmp_path / "c.jpg", 0xED, b"Photoshop 3.0\0" + whole[:size])
        assert read(path)["status"] in ("ok", "no_exif")
    padded = block + b"\0" * (-len(block) % 4)
    turned = b"".join(padded[at : at + 4][::-1] for at in range(0, len(padded), 4))
    ifd = TiffImagePlugin.ImageFileDirectory_v2()
    ifd[0x83BB], ifd.tagtype[0x83BB] = turned, 7
    Image.fromarray(picture()).save(tmp_path / "a.tif", tiffinfo=ifd)
    assert read(tmp_path / "a.tif")["datetime"] == "2011-02-03T04:05:06"


# ---------------------------------------------------------------- status


def test_exif_that_holds_nothing_of_use_has_a_status_of_its_own(tmp_path):
    software, comment = exif_bytes({0x0131: b"Editor"}), xmp_of({"xmp:CreatorTool": "Editor"})
    assert read(save(tmp_path / "a.jpg", software))["status"] == "empty_exif"
    assert read(save(tmp_path / "a.webp", software))["status"] == "empty_exif"
    assert read(jpeg_with_xmp(tmp_path / "b.jpg", comment))["status"] == "empty_exif"
    assert read(jpeg_with(tmp_path / "c.jpg", 0xE1, b"Exif\0\0II*\0"))["status"] == "empty_exif"
    for suffix in ("jpg", "png", "tif", "bmp", "webp"):
        assert read(save(tmp_path / f"d.{suffix}"))["status"] == "no_exif"
    assert read(save(tmp_path / "e.jpg", exif_bytes({0x010F: b"Maker"})))["status"] == "ok"


# ---------------------------------------------------------------- size


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(4, 3, (4, 3)), (4, -3, (4, 3)), (-4, 3, None), (-4, -3, None), (0, 3, None), (4, 0, None),
     (-(2**31), 3, None)],
)  # fmt: skip
@pytest.mark.parametrize("header", [40, 108, 124])
def test_a_size_is_positive_or_none(tmp_path, width, height, size, header):
    info = struct.pack("<IiiHH", header, width, height, 1, 24) + bytes(header - 16)
    (tmp_path / "a.bmp").write_bytes(b"BM" + struct.pack("<IHHI", 102, 0, 0, 54) + info + bytes(48))
    row = read(tmp_path / "a.bmp")
    assert (row["image_width"], row["image_height"]) == (size or (None, None))
    assert codes(row) == (set() if size else {"no_size"})
    assert row["status"] == "no_exif"


@pytest.mark.parametrize("size", [(0, 40), (64, 0), (-64, 40), (64, -40)])
def test_tiff_and_jpeg_of_no_size(tmp_path, size):
    ifd = struct.pack("<2sHIH", b"II", 42, 8, 2)
    ifd += struct.pack("<HHIi", 0x100, 9, 1, size[0]) + struct.pack("<HHIi", 0x101, 9, 1, size[1])
    (tmp_path / "a.tif").write_bytes(ifd + bytes(4))
    row = read(tmp_path / "a.tif")
    assert (row["image_width"], codes(row)) == (None, {"no_size"})
    path = save(tmp_path / "a.jpg")
    data = bytearray(path.read_bytes())
    frame = data.index(b"\xff\xc0") + 5
    data[frame : frame + 4] = struct.pack(">HH", max(size[1], 0), max(size[0], 0))
    path.write_bytes(data)
    row = read(path)
    assert (row["image_width"], row["image_height"], codes(row)) == (None, None, {"no_size"})
