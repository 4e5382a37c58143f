"""Labels to targets and back; losses against their definitions."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import make_batch, make_normalisation, make_photos
from hypothesis import given, settings
from hypothesis import strategies as st

import density
from geophoto import targets

RADIUS = density.EARTH_RADIUS_KM

# ---------------------------------------------------------------- position

FRAMES = [(46.0, 7.0), (0.0, 0.0), (0.0, 180.0), (10.0, -180.0), (90.0, 0.0), (-90.0, 33.0)]


@pytest.mark.parametrize("lat, lon", FRAMES)
@settings(max_examples=40, deadline=None)
@given(st.floats(-8, 8), st.floats(-8, 8), st.sampled_from([0.01, 50.0, 1700.0]))
def test_offsets_keep_distance_and_bearing_from_the_centre(lat, lon, east, north, spread_km):
    normalisation = make_normalisation(lat, lon, spread_km)
    offset = torch.tensor([[east, north]], dtype=torch.float64)
    vector = targets.decode_gps(offset, normalisation).numpy()[0]
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-12)
    km = math.hypot(east, north) * spread_km
    found = density.arc_km(vector, density.unit_vectors(lat, lon))
    assert found == pytest.approx(km, rel=1e-9, abs=1e-6)
    if abs(lat) < 90 and 1e-3 < km < math.pi * RADIUS - 1:
        bearing = density.bearing_deg(lat, lon, *density.lat_lon(vector))
        miss = (bearing - math.degrees(math.atan2(east, north)) + 180) % 360 - 180
        assert abs(miss) < 1e-3


@pytest.mark.parametrize("lat, lon", FRAMES)
def test_offset_zero_is_the_centre_with_a_useful_gradient(lat, lon):
    normalisation = make_normalisation(lat, lon)
    offset = torch.zeros(1, 2, requires_grad=True)
    vector = targets.decode_gps(offset, normalisation)
    assert vector.dtype == torch.float64
    assert vector[0].tolist() == pytest.approx(density.unit_vectors(lat, lon), abs=1e-14)
    away = torch.from_numpy(density.unit_vectors([lat - 5 if lat > 0 else lat + 5], [lon]))
    targets.great_circle_km(vector, away).sum().backward()
    assert offset.grad.norm() == pytest.approx(normalisation.spread_km, rel=1e-6)


@pytest.mark.parametrize("metres", [1e-3, 1.0, 1e3, 1e6])
def test_loss_and_gradient_are_right_from_a_millimetre_on(metres):
    normalisation = make_normalisation()
    truth = torch.from_numpy(density.unit_vectors([46.0], [7.0]))
    offset = torch.tensor([[0.0, metres / 1000 / 50]], dtype=torch.float64, requires_grad=True)
    km = targets.great_circle_km(targets.decode_gps(offset, normalisation), truth)
    assert km.item() * 1000 == pytest.approx(metres, rel=1e-4)
    km.sum().backward()
    assert offset.grad[0].tolist() == pytest.approx([0, 50.0], rel=1e-4, abs=1e-3)


def test_loss_is_finite_at_zero_and_at_the_antipode():
    u = torch.tensor([[1.0, 0, 0]], dtype=torch.float64, requires_grad=True)
    for v, km in ((u.detach(), 0.0), (-u.detach(), math.pi * RADIUS)):
        u.grad = None
        found = targets.great_circle_km(u, v)
        found.sum().backward()
        assert found.item() == pytest.approx(km, abs=1e-4)
        assert torch.isfinite(u.grad).all()


def test_loss_equals_the_distance_of_density():
    rng = np.random.default_rng(0)
    lat, lon = np.degrees(np.arcsin(rng.uniform(-1, 1, (2, 500)))), rng.uniform(-180, 180, (2, 500))
    u, v = (torch.from_numpy(density.unit_vectors(a, b)) for a, b in zip(lat, lon, strict=True))
    wanted = density.distance_km(lat[0], lon[0], lat[1], lon[1])
    assert targets.great_circle_km(u, v).numpy() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("lat, lon", FRAMES)
def test_gradient_against_finite_differences(lat, lon):
    normalisation = make_normalisation(lat, lon, 3000.0)
    truth = torch.from_numpy(density.unit_vectors([10.0, -50.0], [100.0, -179.0]))
    offset = torch.tensor([[0.3, -0.2], [1.5, 2.0]], dtype=torch.float64, requires_grad=True)

    def loss(x):
        return targets.great_circle_km(targets.decode_gps(x, normalisation), truth) / 3000

    assert torch.autograd.gradcheck(loss, offset)


# ---------------------------------------------------------------- time and altitude


@given(st.floats(0, 1439.999999))
def test_minutes_survive_the_circle(minutes):
    assert targets.point_minutes(targets.time_point(minutes)) == pytest.approx(minutes, abs=1e-9)


@given(st.floats(0, 1440), st.floats(0, 1440))
def test_minutes_apart_go_the_short_way(a, b):
    apart = targets.minutes_apart(a, b)
    assert 0 <= apart <= 720
    plain = abs(a - b)
    assert apart == pytest.approx(min(plain, 1440 - plain), abs=1e-9)


def test_the_mean_of_late_and_early_is_midnight():
    middle = targets.time_point(np.array([1430.0, 10.0])).mean(axis=0)
    assert targets.minutes_apart(targets.point_minutes(middle), 0) < 1e-9
    assert targets.minutes_apart(1430, 10) == 20


@pytest.mark.parametrize("spread", [150, 250, 400])
def test_breadth_is_the_root_of_the_circular_deviation(spread):
    minutes = np.random.default_rng(0).normal(700, spread, 4000)
    mean = targets.time_point(minutes).mean(axis=0)
    told = scipy.stats.circstd(minutes, high=1440)
    assert targets.breadth(mean) ** 2 * targets.USUAL == pytest.approx(told, rel=1e-6)


def test_answers_beside_the_circle_have_a_breadth_all_the_same():
    found = targets.breadth(np.array([[0, 0], [0.02, 0], [0, 0.95], [-1.5, 0]], float))
    assert (found > 0.5).all() and (found < 1.5).all()
    assert found[0] == found[1] > found[2] == found[3]


@given(st.lists(st.floats(-400, 8000), min_size=1, max_size=30))
def test_altitude_survives_its_scale(metres):
    metres = np.array(metres)
    nowhere = np.full(len(metres), np.nan)
    photos = make_photos(len(metres), lat=nowhere, lon=nowhere, altitude=metres)
    normalisation = targets.Normalisation.fit(photos)
    target = normalisation.altitude_target(metres)
    assert normalisation.altitude_m(target) == pytest.approx(metres, rel=1e-6, abs=1e-3)
    wild = normalisation.altitude_m(np.array([-1e6, 1e6]))
    reach = max(np.ptp(metres), normalisation.altitude_scale)
    assert metres.min() - 2 * reach <= wild[0] <= wild[1] <= metres.max() + 2 * reach


def test_normalisation_of_labels_that_are_not_there():
    nothing = np.full(5, np.nan)
    photos = make_photos(5, lat=nothing, lon=nothing, altitude=nothing, orientation=np.full(5, -1))
    normalisation = targets.Normalisation.fit(photos)
    assert all(np.isfinite(v).all() for v in vars(normalisation).values())
    assert normalisation.orientation_prior == pytest.approx([5.5 / 8] + [0.5 / 8] * 5)  # Normal


def test_normalisation_of_one_place_and_of_the_date_line():
    at = np.full(6, 12.0)
    one = targets.Normalisation.fit(make_photos(6, lat=at, lon=at))
    assert one.spread_km == 1e-3
    sides = np.array([179.9, -179.9] * 3)
    line = targets.Normalisation.fit(make_photos(6, lat=np.zeros(6), lon=sides))
    assert density.distance_km(line.centre_lat, line.centre_lon, 0, 180) < 12
    assert line.spread_km < 25


# ---------------------------------------------------------------- losses


def test_losses_against_their_definitions():
    output, target, normalisation = make_batch(40)
    found = targets.head_losses(output, target, normalisation)
    photos = make_photos(40)
    lat, lon = density.lat_lon(targets.decode_gps(output["gps"], normalisation).numpy())
    km = density.distance_km(lat, lon, photos.lat, photos.lon)
    square = (output["time"].numpy() - targets.time_point(photos.minutes)) ** 2
    level = output["altitude"].numpy() - normalisation.altitude_target(photos.altitude)
    sun = output["sun"].numpy() - np.sin(np.radians(photos.sun))
    tagged = photos.orientation >= 0
    chance = torch.log_softmax(output["orientation"], 1).numpy()
    chance = chance[np.arange(40), photos.orientation][tagged]
    wanted = {
        "gps": (np.nansum(km) / normalisation.spread_km, np.isfinite(km).sum()),
        "time": (np.nansum(square.mean(1)), np.isfinite(photos.minutes).sum()),
        "altitude": (np.nansum(level**2), np.isfinite(photos.altitude).sum()),
        "orientation": (-chance.sum(), tagged.sum()),
        "sun": (np.nansum(sun**2), np.isfinite(photos.sun).sum()),
    }
    for head, (total, count) in wanted.items():
        assert float(found[head][0]) == pytest.approx(total, rel=1e-5)
        assert found[head][1] == count


def test_missing_labels_teach_nothing():
    output, target, normalisation = make_batch(10)
    target["point"][3:] = torch.nan
    target["time"][4:] = torch.nan
    target["altitude"][5:] = torch.nan
    target["view"][6:] = -1
    target["sun"][7:] = torch.nan
    output = {k: v.requires_grad_() for k, v in output.items()}
    losses = targets.head_losses(output, target, normalisation)
    sum(loss for loss, _ in losses.values()).backward()
    for key, first in (("gps", 3), ("time", 4), ("altitude", 5), ("orientation", 6), ("sun", 7)):
        assert torch.isfinite(output[key].grad).all()
        assert (output[key].grad[first:] == 0).all()
        assert (output[key].grad[: first - 1] != 0).any()


def test_losses_do_not_depend_on_the_order():
    output, target, normalisation = make_batch(15)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(1))
    one = targets.head_losses(output, target, normalisation)
    two = targets.head_losses(
        {k: v[order] for k, v in output.items()},
        {k: v[order] for k, v in target.items()},
        normalisation,
    )
    for head in targets.HEADS:
        assert float(one[head][0]) == pytest.approx(float(two[head][0]), rel=1e-5)


def test_losses_of_a_batch_without_any_label():
    output, target, normalisation = make_batch(4)
    nothing = {k: torch.full_like(v, -1 if k == "view" else torch.nan) for k, v in target.items()}
    losses = targets.head_losses(output, nothing, normalisation)
    assert {(float(loss), count) for loss, count in losses.values()} == {(0.0, 0)}
