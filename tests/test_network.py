"""GPSPredictionNet and its features."""

import numpy as np
import pytest
import torch
from conftest import network_inputs
from torch import nn
from torch.nn import functional as F

from geophoto.network import (
    DEPTH_WEIGHT,
    LEVELS,
    SCALES,
    GPSPredictionNet,
    PredictionHeads,
    as_map,
    create_backbone,
    depth_features,
    grid_features,
    level_widths,
    rgb_features,
    spread_levels,
)

# ---------------------------------------------------------------- network


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "test_efficientnet"])
@pytest.mark.parametrize("use_depth", [False, True])
def test_network_shapes(backbone, use_depth):
    network = GPSPredictionNet(backbone, use_depth, hidden=32).eval()
    assert (network.depth_branch is not None) == use_depth
    output = network(network_inputs(3, 96, use_depth))
    shapes = {k: tuple(v.shape) for k, v in output.items()}
    assert shapes == {
        "gps": (3, 2), "time": (3, 2), "altitude": (3,), "sun": (3,), "orientation": (3, 6),
        "trunk": (3, 32),
    }  # fmt: skip
    assert (output["gps"] == 0).all()  # starts at the trivial answer


def test_depth_changes_the_place_but_not_the_orientation():
    torch.manual_seed(0)
    network = GPSPredictionNet("test_resnet", True).eval()
    nn.init.normal_(network.heads.gps.weight)
    inputs = network_inputs()
    one, two = network(inputs), network({**inputs, "depth": inputs["depth"] + 1})
    assert torch.equal(one["orientation"], two["orientation"])
    assert not torch.allclose(one["gps"], two["gps"])


def test_vit_tokens_become_the_map_in_reading_order():
    class Tokens(nn.Module):
        num_prefix_tokens, num_features = 1, 5

    found = as_map(Tokens(), torch.arange(2 * 10 * 5.0).reshape(2, 10, 5))
    assert found.shape == (2, 5, 3, 3)
    assert found[0, 0].flatten().tolist() == [5.0 * token for token in range(1, 10)]


def test_pooling_against_numpy():
    class Same(nn.Module):
        num_features = 4

        def forward_features(self, images):
            return images

    images = torch.rand(3, 4, 6, 6)
    pooled = depth_features(Same(), images).numpy()
    flat = images.numpy().reshape(3, 4, 36)
    assert pooled[:, :4] == pytest.approx(flat.mean(2), rel=1e-5)
    assert pooled[:, 4:] == pytest.approx((flat**3).mean(2) ** (1 / 3), rel=1e-5)
    grid = grid_features(Same(), images).numpy().reshape(3, 4, 2, 2)
    quarters = images.numpy().reshape(3, 4, 2, 3, 2, 3).mean((3, 5))
    assert grid == pytest.approx(quarters, rel=1e-5)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_levels_give_mean_and_spread_of_both_halves_at_each_scale(name):
    backbone = create_backbone(name, 3).eval()
    images = torch.rand(2, 3, 160, 160)
    widths, indices = level_widths(backbone), spread_levels(backbone)
    assert 1 < len(widths) <= LEVELS
    pooled, first = 2 * backbone.num_features, 2 * widths[0]
    with torch.inference_mode():
        found = rgb_features(backbone, images)
        shifted = rgb_features(backbone, torch.roll(images, 32, 3))
        one = pooled + 4 * sum(widths)
        assert found.shape == (2, SCALES * one)
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
        level_widths(nn.Identity())


def test_axes_are_principal_and_of_order_one():
    rng = np.random.default_rng(0)
    heads = PredictionHeads([4, 96, 50], 3, 8, use_depth=True)
    colours = rng.normal(50, 9, (200, 2)) @ rng.normal(0, 1, (2, 4)) + rng.normal(0, 0.1, (200, 4))
    pooled = np.hstack([colours, rng.normal(0, 1, (200, 146))])
    heads.fit_axes(pooled=pooled, grid=np.full((200, 3), 7.0))
    scaled = (torch.from_numpy(pooled).float() - heads.pooled_mean) / heads.pooled_std
    blocks = [float(b.square().sum()) for b in scaled.split([4, 96, 50], dim=1)]
    assert scaled.mean(0).abs().max() < 1e-3
    assert blocks[0] == pytest.approx(blocks[1], rel=0.02)  # each block counts alike, depth less
    assert blocks[2] == pytest.approx(blocks[1] * DEPTH_WEIGHT**2, rel=0.02)
    axes = heads.pooled_axes(scaled).detach().numpy()
    covariance = axes.T @ axes / len(axes)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-3 * covariance.max()
    same = heads({"pooled": heads.project("pooled", torch.zeros(1, 150)),
                  "grid": heads.project("grid", torch.full((1, 3), 7.0))})  # fmt: skip
    assert all(torch.isfinite(v).all() for v in same.values())
