"""Placing: products of mixtures, time, clocks of cameras, the answers; on walks simulated here."""

import dataclasses
import json
import re

import numpy as np
import pandas as pd
import pytest
from conftest import quietly
from hypothesis import given
from hypothesis import strategies as st

import density
import evaluate_gps_model as evaluator
from geophoto import hiding, library, placing
from geophoto.products import Mixture, joined, product
from geophoto.timelines import Shots, Timeline

KM_DEG = 1 / 111.195  # degrees of latitude


def walk(rng, days=12, each=12, camera=0, start_day=0, lat=46.0, lon=8.0) -> dict:
    """A person who walks about a town by day: stands still for minutes, then goes some hundred
    metres; a trip of some km from day to day."""
    seconds, north, east = [], [], []
    for day in range(days):
        moment = (start_day + day) * 86400 + 9 * 3600 + rng.uniform(0, 3600)
        at = rng.normal(0, 4, 2)
        for _ in range(each):
            still = rng.random() < 0.6
            gap = rng.uniform(5, 60) if still else rng.uniform(300, 2400)
            moment += gap
            at = at + rng.normal(0, 0.003 if still else 0.0004 * gap, 2)
            seconds.append(moment)
            north.append(at[0])
            east.append(at[1])
    lats = lat + np.array(north) * KM_DEG
    lons = lon + np.array(east) * KM_DEG / np.cos(np.radians(lat))
    return {"lat": lats, "lon": lons, "seconds": np.array(seconds),
            "camera": np.full(len(lats), camera)}  # fmt: skip


def shots_from(*parts: dict) -> Shots:
    whole = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    count = len(whole["lat"])
    cameras = [f"Camera {i}" for i in range(int(whole["camera"].max()) + 1)]
    nowhere = np.full((count, 3), np.nan)
    return Shots(
        names=[f"{i:04d}.jpg" for i in range(count)],
        places=density.unit_vectors(whole["lat"], whole["lon"]),
        local=whole["seconds"], utc=whole["seconds"], by_place=np.zeros(count, bool),
        camera=whole["camera"], folder=np.zeros(count, int), cameras=cameras, picture=nowhere,
        radius=nowhere[:, :2],
    )  # fmt: skip


def companion(rng, one: dict, shift_s: float, every=3) -> dict:
    """A second camera of the same person: taken some seconds after the first, on another clock."""
    later = rng.uniform(2, 20, len(one["lat"]))[::every]
    wander = rng.normal(0, 0.004 * KM_DEG, (2, len(later)))
    return {"lat": one["lat"][::every] + wander[0], "lon": one["lon"][::every] + wander[1],
            "seconds": one["seconds"][::every] + later + shift_s,
            "camera": np.full(len(later), 1)}  # fmt: skip


# ---------------------------------------------------------------- mixtures


def some_mixture(rng, count=2, kernels=3, spread=0.02) -> Mixture:
    centres = density.unit_vectors(46 + rng.normal(0, spread, (count, kernels)),
                                   8 + rng.normal(0, spread, (count, kernels)))  # fmt: skip
    logs = np.log(rng.dirichlet(np.ones(kernels), count))
    return Mixture(centres, logs, rng.uniform(0.5, 3, (count, kernels)))


@given(st.integers(0, 10_000))
def test_a_product_is_proportional_to_the_densities_multiplied(seed):
    rng = np.random.default_rng(seed)
    a, b = some_mixture(rng), some_mixture(rng)
    both = product(a, b, 9)
    at = [density.unit_vectors(46 + rng.normal(0, 0.02, 2), 8 + rng.normal(0, 0.02, 2))
          for _ in range(4)]  # fmt: skip
    apart = np.array([both.log_at(p) - a.log_at(p) - b.log_at(p) for p in at])
    assert np.ptp(apart, axis=0) == pytest.approx([0, 0], abs=1e-6)
    assert np.logaddexp.reduce(both.logs, axis=1) == pytest.approx([0, 0], abs=1e-9)


@pytest.mark.parametrize("width", [0.001, 1.0, 300.0, 1e5])
def test_a_product_with_the_whole_globe_changes_nothing(width):
    place = density.unit_vectors([46.0], [8.0])
    one = Mixture.around(place, np.array([[width]]), np.zeros((1, 1)))
    globe = Mixture.around(density.unit_vectors([-10.0], [99.0]), np.array([[1e7]]),
                           np.zeros((1, 1)))  # fmt: skip
    at = density.unit_vectors([46 + 0.5 * min(width, 5e3) * KM_DEG], [8.0])
    assert product(one, globe, 4).log_at(at) == pytest.approx(one.log_at(at), abs=1e-3)


def test_two_places_metres_apart_multiply_to_the_middle():
    a, b = (
        Mixture.around(density.unit_vectors([lat], [8.0]), np.array([[0.004]]), np.zeros((1, 1)))
        for lat in (46.0, 46.0 + 0.006 * KM_DEG)
    )
    both = product(a, b, 1)
    middle = density.unit_vectors([46 + 0.003 * KM_DEG], [8.0])
    assert density.arc_km(both.centres[:, 0], middle) < 1e-6
    assert both.widths[0, 0] == pytest.approx(0.004 / np.sqrt(2), rel=1e-6)


def test_nothing_known_times_anything_is_nothing_known():
    place = density.unit_vectors([46.0], [8.0])
    silent = Mixture.around(np.full((1, 3), np.nan), np.array([[1.0]]), np.zeros((1, 1)))
    told = Mixture.around(place, np.array([[1.0]]), np.zeros((1, 1)))
    assert silent.silent and not told.silent
    assert product(silent, told, 4).silent and product(told, silent, 4).silent
    whole = joined([silent, told], np.log([[0.5, 0.5]]))
    assert density.arc_km(whole.draws()[0], place).max() < 6


def test_draws_lie_as_the_density_says():
    """The share of draws near a kernel is the integral of the density there, summed on a grid."""
    mixture = some_mixture(np.random.default_rng(1), count=1)
    draws, step = mixture.draws()[0], 0.1 * KM_DEG
    north, east = np.meshgrid(np.arange(-0.15, 0.15, step), np.arange(-0.2, 0.2, step))
    grid = density.unit_vectors(46 + north.ravel(), 8 + east.ravel())
    cell_km2 = 0.1**2 * np.cos(np.radians(46 + north.ravel()))
    copies = [np.repeat(part, len(grid), axis=0)
              for part in (mixture.centres, mixture.logs, mixture.widths)]  # fmt: skip
    chance = np.exp(Mixture(*copies).log_at(grid)) * cell_km2
    assert chance.sum() == pytest.approx(1, abs=0.01)
    for place in mixture.centres[0]:
        near = (density.arc_km(draws, place) < 1.5).mean()
        assert near == pytest.approx(chance[density.arc_km(grid, place) < 1.5].sum(), abs=0.05)


# ---------------------------------------------------------------- time


def test_one_gets_the_farther_the_longer_it_takes():
    shots = shots_from(walk(np.random.default_rng(0)))
    timeline = Timeline(shots, np.ones(len(shots), bool))
    timeline.learn(np.full(len(shots), -5.0))
    km = np.exp(timeline.same.expected(np.array([10.0, 600.0, 86400.0])))
    assert km[0] < 0.03 < km[1] < 1.5 < km[2] < 30


def test_hidden_positions_tell_no_time():
    """UTC that is known by the position alone hides with it: the offset comes from a neighbour."""
    rng = np.random.default_rng(0)
    shots = shots_from(walk(rng, days=2))
    shots = dataclasses.replace(shots, local=shots.utc + 7200, by_place=np.ones(len(shots), bool))
    visible = np.ones(len(shots), bool)
    assert shots.seconds(visible) == pytest.approx(shots.utc)
    visible[3] = False
    shots.utc[3] += 5000  # would be seen if it leaked
    assert shots.seconds(visible)[3] == pytest.approx(shots.local[3] - 7200)
    assert shots.seconds(np.zeros(len(shots), bool)) == pytest.approx(shots.local)


@pytest.mark.parametrize("minutes", [0, 37, -180, 720.5, -0.5])
def test_the_clock_of_a_second_camera_is_found(minutes):
    rng = np.random.default_rng(2)
    one = walk(rng)
    shots = shots_from(one, companion(rng, one, minutes * 60))
    placer = placing.learn_voices(shots, np.ones(len(shots), bool))
    for pair, sign in (((1, 0), -1), ((0, 1), 1)):
        clock = placer.timeline.clocks[pair]
        assert clock.together and placer.timeline.together(*pair), clock
        assert clock.shift_s / 60 == pytest.approx(sign * minutes, abs=1.0)


@pytest.mark.parametrize(
    "how", ["elsewhere", "far away", "same town", "never at the same time", "unplaced"]
)
def test_another_persons_camera_counts_for_nothing(how):
    rng = np.random.default_rng(3)
    one = walk(rng)
    start = 400 if how == "never at the same time" else 0
    lat = {"elsewhere": 52.0, "far away": -40.0}.get(how, 46.0)
    other = walk(rng, camera=1, start_day=start, lat=lat)
    shots = shots_from(one, other)
    visible = np.ones(len(shots), bool)
    if how == "unplaced":
        visible[shots.camera == 1] = False
    placer = placing.learn_voices(shots, visible)
    assert not placer.timeline.together(0, 1)
    asked = np.flatnonzero(shots.camera == 1)[:20]
    visible[asked] = False
    told = placing.listen(placer.timeline.see(visible), asked, placer.picture_logs)
    for side in (told.near, told.far):
        assert not side.other.any()


@pytest.mark.parametrize("minutes", [37, -95])
def test_cameras_that_know_utc_tell_together_what_anothers_clock_is(minutes):
    """Three cameras, each with days of its own: none alone has met the companion often enough."""
    rng = np.random.default_rng(8)
    parts = [walk(rng, days=4, camera=k, start_day=10 * k) for k in range(3)]
    for one in parts[:3]:
        parts.append(companion(rng, one, minutes * 60, every=12) | {"camera": np.full(4, 3)})
    shots = shots_from(*parts)
    shots.by_place[shots.camera == 3] = True
    placer = placing.learn_to_place(shots, np.ones(len(shots), bool))
    for other in range(3):
        assert placer.timeline.together(3, other)
        assert placer.timeline.clocks[3, other].shift_s == pytest.approx(-minutes * 60, abs=60)


def test_an_unrelated_camera_is_placed_nowhere_confidently():
    """Its photos fall into the hours of the others, in the same folder; none has a place."""
    rng = np.random.default_rng(4)
    one, other = walk(rng), walk(rng, days=8, camera=1, lat=-20.0)
    shots = shots_from(one, other)
    visible = shots.camera == 0
    found = placing.learn_to_place(shots, visible).answer(np.flatnonzero(~visible))
    assert not found.confident.any()
    visible[np.flatnonzero(~visible)[::2]] = True  # now it has places of its own
    hidden = np.flatnonzero(~visible)
    found = placing.learn_to_place(shots, visible).answer(hidden)
    error = density.arc_km(found.points, shots.places[hidden])
    assert np.median(error) < 1


# ---------------------------------------------------------------- placing


@pytest.fixture(scope="module")
def judged():
    rng = np.random.default_rng(5)
    one = walk(rng)
    shots = shots_from(one, companion(rng, one, 37 * 60, every=4))
    picture = shots.places + rng.normal(0, 2 / 6371, shots.places.shape)
    picture /= np.linalg.norm(picture, axis=1, keepdims=True)
    radius = np.tile([2.3, 4.5], (len(shots), 1))
    shots = dataclasses.replace(shots, picture=picture, radius=radius)
    return hiding.measure(shots)


def error_of(judged, method, way=None):
    mine = judged[(judged["method"] == method) & ((judged["way"] == way) if way else True)]
    return np.exp(np.log(np.maximum(mine["error_km"], 1e-3)).mean())


def test_placing_beats_what_people_have_today(judged):
    simple = min(error_of(judged, name) for name in hiding.SIMPLE)
    assert error_of(judged, "time alone") <= simple
    assert error_of(judged, "time and picture") <= 0.8 * simple
    stretch = [
        error_of(judged, name, "whole stretches") for name in ("time alone", "time and picture")
    ]
    assert stretch[1] <= 0.8 * stretch[0]
    best, ratio = hiding.pooled_ratio(judged, "time and picture")
    assert error_of(judged, best) == pytest.approx(simple)
    assert ratio == pytest.approx(error_of(judged, "time and picture") / simple)


@pytest.mark.parametrize("method", ["time alone", "time and picture"])
def test_radii_hold_what_they_promise(judged, method):
    mine = judged[judged["method"] == method]
    assert 0.82 <= mine["inside90"].mean() <= 0.98
    assert 0.35 <= mine["inside50"].mean() <= 0.68
    sure = mine[mine["confident"] == 1]
    assert len(sure) > 20 and np.quantile(sure["error_km"], 0.9) < 1


def test_few_stretches_make_careful_levels():
    """Photos of one stretch err alike: sixty of each of ten say no more than ten."""
    alike = np.repeat(np.random.default_rng(3).uniform(0, 1, 10), 60)
    plain = np.quantile(alike, placing.LEVELS)
    apart = placing.careful_levels(alike, np.arange(600))
    together = placing.careful_levels(alike, np.repeat(np.arange(10), 60))
    assert np.all(apart >= plain) and np.all(together >= apart)
    assert together[0] > plain[0] + 0.1 > apart[0]


def test_the_report_has_every_way_and_answer(judged):
    report = hiding.summarise(judged)
    whole = report[report["way"] == "all"]
    assert list(whole["method"]) == [*hiding.SIMPLE, *hiding.LEARNED]
    assert set(report["way"]) == {
        "all",
        "single photos",
        "whole stretches",
        "one camera of several",
    }
    assert set(report["gap"]) <= {"all", "minutes", "hours", "days"}
    assert (whole["n"] == whole["n"].iloc[0]).all()


def test_simple_answers():
    part = {"lat": np.array([46.0, 46.0, 46.1, 46.3]), "lon": np.full(4, 8.0),
            "seconds": np.array([0.0, 100, 300, 400]), "camera": np.zeros(4, int)}  # fmt: skip
    shots, seen = shots_from(part), np.array([True, False, True, True])
    found = hiding.simple_answers(shots, seen, np.array([1]))
    lat = {name: density.lat_lon(places)[0][0] for name, places in found.items()}
    assert lat["nearest in time"] == pytest.approx(46.0)
    assert lat["linear interpolation"] == pytest.approx(46 + 0.1 / 3, abs=1e-6)
    assert lat["same-day median"] == pytest.approx(46.1, abs=1e-6)
    shots.local[1] = shots.utc[1] = np.nan
    found = hiding.simple_answers(shots, seen, np.array([1]))
    assert density.lat_lon(found["nearest in time"])[0][0] == pytest.approx(46.1, abs=1e-6)


def test_words_say_what_carries_an_answer():
    rng = np.random.default_rng(6)
    one = walk(rng)
    two = companion(rng, one, 37 * 60)
    shots = shots_from(one, two)
    visible = np.ones(len(shots), bool)
    hidden = np.flatnonzero(shots.camera == 1)[4:8]
    shots.places[hidden] = np.nan
    visible[hidden] = False
    placed = library.place_library(shots, hidden)
    assert list(placed["filename"]) == [shots.names[i] for i in hidden]
    assert placed["confident"].all() and (placed["radius90_km"] >= placed["radius50_km"]).all()
    assert placed["why"].str.contains("another camera, clock corrected by −37 min").all()
    assert placed["why"].str.contains(r"^\d+ s (?:after|before) \d{4}\.jpg").all()
    told = re.fullmatch(r"Camera 0 and Camera 1: together, \d+ photos; the first clock is "
                        r"(\d+\.\d) min behind", placed.attrs["clocks"][0])  # fmt: skip
    assert told and float(told[1]) == pytest.approx(37, abs=1)
    again = library.place_library(shots, hidden)
    pd.testing.assert_frame_equal(placed, again)


@pytest.mark.parametrize("seconds, words", [
    (0, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (720, "12 min"), (3599, "1 h"), (90_000, "25 h"),
    (86400 * 5.2, "5 days"),
])  # fmt: skip
def test_time_in_words(seconds, words):
    assert library.time_words(seconds) == words


def test_photos_without_a_time_and_a_table_of_one_place():
    rng = np.random.default_rng(7)
    shots = shots_from(walk(rng, days=3))
    timeless = np.array([2, 9, 20])
    shots.local[timeless] = shots.utc[timeless] = np.nan
    visible = np.ones(len(shots), bool)
    visible[[2, 9]] = False
    found = placing.learn_to_place(shots, visible).answer(np.array([2, 9]))
    assert np.isfinite(found.points).all() and not found.confident.any()
    same = dataclasses.replace(shots, places=np.tile(shots.places[:1], (len(shots), 1)))
    found = placing.learn_to_place(same, visible).answer(np.array([2, 9]))
    assert density.arc_km(found.points, same.places[0]).max() < 0.5


# ---------------------------------------------------------------- the script


def test_a_library_is_placed_without_a_model(photo_set, tmp_path):
    code, printed = quietly(
        evaluator.main, "--data-dir", photo_set.data, "--output-dir", tmp_path,
        "--checkpoint-dir", tmp_path / "none", "--place",
    )  # fmt: skip
    assert code == 0, printed
    assert "by time, day and folder alone" in printed and "nearest in time" in printed
    content = json.loads((tmp_path / "placed.json").read_text(encoding="utf-8"))
    names = [row["filename"] for row in content["photos"]]
    assert names == [f"no exif/plain_{number}.jpg" for number in range(3)]
    assert not any(row["confident"] for row in content["photos"]) and content["report"]
    frame, model = library.read_placed(tmp_path / "placed.json")
    assert model == "time" and list(frame["filename"]) == names
    assert len((tmp_path / "placed.csv").read_text(encoding="utf-8").splitlines()) == 4


def test_where_all_have_a_position_none_is_placed_and_the_report_is_there(photo_set, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    rows = json.loads((photo_set.data / "exif_data.json").read_text(encoding="utf-8"))
    rows = [row for row in rows if row["gps_latitude"] is not None]
    (data / "exif_data.json").write_text(json.dumps(rows))
    code, printed = quietly(
        evaluator.main, "--data-dir", data, "--image-dir", photo_set.images, "--output-dir",
        tmp_path, "--checkpoint-dir", tmp_path / "none", "--place",
    )  # fmt: skip
    assert code == 0 and "\n0 photos placed by time" in printed and "nearest in time" in printed
    content = json.loads((tmp_path / "placed.json").read_text(encoding="utf-8"))
    assert content["photos"] == [] and content["report"]
    frame, _ = library.read_placed(tmp_path / "placed.json")
    assert len(frame) == 0


def test_too_few_places_end_the_run_in_one_line(photo_set, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    rows = json.loads((photo_set.data / "exif_data.json").read_text(encoding="utf-8"))
    for row in rows[9:]:
        row["gps_latitude"] = row["gps_longitude"] = None
    (data / "exif_data.json").write_text(json.dumps(rows))
    code, printed = quietly(evaluator.main, "--data-dir", data, "--output-dir", tmp_path, "--place")
    assert code == 2 and printed.count("\n") == 1 and "10" in printed
