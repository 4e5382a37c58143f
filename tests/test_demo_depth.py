"""The demo depth model on islands that it has never seen, by the depth stage's own loader."""

import sys
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[1]
sys.path.append(str(REPOSITORY / "data" / "demo"))

import train_depth  # noqa: E402


@pytest.fixture(scope="module")
def network():
    from geophoto.depth_network import load_network

    network, info = load_network("demo", REPOSITORY / "checkpoints")
    assert info["kind"] == "inverse depth"
    return network


def test_model_is_small_and_named_officially():
    from geophoto.depth_weights import read_state_dict

    path = REPOSITORY / "checkpoints" / "depth_anything_v2_demo.pth"
    state = read_state_dict(path)
    assert path.stat().st_size < 6e6 and sum(v.numel() for v in state.values()) < 2e6
    assert state["pretrained.pos_embed"].shape == (1, 1 + 37 * 37, 128)
    assert "pretrained.blocks.0.attn.qkv.weight" in state


def test_orders_depth_of_unseen_islands_better_than_the_row(network):
    """A sample; the full figure is `python data/demo/train_depth.py --evaluate`."""
    from geophoto.depth_network import estimate_depth

    scores = []
    for seed in (9001, 9002):
        for photo, depth in train_depth.unseen_photos(seed, 4, 448, 336):
            scores.append(train_depth.score_photo(estimate_depth(network, photo, 252), depth))
    model, row = np.array(scores).T
    print(f"model {np.median(model):.4f} row {np.median(row):.4f}")
    assert np.median(model) >= 0.88 and np.median(model - row) > 0


def test_fresh_network_has_the_shape_of_the_published_one(tmp_path):
    import torch

    from geophoto.depth_network import build_network
    from geophoto.depth_weights import read_state_dict

    fresh = train_depth.new_network(0).eval()
    train_depth.save_network(fresh, tmp_path / "fresh.pth")
    loaded = build_network(read_state_dict(tmp_path / "fresh.pth"))
    photo = torch.rand(1, 3, 126, 168)
    with torch.inference_mode():
        a, b = fresh(pixel_values=photo).predicted_depth, loaded(pixel_values=photo).predicted_depth
    assert a.shape == (1, 126, 168) and torch.allclose(a, b, atol=5e-3)


def test_loss_forgives_scale_and_shift_but_not_order():
    import torch

    target = torch.rand(2, 32, 32)
    right = train_depth.depth_loss(target, target)
    stretched = train_depth.depth_loss(target * 2, target)
    wrong = train_depth.depth_loss(1 - target, target)
    assert float(right) == 0 and stretched < 0.5 * wrong


def test_rank_correlation_is_spearmans():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 300), rng.normal(size=300)
    assert train_depth.rank_correlation(a, b) == pytest.approx(spearmanr(a, b)[0])


def test_every_setting_has_its_flag():
    args = vars(train_depth.parse_args([]))
    for name in ("OUTPUT", "CACHE_DIR", "ISLANDS", "SCENES", "MINUTES", "LEARNING_RATE", "THREADS",
                 "SEED", "TEST_ISLANDS"):  # fmt: skip
        assert args[name.lower()] == getattr(train_depth, name)
