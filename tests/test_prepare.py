"""data/demo/prepare.py: the plan, the EXIF, the files; small photos, one island for all tests."""

import itertools
import os
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import piexif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

REPOSITORY = Path(__file__).parents[1]
sys.path.append(str(REPOSITORY / "data" / "demo"))

import camera as camera_module  # noqa: E402
import companions  # noqa: E402
import prepare  # noqa: E402
from camera import Camera, light_at, render  # noqa: E402
from island import LATITUDE, LONGITUDE, Island  # noqa: E402

SMALL = {"photos": 6, "width": 96, "height": 64, "seed": 1}
NOON = datetime(2023, 6, 21, 12, 30, tzinfo=timezone(timedelta(hours=-2)))


@pytest.fixture(scope="module")
def island():
    return prepare._ISLAND.setdefault(1, Island(1))


@pytest.fixture(scope="module")
def shots(island):
    """The plan of the default demo."""
    return prepare.plan_shots(island, prepare.PHOTOS, 640, 480, prepare.SEED)


@pytest.fixture(scope="module")
def small(island, tmp_path_factory):
    """A folder with six small photos."""
    folder = tmp_path_factory.mktemp("demo")
    assert prepare.prepare(folder, **SMALL, workers=1) == 6
    return folder


# ---------------------------------------------------------------- the plan


def test_plan_holds_every_orientation_and_a_minority_is_turned(shots):
    tags = Counter(shot.tag for shot in shots)
    assert len(shots) == 300 and set(tags) == {1, 2, 3, 4, 6, 8}
    assert 0.10 <= 1 - tags[1] / 300 <= 0.25


def test_plan_has_bursts_seconds_and_metres_apart(shots):
    visits = {}
    for shot in shots:
        if shot.exif != "second":  # whose owner strayed
            visits.setdefault((shot.place, shot.when.date()), []).append(shot)
    bursts = [visit for visit in visits.values() if len(visit) > 1]
    assert len(bursts) >= 40
    for visit in bursts:
        assert len({shot.camera for shot in visit if shot.exif != "placed by hand"}) == 1
        for a, b in itertools.pairwise(visit):
            gap = (b.when - a.when).total_seconds()
            metres = np.hypot(a.view["x"] - b.view["x"], a.view["y"] - b.view["y"])
            assert gap > 60 or metres < 20


def test_plan_spreads_over_places_hours_and_altitudes(shots):
    assert 40 <= len({shot.place for shot in shots}) <= 100
    hours = [shot.when.hour + shot.when.minute / 60 for shot in shots]
    assert 4.9 <= min(hours) < 6.5 and 21 < max(hours) <= 22.75
    altitudes = [shot.altitude for shot in shots]
    assert min(altitudes) < 15 and max(altitudes) > 1200
    assert len({shot.filename for shot in shots}) == len(shots)


def test_a_few_photos_lack_exif_and_most_have_all(shots):
    kinds = Counter(shot.exif for shot in shots)
    assert kinds["full"] >= 230 and min(kinds[k] for k in ("no_gps", "no_time", "none")) >= 2


def test_the_second_camera_strays_and_its_clock_is_fast(shots, island):
    second = [shot for shot in shots if shot.exif in ("second", "placed by hand")]
    kinds = Counter(shot.exif for shot in second)
    assert kinds["second"] == 40 and kinds["placed by hand"] == 8
    others = [shot for shot in shots if shot.camera < prepare.WALKERS]
    for shot in second:
        assert shot.camera == prepare.WALKERS and shot.said["when"] - shot.when == timedelta(
            minutes=companions.CLOCK_MINUTES
        )
        near = min(
            others,
            key=lambda o, s=shot: (
                abs((o.when - s.when).total_seconds()) + 1e6 * (o.place != s.place)
            ),
        )
        apart = abs((near.when - shot.when).total_seconds())
        metres = np.hypot(*(near.view[axis] - shot.view[axis] for axis in "xy"))
        if shot.exif == "second":
            assert 100 <= apart <= 1300 and 40 <= metres <= 300
            assert island.ground(shot.view["x"], shot.view["y"]) > 1.5
        else:
            assert apart <= 30 and metres <= 20


def test_half_of_the_claims_are_false_one_of_each_kind(shots):
    claims = [shot for shot in shots if shot.claim]
    kinds = Counter(shot.claim for shot in claims)
    assert kinds.pop(companions.TRUE) == len(companions.FALSE) == 6
    assert kinds == dict.fromkeys(companions.FALSE, 1)
    for shot in claims:
        told = prepare.replace(shot, **shot.said)
        lied = {
            "turned": told.tag != shot.tag,
            "clock": told.when != shot.when,
            "position": told.view != shot.view,
        }
        assert [kind for kind, is_so in lied.items() if is_so] == (
            [] if shot.claim == companions.TRUE else [shot.claim.split()[0]]
        )


def test_what_the_second_camera_writes(island, shots, tmp_path):
    """Its clock, no GPS and no offset; a sidecar of the true place where it was placed by hand."""
    from exif_extractor import main
    from geophoto.table import read_table

    rows = []
    for kind in ("second", "placed by hand"):
        shot = next(shot for shot in shots if shot.exif == kind)
        shot = prepare.replace(shot, view={**shot.view, "width": 96, "rows": 64}, tag=1)
        rows.append(shot)
        prepare.take_photo(shot, str(tmp_path), 1)
    main(["--data-dir", str(tmp_path), "--image-dir", str(tmp_path / "images")])
    table = {row["filename"]: row for row in read_table(tmp_path).to_dict("records")}
    for shot in rows:
        row, (lat, lon) = table[shot.filename], prepare.position(shot)
        assert row["datetime"][:19] == f"{shot.said['when']:%Y-%m-%dT%H:%M:%S}"
        assert row["camera_model"] == companions.SECOND[1]
        if shot.exif == "second":
            assert row["gps_source"] is None and row["utc_source"] is None
        else:
            assert row["gps_source"] == "sidecar" and row["utc_source"] == "position_timezone"
            assert row["gps_latitude"] == pytest.approx(lat, abs=1e-6)
            assert row["gps_longitude"] == pytest.approx(lon, abs=1e-6)


def test_clock_is_the_one_of_the_place(shots):
    import tzfpy

    zone = ZoneInfo(tzfpy.get_tz(LONGITUDE, LATITUDE))
    for shot in shots[::50]:
        assert shot.when.astimezone(zone).utcoffset() == shot.when.utcoffset()


# ---------------------------------------------------------------- the files


def test_same_bytes_again(small, tmp_path):
    prepare.prepare(tmp_path, **SMALL, workers=1)
    for row in prepare.read_truth(small):
        for folder, name in (("images", row["filename"]), ("true_depth", row["filename"] + ".npy")):
            assert (tmp_path / folder / name).read_bytes() == (small / folder / name).read_bytes()
    assert (tmp_path / "truth.csv").read_bytes() == (small / "truth.csv").read_bytes()


def test_second_run_renders_what_is_missing_only(small, capsys):
    names = [row["filename"] for row in prepare.read_truth(small)]
    before = {name: (small / "images" / name).stat().st_mtime_ns for name in names}
    assert prepare.prepare(small, **SMALL, workers=1) == 0
    (small / "images" / names[2]).unlink()
    stray = small / "images" / ".x.jpg.999999.tmp"
    stray.write_bytes(b"half a photo")
    assert prepare.prepare(small, **SMALL, workers=1) == 1
    after = {name: (small / "images" / name).stat().st_mtime_ns for name in names}
    assert [n for n in names if before[n] != after[n]] == [names[2]] and not stray.exists()


def test_other_settings_are_refused(small, capsys):
    with pytest.raises(SystemExit) as stopped:
        prepare.prepare(small, **{**SMALL, "seed": 2}, workers=1)
    assert stopped.value.code == 2 and "other settings" in capsys.readouterr().err


def test_depth_lies_beside_the_upright_photo(small):
    for row in prepare.read_truth(small):
        depth = np.load(prepare.depth_path(small, row["filename"]))
        upright = ImageOps.exif_transpose(Image.open(small / "images" / row["filename"]))
        assert depth.dtype == np.float16 and depth.shape == (
            upright.height // 2,
            upright.width // 2,
        )
        assert (depth > 0).all() and depth[np.isfinite(depth)].max() <= 60000


def test_table_of_the_extractor_says_what_truth_says(small, shots):
    from exif_extractor import main
    from geophoto.table import read_table

    main(["--data-dir", str(small)])
    table = {row["filename"]: row for row in read_table(small).to_dict("records")}
    names = {1: "Normal", 2: "Flipped H", 3: "Rotated 180°", 4: "Flipped V", 6: "Rotated 90°",
             8: "Rotated 270°"}  # fmt: skip
    for truth in prepare.read_truth(small):
        if truth["exif"] != "full":
            continue
        row = table[truth["filename"]]
        assert row["gps_latitude"] == pytest.approx(float(truth["gps_latitude"]), abs=1e-7)
        assert row["gps_longitude"] == pytest.approx(float(truth["gps_longitude"]), abs=1e-7)
        assert row["gps_altitude"] == pytest.approx(float(truth["gps_altitude"]), abs=0.006)
        assert row["gps_img_direction"] == pytest.approx(float(truth["heading_deg"]), abs=0.006)
        assert row["datetime"][:19] == truth["datetime"][:19]
        assert row["utc_offset_minutes"] == int(truth["utc_offset_minutes"]) == -120
        assert row["orientation"] == names[int(truth["orientation_tag"])]
        utc = datetime.fromisoformat(truth["datetime"]).replace(tzinfo=NOON.tzinfo).astimezone(UTC)
        light = light_at(utc.astimezone(NOON.tzinfo))
        assert row["sun_elevation_deg"] == pytest.approx(light.sun_deg, abs=0.6)  # refraction


@pytest.mark.parametrize("tag", sorted(prepare.STORE))
def test_stored_pixels_stand_upright_in_a_viewer(island, shots, tag):
    shot = next(shot for shot in shots if shot.tag == tag)
    small = {**shot.view, "width": shot.view["width"] // 5, "rows": shot.view["rows"] // 5}
    shot = prepare.Shot(**{**shot.__dict__, "view": small, "exif": "full"})
    jpeg, _ = prepare.jpeg_bytes(shot, island)
    photo = Image.open(__import__("io").BytesIO(jpeg))
    assert photo.getexif()[274] == tag
    upright = np.asarray(ImageOps.exif_transpose(photo)).astype(int)
    wanted, _, _ = render(island, Camera(**small), shot.when, shot.number)
    assert upright.shape == wanted.shape and np.abs(upright - wanted).mean() < 6


@given(st.floats(-89, 89), st.floats(-179, 179))
@settings(max_examples=50, deadline=None)
def test_position_survives_sexagesimal(lat, lon):
    shot = prepare.Shot(0, "x", 0, {"x": 0, "y": 0, "heading_deg": 1.0}, -3.2, NOON, 0, 26, 1.8, 1,
                        "full")  # fmt: skip
    original = prepare.position
    prepare.position = lambda _: (lat, lon)
    try:
        tags = prepare.gps_tags(shot)
    finally:
        prepare.position = original
    for key, ref, value in ((2, 1, lat), (4, 3, lon)):
        degrees = sum(a / b / 60**k for k, (a, b) in enumerate(tags[key]))
        assert degrees * (1 if tags[ref] in "NE" else -1) == pytest.approx(value, abs=2e-8)
    assert tags[piexif.GPSIFD.GPSAltitudeRef] == 1


# ---------------------------------------------------------------- the picture


def test_noon_is_brighter_than_dusk_and_night_needs_more_exposure(island):
    view = Camera(2500.0, -1500.0, 30.0, 90.0, width=96, rows=72)
    gains = [render(island, view, NOON + timedelta(hours=h))[2] for h in (0, 7.5, 10)]
    assert gains[0] < gains[1] < gains[2]


def test_depth_is_that_of_a_plane_over_the_sea():
    sea = prepare._ISLAND[1]
    view = Camera(-8000.0, -8000.0, 20.0, 225.0, horizon=0.25, width=64, rows=64)
    _, depth, _ = render(sea, view, NOON)
    rows = np.arange(64) + 0.5
    expected = 20.0 / ((rows - 16) / (view.focal * 64))
    below = rows > 20
    assert np.allclose(depth[below].T, expected[below], rtol=0.03)
    assert np.isinf(depth[:15]).all()


def test_import_is_cheap_and_help_works():
    code = (
        "import sys; sys.path.insert(0, 'data/demo'); import prepare; print('PIL' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr
    command = [sys.executable, "data/demo/prepare.py", "--help"]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 0 and "--photos" in done.stdout


def test_every_setting_has_its_flag():
    args = vars(prepare.parse_args([]))
    for name in ("OUTPUT_DIR", "PHOTOS", "WIDTH", "HEIGHT", "SEED", "WORKERS"):
        assert args[name.lower()] == getattr(prepare, name)


def test_summit_has_its_clouds_in_the_afternoon_only():
    morning, afternoon = (light_at(NOON.replace(hour=h)) for h in (8, 16))
    assert morning.cap < 0.05 < afternoon.cap and morning.mist > afternoon.mist
    assert camera_module.veil_depth(morning, 2.0, np.array([2.0]), np.array([0.0]))[0][0] == 0
