"""XMP sidecars and Takeout's JSON: whose they are, what they say, what damage costs."""

import json
import os
import random
import time

import pytest
from exif_files import codes, exif_bytes, gps_of, jpeg_with_xmp, read, save, xmp_of
from test_readers import mutate

import exif_extractor
from geophoto import pictures, readers, sidecars
from geophoto.sidecars import match
from geophoto.table import read_records

PLACES = [(48.5, -2.25), (-33.85, 151.2), (-54.8, -68.3), (60.5, 11.25)]


def extract(folder, **options) -> dict[str, dict]:
    data = folder.parent / "data"
    options = {"workers": 1} | options
    result = exif_extractor.extract(folder, data, **options)
    rows = {row["filename"]: row for row in read_records(data / "exif_data.json")}
    assert len(rows) == result["photos"] == len(pictures.find_photos(folder))
    return rows


def takeout(lat=0.0, lon=0.0, altitude=0.0, stamp="1630106806", exif=(0.0, 0.0, 0.0), title="x"):
    def place(lat, lon, altitude):
        spans = {"latitudeSpan": 0.0, "longitudeSpan": 0.0}
        return {"latitude": lat, "longitude": lon, "altitude": altitude} | spans

    told = {"title": title, "photoTakenTime": {"timestamp": stamp, "formatted": "27.08.2021"},
            "geoData": place(lat, lon, altitude), "geoDataExif": place(*exif)}  # fmt: skip
    return told


# ---------------------------------------------------------------- names of sidecars


@pytest.mark.parametrize(
    ("photos", "sidecar", "owners"),
    [
        (["a.jpg"], "a.jpg.xmp", ["a.jpg"]), (["a.JPG"], "a.JPG.XMP", ["a.JPG"]),
        (["a.JPG"], "a.jpg.xmp", ["a.JPG"]), (["a.jpg"], "a.JPG.XMP", ["a.jpg"]),
        (["a.jpg"], "a.xmp", ["a.jpg"]), (["a.HEIC"], "a.XMP", ["a.HEIC"]),
        (["a.jpg", "a.JPG"], "a.jpg.xmp", ["a.jpg"]), (["a.jpg", "a.png"], "a.png.xmp", ["a.png"]),
        (["a.jpg", "a.png"], "a.xmp", ["a.jpg", "a.png"]),
        (["a.jpg", "a.jpg.png"], "a.jpg.xmp", ["a.jpg"]), (["a.b.jpg"], "a.b.xmp", ["a.b.jpg"]),
        (["a.b.jpg"], "a.xmp", []), (["A.jpg"], "a.jpg.xmp", []), (["a.jpg"], "ab.xmp", []),
        (["a.jpg"], "a.jpg_original.xmp", []), (["a_01.jpg"], "a.jpg.xmp", []),
        (["é.jpg"], "e\u0301.jpg.xmp", ["é.jpg"]), (["e\u0301.jpg"], "é.xmp", ["e\u0301.jpg"]),
        (["straße.jpg"], "straße.xmp", ["straße.jpg"]), (["a.jpg"], ".xmp", []),
    ],
)  # fmt: skip
def test_whose_a_sidecar_is(photos, sidecar, owners):
    assert match(photos, [sidecar]) == {photo: (sidecar, "") for photo in owners}


def test_the_full_name_comes_before_the_stem_and_the_very_name_before_another_case():
    assert match(["a.jpg"], ["a.xmp", "a.jpg.xmp"]) == {"a.jpg": ("a.jpg.xmp", "")}
    both = match(["a.jpg", "a.png"], ["a.xmp", "a.jpg.xmp"])
    assert both == {"a.jpg": ("a.jpg.xmp", ""), "a.png": ("a.xmp", "")}
    assert match(["a.JPG"], ["a.jpg.xmp", "a.JPG.xmp"]) == {"a.JPG": ("a.JPG.xmp", "")}
    twins = match(["a.JPG", "a.jpg"], ["a.jpg.xmp", "a.JPG.xmp"])
    assert twins == {"a.JPG": ("a.JPG.xmp", ""), "a.jpg": ("a.jpg.xmp", "")}


@pytest.mark.parametrize("as_elements", [False, True])
@pytest.mark.parametrize(("meant", "counts"), [
    (None, True), ("jpg", True), ("JPG", True), (".jpg", True), ("NEF", False), ("png", False),
])  # fmt: skip
def test_a_sidecar_of_another_extension_is_not_the_photos(tmp_path, meant, counts, as_elements):
    told = {"exif:GPSLatitude": "48,30N", "exif:GPSLongitude": "8E"}
    told |= {"photoshop:SidecarForExtension": meant} if meant else {}
    save(tmp_path / "images" / "a.jpg")
    (tmp_path / "images" / "a.xmp").write_bytes(xmp_of(told, as_elements))
    row = extract(tmp_path / "images")["a.jpg"]
    assert (row["gps_latitude"], row["warnings"]) == ((48.5 if counts else None), None)
    os.rename(tmp_path / "images" / "a.xmp", tmp_path / "images" / "a.jpg.xmp")
    assert extract(tmp_path / "images")["a.jpg"]["gps_latitude"] == 48.5  # its name says whose


# ---------------------------------------------------------------- what sidecars say


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["a.jpg.xmp", "a.xmp", "a.JPG.XMP", "a.XMP"])
def test_a_sidecar_gives_position_time_and_zone(tmp_path, place, name):
    halves = "NS"[place[0] < 0], "EW"[place[1] < 0]
    told = {"exif:GPSLatitude": f"{int(abs(place[0]))},{abs(place[0]) % 1 * 60:.4f}{halves[0]}",
            "exif:GPSLongitude": str(abs(place[1])), "exif:GPSLongitudeRef": halves[1],
            "exif:DateTimeOriginal": "2021-05-06T07:08:09"}  # fmt: skip
    save(tmp_path / "images" / "a.jpg")
    (tmp_path / "images" / name).write_bytes(xmp_of(told, as_elements=name.endswith("xmp")))
    row = extract(tmp_path / "images")["a.jpg"]
    assert (row["gps_latitude"], row["gps_longitude"]) == pytest.approx(place)
    assert (row["gps_source"], row["status"]) == ("sidecar", "ok")
    assert row["datetime"] == row["datetime_at_place"] == "2021-05-06T07:08:09"
    hours = {-2.25: 5, 151.2: 21, -68.3: 10, 11.25: 5}[place[1]]
    assert row["datetime_utc"] == f"2021-05-0{5 if hours == 21 else 6}T{hours:02d}:08:09"


def test_a_sidecar_corrects_the_photo_and_says_so(tmp_path):
    exif = exif_bytes({0x010F: b"Maker"}, {0x9003: b"2020:01:02 03:04:05"}, gps_of(48, 11))
    path = save(tmp_path / "images" / "a.jpg", exif)
    told = {"exif:GPSLatitude": "47,30.0N", "exif:GPSLongitude": "13,0.0E",
            "exif:DateTimeOriginal": "2020-01-02T04:04:05+01:00", "tiff:Make": "Other"}  # fmt: skip
    (tmp_path / "images" / "a.jpg.xmp").write_bytes(xmp_of(told))
    row = extract(path.parent)["a.jpg"]
    assert (row["gps_latitude"], row["gps_longitude"], row["gps_source"]) == (47.5, 13, "sidecar")
    assert (row["datetime"], row["utc_offset_minutes"]) == ("2020-01-02T04:04:05", 60)
    assert row["camera_make"] == "Maker" and codes(row) == {"gps_differs"}
    path.with_name("a.jpg.xmp").write_bytes(
        xmp_of({"exif:GPSLatitude": "48,0.1N", "exif:GPSLongitude": "11,0.1E"})
    )
    assert codes(extract(path.parent)["a.jpg"]) == set()


def test_a_sidecar_without_a_word_on_place_and_time_changes_nothing(tmp_path):
    exif = exif_bytes({}, {0x9003: b"2020:01:02 03:04:05"}, gps_of(48, 11, _6=(500, 1)))
    path = save(tmp_path / "a.jpg", exif)
    alone = read(path)
    sidecar = tmp_path / "a.jpg.xmp"
    for told in ({}, {"xmp:Rating": "5"}, {"exif:GPSLatitude": "1N"},
                 {"exif:DateTimeOriginal": "2021"}, {"exif:DateTimeOriginal": "soon"}):  # fmt: skip
        sidecar.write_bytes(xmp_of(told))
        assert read(path, sidecar) == alone, told


# ---------------------------------------------------------------- names of Takeout files

LONG = "original_0eb58adf-59c4-46d2-9420-73d42f7c8e88_FB_IMG_1713377637724"


@pytest.mark.parametrize(
    ("photo", "file"),
    [
        ("a.jpg", "a.jpg.json"), ("a.JPG", "a.JPG.JSON"), ("a.JPG", "a.jpg.json"),
        ("a.jpg", "a.jpg.supplemental-metadata.json"), ("a b.heic", "a b.heic.json"),
        ("IMG_20200101_123456789.jpg", "IMG_20200101_123456789.jpg.supplemental-metad.json"),
        ("IMG_20200101_123456789.jpg", "IMG_20200101_123456789.jpg.supplemental-metada.json"),
        ("x" * 35 + ".jpg", "x" * 35 + ".jpg.supple.json"), ("a.jpg", "a.jpg.Suppl.json"),
        ("x" * 39 + ".jpg", "x" * 39 + ".jpg.su.json"),
        ("x" * 40 + ".jpg", "x" * 40 + ".jpg.s.json"), (LONG + ".jpg", LONG + ".jpg.json"),
        ("x" * 41 + ".jpg", "x" * 41 + ".jpg..json"),
        (LONG[:47] + ".jpg", LONG[:46] + ".json"), (LONG + ".jpg", LONG[:46] + ".json"),
        ("x" * 44 + ".png", "x" * 44 + ".p.json"), ("x" * 42 + ".JPG", "x" * 42 + ".JPG.json"),
        ("a(1).jpg", "a.jpg(1).json"), ("a(12).JPG", "a.JPG(12).json"),
        ("a(1).jpg", "a.jpg.supplemental-metadata(1).json"), ("a(1).jpg", "a(1).jpg.json"),
        ("PXL_20201104_072546224(1).jpg", "PXL_20201104_072546224.jpg.supplemental-metada(1).json"),
        (LONG[:47] + "(2).jpg", LONG[:46] + "(2).json"),
        ("a-edited.jpg", "a.jpg.json"), ("a-EDITED.JPG", "a.JPG.supplemental-metadata.json"),
        ("a-bearbeitet.jpg", "a.jpg.json"), ("a-modifié.jpg", "a.jpg.json"),
        ("a-ha editado.jpg", "a.jpg.json"), ("a-編集済み.jpg", "a.jpg.json"),
        ("a-modifie\u0301.jpg", "a.jpg.json"), ("a-edited(1).jpg", "a.jpg(1).json"),
        ("a(1)-edited.jpg", "a.jpg(1).json"), ("a-edited.jpg", "a.HEIC.json"),
        ("a-edited.jpg", "a-edited.jpg.json"), ("a-effects.jpg", "a.jpg.json"),
        ("IMG_20200101_123456789-edited.jpg", "IMG_20200101_123456789.jpg.supplemental-metad.json"),
        (("x" * 42 + "-edited")[:47] + ".jpg", "x" * 42 + ".jpg.json"),
        ("2013-12-03.jpg", "2013-12-03.supplemental-metadata.json"),
        ("2013-12-03(1).jpg", "2013-12-03.supplemental-metadata(1).json"),
    ],
)  # fmt: skip
def test_names_that_takeout_gives(photo, file):
    assert match([photo], [file]) == {photo: ("", file)}


@pytest.mark.parametrize(
    ("photo", "file"),
    [
        ("a.jpg", "a.png.json"), ("a.jpg", "b.jpg.json"), ("a.jpg", "a.jpg(1).json"),
        ("a(1).jpg", "a.jpg.json"), ("a(1).jpg", "a.jpg(2).json"), ("a.jpg", "A.jpg.json"),
        ("a.jpg", "a.json"), ("a.jpg", "metadata.json"), ("a.jpg", "a-edited.jpg.json"),
        ("a.jpg", "a.jpg.supplement-a.json"), ("a.jpg", "a.jp.json"), ("s.jpg", "s.json"),
        ("aedited.jpg", "a.jpg.json"), ("-edited.jpg", ".jpg.json"),
        (LONG[:47] + "(1).jpg", LONG[:46] + ".json"), (LONG + ".jpg", LONG[:45] + ".json"),
        ("a-unedited.jpg", "a-un.jpg.json"),
    ],
)  # fmt: skip
def test_names_of_other_photos(photo, file):
    assert match([photo], [file]) == {}


def test_photos_numbered_and_edited_beside_one_another():
    photos = ["a.jpg", "a(1).jpg", "a-edited.jpg", "a-edited(1).jpg", "b.jpg"]
    files = ["a.jpg.json", "a.jpg(1).json", "b.jpg.xmp", "album.json"]
    one, two = ("", "a.jpg.json"), ("", "a.jpg(1).json")
    assert match(photos, files) == {
        "a.jpg": one, "a(1).jpg": two, "a-edited.jpg": one, "a-edited(1).jpg": two,
        "b.jpg": ("b.jpg.xmp", ""),
    }  # fmt: skip


def test_two_long_names_cut_to_one_are_told_apart_by_the_title(tmp_path):
    images = tmp_path / "images"
    names = [f"{'x' * 46}{letter}.jpg" for letter in "AB"]
    for name in names:
        save(images / name)
    told = takeout(48.5, 8.0, title=f"{'x' * 46}A & more.jpg")
    (images / f"{'x' * 46}.json").write_text(json.dumps(told))
    rows = extract(images)
    assert [rows[name]["gps_latitude"] for name in names] == [48.5, None]
    assert rows[names[1]]["warnings"] is None
    told["title"] = 5
    (images / f"{'x' * 46}.json").write_text(json.dumps(told))
    assert extract(images)[names[1]]["gps_latitude"] == 48.5  # without a title the name decides


# ---------------------------------------------------------------- what Takeout says


@pytest.mark.parametrize(
    ("place", "local", "minutes"),
    [
        ((41.853961, -88.157765), "2021-08-27T18:26:46", -300),
        ((-33.85, 151.2), "2021-08-28T09:26:46", 600), ((48.2, 16.37), "2021-08-28T01:26:46", 120),
        ((-54.8, -68.3), "2021-08-27T20:26:46", -180), ((27.7, 85.3), "2021-08-28T05:11:46", 345),
        ((0.0, 6.6), "2021-08-27T23:26:46", 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["a.jpg.json", "a.jpg.supplemental-metadata.json"])
def test_takeout_gives_position_altitude_utc_and_local_time(tmp_path, place, local, minutes, name):
    save(tmp_path / "images" / "a.jpg")
    told = json.dumps(takeout(*place, 210.5))
    (tmp_path / "images" / name).write_text(told, encoding="utf-8-sig")
    row = extract(tmp_path / "images")["a.jpg"]
    assert (row["gps_latitude"], row["gps_longitude"]) == place
    assert (row["gps_source"], row["utc_source"]) == ("takeout", "takeout")
    assert (row["gps_altitude"], row["status"], row["warnings"]) == (210.5, "ok", None)
    assert row["datetime_utc"] == "2021-08-27T23:26:46"
    assert row["datetime"] == row["datetime_at_place"] == local
    assert row["utc_offset_minutes"] == minutes
    assert row["sun_elevation_deg"] is not None


def test_zeros_of_takeout_are_unknown(tmp_path):
    path, file = save(tmp_path / "a.jpg"), tmp_path / "a.jpg.json"
    file.write_text(json.dumps(takeout()))
    row = read(path, takeout=file)
    assert (row["gps_latitude"], row["gps_source"], row["gps_altitude"]) == (None,) * 3
    assert (row["datetime"], row["datetime_utc"]) == (None, "2021-08-27T23:26:46")
    assert (row["utc_source"], row["utc_offset_minutes"]) == ("takeout", None)
    assert row["warnings"] is None
    file.write_text(json.dumps(takeout(-20, 30, 0.0, stamp="0")))
    row = read(path, takeout=file)
    assert (row["gps_latitude"], row["gps_altitude"]) == (-20, None)
    assert (row["datetime_utc"], row["utc_source"], row["status"]) == (None, None, "ok")
    file.write_text(json.dumps(takeout(exif=(-20.5, 30.5, 7.0))))
    row = read(path, takeout=file)
    assert (row["gps_latitude"], row["gps_longitude"], row["gps_altitude"]) == (-20.5, 30.5, 7)
    file.write_text(json.dumps(takeout(1.0, 2.0, 0.0, exif=(-20.5, 30.5, 7.0))))
    row = read(path, takeout=file)
    assert (row["gps_latitude"], row["gps_altitude"]) == (1, None)


def test_takeout_gives_way_to_what_the_photo_says(tmp_path):
    exif = exif_bytes({}, {0x9003: b"2020:01:02 03:04:05"}, gps_of(48, 11))
    path, file = save(tmp_path / "a.jpg", exif), tmp_path / "a.jpg.json"
    file.write_text(json.dumps(takeout(1.0, 2.0, 210.0)))
    row = read(path, takeout=file)
    assert (row["gps_latitude"], row["gps_source"], row["gps_altitude"]) == (48, "exif", None)
    assert (row["datetime"], row["utc_source"]) == ("2020-01-02T03:04:05", "position_timezone")
    placed = save(tmp_path / "b.jpg", exif_bytes(gps=gps_of(48, 11)))
    row = read(placed, takeout=file)  # the zone is that of the photo's own position
    assert (row["datetime"], row["utc_source"]) == ("2021-08-28T01:26:46", "takeout")
    xmp = xmp_of({"exif:GPSLatitude": "5S", "exif:GPSLongitude": "6W"})
    row = read(jpeg_with_xmp(tmp_path / "c.jpg", xmp), takeout=file)
    assert (row["gps_latitude"], row["gps_source"]) == (-5, "xmp")


@pytest.mark.parametrize("stamp", ["-2208988800", "-1", "4102444800", "-4600000000", 1630106806])
def test_moments_before_1970_and_doubtful_ones(tmp_path, stamp):
    path, file = save(tmp_path / "a.jpg"), tmp_path / "a.jpg.json"
    file.write_text(json.dumps(takeout(48.0, 8.0, stamp=stamp)))
    row = read(path, takeout=file)
    utc = {"-2208988800": "1900-01-01T00:00:00", "-1": "1969-12-31T23:59:59",
           1630106806: "2021-08-27T23:26:46"}.get(stamp)  # fmt: skip
    assert row["datetime_utc"] == utc
    assert codes(row) == (set() if utc else {"date_doubtful"})


# ---------------------------------------------------------------- damage

PLACE = {"exif:GPSLatitude": "48,30N", "exif:GPSLongitude": "8,0E"}
HOSTILE_XMP = {
    "empty": b"", "zeros": bytes(1000), "text": b"no xml at all", "html": b"<html><p></html>",
    "json": b'{"a": 1}', "other xml": b"<gpx><wpt lat='1'/></gpx>", "binary": os.urandom(5000),
    "laughs": b'<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>' + xmp_of(PLACE),
    "external": b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>' + xmp_of(PLACE),
    "deep": xmp_of(PLACE)[:-60] + b"<a>" * 600_000, "wide": b"<a/>" * 500_000,
    "long value": b"<rdf:RDF><rdf:Description exif:GPSLatitude='" + b"9" * 1_900_000 + b"'/>",
    "many attributes": b"<rdf:RDF><rdf:Description "
    + b" ".join(b"a%d='1'" % n for n in range(150_000)) + b"/></rdf:RDF>",
    "huge": b"<x>" + b" " * 100_000_000,
}  # fmt: skip
HOSTILE_JSON = {
    "empty": "", "text": "no json", "array": "[1, 2]", "number": "5", "null": "null",
    "cut": json.dumps(takeout(48.5, 8.0))[:90], "deep": "[" * 900_000,
    "deep keys": '{"a":' * 100_000,
    "nan": json.dumps(takeout(float("nan"), 8.0)), "inf": json.dumps(takeout(48.5, float("inf"))),
    "text number": json.dumps(takeout("48.5", 8.0)), "bool": json.dumps(takeout(True, 8.0)),
    "list": json.dumps(takeout([48.5], 8.0)), "out of range": json.dumps(takeout(91.0, 8.0)),
    "far": json.dumps(takeout(1e308, -1e308)), "geo list": '{"geoData": [48.5, 8.0]}',
    "geo text": '{"geoData": "48.5, 8.0"}', "half": '{"geoData": {"latitude": 48.5}}',
    "other half": '{"geoData": {"longitude": 8.0, "latitude": null}}',
    "digits": '{"geoData": {"latitude": ' + "9" * 4000 + ', "longitude": 1}}',
    "too many digits": '{"geoData": {"latitude": ' + "9" * 9000 + ', "longitude": 1}}',
    "stamp list": '{"photoTakenTime": {"timestamp": [1]}}', "stamp": '{"photoTakenTime": 5}',
    "stamp text": '{"photoTakenTime": {"timestamp": "noon"}}',
    "stamp far": '{"photoTakenTime": {"timestamp": "999999999999"}}',
    "stamp bool": '{"photoTakenTime": {"timestamp": true}}',
    "stamp float": '{"photoTakenTime": {"timestamp": 1.5}}',
    "huge": '{"a": "' + "a" * 100_000_000 + '"}',
}  # fmt: skip


@pytest.fixture(scope="module")
def knowing(tmp_path_factory):
    """A photo that knows where and when it was taken, and its row."""
    exif = exif_bytes({}, {0x9003: b"2020:01:02 03:04:05"}, gps_of(47, 11, _6=(500, 1)))
    path = save(tmp_path_factory.mktemp("knowing") / "a.jpg", exif)
    return path, read(path)


@pytest.mark.parametrize("name", HOSTILE_XMP)
def test_a_hostile_sidecar_costs_a_warning(knowing, tmp_path, name):
    path, alone = knowing
    (tmp_path / "a.jpg.xmp").write_bytes(HOSTILE_XMP[name])
    begun = time.process_time()
    row = read(path, tmp_path / "a.jpg.xmp")
    assert time.process_time() - begun < readers.FILE_CPU_S
    assert codes(row) - {"gps_differs", "gps_incomplete", "gps_out_of_range"} <= {"sidecar_damaged"}
    if name not in ("deep", "many attributes", "long value"):
        assert "sidecar_damaged" in codes(row)
        assert row | {"warnings": None} == alone


@pytest.mark.parametrize("name", HOSTILE_JSON)
def test_a_hostile_takeout_file_costs_a_warning(knowing, tmp_path, name):
    path, alone = knowing
    (tmp_path / "a.jpg.json").write_text(HOSTILE_JSON[name])
    begun = time.process_time()
    row = read(path, takeout=tmp_path / "a.jpg.json")
    assert time.process_time() - begun < readers.FILE_CPU_S
    assert codes(row) == {"takeout_damaged"}
    assert row | {"warnings": None} == alone
    bare = read(save(tmp_path / "b.jpg"), takeout=tmp_path / "a.jpg.json")
    assert (bare["gps_latitude"], codes(bare)) == (None, {"takeout_damaged"})


def test_json_of_other_programs_says_nothing(tmp_path):
    path, file = save(tmp_path / "a.jpg"), tmp_path / "a.jpg.json"
    for told in ({}, {"title": "a"}, {"geoData": {}}, {"url": "x", "tags": ["a"]}):
        file.write_text(json.dumps(told))
        row = read(path, takeout=file)
        assert (row["warnings"], row["status"]) == (None, "no_exif")


@pytest.mark.parametrize("key", ["geoData", "geoDataExif", "photoTakenTime"])
@pytest.mark.parametrize("value", [[], "x", 5, True, {"latitude": "x", "timestamp": "x"}])
def test_one_wrong_part_of_takeout_leaves_the_others(tmp_path, key, value):
    told = takeout(48.5, 8.0, exif=(48.25, 8.25, 1.0)) | {key: value}
    path, file = save(tmp_path / "a.jpg"), tmp_path / "a.jpg.json"
    file.write_text(json.dumps(told))
    row = read(path, takeout=file)
    assert row["gps_latitude"] == (48.25 if key == "geoData" else 48.5)
    assert (row["datetime_utc"] is None) == (key == "photoTakenTime")
    assert codes(row) == ({"takeout_damaged"} if key != "geoDataExif" else set())


def test_files_beside_that_cannot_be_read_or_are_no_files(tmp_path):
    images = tmp_path / "images"
    for name in "abcd":
        save(images / f"{name}.jpg", exif_bytes({0x010F: b"Maker"}))
    os.mkfifo(images / "a.jpg.xmp")
    os.symlink("/dev/zero", images / "b.jpg.json")
    os.symlink(images / "nowhere", images / "c.jpg.xmp")
    (images / "d.jpg.xmp").mkdir()
    assert {row["warnings"] for row in extract(images).values()} == {None}
    found, noted = sidecars.read_sidecar(str(images / "a.jpg.xmp"), "a.jpg")  # put there meanwhile
    assert (found, noted) == ({}, ["sidecar_damaged"])
    assert sidecars.read_sidecar(str(images / "d.jpg.xmp"), "d.jpg") == ({}, ["sidecar_damaged"])
    assert sidecars.read_takeout(str(images / "gone"), "a.jpg").warnings == ["takeout_damaged"]


@pytest.mark.parametrize("trouble", ["dies", "spins"])
def test_a_file_beside_that_kills_its_reader_does_not_cost_the_row(tmp_path, monkeypatch, trouble):
    images = tmp_path / "images"
    for number in range(6):
        path = save(images / f"{number}.jpg", exif_bytes(gps=gps_of(number + 1, 5)))
        path.with_name(f"{number}.jpg.xmp").write_bytes(xmp_of({"tiff:Make": "Maker"}))
    path.with_name("3.jpg.json").write_text("{}")
    whole = readers.read_photo

    def hostile(path, sidecar="", takeout=""):
        if takeout and trouble == "dies":
            os.kill(os.getpid(), 9)
        while takeout:
            pass
        return whole(path, sidecar, takeout)

    monkeypatch.setattr(readers, "read_photo", hostile)
    monkeypatch.setattr(readers, "FILE_CPU_S", 0.2)
    rows = extract(images)
    assert [row["gps_latitude"] for row in rows.values()] == [1, 2, 3, 4, 5, 6]
    assert codes(rows["3.jpg"]) == {"sidecar_damaged", "takeout_damaged"}
    assert sum(row["camera_make"] == "Maker" for row in rows.values()) == 5
    assert exif_extractor.extract(images, tmp_path / "data", 1)["read"] == 0


def mutated(tmp_path, count: int, seed: int) -> None:
    """So many photos, each with a damaged sidecar or Takeout file, or both."""
    chance, images = random.Random(seed), tmp_path / "images"
    xmp = xmp_of(PLACE | {"exif:GPSAltitude": "926/10", "exif:DateTimeOriginal": "2021-05-06T07:08",
                          "photoshop:DateCreated": "2021-05-06T07:08:09+01:00"}, True)  # fmt: skip
    told = json.dumps(takeout(-33.9, 151.2, 20.0)).encode()
    original = save(images / "0.jpg", exif_bytes({0x010F: b"Maker"}, gps=gps_of(1, 2)))
    for number in range(count):
        path = images / f"{number % 7}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        os.link(original, path)
        if number % 3 != 1:
            form = f"{number}.jpg.xmp" if number % 2 else f"{number}.xmp"
            path.with_name(form).write_bytes(mutate(xmp, chance))
        if number % 3:
            path.with_name(f"{number}.jpg.json").write_bytes(mutate(told, chance))
    original.unlink()
    begun = time.monotonic()
    rows = extract(images, workers=2)
    assert time.monotonic() - begun < max(10, count / 100)
    assert len(rows) == count
    for row in rows.values():
        assert row["status"] == "ok" and row["camera_make"] == "Maker"
        assert abs(row["gps_latitude"]) <= 90 and abs(row["gps_longitude"]) <= 180
        assert "reader_" not in (row["warnings"] or "")
    said = {code for row in rows.values() for code in codes(row)}
    assert {"sidecar_damaged", "takeout_damaged"} <= said


def test_two_hundred_mutated_sidecars_and_takeout_files(tmp_path):
    mutated(tmp_path, 200, seed=3)


@pytest.mark.slow
def test_two_thousand_mutated_sidecars_and_takeout_files(tmp_path):
    mutated(tmp_path, 2000, seed=4)


# ---------------------------------------------------------------- changes


def test_a_file_beside_that_comes_changes_or_goes_makes_its_photo_be_read_again(tmp_path):
    images, data = tmp_path / "images", tmp_path / "data"
    for number in range(5):
        save(images / f"{number}.jpg")
        save(images / "deep" / f"{number}.jpg")

    def latitudes():
        read = exif_extractor.extract(images, data, 1)["read"]
        rows = list(read_records(data / "exif_data.json"))
        return read, {r["filename"]: r["gps_latitude"] for r in rows if r["gps_latitude"]}

    assert latitudes() == (10, {}) and latitudes() == (0, {})
    xmp = images / "deep" / "2.jpg.xmp"
    xmp.write_bytes(xmp_of(PLACE))
    assert latitudes() == (1, {"deep/2.jpg": 48.5}) and latitudes()[0] == 0
    before = xmp.stat()
    xmp.write_bytes(xmp.read_bytes().replace(b"48,30N", b"48,30S"))
    os.utime(xmp, ns=(before.st_atime_ns, before.st_mtime_ns))  # of the same size and time
    assert latitudes() == (1, {"deep/2.jpg": -48.5}) and latitudes()[0] == 0
    xmp.rename(images / "deep" / "2.xmp")
    assert latitudes() == (1, {"deep/2.jpg": -48.5}) and latitudes()[0] == 0
    told = images / "3.jpg.json"
    told.write_text(json.dumps(takeout(7.5, 8.0)))
    assert latitudes() == (1, {"deep/2.jpg": -48.5, "3.jpg": 7.5})
    (images / "3.jpg.xmp").write_bytes(xmp_of(PLACE))
    assert latitudes() == (1, {"deep/2.jpg": -48.5, "3.jpg": 48.5})
    told.unlink()
    assert latitudes() == (1, {"deep/2.jpg": -48.5, "3.jpg": 48.5})
    (images / "deep" / "2.xmp").unlink()
    (images / "3.jpg.xmp").unlink()
    assert latitudes() == (2, {}) and latitudes()[0] == 0
    (images / "orphan.jpg.xmp").write_bytes(xmp_of(PLACE))
    assert latitudes() == (0, {})


def test_nothing_beside_photos_is_asked_for_where_there_is_nothing(tmp_path, monkeypatch):
    """No stat a photo more than before, in the scan and after it."""
    images = tmp_path / "images"
    for number in range(20):
        save(images / f"{number}.jpg")
    (images / "7.jpg.xmp").write_bytes(xmp_of(PLACE))
    exif_extractor.extract(images, tmp_path, 1)
    asked, stat = [], os.stat
    monkeypatch.setattr(os, "stat", lambda path, **more: asked.append(str(path)) or stat(path))
    exif_extractor.extract(images, tmp_path, 1)
    inside = [path for path in asked if path.startswith(f"{images}/")]
    assert len(inside) == 21 and sum(path.endswith(".xmp") for path in inside) == 1
