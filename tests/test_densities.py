"""Gallery and posterior: whoever is right is followed, radii hold what they say."""

import numpy as np
import pytest
from conftest import make_normalisation, make_photos

import density
from geophoto import densities, targets

# ---------------------------------------------------------------- baselines and gallery


def posterior_case(head_good: bool, count=80, seed=0):
    """Head, neighbours and truth of which only one of the first two knows the place."""
    rng = np.random.default_rng(seed)
    centre = 46.0 + rng.normal(0, 0.3, count), 7.0 + rng.normal(0, 0.4, count)
    elsewhere = 46.0 + rng.normal(0, 0.3, count), 7.0 + rng.normal(0, 0.4, count)
    truth = density.unit_vectors(*centre)
    close = density.unit_vectors(*(v + rng.normal(0, 1e-3, count) for v in centre))
    far = density.unit_vectors(*elsewhere)
    neighbours = density.unit_vectors(
        46.0 + rng.normal(0, 0.3, (count, 5)), 7.0 + rng.normal(0, 0.4, (count, 5))
    )
    similar = np.sort(rng.uniform(0.1, 0.3, (count, 5)))[:, ::-1].copy()
    if not head_good:
        neighbours[:, 0], similar[:, 0] = close, 0.95
    wide = np.tile(density.unit_vectors(46.0, 7.0), (count, 1))
    return (close if head_good else far), similar, neighbours, wide, truth


@pytest.mark.parametrize("head_good", [True, False])
def test_posterior_follows_whoever_is_right(head_good):
    *case, truth = posterior_case(head_good)
    posterior = densities.Posterior.fit(*case, truth, 50.0)
    assert (posterior.head_weight > 0.5) == head_good
    mixture = posterior.mixture(*case, 50.0)
    assert np.exp(mixture[1]).sum(axis=1) == pytest.approx(1, abs=1e-9)
    miss = density.arc_km(posterior.point(*mixture), truth)
    assert np.median(miss) < 0.3
    width = posterior.head_bandwidth_km if head_good else posterior.bandwidth_km
    assert width < 5


def test_densities_are_chosen_on_all_rehearsals_and_scored_at_the_true_positions():
    case = posterior_case(head_good=False)
    lat, lon = density.lat_lon(case[-1])
    photos = make_photos(80, lat=np.where(np.arange(80) == 3, np.nan, lat), lon=lon)
    known = make_photos(80, seed=1)
    kept = np.flatnonzero(photos.placed)
    evidence = tuple(column[kept] for column in case)
    halves = [tuple(c[half] for c in evidence) for half in (slice(0, 40), slice(40, None))]
    choice = densities.fit_densities(halves, [known, known], 50.0)
    assert choice["posterior"] == densities.Posterior.fit(*evidence, 50.0)
    found = densities.log_likelihoods(evidence, known, photos, choice, 50.0)
    assert all(
        np.isnan(values).tolist() == [i == 3 for i in range(80)] for values in found.values()
    )
    gains = {name: np.nanmean(found["posterior"] - found[name]) for name in ("head", "positions")}
    assert min(gains.values()) > 1  # the neighbours know, the other two do not
    # By hand: kernels on the training positions, and the mixture at one photo.
    rows, width = known.placed, choice["kernel_km"]
    apart = density.distance_km(known.lat[rows], known.lon[rows], lat[0], lon[0])
    by_hand = np.log(np.exp(density.kernel_log_per_km2(apart, width)).mean())
    assert found["positions"][0] == pytest.approx(by_hand)
    mixture = choice["posterior"].mixture(*(column[:1] for column in case[:-1]), 50.0)
    assert found["posterior"][0] == pytest.approx(
        density.mixture_log_per_km2(case[-1][:1], *(m[0] for m in mixture))[0]
    )


def test_densities_without_any_position_are_the_head_alone():
    none = np.zeros((0, 3))
    evidence = (none, np.zeros((0, 5)), np.zeros((0, 5, 3)), none, none)
    choice = densities.fit_densities([evidence], [make_photos(9)], 7.0)
    assert choice["posterior"].head_weight == 1 and choice["kernel_km"] == 7


def test_posterior_beats_every_single_source_in_likelihood():
    case = posterior_case(False)
    posterior = densities.Posterior.fit(*case, 50.0)
    for other in (
        densities.Posterior(0.1, 50.0, 1.0, 50.0, "expected"),
        densities.Posterior(0.02, 500.0, 0.05, 500.0, "expected"),
    ):
        gain = posterior.log_per_km2(*case, 50.0) - other.log_per_km2(*case, 50.0)
        assert gain.mean() > 0


@pytest.mark.parametrize("head_good", [True, False])
def test_radii_hold_as_many_validation_photos_as_they_say(head_good):
    *case, truth = posterior_case(head_good, count=150)
    posterior = densities.Posterior.fit(*case, truth, 50.0)
    mixture = posterior.mixture(*case, 50.0)
    points = posterior.point(*mixture)
    miss = density.arc_km(points, truth)
    for level, wanted in ((posterior.level50, 0.5), (posterior.level90, 0.9)):
        radii = [
            density.credible_radius_km(points[i], *(part[i] for part in mixture), level)
            for i in range(150)
        ]
        assert (miss <= radii).mean() == pytest.approx(wanted, abs=0.03)


def test_where_nothing_is_known_the_answer_is_the_centre():
    """Each photo is judged by the centre of the photos that its own trainer knew: that of another
    trainer, which has seen it, would be right by heart."""
    rng = np.random.default_rng(0)
    count = 400
    truth, head, *near = (
        density.unit_vectors(46 + rng.normal(0, 0.3, count), 7 + rng.normal(0, 0.4, count))
        for _ in range(7)
    )
    similar = np.tile([0.3, 0.2, 0.1, 0.1, 0.1], (count, 1))
    evidence = [head, similar, np.stack(near, axis=1), np.tile(density.unit_vectors(46.0, 7.0),
                (count, 1)), truth]  # fmt: skip
    assert densities.Posterior.fit(*evidence, 50.0).estimator == "centre"
    evidence[3] = head  # centres that know as little as the head
    assert densities.Posterior.fit(*evidence, 50.0).estimator != "centre"


@pytest.mark.parametrize("with_gallery", [True, False])
def test_answers_are_finite_and_radii_grow(with_gallery):
    rng = np.random.default_rng(0)
    normalisation = make_normalisation()
    prediction = {
        "gps": rng.normal(0, 3, (9, 2)).astype(np.float32),
        "time": rng.normal(0, 1, (9, 2)).astype(np.float32),
        "altitude": rng.normal(0, 50, 9).astype(np.float32),
        "sun": rng.normal(0, 1, 9).astype(np.float32),
        "trunk": rng.normal(0, 1, (9, 4)).astype(np.float32),
        "views": rng.normal(0, 1, (9, 6, 6)),
    }
    photos = make_photos(30, lat=rng.normal(46, 1, 30), lon=rng.normal(7, 1, 30))
    gallery = densities.gallery_of(rng.normal(0, 1, (30, 4)), photos) if with_gallery else None
    posterior = densities.Posterior(0.1, 2.0, 0.5, 10.0, "expected")
    answers = densities.answers_of(prediction, gallery, posterior, normalisation)
    for key, value in answers.items():
        assert np.isfinite(value).all() and len(value) == 9, key
    assert (answers["radius50_km"] <= answers["radius90_km"]).all()
    assert ((answers["minutes"] >= 0) & (answers["minutes"] < 1440)).all()
    assert ((answers["time_certainty"] >= 0) & (answers["time_certainty"] <= 1)).all()
    again = densities.answers_of(prediction, gallery, posterior, normalisation)
    assert all((again[k] == v).all() for k, v in answers.items())


def neighbourly(similar_know: bool, seed: int) -> tuple:
    """(prediction, gallery, photos, normalisation): photos in pairs alike, one of each in the
    gallery; either the neighbour's time and altitude are true, or the head's are."""
    rng = np.random.default_rng(seed)
    photos, normalisation = make_photos(60, seed), make_normalisation()
    rows = np.flatnonzero(photos.placed & np.isfinite(photos.minutes + photos.altitude))
    photos = photos.take(rows)
    trunk = rng.normal(0, 1, (len(rows), 8))
    known = photos if similar_know else photos.take(rng.permutation(len(rows)))
    time, metres = targets.time_point(photos.minutes), photos.altitude
    if similar_know:
        time, metres = rng.permutation(time), rng.permutation(metres)
    prediction = {
        "gps": np.zeros((len(rows), 2)),
        "time": time,
        "altitude": normalisation.altitude_target(metres),
        "sun": np.zeros(len(rows)),
        "trunk": trunk + rng.normal(0, 0.01, trunk.shape),
    }
    return prediction, densities.gallery_of(trunk, known), photos, normalisation


@pytest.mark.parametrize("similar_know", [True, False])
def test_time_and_altitude_lean_on_the_neighbours_where_those_know(similar_know):
    asked = [neighbourly(similar_know, seed) for seed in range(4)]
    posterior = densities.Posterior(0.1, 50.0, 0.2, 50.0, "expected")
    chosen = densities.choose_lean(posterior, asked)
    shares = chosen.time_share, chosen.altitude_share
    assert shares == ((1.0, 1.0) if similar_know else (0.0, 0.0))
    prediction, gallery, photos, normalisation = asked[0]
    answers = {**prediction, "views": np.zeros((len(photos), 6, 6))}
    answers = densities.answers_of(answers, gallery, chosen, normalisation)
    assert targets.minutes_apart(answers["minutes"], photos.minutes).max() < 1e-6
    away = np.abs(answers["altitude"] - photos.altitude)
    assert (away < 1e-6 + 1e-9 * np.abs(photos.altitude)).mean() > 0.9  # the tail is cut off


def test_neighbours_without_a_label_are_passed_over():
    posterior = densities.Posterior(
        0.1, 50.0, 0.2, 50.0, "expected", time_share=0.5, time_count=2,
        altitude_share=0.5, altitude_count=2,
    )  # fmt: skip
    prediction = {"time": np.array([[1.0, 0], [1, 0]]), "altitude": np.array([2.0, 2.0])}
    labels = {"time": np.full((2, 3, 2), np.nan), "altitude": np.full((2, 3, 1), np.nan)}
    labels["altitude"][0, 1] = 4.0  # the second of two asked
    labels["altitude"][1, 2] = 4.0  # the third is not asked
    moved = posterior.lean(prediction, labels)
    assert (moved["time"] == prediction["time"]).all()
    assert moved["altitude"].tolist() == [3.0, 2.0]


def test_neighbours_that_help_by_luck_are_not_trusted():
    """One trainer gains much, three lose a little: no clear gain."""
    lucky, *others = [neighbourly(seed == 0, seed) for seed in range(4)]
    posterior = densities.Posterior(0.1, 50.0, 0.2, 50.0, "expected")
    chosen = densities.choose_lean(posterior, [lucky, *others])
    assert (chosen.time_share, chosen.altitude_share) == (0.0, 0.0)


def test_points_of_a_mixture_of_one_near_photo_and_a_crowd():
    """The most similar photo stands alone; four others and the head stand together elsewhere."""
    wide = density.unit_vectors(np.array([40.0]), np.array([40.0]))
    places = density.unit_vectors(np.array([10.0, 0, 0, 0, 0]), np.array([10.0, 5, 5, 5, 5]))[None]
    similar, head = np.array([[0.9, 0.88, 0.88, 0.88, 0.88]]), places[:, 1]
    for estimator, expected in (("nearest", places[:, 0]), ("expected", head), ("centre", wide)):
        posterior = densities.Posterior(0.1, 50.0, 0.2, 50.0, estimator)
        point = posterior.point(*posterior.mixture(head, similar, places, wide, 500.0))
        assert point == pytest.approx(expected)
