"""Heads on frozen features."""

import numpy as np
import pytest
import torch
from torch import nn

from geophoto import frozen

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
