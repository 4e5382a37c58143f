"""Labels as arrays, and folds that no group straddles."""

import datetime
import json

import numpy as np
import pytest
from conftest import copy_data, make_photos, quietly, training_arguments
from exif_files import exif_bytes, gps_of, save
from hypothesis import given, settings
from hypothesis import strategies as st

import density
import evaluate_gps_model as evaluator
import exif_extractor
import gps_orientation_trainer as trainer
from geophoto.orientations import ORIENTATION_CLASSES
from geophoto.photos import read_moment, read_photos, split_photos

# ---------------------------------------------------------------- split


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(10, 80), st.integers(3, 6))
def test_no_group_is_on_both_sides(seed, count, folds):
    rng = np.random.default_rng(seed)
    place = rng.integers(0, max(count // 3, 4), count)
    photos = make_photos(count, seed, lat=46 + place * 0.05, lon=7 + place * 0.05)
    fold_of, split = split_photos(photos, "grouped", folds, seed)
    groups = np.array(split["groups"])
    for group in np.unique(groups):
        assert len(set(fold_of[groups == group])) == 1
    sizes = np.bincount(fold_of, minlength=folds)
    assert sizes.max() - sizes.min() <= split["largest_group"]
    assert split["names"] == photos.names and split["group_count"] == len(set(split["groups"]))
    again, _ = split_photos(photos, "grouped", folds, seed)
    assert (again == fold_of).all()


def test_random_split_is_even_seeded_and_reported():
    photos = make_photos(53)
    fold_of, split = split_photos(photos, "random", 5, 1)
    assert split["kind"] == "random"
    sizes = np.bincount(fold_of)
    assert sizes.max() - sizes.min() <= 1
    assert (fold_of != split_photos(photos, "random", 5, 2)[0]).any()


def test_too_few_groups_end_the_run(capsys):
    with pytest.raises(SystemExit) as end:
        trainer.describe_split(
            {"kind": "grouped", "group_count": 3, "largest_group": 4, "radius_km": 0.0,
             "by": "bursts", "names": ["x"] * 9}, 5,
        )  # fmt: skip
    assert end.value.code == 2
    assert "3 groups cannot fill 5 folds" in capsys.readouterr().err


# ---------------------------------------------------------------- what a user can get wrong


def test_labels_are_those_of_the_truth(photo_set):
    photos, _ = read_photos(photo_set.data, photo_set.images)
    for i, name in enumerate(photos.names):
        label = photo_set.truth.get(name)
        if label:
            assert (
                density.distance_km(photos.lat[i], photos.lon[i], label["lat"], label["lon"]) < 1e-5
            )
            assert photos.altitude[i] == pytest.approx(label["altitude"], abs=0.01)
            when = label["when"]
            assert photos.minutes[i] == pytest.approx(
                when.hour * 60 + when.minute + when.second / 60
            )
            assert ORIENTATION_CLASSES[photos.orientation[i]] == label["orientation"]
    assert photos.seconds[1] - photos.seconds[0] == pytest.approx(17, abs=18)


def test_the_time_of_the_place_teaches_and_estimates_do_not(tmp_path):
    """A drone on UTC in Los Angeles, a photo that knows no place, one that this tool placed."""
    taken = {0x9003: b"2022:05:18 20:17:57", 0x9011: b"+00:00"}
    images = tmp_path / "images"
    save(images / "drone.jpg", exif_bytes({}, taken, gps_of(34.03, -118.25, _6=(80, 1))))
    save(images / "nowhere.jpg", exif_bytes({}, taken))
    guess = gps_of(34.03, -118.25, _6=(80, 1), _27=b"ASCII\0\0\0estimate: rgb")
    save(images / "placed.jpg", exif_bytes({}, taken, guess))
    exif_extractor.extract(images, tmp_path, 1)
    photos, _ = read_photos(tmp_path, images)
    assert photos.names == ["drone.jpg", "nowhere.jpg", "placed.jpg"]
    assert photos.minutes == pytest.approx([797.95, 1217.95, 1217.95])
    assert np.isfinite(photos.lat).tolist() == [True, False, False]
    assert np.isfinite(photos.altitude).tolist() == [True, False, False]
    assert np.isfinite(photos.sun).tolist() == [True, False, False]
    assert np.ptp(photos.seconds) == 0  # bursts go by UTC
    assert len(density.read_positions(tmp_path)[0]) == 1


# ---------------------------------------------------------------- odd rows

ODD_DATES = [
    *(f"{year:04d}-05-06T07:08:09" for year in (1, 1066, 1601, 1677, 2263, 2563, 9999)),
    "0000-00-00T00:00:00", "2024-02-30T10:00:00", "2024-06-01T24:30:00", "2024-06-01",
    "2024-06-01T10:00:00+99:00", "yesterday", "", "١٢:٣٠", "9" * 400 + ":",
]  # fmt: skip


@pytest.mark.parametrize("text", ODD_DATES)
def test_a_date_that_cannot_be_is_no_time(text):
    assert read_moment(text) is None and read_moment(text, in_utc=True) is None


def test_dates_keep_their_wall_clock_and_instants_their_offset():
    when = datetime.datetime(2024, 6, 1, 1, 30, 0, 250_000)
    assert read_moment("2024-06-01T01:30:00.25+02:00") == when
    utc = when - datetime.timedelta(hours=2)
    assert read_moment("2024-06-01T01:30:00.25+02:00", in_utc=True) == utc
    assert read_moment("2024-06-01T01:30:00.25Z", in_utc=True) == when
    next_year = datetime.datetime.now().year + 1
    assert read_moment(f"{next_year}-01-01T00:00:00").year == next_year
    assert read_moment(f"{next_year + 1}-01-01T00:00:00") is None
    assert read_moment("1826-07-01T12:00:00").year == 1826


ODD_CELLS = {
    "gps_latitude": [999, -90.001, "north", [46.0], {"deg": 46}, True, 10**400, float("nan")],
    "gps_longitude": [180.5, -1e300, "", [], float("inf")],
    "gps_altitude": ["high", 1e308, -501, [1, 2], {}],
    "datetime": [*ODD_DATES, 20240601, ["2024-06-01T10:00:00"]],
    "datetime_utc": [*ODD_DATES, 1.5, {}],
    "sun_elevation_deg": [91, "noon", None],
    "orientation": ["sideways", 6, []],
    "orientation_tag": ["six", 1e300, [6]],
    "warnings": [7, ["gps_zero"], {"a": 1}],
    "status": [None, 3, []],
    "camera_make": [5, ["Maker"]],
    "image_width": [-1, "wide", 0],
    "file_mtime": [0, []],
}


NO_NAMES = (None, 5, "", "../../etc/x.jpg", "/etc/x.jpg", "a\0b.jpg", "\ud800.jpg", ["a"])


def test_no_cell_of_a_table_ends_the_reading(photo_set, tmp_path):
    table = tmp_path / "exif_data.json"
    rows = json.loads((photo_set.data / "exif_data.json").read_text(encoding="utf-8"))
    whole, _ = read_photos(photo_set.data, photo_set.images)
    for column, values in ODD_CELLS.items():
        for value in values:
            odd = [row | ({column: value} if i == 7 else {}) for i, row in enumerate(rows)]
            table.write_text(json.dumps(odd), encoding="utf-8")
            photos, left_out = read_photos(tmp_path, photo_set.images)
            others = [name for name in whole.names if name != rows[7]["filename"]]
            assert set(others) <= set(photos.names)
            for name in ("lat", "lon", "minutes", "altitude", "orientation", "seconds"):
                kept = getattr(photos, name)[[photos.names.index(n) for n in others]]
                known = getattr(whole, name)[[whole.names.index(n) for n in others]]
                np.testing.assert_array_equal(kept, known)
            assert not (np.abs(photos.lat) > 90).any() and not (np.abs(photos.lon) > 180).any()
            assert (np.isfinite(photos.lat) == np.isfinite(photos.lon)).all()
            doubted = value in (True, -501, 1e308)  # numbers, if odd ones
            if column in ("gps_latitude", "datetime", "gps_altitude") and not doubted:
                assert left_out["unusable cells of the table"] == 1, (column, value)


def test_rows_that_name_no_file_are_left_out_and_counted(photo_set, tmp_path):
    rows = json.loads((photo_set.data / "exif_data.json").read_text(encoding="utf-8"))
    whole, counts = read_photos(photo_set.data, photo_set.images)
    rows += [rows[0] | {"filename": name} for name in NO_NAMES]
    (tmp_path / "exif_data.json").write_text(json.dumps(rows), encoding="utf-8")
    photos, left_out = read_photos(tmp_path, photo_set.images)
    assert photos.names == whole.names
    assert left_out == {**counts, "unusable cells of the table": len(NO_NAMES)}


def test_a_table_full_of_odd_rows_ends_neither_training_nor_evaluation(photo_set, tmp_path):
    data = copy_data(photo_set, tmp_path)
    rows = json.loads((data / "exif_data.json").read_text(encoding="utf-8"))
    cells = [(column, value) for column, values in ODD_CELLS.items() for value in values]
    for number, (column, value) in enumerate(cells):  # into every second row in turn
        rows[(2 * number + 1) % len(rows)][column] = value
    rows += [rows[0] | {"filename": name} for name in NO_NAMES]
    (data / "exif_data.json").write_text(json.dumps(rows), encoding="utf-8")
    arguments = training_arguments(data, tmp_path / "c", "--inputs", "rgb", "--epochs", "3")
    code, printed = quietly(trainer.main, *arguments)
    assert code == 0 and "unusable cells of the table: " in printed, printed
    code, printed = quietly(
        evaluator.main, "--data-dir", data, "--checkpoint-dir", tmp_path / "c",
        "--output-dir", tmp_path / "out", "--bootstrap", "20",
    )  # fmt: skip
    assert code == 0, printed
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["rgb"]["gps"]["n"] > 20
    code, printed = quietly(density.main, "--data-dir", data)
    assert code == 0 and "positions: wrote" in printed
