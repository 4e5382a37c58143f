"""Heads on frozen features."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_photos
from torch import nn

from geophoto import devices, frozen

# ---------------------------------------------------------------- network


def test_ridge_start_against_the_normal_equations():
    rng = np.random.default_rng(2)
    layer = nn.Linear(6, 2)
    read, wanted = rng.normal(size=(50, 6)), rng.normal(size=(50, 2)) + 3
    frozen.Ridge(torch.from_numpy(read).float(), torch.from_numpy(wanted)).set(layer, 0.5)
    square, goal = read.T @ read / 6 + 0.5 * np.eye(6), read.T @ (wanted - wanted.mean(0)) / 6
    found = layer.weight.detach().numpy().T
    assert found == pytest.approx(np.linalg.solve(square, goal), abs=1e-5)
    assert layer.bias.detach().numpy() == pytest.approx(wanted.mean(0), abs=1e-5)
    # With a prior of its own the constant goes from the mean to it as the penalty grows.
    frozen.Ridge(torch.from_numpy(read).float(), torch.from_numpy(wanted), 1.0).set(layer, 0.5)
    assert layer.bias.detach().numpy() == pytest.approx((wanted.mean(0) + 0.5) / 1.5, abs=1e-5)


# ---------------------------------------------------------------- rehearsals


def test_a_trainer_that_served_a_fold_chooses_like_one_made_anew():
    """Or a run that was killed between two folds would end with other ridges."""
    rng, count = np.random.default_rng(0), 60
    photos = make_photos(count)
    place = np.nan_to_num(np.stack([photos.lat - 46, photos.lon - 7], axis=1))
    features = np.hstack([place, rng.normal(0, 1, (count, 10))]).astype(np.float32)
    grid = torch.from_numpy(rng.normal(0, 1, (count, 6, 8)).astype(np.float32))
    data = SimpleNamespace(
        photos=photos, blocks=[12], grid=8, depth=None,
        pooled=lambda rows: features[rows], grids=lambda rows: grid[rows],
    )  # fmt: skip
    options = {"hidden": 8, "batch_size": 16, "learning_rate": 0.05, "weight_decay": 0.0,
               "patience": 5}  # fmt: skip
    train, rows = np.arange(40), np.arange(40, 60)

    def made() -> frozen.HeadTrainer:
        return frozen.HeadTrainer(data, train, devices.Precision("fp32", "cpu"), options, 1)

    anew, used = made(), made()
    ridges = frozen.choose_ridges([(anew, rows)])
    used.train(ridges, 10)
    trained = used.predict(rows)["gps"]
    assert frozen.choose_ridges([(used, rows)]) == ridges
    assert not np.array_equal(trained, used.predict(rows)["gps"])
    for key, value in anew.predict(rows).items():
        assert np.array_equal(value, used.predict(rows)[key]), key
