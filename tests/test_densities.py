"""Every head's density: whoever is right is followed, intervals hold what they say, strangers get
the prior, and what was never learned is never answered."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import make_normalisation, make_photos
from crepes import ConformalRegressor

import density
from geophoto import archives, baselines, densities, voices
from geophoto.densities import HeadDensity
from geophoto.targets import time_point
from geophoto.voices import Evidence

HEADS = ("gps", "time", "altitude")
SCALE = make_normalisation()


def draw_values(head: str, rng, *shape) -> np.ndarray:
    """Labels as they lie without any picture."""
    if head == "gps":
        lat, lon = 46 + rng.normal(0, 0.3, shape), 7 + rng.normal(0, 0.4, shape)
        return density.unit_vectors(lat, lon)
    return rng.uniform(300, 1200, shape) if head == "time" else rng.normal(0, 1, shape)


def shifted(head: str, values: np.ndarray, share: float, rng) -> np.ndarray:
    """The same labels, off by a share of how they scatter."""
    if head == "gps":
        lat, lon = density.lat_lon(values)
        shape = lat.shape
        return density.unit_vectors(lat + rng.normal(0, 0.3 * share, shape),
                                    lon + rng.normal(0, 0.4 * share, shape))  # fmt: skip
    spread = 260 if head == "time" else 1.0
    return values + rng.normal(0, spread * share, values.shape)


def make_evidence(head: str, knows: str, count: int, seed: int, off=0.03) -> Evidence:
    """Photos about which the head, the most similar neighbour or nobody knows anything."""
    rng = np.random.default_rng(seed)
    truth, own = draw_values(head, rng, count), draw_values(head, rng, count)
    near, prior = draw_values(head, rng, count, 12), draw_values(head, rng, 200)
    similar = np.sort(rng.uniform(0.1, 0.3, (count, 12)))[:, ::-1].copy()
    if knows == "head":
        own = shifted(head, truth, off, rng)
    elif knows == "neighbour":
        near[:, 0], similar[:, 0] = shifted(head, truth, off, rng), 0.9
    return Evidence(similar, near, own, prior, truth, rng.uniform(8, 10, count))


def fit(head: str, knows: str, count: int = 60, off=0.03) -> HeadDensity:
    parts = [make_evidence(head, knows, count, seed, off) for seed in range(4)]
    found = densities.fit_head(head, parts, [SCALE] * 4)
    assert found is not None
    return found


def errors(head: str, one: HeadDensity, evidence: Evidence) -> tuple[np.ndarray, dict]:
    answer = one.answer(head, evidence, SCALE)
    return densities.distance_of(head, answer["point"], evidence.truth, SCALE), answer


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("knows", ["head", "neighbour"])
def test_whoever_is_right_is_followed(head, knows):
    fresh = make_evidence(head, knows, 150, 99, off=0.01)
    found, answer = errors(head, fit(head, knows, off=0.01), fresh)
    plain = densities.distance_of(
        head, densities.middle_value(head, fresh, SCALE), fresh.truth, SCALE
    )
    assert np.median(found) < 0.2 * np.median(plain)
    assert answer["confident"].mean() > 0.9


@pytest.mark.parametrize("head", HEADS)
def test_where_nobody_knows_the_answer_is_no_worse_than_saying_nothing(head):
    fresh = make_evidence(head, "nobody", 400, 99)
    found, answer = errors(head, fit(head, "nobody"), fresh)
    plain = densities.distance_of(
        head, densities.middle_value(head, fresh, SCALE), fresh.truth, SCALE
    )
    assert found.mean() < 1.05 * plain.mean()
    assert not answer["confident"].any()


def test_a_time_is_as_sure_as_the_length_of_its_answer_tells():
    """Half of the photos have long answers that are good, half short ones that are bad."""
    rng, asked = np.random.default_rng(5), []
    for _ in range(5):
        truth, sure = rng.uniform(0, 1440, 200), rng.random(200) < 0.5
        points = time_point(truth + rng.normal(0, np.where(sure, 60, 200)))
        points *= np.where(sure, 0.95, 0.3)[:, None]
        found = {"gps": np.zeros((200, 2)), "time": points, "altitude": np.zeros(200),
                 "sun": np.zeros(200), "trunk": rng.normal(size=(200, 4))}  # fmt: skip
        photos = dataclasses.replace(make_photos(200), minutes=truth % 1440)
        asked.append(densities.gather_evidence("time", found, None, SCALE, photos))
    deaf = [dataclasses.replace(evidence, breadth=np.ones(200)) for evidence in asked]
    told = []
    for *parts, fresh in (asked, deaf):
        one = densities.fit_head("time", parts, [SCALE] * 4)
        width = one.answer("time", fresh, SCALE)["width"]
        likely = densities.log_likelihoods(one, fresh, voices.Circle())["posterior"].mean()
        told.append((width[sure].mean() / width[~sure].mean(), likely))
    (narrower, likely), (alike, less_likely) = told
    assert narrower < 0.75 < 0.95 < alike and likely > less_likely + 0.05


@pytest.mark.parametrize("head", ["time", "altitude"])
def test_who_knows_only_what_it_was_shown_gets_the_prior(head):
    """A neighbour that is right in one place and wrong in every other one, held out in turn."""
    right = [make_evidence(head, "neighbour", 60, seed) for seed in range(4)]
    wrong = [make_evidence(head, "nobody", 60, seed + 9) for seed in range(4)]
    parts = [*right[:1], *(dataclasses.replace(r, near=w.near) for r, w in
                           zip(right[1:], wrong[1:], strict=True))]  # fmt: skip
    one = densities.fit_head(head, parts, [SCALE] * 4)
    assert one.trust < 0.95 < fit(head, "neighbour").trust
    space = densities.space_of(head, SCALE)
    prior = one.weights(right[1], space)[:, densities.voice_of(space) == 2].sum(axis=1)
    assert (prior >= 1 - one.trust - 1e-9).all()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("knows", ["head", "neighbour", "nobody"])
def test_intervals_hold_what_they_say_on_fresh_photos(head, knows):
    fresh = make_evidence(head, knows, 500, 77, off=0.2)
    found, answer = errors(head, fit(head, knows, 100, off=0.2), fresh)
    assert (found <= answer["half50"]).mean() == pytest.approx(0.5, abs=0.1)
    assert (found <= answer["half90"]).mean() == pytest.approx(0.9, abs=0.07)
    assert (answer["half90"] >= answer["half50"]).all()


def test_levels_are_the_conformal_ones_of_an_independent_library():
    """Where every photo is a group of its own, the level is crepes' quantile of the scores."""
    parts = [make_evidence("time", "neighbour", 80, seed, 0.2) for seed in range(3)]
    one = densities.fit_head("time", parts, [SCALE] * 3)
    logs = [part.kernel_logs(voices.Circle(), one.stack.temperature) for part in parts]
    gates, scores = [part.gate() for part in parts], []
    for i, part in enumerate(parts):
        judge = dataclasses.replace(one, stack=voices.fit_without(one.stack, logs, gates, i))
        points, ranges = judge.ranges("time", part, SCALE)
        away = densities.distance_of("time", points, part.truth, SCALE)
        scores.append(ranges.shares_within(away))
    conformal = ConformalRegressor().fit(residuals=np.concatenate(scores))
    for level, ours in zip((0.5, 0.9), one.levels, strict=True):
        low, high = conformal.predict_int(np.zeros(1), confidence=level)[0]
        assert ours == pytest.approx((high - low) / 2, abs=0.02)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("told", [True, False])
def test_an_answer_does_not_depend_on_who_else_is_asked(head, told):
    """Not even on a head that says what no training photo ever was; nor without labels to tell."""
    one, fresh = fit(head, "head"), make_evidence(head, "neighbour", 6, 12)
    if head == "altitude":
        fresh.head[:2] = 40.0, -35.0
    if not told:
        fresh = dataclasses.replace(
            fresh, similar=fresh.similar[:, :0], near=fresh.near[:, :0], prior=fresh.prior[:0]
        )
    whole = one.answer(head, fresh, SCALE)
    for i in range(len(fresh)):
        alone = one.answer(head, fresh.take(slice(i, i + 1)), SCALE)
        for key, values in whole.items():
            assert alone[key][0] == pytest.approx(values[i], rel=1e-9, abs=1e-9), key


@pytest.mark.parametrize("head", HEADS)
def test_a_stranger_gets_the_prior_and_no_confidence(head):
    one, fresh = fit(head, "neighbour", off=0.01), make_evidence(head, "neighbour", 20, 55, 0.01)
    strange = dataclasses.replace(fresh, away=np.full(20, 25.0))
    space = densities.space_of(head, SCALE)
    voice = densities.voice_of(space)
    assert one.weights(strange, space)[:, voice == 2].sum(axis=1) == pytest.approx(1)
    known, unknown = one.answer(head, fresh, SCALE), one.answer(head, strange, SCALE)
    assert known["confident"].mean() > 0.8 and not unknown["confident"].any()
    assert np.median(unknown["half50"]) > 3 * np.median(known["half50"])


def test_no_interval_is_narrower_than_labels_are_known():
    """All photos at one place, in one minute, at one altitude."""
    for head, least in (("gps", density.LEAST_RADIUS_KM), ("time", 1.0), ("altitude", 1.0)):
        evidence = make_evidence(head, "nobody", 30, 1)
        place = evidence.truth[:1]
        same = Evidence(
            evidence.similar, np.repeat(place[None], 30, 0).repeat(12, 1), np.repeat(place, 30, 0),
            np.repeat(place, 9, 0), np.repeat(place, 30, 0), evidence.away,
        )  # fmt: skip
        one = densities.fit_head(head, [same, same], [SCALE] * 2)
        answer = one.answer(head, same, SCALE)
        assert (answer["half50"] >= least).all() and np.isfinite(answer["half90"]).all()


# ---------------------------------------------------------------- all heads


def make_prediction(count: int, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "gps": rng.normal(0, 0.5, (count, 2)), "time": rng.normal(0, 1, (count, 2)),
        "altitude": rng.normal(0, 1, count), "sun": rng.uniform(-1, 1, count),
        "trunk": rng.normal(0, 1, (count, 16)).astype(np.float32),
        "views": rng.normal(0, 1, (count, 6, 6)),
    }  # fmt: skip


def fitted(photos, with_gallery=True) -> tuple[dict, dict | None]:
    """Densities from two trainers, and a gallery."""
    asked, gallery = [], None
    for seed in (0, 1):
        found = make_prediction(len(photos), seed)
        gallery = densities.gallery_of(found["trunk"], photos) if with_gallery else None
        asked.append((make_prediction(len(photos), seed + 5), gallery, photos, SCALE))
    return densities.fit_densities(asked), gallery


@pytest.mark.parametrize("with_gallery", [True, False])
def test_answers_are_finite_and_their_intervals_grow(with_gallery):
    every, gallery = fitted(make_photos(60), with_gallery)
    answers = densities.answers_of(make_prediction(9, 3), gallery, every, SCALE)
    for name, column in answers.items():
        assert len(column) == 9 and np.isfinite(column).all(), name
    for name in ("radius{}_km", "time{}_minutes", "altitude{}_m"):
        assert (answers[name.format(90)] >= answers[name.format(50)]).all()
    assert ((answers["minutes"] >= 0) & (answers["minutes"] < 1440)).all()
    evidence = densities.gather_evidence("gps", make_prediction(9, 3), gallery, SCALE)
    asked = evidence, answers["radius50_km"], SCALE
    places = densities.likely_places(every["heads"]["gps"], *asked)
    assert all(sum(chance for *_, chance in found) <= 1 + 1e-9 for found in places)


@pytest.mark.parametrize("missing", ["lat", "minutes", "altitude"])
def test_what_was_never_learned_is_never_answered(missing):
    blank = {missing: np.full(60, np.nan)} | (
        {"lon": np.full(60, np.nan)} if missing == "lat" else {}
    )
    every, gallery = fitted(make_photos(60, **blank))
    answers = densities.answers_of(make_prediction(5, 3), gallery, every, SCALE)
    silent = {
        "lat": ("lat", "lon", "radius50_km", "radius90_km"),
        "minutes": ("minutes", "time50_minutes"),
        "altitude": ("altitude", "altitude90_m"),
    }
    for name in silent.pop(missing):
        assert np.isnan(answers[name]).all()
    for name in (name for names in silent.values() for name in names):
        assert np.isfinite(answers[name]).all(), name
    if missing == "lat":
        evidence = densities.gather_evidence("gps", make_prediction(5), gallery, SCALE)
        assert densities.likely_places(None, evidence, answers["lat"], SCALE) == [[]] * 5


@pytest.mark.parametrize("with_gallery", [True, False])
def test_strangers_are_answered_by_what_is_said_without_looking(with_gallery):
    """Far outside the training photos nothing is confident, and nothing is NaN."""
    every, gallery = fitted(make_photos(60), with_gallery)
    far = make_prediction(4, 3)
    far["trunk"] = 100 * far["trunk"]
    answers = densities.answers_of(far, gallery, every, SCALE)
    assert all(np.isfinite(column).all() for column in answers.values())
    assert (answers["strangeness"] > 1).all()
    assert not any(answers[f"{head}_confident"].any() for head in densities.NAMES)
    assert np.ptp(answers["minutes"]) == 0 or not with_gallery


@pytest.mark.parametrize("at_once", [1, 7, 23])
def test_photos_are_answered_alike_however_many_are_in_memory_together(monkeypatch, at_once):
    photos = make_photos(60)
    every, gallery = fitted(photos)
    asked = make_photos(23, seed=8)
    whole = densities.hold_out(every, make_prediction(23, 3), gallery, asked, SCALE)
    monkeypatch.setattr("geophoto.voices.AT_ONCE", at_once)
    again, _ = fitted(photos)
    for head, one in every["heads"].items():
        assert again["heads"][head].levels == pytest.approx(one.levels, abs=1e-9)
    parts = densities.hold_out(every, make_prediction(23, 3), gallery, asked, SCALE)
    for block in ("answers", "log_likelihood"):
        for name, column in whole[block].items():
            assert parts[block][name] == pytest.approx(column, rel=1e-9, nan_ok=True), name


def test_the_gallery_is_searched_once_for_heads_that_know_the_same_photos(monkeypatch):
    searches, search, rng = [], densities.nearest_features, np.random.default_rng(0)

    def counted(*about):
        searches.append(len(about[1]))
        return search(*about)

    monkeypatch.setattr(densities, "nearest_features", counted)
    for gaps, expected in (
        ({}, 1),
        ({"minutes": 10}, 2),
        ({"minutes": 10, "altitude": 10}, 2),
        ({"minutes": 10, "altitude": 20}, 3),
    ):
        columns = {name: 45 + rng.random(60) for name in ("lat", "lon", "minutes", "altitude")}
        for name, unknown in gaps.items():
            columns[name][:unknown] = np.nan
        photos = make_photos(60, **columns)
        searches.clear()
        gallery = densities.gallery_of(make_prediction(60)["trunk"], photos)
        found = densities.gather_all(make_prediction(5, 3), gallery, SCALE)
        assert len(searches) == expected
        for head, evidence in found.items():
            alone = densities.gather_evidence(head, make_prediction(5, 3), gallery, SCALE)
            assert (alone.near == evidence.near).all() and (alone.away == evidence.away).all()


def test_densities_survive_a_checkpoint(tmp_path):
    every, gallery = fitted(make_photos(60))
    archives.save(tmp_path / "d.pth", {"densities": densities.as_plain(every)})
    read = torch.load(tmp_path / "d.pth", weights_only=True)["densities"]
    again = densities.from_plain(archives.numpy_again(read))
    before, after = (
        densities.answers_of(make_prediction(7, 3), gallery, d, SCALE) for d in (every, again)
    )
    for name, column in before.items():
        assert (column == after[name]).all(), name


def test_held_out_photos_are_scored_at_their_truths_and_serve_the_final_model():
    photos = make_photos(60)
    every, gallery = fitted(photos)
    asked = make_photos(20, seed=8)
    results = [
        {**densities.hold_out(every, make_prediction(20, seed), gallery, asked, SCALE),
         "densities": densities.as_plain(every)}
        for seed in (3, 4)
    ]  # fmt: skip
    for head, known in (("gps", asked.placed), ("time", np.isfinite(asked.minutes))):
        for name in densities.LIKELIHOODS:
            column = results[0]["log_likelihood"][f"{head}_{name}"]
            assert (np.isfinite(column) == known).all()
    final = densities.combine_folds(results)
    assert set(final["heads"]) == set(HEADS) and None not in final["heads"].values()


def test_confidence_is_an_interval_whose_held_out_error_is_small():
    half = np.arange(1.0, 41.0)
    below, reached = baselines.confident_below("time", half, half, np.full(40, 20.0))
    assert below == 19.0 and reached == pytest.approx(10.0)  # half of 20 minutes
    assert baselines.confident_below("time", half, np.full(40, 15.0), np.full(40, 20.0))[0] == 0


def test_who_is_found_or_lost_is_not_confident_on_average():
    """Most photos to 10 m, a third 9,000 km off: a fine geometric mean, and nothing to rely on."""
    found = np.arange(60) % 3 > 0
    error, plain = np.where(found, 0.01, 9000.0), np.full(60, 5000.0)
    unsure = np.full(60, 12_000.0) + np.arange(60)
    assert baselines.confident_below("gps", unsure, error, plain)[0] == 0
    told_apart = np.where(found, 1.0, 12_000.0)
    below, reached = baselines.confident_below("gps", told_apart, error, plain)
    assert below == 1.0 and reached == pytest.approx(0.01)
