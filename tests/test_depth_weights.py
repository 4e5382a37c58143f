"""Formats and sources of depth weights."""

import pickle
import random

import pytest
import torch
from rule_weights import tiny_weights

import depth_map_generator
from geophoto import depth_network, depth_weights, downloads

# ---------------------------------------------------------------- formats of weights


def test_names_go_both_ways():
    weights = tiny_weights(layers=6)
    hub = depth_weights.to_hub_keys(weights)
    assert "backbone.encoder.layer.5.attention.attention.value.bias" in hub
    assert "neck.fusion_stage.layers.0.residual_layer2.convolution1.weight" in hub
    back = depth_weights.to_official_keys(hub)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)
    network = depth_network.build_network(weights)
    from_network = depth_weights.to_official_keys(network.state_dict())
    assert from_network.keys() == weights.keys()
    assert all(torch.equal(from_network[key], weights[key]) for key in weights)


class Trap:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("how", ["empty", "noise", "cut", "trap", "other", "nested", "shape", "v1",
                                 "few", "absent"])  # fmt: skip
def test_unusable_weights_stop_with_one_line(tmp_path, capsys, how):
    path, trap = tmp_path / "some.pth", tmp_path / "sprung"
    torch.save(tiny_weights(), path)
    if how == "empty":
        path.write_bytes(b"")
    elif how == "noise":
        path.write_bytes(random.Random(1).randbytes(5000))
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-3000])
    elif how == "trap":
        path.write_bytes(pickle.dumps({"pretrained.pos_embed": Trap(trap)}))
    elif how == "other":
        torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(9)}, path)
    elif how == "nested":
        torch.save({"model": tiny_weights(), "epoch": 3}, path)
    elif how == "shape":
        torch.save(tiny_weights() | {"depth_head.projects.1.bias": torch.zeros(5)}, path)
    elif how == "v1":
        path = path.rename(tmp_path / "depth_anything_vits14.pth")
    elif how == "few":
        torch.save({k: v for k, v in tiny_weights().items() if "blocks.2.norm1" not in k}, path)
    else:
        path.unlink()
    with pytest.raises(SystemExit) as end:
        depth_network.load_network(str(path), "nowhere")
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and len(error) < 400
    assert path.name in error and not trap.exists()


def test_hub_folders_of_other_networks_stop_with_one_line(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(SystemExit) as end:
        depth_network.load_network(str(tmp_path), "nowhere")
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and "bert" in error


def test_absent_weights_name_file_url_and_sha256(collection, tmp_path, capsys, monkeypatch):
    def no_network(url, path, sha256, bar):
        raise OSError("refused")

    monkeypatch.setattr(downloads, "fetch", no_network)
    with pytest.raises(SystemExit) as end:
        depth_map_generator.main(
            ["--data-dir", str(collection), "--checkpoint-dir", str(tmp_path / "weights")]
        )
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1
    assert str(tmp_path / "weights" / "depth_anything_v2_vits.pth") in error
    assert depth_weights.KNOWN_SHA256["vits"] in error and "--depth-model demo" in error
    assert "Depth-Anything-V2-Small/resolve/main/depth_anything_v2_vits.pth" in error


def test_download_is_checked_against_the_published_sha256(tmp_path, monkeypatch):
    def deliver(url, path, sha256, bar):
        assert sha256 == depth_weights.KNOWN_SHA256["metric_vkitti_vitl"]
        assert url.endswith("V2-Metric-VKITTI-Large/resolve/main/"
                            "depth_anything_v2_metric_vkitti_vitl.pth")  # fmt: skip
        path.write_bytes(b"weights")

    monkeypatch.setattr(downloads, "fetch", deliver)
    path = depth_weights.find_weights("metric_vkitti_vitl", tmp_path)
    assert path.read_bytes() == b"weights"
