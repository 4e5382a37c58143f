"""Models to give away: nothing in them tells where, when or under which name photos were taken."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import copy_data, make_normalisation, quietly, training_arguments

import density
import evaluate_gps_model
import gps_orientation_trainer as trainer
from geophoto import archives, checkpoints, sharing
from geophoto.photos import read_photos
from geophoto.targets import decode_gps

# ---------------------------------------------------------------- the search


def leaves(value, path=""):
    """Every value of nested dicts and lists, keys too, with where it stands."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield f"{path}/{key}", str(key)
            yield from leaves(one, f"{path}/{key}")
    elif isinstance(value, list | tuple):
        for i, one in enumerate(value):
            yield from leaves(one, f"{path}/{i}")
        numbers = [one for one in value if isinstance(one, float)]
        if len(numbers) > 1:
            yield path, torch.tensor(numbers, dtype=torch.float64)
    else:
        yield path, value


CLOSE_DEG = 0.009  # a km of latitude


def pairs_near(numbers: np.ndarray, photos) -> bool:
    """Whether a position stands, to 1 km, in two neighbouring numbers as degrees or radians, in
    three as a unit vector, or in two columns of neighbouring ones."""
    numbers = np.asarray(numbers, float)
    placed = photos.placed
    lat, lon = photos.lat[placed], photos.lon[placed]
    vectors = density.unit_vectors(lat, lon)
    for row in [numbers.ravel()] + ([numbers.T.ravel()] if numbers.ndim == 2 else []):
        for unit in (1.0, np.pi / 180):
            for one, two in ((row[:-1] / unit, row[1:] / unit), (row[1:] / unit, row[:-1] / unit)):
                some = (one > lat.min() - 1) & (one < lat.max() + 1)
                some &= (two > lon.min() - 1) & (two < lon.max() + 1)
                for a, b in zip(one[some], two[some], strict=True):
                    if density.distance_km(a, b, lat, lon).min() < 1:
                        return True
        if len(row) > 2:
            three = np.stack([row[:-2], row[1:-1], row[2:]], axis=1)
            inside = (three > vectors.min(0) - 0.001) & (three < vectors.max(0) + 0.001)
            for one in three[inside.all(axis=1)]:
                if density.arc_km(one / np.linalg.norm(one), vectors).min() < 1:
                    return True
    return False


def close_to(numbers: np.ndarray, values: np.ndarray, apart: float) -> bool:
    """Whether any of the numbers is one of the values."""
    values, numbers = np.sort(values), numbers.ravel()
    numbers = numbers[np.isfinite(numbers)]
    at = np.searchsorted(values, numbers)
    nearest = np.minimum(
        np.abs(numbers - values[np.minimum(at, len(values) - 1)]),
        np.abs(numbers - values[np.maximum(at - 1, 0)]),
    )
    return bool((nearest < apart).any())


def told_of(public, photos) -> list[str]:
    """What a checkpoint (or its twin) tells of the photos: positions, times of day, names."""
    minutes = photos.minutes[np.isfinite(photos.minutes)]
    names = {part for name in photos.names for part in (name, name.split("/")[-1])}
    told, numbers = [], {}
    for path, value in leaves(public):
        if isinstance(value, torch.Tensor):
            floats = value.double().numpy()
            if floats.size > 1 and pairs_near(floats, photos):
                told.append(f"{path}: positions")
            if close_to(floats, minutes, 1e-4):
                told.append(f"{path}: times")
        elif isinstance(value, str):
            told += [f"{path}: {name}" for name in names if name in value]
            told += [f"{path}: a date" for year in ("2024-", "2024:") if year in value]
        elif isinstance(value, float):
            numbers[path] = value
            if (np.abs(value - minutes) < 1e-4).any():
                told.append(f"{path}: a time")
    values = np.array(list(numbers.values()))
    lat = [v for v in values if np.isfinite(v) and np.abs(v - photos.lat).min() < 0.009]
    lon = [v for v in values if np.isfinite(v) and np.abs(v - photos.lon).min() < 0.013]
    for a in lat:
        for b in lon:
            if density.distance_km(a, b, photos.lat, photos.lon).min() < 1:
                told.append(f"{a}, {b}: a position in two numbers")
    return told


def public_parts(path):
    yield archives.load(path)
    yield json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


# ---------------------------------------------------------------- tests


@pytest.fixture(scope="module")
def with_gallery(photo_set, trained, tmp_path_factory):
    """The model trained with its gallery, in a folder of its own, and a stripped copy beside it."""
    folder = tmp_path_factory.mktemp("stripped")
    for suffix in (".pth", ".private.pth", ".json"):
        shutil.copy(trained.checkpoints / f"best_gps_model_rgb{suffix}", folder)
    path = folder / "best_gps_model_rgb.pth"
    code, printed = quietly(trainer.main, "--strip", path)
    shared = folder / "best_gps_model_rgb_shared.pth"
    assert code == 0 and str(shared) in printed
    return path, shared


def test_the_search_finds_what_a_gallery_tells(trained):
    photos, _ = read_photos(trained.data, trained.data / "images")
    told = told_of(archives.load(trained.checkpoints / "best_gps_model_rgb.pth"), photos)
    assert any("times" in line for line in told)
    private = archives.load(trained.checkpoints / "best_gps_model_rgb.private.pth")
    assert any("IMG_" in line for line in told_of(private, photos))
    vectors = {"x": torch.from_numpy(density.unit_vectors(photos.lat, photos.lon))}
    assert told_of(vectors, photos) == ["/x: positions"]
    pairs = {"x": torch.tensor([[photos.lat[0] + 0.005, photos.lon[0]]], dtype=torch.float64)}
    assert told_of(pairs, photos) == ["/x: positions"]
    assert told_of({"a": float(photos.lat[0]), "b": float(photos.lon[0])}, photos)


def test_a_stripped_copy_tells_nothing_of_the_training_photos(trained, with_gallery):
    photos, _ = read_photos(trained.data, trained.data / "images")
    for public in public_parts(with_gallery[1]):
        assert told_of(public, photos) == []


def test_without_gallery_a_model_tells_nothing_of_its_training_photos(photo_set, tmp_path):
    data, folder = copy_data(photo_set, tmp_path), tmp_path / "c"
    arguments = training_arguments(data, folder, "--inputs", "rgb", "--epochs", "2")
    assert quietly(trainer.main, *arguments, "--no-gallery")[0] == 0
    photos, _ = read_photos(data, data / "images")
    for name in ("best_gps_model_rgb", "best_gps_model"):
        for public in public_parts(folder / f"{name}.pth"):
            assert told_of(public, photos) == []
    code, printed = quietly(trainer.main, *arguments, "--no-gallery")  # still counts as finished
    assert code == 0 and "is up to date" in printed


def test_a_stripped_model_answers_and_says_what_evaluation_lacks(trained, with_gallery, tmp_path):
    folder = tmp_path / "c"
    folder.mkdir()
    for suffix in (".pth", ".json"):
        source = with_gallery[1].with_suffix(suffix)
        for name in ("best_gps_model", "best_gps_model_rgb"):
            shutil.copy(source, folder / f"{name}{suffix}")
    folders = ["--checkpoint-dir", folder, "--output-dir", tmp_path / "out"]
    asked = trained.data / "images" / "day_0"
    code, printed = quietly(evaluate_gps_model.main, *folders, "--photos", asked)
    assert code == 1 and "Traceback" not in printed  # two files there are no photos
    content = json.loads((tmp_path / "out" / "photos.json").read_text(encoding="utf-8"))
    assert len(content["photos"]) == 24
    for row in content["photos"]:
        assert 45 < row["latitude"] < 47 and row["radius90_km"] > 0 and row["time"]
    for more in ([], ["--verify"]):
        code, printed = quietly(
            evaluate_gps_model.main, "--data-dir", trained.data, *folders, *more
        )
        assert code == 2 and ".private.pth is missing" in printed.splitlines()[-1]


def test_the_head_answers_as_before_around_another_centre():
    """Offsets of the same places in both frames, also beside a pole and across the date line."""
    for lat, lon in ((46.0, 7.0), (-17.0, 179.99), (89.99, 10.0)):
        old = make_normalisation(lat, lon, spread_km=20)
        new = replace(old, **sharing.free_centre(old, np.array([lat]), np.array([lon])))
        apart = density.distance_km(lat, lon, new.centre_lat, new.centre_lon)
        assert sharing.APART_KM - 0.2 < apart < 3
        turn, shift = sharing.between_frames(old, new)
        offsets = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (100, 2)))
        before = decode_gps(offsets, old).numpy()
        after = decode_gps(offsets @ turn.T + shift, new).numpy()
        assert density.arc_km(before, after).max() < 0.01


def test_where_photos_are_everywhere_the_centre_is_the_widest_gap():
    grid = np.arange(-2.0, 2.0, 0.01)
    lat, lon = (axis.ravel() for axis in np.meshgrid(grid + 0.002, grid + 0.002))
    old = make_normalisation(0.0, 0.0, spread_km=200)
    found = sharing.free_centre(old, lat, lon)
    centre = found["centre_lat"], found["centre_lon"]
    assert density.distance_km(*centre, lat, lon).min() > 0.5


def test_a_private_file_of_another_model_is_refused(trained, tmp_path, capsys):
    for suffix in (".pth", ".json"):
        shutil.copy(trained.checkpoints / f"best_gps_model_rgb{suffix}", tmp_path)
    path = tmp_path / "best_gps_model_rgb.pth"
    private = checkpoints.private_file(path)
    shutil.copy(trained.checkpoints / "best_gps_model_depth.private.pth", private)
    with pytest.raises(SystemExit) as end:
        checkpoints.read_checkpoint(path)
    assert end.value.code == 2 and "belongs to another model" in capsys.readouterr().err
    assert checkpoints.read_checkpoint(path, with_private=False)["gallery"] is not None
