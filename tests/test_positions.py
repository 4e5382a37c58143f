"""One position out of several sources."""

import itertools

import pytest
from exif_files import codes, exif_bytes, gps_of, jpeg_with_xmp, read, save, xmp_of

from geophoto.positions import Fix, add_position, fix_of_takeout
from geophoto.sidecars import Takeout
from geophoto.table import COLUMNS

# ---------------------------------------------------------------- order


def positioned(*fixes: Fix) -> tuple[dict, set]:
    row, warnings = dict.fromkeys(COLUMNS), []
    add_position(row, list(fixes), warnings)
    return row, set(warnings)


SOURCES = ("sidecar", "exif", "xmp", "takeout")


@pytest.mark.parametrize("count", range(1, 5))
def test_the_first_source_that_knows_the_place_counts(count):
    for sources in itertools.combinations(SOURCES, count):
        fixes = [Fix(s, (10.0 + SOURCES.index(s) / 1000, 20.0)) for s in sources]
        row, _ = positioned(*fixes)
        assert row["gps_source"] == sources[0]
        assert row["gps_latitude"] == 10 + SOURCES.index(sources[0]) / 1000
        unknown = [Fix(s) for s in SOURCES if s not in sources]
        assert positioned(*unknown, *fixes)[0] == row


def test_zero_and_estimates_give_way_to_any_position():
    zero, estimate = Fix("exif", (0.0, 0.0), warnings=("gps_zero",)), Fix("estimate", (1.0, 2.0))
    known = Fix("takeout", (-33.9, 151.2))
    for fixes in itertools.permutations((zero, estimate, known)):
        row, warnings = positioned(*fixes)
        assert (row["gps_source"], warnings) == ("takeout", set())
    for fixes in itertools.permutations((zero, estimate)):
        assert positioned(*fixes)[0]["gps_source"] == "estimate"
    row, warnings = positioned(zero)
    assert (row["gps_latitude"], warnings) == (0.0, {"gps_zero"})


@pytest.mark.parametrize(
    ("sidecar", "differs"),
    [((47.0, 11.0), True), ((48.0, 11.0134), False), ((48.0, 11.0136), True),
     ((48.0089, 11.0), False), ((48.0091, 11.0), True), ((-48.0, -11.0), True)],
)  # fmt: skip
def test_more_than_a_kilometre_between_sidecar_and_exif_is_said(sidecar, differs):
    exif = Fix("exif", (48.0, 11.0), altitude=500.0, accuracy_m=5.0, direction=90.0)
    row, warnings = positioned(Fix("sidecar", sidecar), exif)
    assert (row["gps_latitude"], row["gps_longitude"]) == sidecar
    assert warnings == ({"gps_differs"} if differs else set())
    assert row["gps_altitude"] == (None if differs else 500)  # that of another place is none
    assert (row["gps_accuracy_m"], row["gps_img_direction"]) == (None, 90)
    assert positioned(Fix("sidecar", (48.0, 11.0)), Fix("xmp", (0.5, 0.5)))[1] == set()


def test_across_the_date_line_and_at_the_poles():
    assert (
        positioned(Fix("sidecar", (-17.0, 179.9999)), Fix("exif", (-17.0, -179.9999)))[1] == set()
    )
    assert positioned(Fix("sidecar", (90.0, 0.0)), Fix("exif", (89.9999, 180.0)))[1] == set()
    assert positioned(Fix("sidecar", (0.0, 1.0)), Fix("exif", (0.0, -179.0)))[1] == {"gps_differs"}


def test_doubts_of_a_source_that_is_not_taken_are_not_said():
    void = Fix("exif", (48.0, 11.0), warnings=("gps_void",))
    assert positioned(void)[1] == {"gps_void"}
    assert positioned(Fix("sidecar", (48.0, 11.0)), void)[1] == set()
    broken = Fix("exif", warnings=("gps_incomplete",))
    assert positioned(broken)[1] == {"gps_incomplete"}
    assert positioned(broken, Fix("takeout", (1.0, 2.0)))[1] == set()


def test_altitudes_without_a_position_count_and_are_checked():
    row, warnings = positioned(Fix("exif", altitude=300.0), Fix("takeout", (1.0, 2.0), 310.0))
    assert (row["gps_altitude"], warnings) == (300, set())
    assert positioned(Fix("exif", altitude=70_000.0))[1] == {"altitude_doubtful"}
    row, _ = positioned(Fix("estimate", (1.0, 2.0), 77.0), Fix("takeout", (1.0, 2.0)))
    assert row["gps_altitude"] is None


# ---------------------------------------------------------------- embedded XMP


@pytest.mark.parametrize("as_elements", [False, True])
@pytest.mark.parametrize(("lat", "lon"), [(60.5, -68.0), (-33.85, 151.2), (-54.8, -68.3), (1, 2)])
@pytest.mark.parametrize("spelling", ["reference", "negative", "letter", "minutes", "sign"])
def test_references_letters_and_signs_in_xmp(tmp_path, lat, lon, as_elements, spelling):
    halves = "S" if lat < 0 else "N", "W" if lon < 0 else "E"
    told = {}
    for name, value, half in (("Latitude", lat, halves[0]), ("Longitude", lon, halves[1])):
        plain = {"reference": abs(value), "negative": value, "sign": value,
                 "letter": f"{abs(value)}{half}",
                 "minutes": f"{int(abs(value))},{abs(value) % 1 * 60:.6f}{half}"}  # fmt: skip
        told[f"exif:GPS{name}"] = plain[spelling]
        if spelling in ("reference", "negative"):
            told[f"exif:GPS{name}Ref"] = half
    row = read(jpeg_with_xmp(tmp_path / "a.jpg", xmp_of(told, as_elements)))
    assert (row["gps_latitude"], row["gps_longitude"]) == pytest.approx((lat, lon), abs=1e-7)
    assert row["gps_source"] == "xmp"


def test_half_a_position_in_xmp_is_none(tmp_path):
    sidecar = tmp_path / "a.jpg.xmp"
    for told in ({"exif:GPSLatitude": "48,30N"}, {"exif:GPSLongitude": "8.5E"},
                 {"exif:GPSLatitude": "48,30N", "exif:GPSLongitude": "east"}):  # fmt: skip
        sidecar.write_bytes(xmp_of(told))
        row = read(jpeg_with_xmp(tmp_path / "a.jpg", xmp_of(told)), sidecar)
        assert row["gps_latitude"] is None and "gps_incomplete" in codes(row)
    far = {"exif:GPSLatitude": "91N", "exif:GPSLongitude": "8E"}
    assert "gps_out_of_range" in codes(read(jpeg_with_xmp(tmp_path / "b.jpg", xmp_of(far))))


def test_altitude_accuracy_and_heading_of_xmp(tmp_path):
    place = {"exif:GPSLatitude": "48N", "exif:GPSLongitude": "8E"}
    for height, below, metres in (("4305/10", "1", -430.5), ("-430.5", "1", -430.5),
                                  ("-430.5", None, -430.5), ("12.5", "0", 12.5)):  # fmt: skip
        told = {"exif:GPSAltitude": height} | ({"exif:GPSAltitudeRef": below} if below else {})
        row = read(jpeg_with_xmp(tmp_path / "a.jpg", xmp_of(place | told)))
        assert row["gps_altitude"] == metres
    row = read(
        jpeg_with_xmp(tmp_path / "b.jpg", xmp_of(place | {"exif:GPSHPositioningError": "5/2"}))
    )
    assert row["gps_accuracy_m"] == 2.5
    sidecar = tmp_path / "c.jpg.xmp"
    sidecar.write_bytes(xmp_of({"exif:GPSImgDirection": "3555/10", "exif:GPSImgDirectionRef": "T"}))
    assert read(save(tmp_path / "c.jpg"), sidecar)["gps_img_direction"] == 355.5


# ---------------------------------------------------------------- estimates


@pytest.mark.parametrize(
    "method",
    [b"estimate: rgb", b"ASCII\0\0\0estimate: rgb", b"ASCII\0\0\0ESTIMATE", bytes(8) + b"estimate",
     b"UNICODE\0" + "estimate: b".encode("utf-16-le"),
     b"UNICODE\0" + "estimate".encode("utf-16-be"), b"UNICODE\0" + "estimate".encode("utf-16")],
)  # fmt: skip
def test_a_position_that_this_tool_wrote_is_an_estimate(tmp_path, method):
    times = {0x9003: b"2020:06:01 12:00:00"}
    row = read(save(tmp_path / "a.jpg", exif_bytes({}, times, gps_of(48, 8, _27=method))))
    assert (row["gps_source"], row["gps_latitude"]) == ("estimate", 48)
    # Neither a zone nor a sun is made of a guess.
    assert (row["datetime_utc"], row["datetime_at_place"], row["sun_elevation_deg"]) == (None,) * 3
    path = save(tmp_path / "b.jpg", exif_bytes({}, times, gps_of(48, 8, _27=b"ASCII\0\0\0GPS")))
    assert read(path)["gps_source"] == "exif"


def test_estimates_in_sidecars_never_stand_over_what_the_photo_knows(tmp_path):
    guess = {"exif:GPSLatitude": "48,30N", "exif:GPSLongitude": "8,0E",
             "exif:GPSHPositioningError": "90000", "exif:GPSProcessingMethod": "estimate: rgb",
             "photoshop:SidecarForExtension": "jpg"}  # fmt: skip
    sidecar = tmp_path / "a.jpg.xmp"
    sidecar.write_bytes(xmp_of(guess))
    row = read(save(tmp_path / "a.jpg"), sidecar)
    assert (row["gps_source"], row["gps_accuracy_m"]) == ("estimate", 90_000)
    row = read(save(tmp_path / "a.jpg", exif_bytes(gps=gps_of(-30, 20))), sidecar)
    assert (row["gps_source"], row["gps_latitude"], codes(row)) == ("exif", -30, set())


def test_takeouts_numbers_are_signed():
    for lat, lon in ((1.5, 2.5), (-1.5, 2.5), (1.5, -2.5), (-1.5, -2.5), (0.0, 3.0)):
        told = Takeout()
        told.lat, told.lon = lat, lon
        assert fix_of_takeout(told).place == (lat, lon)
    assert fix_of_takeout(Takeout()).place is None
