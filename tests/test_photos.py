"""Labels as arrays, and folds that no group straddles."""

import numpy as np
import pytest
from conftest import make_photos
from exif_files import exif_bytes, gps_of, save
from hypothesis import given, settings
from hypothesis import strategies as st

import density
import exif_extractor
import gps_orientation_trainer as trainer
from geophoto.orientations import ORIENTATION_CLASSES
from geophoto.photos import read_photos, split_photos

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
             "names": ["x"] * 9}, 5,
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
