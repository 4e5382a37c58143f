"""Trivial answers and nearest neighbours."""

import math

import numpy as np
import pytest
from conftest import make_photos

import density
from geophoto import baselines, targets

# ---------------------------------------------------------------- baselines and gallery


def test_trivial_answers_are_the_best_constants():
    photos = make_photos(60, 3)
    found = baselines.trivial_answers(photos)
    assert found["altitude"] == np.nanmedian(photos.altitude)
    cost = [np.nanmean(targets.minutes_apart(photos.minutes, m)) for m in range(1440)]
    mine = np.nanmean(targets.minutes_apart(photos.minutes, found["minutes"]))
    assert mine <= min(cost) + 1
    here = photos.placed
    median = density.geographic_median(photos.lat[here], photos.lon[here])
    assert (found["lat"], found["lon"]) == median


def test_trivial_answers_without_labels_are_unknown():
    nothing = np.full(4, np.nan)
    photos = make_photos(
        4, lat=nothing, lon=nothing, minutes=nothing, altitude=nothing, sun=nothing
    )
    assert all(math.isnan(v) for v in baselines.trivial_answers(photos).values())


def test_nearest_features_against_brute_force():
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(600, 7)), rng.normal(size=(30, 7))
    similar, index, away = baselines.nearest_features(queries, gallery, 5)
    apart = np.linalg.norm(queries[:, None] - gallery[None], axis=2)
    assert away == pytest.approx(apart.min(axis=1), rel=1e-3)
    unit = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    cosine = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ unit.T
    wanted = np.sort(cosine, axis=1)[:, ::-1][:, :5]
    assert similar == pytest.approx(wanted, abs=1e-5)
    assert np.take_along_axis(cosine, index, 1) == pytest.approx(wanted, abs=1e-5)
    assert baselines.nearest_features(queries[:2], gallery, 99)[0].shape == (2, 30)


def test_knn_answers_are_those_of_the_nearest_labelled_photos():
    gallery = np.eye(6)
    photos = make_photos(
        6,
        lat=np.array([10, 10.1, 50, np.nan, 0, 0]),
        lon=np.array([10, 10, 10, np.nan, 0, 0]),
        minutes=np.array([1430, 10, 30, np.nan, 700, 700.0]),
        altitude=np.array([np.nan, 100, 300, 0, 0, 0.0]),
    )
    query = np.array([[3.0, 2.0, 1.0, 2.5, 0, 0]])  # nearest: 0, then 3, 1, 2
    near = baselines.labelled_neighbours(query, gallery, photos)
    found = baselines.knn_answers(near, photos, {"gps": 3, "time": 2, "altitude": 3}, 1)
    assert (found["lat"][0], found["lon"][0]) == pytest.approx((10.1, 10))  # between 0 and 2
    assert targets.minutes_apart(found["minutes"][0], 0) < 1e-6  # of 0 and 1; 3 has no time
    assert found["altitude"][0] == pytest.approx((0 + 100 + 300) / 3)


def test_knn_without_any_label_is_unknown():
    nothing = np.full(5, np.nan)
    photos = make_photos(5, lat=nothing, lon=nothing, minutes=nothing, altitude=nothing)
    near = baselines.labelled_neighbours(np.eye(5), np.eye(5), photos)
    found = baselines.knn_answers(near, photos, dict.fromkeys(targets.HEADS, 1), 5)
    assert set(found) == {"lat", "lon", "minutes", "altitude"}
    assert all(np.isnan(v).all() and len(v) == 5 for v in found.values())


def test_chosen_k_is_the_one_with_the_least_validation_error():
    rng = np.random.default_rng(0)
    place = np.repeat(np.arange(10), 12)
    features = np.eye(10)[place] + rng.normal(0, 0.05, (120, 10))
    noisy = rng.normal(0, 300, 120)  # only an average over many neighbours helps here
    photos = make_photos(
        120, lat=place * 3.0, lon=place * 2.0, minutes=np.full(120, 600.0), altitude=500 + noisy
    )
    known, asked = np.arange(0, 120, 2), np.arange(1, 120, 2)
    near = baselines.labelled_neighbours(features[asked], features[known], photos.take(known))
    k = baselines.choose_knn([(near, photos.take(known), photos.take(asked))])
    for head in ("gps", "time", "altitude"):
        error = {}
        for size in baselines.KNN_SIZES:
            answers = baselines.knn_answers(near, photos.take(known), {**k, head: size}, len(asked))
            miss = baselines.answer_errors(answers, photos.take(asked))[head]
            error[size] = np.log(np.maximum(miss, 1e-3)).mean() if head == "gps" else miss.mean()
        assert error[k[head]] == pytest.approx(min(error.values()))
    assert k["altitude"] > 1


def test_validation_score_is_one_for_the_trivial_answer():
    photos = make_photos(50, 2)
    normalisation = targets.Normalisation.fit(photos)
    trivial = baselines.trivial_answers(photos)
    prediction = {
        "gps": np.zeros((50, 2), np.float32),
        "time": np.tile(targets.time_point(trivial["minutes"]), (50, 1)),
        "altitude": np.tile(normalisation.altitude_target(trivial["altitude"]), 50),
        "sun": np.zeros(50),
        "views": np.tile(np.eye(6)[0], (50, 6, 1)),  # always "Normal"
    }
    figures = baselines.validation_figures(prediction, photos, trivial, normalisation)
    assert figures["turn_accuracy"] == 0.25
    assert figures["score"] == pytest.approx(1, abs=1e-6)
    perfect = {**prediction, "views": np.tile(np.eye(6), (50, 1, 1))}
    better = baselines.validation_figures(perfect, photos, trivial, normalisation)
    assert better["turn_accuracy"] == 1 and better["score"] == pytest.approx(0.75, abs=1e-6)
    lucky = {**trivial, "lat": photos.lat, "lon": photos.lon}  # right for every photo, by chance
    figures = baselines.validation_figures(prediction, photos, lucky, normalisation)
    assert figures["score"] == pytest.approx((2 + 3) / 4, abs=1e-6)
