"""The depth stage: equality with the official network, formats of weights, outputs, resuming."""

import errno
import json
import math
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import urllib.error
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import depth_map_generator as depth
import exif_extractor

REPOSITORY = Path(__file__).parents[1]
REFERENCE = REPOSITORY.parent / "shared" / "depth_reference"


# ---------------------------------------------------------------- weights made by a rule


def official_shapes(hidden=64, layers=4, side=4, neck=(8, 12, 16, 16), fusion=16, head=8):
    """Every key of an official Depth-Anything-V2 .pth of this size, with its shape."""
    shapes = {
        "pretrained.cls_token": (1, 1, hidden),
        "pretrained.pos_embed": (1, side * side + 1, hidden),
        "pretrained.mask_token": (1, hidden),
        "pretrained.patch_embed.proj.weight": (hidden, 3, 14, 14),
        "pretrained.patch_embed.proj.bias": (hidden,),
    }

    def add(name, *shape, bias=True):
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    for n in range(layers):
        block = f"pretrained.blocks.{n}"
        add(f"{block}.norm1", hidden)
        add(f"{block}.attn.qkv", 3 * hidden, hidden)
        add(f"{block}.attn.proj", hidden, hidden)
        add(f"{block}.norm2", hidden)
        add(f"{block}.mlp.fc1", 4 * hidden, hidden)
        add(f"{block}.mlp.fc2", hidden, 4 * hidden)
        shapes[f"{block}.ls1.gamma"] = shapes[f"{block}.ls2.gamma"] = (hidden,)
    add("pretrained.norm", hidden)
    for i, channels in enumerate(neck):
        add(f"depth_head.projects.{i}", channels, hidden, 1, 1)
    for i, kernel in ((0, 4), (1, 2), (3, 3)):
        add(f"depth_head.resize_layers.{i}", neck[i], neck[i], kernel, kernel)
    for i, channels in enumerate(neck):
        add(f"depth_head.scratch.layer{i + 1}_rn", fusion, channels, 3, 3, bias=False)
        refinenet = f"depth_head.scratch.refinenet{i + 1}"
        add(f"{refinenet}.out_conv", fusion, fusion, 1, 1)
        for unit in (1, 2):
            for conv in (1, 2):
                add(f"{refinenet}.resConfUnit{unit}.conv{conv}", fusion, fusion, 3, 3)
    add("depth_head.scratch.output_conv1", fusion // 2, fusion, 3, 3)
    add("depth_head.scratch.output_conv2.0", head, fusion // 2, 3, 3)
    add("depth_head.scratch.output_conv2.2", 1, head, 1, 1)
    return shapes


def rule_weights(shapes: dict) -> dict[str, torch.Tensor]:
    """Weights by the rule of shared/depth_reference: anyone can make the same ones."""
    weights = {}
    for key, shape in shapes.items():
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        n = rng.standard_normal(shape, dtype=np.float32)
        if key.endswith("gamma") or (key.endswith("weight") and len(shape) == 1):
            n = 1 + 0.1 * n
        elif key.endswith(("bias", "pos_embed", "cls_token", "mask_token")):
            n = 0.02 * n
        else:
            n = n / np.sqrt(np.prod(shape[1:]))
        weights[key] = torch.from_numpy(np.asarray(n, np.float32))
    return weights


def tiny_weights(**sizes) -> dict[str, torch.Tensor]:
    weights = rule_weights(official_shapes(**sizes))
    weights["depth_head.scratch.output_conv2.2.bias"] += 2  # else ReLU cuts most of it to 0
    return weights


@pytest.fixture(scope="session")
def tiny_pth(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "depth_anything_v2_tiny.pth"
    torch.save(tiny_weights(), path)
    return path


@pytest.fixture(scope="session")
def tiny_network(tiny_pth):
    return depth.load_network(str(tiny_pth), "nowhere")[0]


def draw_photo(number: int, width=160, height=112) -> Image.Image:
    rng = np.random.default_rng(number)
    small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR))


@pytest.fixture
def collection(tmp_path, tiny_pth):
    """data/ with six photos in two folders, one of them no picture, and their table."""
    data = tmp_path / "data"
    images = data / "images"
    (images / "trip").mkdir(parents=True)
    for number in range(4):
        draw_photo(number).save(images / f"photo_{number}.jpg", quality=95)
    draw_photo(4, 112, 160).save(images / "trip" / "tall.PNG")
    (images / "broken.jpg").write_bytes(b"this is no picture")
    assert exif_extractor.main(["--data-dir", str(data)]) in (0, 1)
    return data


def arguments(data: Path, weights: Path | str, *more: str) -> list[str]:
    given = "--data-dir", str(data), "--depth-model", str(weights), "--input-size", "56"
    return [*given, "--device", "cpu", "--precision", "fp32", *more]


def tree(data: Path) -> dict[str, bytes]:
    folder = data / "depths"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def maps(data: Path) -> list[Path]:
    return sorted((data / "depths").rglob("*.npy"))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(a.ravel(), b.ravel()).statistic)


# ---------------------------------------------------------------- the official network


@pytest.fixture(scope="module")
def reference():
    if not REFERENCE.is_dir():
        pytest.skip("shared/depth_reference is not here")
    shapes = json.loads((REFERENCE / "official_keys_vits.json").read_text())
    return rule_weights(shapes), np.load(REFERENCE / "official_outputs_vits.npz")


@pytest.fixture(scope="module")
def reference_network(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "rule.pth"
    torch.save(reference[0], path)
    return depth.load_network(str(path), "nowhere")[0]


@pytest.mark.parametrize("name", ["square", "wide", "tall", "large"])
def test_equals_the_official_network(reference, reference_network, name):
    outputs = reference[1]
    if name == "large":
        height, width, seed = map(int, outputs["large_image_recipe"])
        rng = np.random.default_rng(seed)
        small = rng.integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)
        image_bgr = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    else:
        image_bgr = outputs[f"{name}_image_bgr"]
    image_rgb = np.ascontiguousarray(image_bgr[..., ::-1])
    input_size = int(outputs[f"{name}_input_size"])
    assert depth.preprocess(image_rgb, input_size).shape == tuple(outputs[f"{name}_tensor_shape"])

    ours = depth.estimate_depth(reference_network, image_rgb, input_size)
    official = outputs[f"{name}_network_depth"]
    assert ours.dtype == np.float32 and ours.shape == official.shape
    assert np.abs(ours - official).max() <= 1e-4 * np.ptp(official)
    if f"{name}_full_depth" in outputs:
        full = outputs[f"{name}_full_depth"]
        resized = depth.resize_depth(ours, full.shape)
        assert np.abs(resized - full).max() <= 1e-4 * np.ptp(full)


def test_without_the_official_positions_the_depth_differs(reference, reference_network):
    image_rgb = np.ascontiguousarray(reference[1]["wide_image_bgr"][..., ::-1])
    official = reference[1]["wide_network_depth"]
    embeddings = reference_network.backbone.embeddings
    del embeddings.interpolate_pos_encoding  # the library's own method shows again
    try:
        ours = depth.estimate_depth(reference_network, image_rgb, 140)
    finally:
        depth.use_official_positions(reference_network)
    assert np.abs(ours - official).max() > 1e-3 * np.ptp(official)


@pytest.mark.parametrize(
    "height, width, input_size, expected",
    [(3000, 4000, 518, (518, 686)), (4000, 3000, 518, (686, 518)), (480, 640, 518, (518, 686)),
     (100, 100, 518, (518, 518)), (1080, 1920, 518, (518, 924)), (600, 601, 300, (308, 308)),
     (200, 3000, 140, (140, 2100))],
)  # fmt: skip
def test_tensor_size(height, width, input_size, expected):
    assert depth.tensor_size(height, width, input_size) == expected


def test_endless_strips_are_refused():
    with pytest.raises(ValueError, match="longer than"):
        depth.tensor_size(10, 4000, 518)


# ---------------------------------------------------------------- formats of weights


def test_names_go_both_ways():
    weights = tiny_weights(layers=6)
    hub = depth.to_hub_keys(weights)
    assert "backbone.encoder.layer.5.attention.attention.value.bias" in hub
    assert "neck.fusion_stage.layers.0.residual_layer2.convolution1.weight" in hub
    back = depth.to_official_keys(hub)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)
    network = depth.build_network(weights)
    from_network = depth.to_official_keys(network.state_dict())
    assert from_network.keys() == weights.keys()
    assert all(torch.equal(from_network[key], weights[key]) for key in weights)


@pytest.mark.parametrize(
    "hidden, layers, heads, out",
    [(64, 4, 1, [1, 2, 3, 4]), (128, 6, 2, [1, 3, 4, 6]), (64, 8, 1, [2, 4, 6, 8]),
     (384, 12, 6, [3, 6, 9, 12]), (1024, 24, 16, [5, 12, 18, 24]),
     (1536, 40, 24, [10, 20, 30, 40])],
)  # fmt: skip
def test_configuration_is_read_off_the_shapes(hidden, layers, heads, out):
    shapes = official_shapes(hidden, layers, side=37, neck=(48, 96, 192, 384), fusion=64, head=32)
    meta = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    config = depth.network_config(meta)
    backbone = config.backbone_config
    assert (backbone.hidden_size, backbone.num_hidden_layers) == (hidden, layers)
    assert backbone.num_attention_heads == heads and list(backbone.out_indices) == out
    assert backbone.image_size == 518 and not backbone.reshape_hidden_states
    assert list(config.neck_hidden_sizes) == [48, 96, 192, 384]
    assert (config.fusion_hidden_size, config.head_hidden_size) == (64, 32)
    assert config.reassemble_hidden_size == hidden


def test_hub_format_gives_the_same_numbers(tiny_network, tmp_path):
    from safetensors.torch import save_file

    image = np.asarray(draw_photo(1))
    expected = depth.estimate_depth(tiny_network, image, 56)
    tiny_network.save_pretrained(tmp_path / "saved")
    network, info = depth.load_network(str(tmp_path / "saved"), "nowhere")
    np.testing.assert_array_equal(depth.estimate_depth(network, image, 56), expected)
    assert info["file"] == "model.safetensors" and info["kind"] == "inverse depth"

    published = tmp_path / "published"  # names as on the hub, older than transformers 5
    published.mkdir()
    tiny_network.config.save_pretrained(published)
    weights = {k: v.contiguous() for k, v in depth.to_hub_keys(tiny_weights()).items()}
    save_file(weights, published / "model.safetensors", metadata={"format": "pt"})
    network, _ = depth.load_network(str(published), "nowhere")
    np.testing.assert_array_equal(depth.estimate_depth(network, image, 56), expected)


def test_half_precision_weights_load_as_float32(tmp_path):
    path = tmp_path / "half.pth"
    torch.save({key: value.half() for key, value in tiny_weights().items()}, path)
    network, _ = depth.load_network(str(path), "nowhere")
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind, max_depth_m", [("hypersim", 20), ("vkitti", 80)])
def test_metric_models_give_metres_and_readers_inverse_depth(
    collection, tmp_path, kind, max_depth_m
):
    path = tmp_path / f"depth_anything_v2_metric_{kind}_vits.pth"
    torch.save(tiny_weights(), path)
    network, info = depth.load_network(str(path), "nowhere")
    assert info["kind"] == "metres" and info["max_depth_m"] == max_depth_m
    assert depth.main(arguments(collection, path)) == 0
    sidecar = depth.read_depth_model(collection)
    assert sidecar["kind"] == "metres" and sidecar["max_depth_m"] == max_depth_m
    file = depth.depth_file(collection, "photo_0.jpg")
    metres = np.load(file).astype(np.float32)
    assert metres.min() > 0 and metres.max() <= max_depth_m
    inverse = depth.load_depth_map(file)
    np.testing.assert_allclose(inverse, 1 / metres, rtol=1e-6)
    image = np.asarray(exif_extractor.open_upright(collection / "images" / "photo_0.jpg"))
    np.testing.assert_allclose(depth.estimate_depth(network, image, 56), inverse, rtol=2e-3)


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
        depth.load_network(str(path), "nowhere")
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and len(error) < 400
    assert path.name in error and not trap.exists()


def test_hub_folders_of_other_networks_stop_with_one_line(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(SystemExit) as end:
        depth.load_network(str(tmp_path), "nowhere")
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and "bert" in error


def test_absent_weights_name_file_url_and_sha256(collection, tmp_path, capsys, monkeypatch):
    calls = []

    def no_network(url, destination, hash_prefix):
        calls.append(url)
        raise urllib.error.URLError(ConnectionRefusedError("refused"))

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(SystemExit) as end:
        depth.main(["--data-dir", str(collection), "--checkpoint-dir", str(tmp_path / "weights")])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and len(calls) == 3
    assert str(tmp_path / "weights" / "depth_anything_v2_vits.pth") in error
    assert depth.KNOWN_SHA256["vits"] in error and "--depth-model demo" in error
    assert "Depth-Anything-V2-Small/resolve/main/depth_anything_v2_vits.pth" in error


def test_download_is_checked_against_the_published_sha256(tmp_path, monkeypatch):
    def deliver(url, destination, hash_prefix):
        assert hash_prefix == depth.KNOWN_SHA256["metric_vkitti_vitl"]
        assert url.endswith("V2-Metric-VKITTI-Large/resolve/main/"
                            "depth_anything_v2_metric_vkitti_vitl.pth")  # fmt: skip
        Path(destination).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", deliver)
    left = tmp_path / "depth_anything_v2_metric_vkitti_vitl.pth.0123.partial"
    left.touch()
    os.utime(left, (0, 0))
    path = depth.find_weights("metric_vkitti_vitl", tmp_path)
    assert path.read_bytes() == b"weights" and not left.exists()


def test_weights_are_called_what_they_are(tmp_path, capsys):
    info = {"model": "depth_anything_v2_vits", "file": "v.pth", "sha256": "ab", "kind": "metres"}
    depth.report_weights(info)
    printed = capsys.readouterr()
    assert "not a published file" in printed.out and depth.KNOWN_SHA256["vits"] in printed.err
    depth.report_weights(info | {"sha256": depth.KNOWN_SHA256["vits"]})
    printed = capsys.readouterr()
    assert "the published vits" in printed.out and not printed.err and "NC" not in printed.out
    depth.report_weights(info | {"sha256": depth.KNOWN_SHA256["vitb"], "model": "mine"})
    assert "CC-BY-NC-4.0" in capsys.readouterr().out


# ---------------------------------------------------------------- the run


def test_every_row_is_accounted_for(collection, tiny_pth, capsys):
    (collection / "images" / "photo_2.jpg").write_bytes(b"changed after the table was made")
    assert depth.main(arguments(collection, tiny_pth)) == 1
    out = capsys.readouterr().out
    assert "6 photos in the table: 1 failed, 1 skipped, 4 written" in out
    assert "failed: photo_2.jpg" in out and "skipped: broken.jpg" in out
    assert out.rstrip().endswith(f"next: python gps_orientation_trainer.py --data-dir {collection}")
    assert len(maps(collection)) == 4
    shapes = {path.name: np.load(path).shape for path in maps(collection)}
    assert shapes["photo_0.jpg.npy"] == (56, 84) and shapes["tall.PNG.npy"] == (84, 56)
    sidecar = depth.read_depth_model(collection)
    assert sidecar["sha256"] == depth.file_sha256(tiny_pth) and sidecar["input_size"] == 56
    assert sidecar["precision"] == "fp32" and sidecar["kind"] == "inverse depth"
    draw_photo(2).save(collection / "images" / "photo_2.jpg")  # mended: tried again
    assert depth.main(arguments(collection, tiny_pth)) == 0
    assert "1 skipped, 4 unchanged, 1 written" in capsys.readouterr().out


def test_finished_maps_stay_and_what_changes_is_redone(collection, tiny_pth, tmp_path, capsys):
    assert depth.main(arguments(collection, tiny_pth)) == 0
    before = {path: path.stat().st_mtime_ns for path in maps(collection)}
    first = tree(collection)
    capsys.readouterr()
    assert depth.main(arguments(collection, tiny_pth)) == 0
    assert "5 unchanged" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in maps(collection)} == before

    one = depth.depth_file(collection, "photo_1.jpg")
    one.write_bytes(one.read_bytes()[:-10])  # cut short by something else
    one.with_name("photo_0.jpg.png").unlink()
    newer = time.time_ns() + 10**9
    os.utime(collection / "images" / "photo_3.jpg", ns=(newer, newer))
    assert depth.main(arguments(collection, tiny_pth)) == 0
    assert "1 redrawn, 1 skipped, 2 unchanged, 2 written" in capsys.readouterr().out
    assert tree(collection) == first

    other = tmp_path / "other.pth"
    torch.save(tiny_weights(head=4), other)
    assert depth.main(arguments(collection, other)) == 0
    out = capsys.readouterr().out
    assert "all maps are made anew: sha256 was" in out and "5 written" in out
    assert depth.main(arguments(collection, other, "--input-size", "70")) == 0
    assert "input_size was 56 and is 70" in capsys.readouterr().out
    assert depth.main(arguments(collection, other, "--input-size", "70", "--overwrite")) == 0
    assert "--overwrite" in capsys.readouterr().out
    (collection / "depths" / "depth_model.json").unlink()
    assert depth.main(arguments(collection, other, "--input-size", "70")) == 0
    assert "no readable depth_model.json" in capsys.readouterr().out


def test_a_wrong_model_leaves_the_old_maps_alone(collection, tiny_pth, tmp_path):
    assert depth.main(arguments(collection, tiny_pth)) == 0
    before = tree(collection)
    wrong = tmp_path / "wrong.pth"
    torch.save({"a": torch.zeros(3)}, wrong)
    with pytest.raises(SystemExit):
        depth.main(arguments(collection, wrong, "--overwrite"))
    assert tree(collection) == before


def test_a_change_of_model_that_dies_starts_anew(collection, tiny_pth, tmp_path, monkeypatch):
    assert depth.main(arguments(collection, tiny_pth)) == 0
    first = maps(collection)[0].read_bytes()
    other = tmp_path / "other.pth"
    torch.save(tiny_weights(head=4), other)
    unlink = Path.unlink

    def die(path, **options):
        unlink(path, **options)
        if path.suffix == ".npy":
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", die)
    with pytest.raises(KeyboardInterrupt):
        depth.main(arguments(collection, other))
    monkeypatch.undo()
    assert len(maps(collection)) == 4
    assert depth.read_depth_model(collection)["sha256"] == depth.file_sha256(tiny_pth)
    assert depth.main(arguments(collection, other)) == 0
    assert len(maps(collection)) == 5 and maps(collection)[0].read_bytes() != first
    assert depth.read_depth_model(collection)["sha256"] == depth.file_sha256(other)


def test_a_run_that_dies_is_continued(collection, tiny_pth, monkeypatch):
    calls = []

    def die(*task):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(task)
        return original(*task)

    original = depth.measure_batch
    monkeypatch.setattr(depth, "measure_batch", die)
    with pytest.raises(KeyboardInterrupt):
        depth.main(arguments(collection, tiny_pth))
    monkeypatch.undo()
    kept = {path: path.stat().st_mtime_ns for path in maps(collection)}
    assert 1 <= len(kept) <= 2
    (collection / "depths" / ".photo_0.jpg.npy.999999999.tmp").touch()
    assert depth.main(arguments(collection, tiny_pth)) == 0
    assert len(maps(collection)) == 5
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert not list((collection / "depths").rglob(".*"))


def test_photos_are_read_upright(collection, tiny_pth):
    photo = collection / "images" / "photo_0.jpg"
    upright = exif_extractor.open_upright(photo)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = upright.transpose(Image.Transpose.ROTATE_90)  # stored so that tag 6 sets it upright
    turned.save(collection / "images" / "turned.png", exif=exif)
    assert exif_extractor.main(["--data-dir", str(collection)]) in (0, 1)
    assert depth.main(arguments(collection, tiny_pth)) == 0
    stored, straight = (np.load(depth.depth_file(collection, name))
                        for name in ("turned.png", "photo_0.jpg"))  # fmt: skip
    np.testing.assert_array_equal(stored, straight)


def test_batches_give_the_same_maps(collection, tiny_pth):
    assert depth.main(arguments(collection, tiny_pth)) == 0
    singly = {path: np.load(path) for path in maps(collection)}
    assert depth.main(arguments(collection, tiny_pth, "--batch-size", "3", "--overwrite")) == 0
    assert len(singly) == 5
    for path, expected in singly.items():
        np.testing.assert_allclose(np.load(path), expected, rtol=2e-3, atol=1e-4)


def test_a_batch_too_large_is_done_one_by_one(tiny_network, monkeypatch):
    tensors = [depth.preprocess(np.asarray(draw_photo(n)), 56) for n in range(3)]
    original = depth.run_network

    def small_memory(network, batch, precision):
        if len(batch) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return original(network, batch, precision)

    monkeypatch.setattr(depth, "run_network", small_memory)
    assert [d.shape for d in depth.measure_batch(tiny_network, tensors, "fp32")] == [(56, 84)] * 3
    monkeypatch.setattr(depth, "run_network", lambda *_: (_ for _ in ()).throw(RuntimeError("x")))
    assert isinstance(depth.measure_batch(tiny_network, tensors[:1], "fp32")[0], RuntimeError)


def test_overflow_in_half_precision_is_done_in_float32(tiny_network, monkeypatch):
    original = depth.run_network

    def overflow(network, batch, precision):
        result = original(network, batch, "fp32")
        return result if precision == "fp32" else result * math.inf

    monkeypatch.setattr(depth, "run_network", overflow)
    tensor = depth.preprocess(np.asarray(draw_photo(0)), 56)
    assert np.isfinite(depth.measure_batch(tiny_network, [tensor], "fp16")[0]).all()


def test_bf16_on_the_cpu_keeps_the_order_of_depths(tiny_network):
    image = np.asarray(draw_photo(3))
    full = depth.estimate_depth(tiny_network, image, 56)
    half = depth.estimate_depth(tiny_network, image, 56, "bf16")
    assert half.dtype == np.float32 and rank_correlation(full, half) > 0.99


@pytest.mark.slow
def test_demo_depth_hardly_depends_on_precision():
    photos = sorted((REPOSITORY / "data" / "demo" / "images").rglob("*.jpg"))[::60]
    if not photos or not (REPOSITORY / "checkpoints" / "depth_anything_v2_demo.pth").exists():
        pytest.skip("the demo is not here")
    network, _ = depth.load_network("demo", REPOSITORY / "checkpoints")
    for photo in photos:
        image = np.asarray(exif_extractor.open_upright(photo))
        full = depth.estimate_depth(network, image, 518)
        assert rank_correlation(full, depth.estimate_depth(network, image, 518, "bf16")) > 0.999


def test_bf16_is_chosen_only_with_instructions_for_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert depth.pick_precision("auto", "cpu") == "fp32"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert depth.pick_precision("auto", "cpu") == "bf16"
    assert depth.pick_precision("fp16", "cpu") == "fp16"
    assert depth.pick_device("cpu") == "cpu"


def test_a_run_in_another_precision_goes_on_and_says_both(collection, tiny_pth):
    assert depth.main(arguments(collection, tiny_pth)) == 0
    maps(collection)[0].unlink()
    assert depth.main(arguments(collection, tiny_pth, "--precision", "bf16")) == 0
    assert depth.read_depth_model(collection)["precision"] == "bf16+fp32"


@pytest.mark.parametrize("number, code", [(errno.ENOSPC, 2), (errno.EIO, 1)])
def test_a_full_disk_ends_the_run_and_other_errors_do_not(
    collection, tiny_pth, monkeypatch, capsys, number, code
):
    def fail(*task):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(depth, "write_job", fail)
    if code == 2:
        with pytest.raises(SystemExit) as end:
            depth.main(arguments(collection, tiny_pth))
        assert end.value.code == 2 and "no space left" in capsys.readouterr().err
    else:
        assert depth.main(arguments(collection, tiny_pth)) == 1
        assert "5 failed, 1 skipped" in capsys.readouterr().out


def test_no_table_and_bad_settings_stop_with_exit_2(tmp_path, tiny_pth, capsys):
    for argv in (arguments(tmp_path, tiny_pth), ["--workers", "0"]):
        with pytest.raises(SystemExit) as end:
            depth.main(argv)
        assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_photos_of_many_shapes_do_not_pile_up():
    class Done:
        def __init__(self, width):
            self.tensor = np.zeros((1, 3, 14, 14 * width), np.float32)

        def result(self):
            return self.tensor, None

    reading = ((depth.Job(str(n), Path("x"), None), Done(1 + n % 7 if n < 20 else n))
               for n in range(100))  # fmt: skip
    given = 0
    for batch in depth.batch_by_shape(reading, 2, {}):
        given += len(batch)
        assert len({tensor.shape for _, tensor, _ in batch}) == 1
    assert given == 100


def test_fast_decode_reads_less_and_gives_nearly_the_same(tmp_path, tiny_pth):
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    draw_photo(1, 1600, 1200).save(data / "images" / "large.jpg", quality=95)
    assert exif_extractor.main(["--data-dir", str(data)]) == 0
    assert depth.main(arguments(data, tiny_pth)) == 0
    full = depth.load_depth_map(depth.depth_file(data, "large.jpg"))
    assert depth.main(arguments(data, tiny_pth, "--fast-decode")) == 0
    fast = depth.load_depth_map(depth.depth_file(data, "large.jpg"))
    assert full.shape == fast.shape and rank_correlation(full, fast) > 0.95


# ---------------------------------------------------------------- maps and pictures


def test_reader_gives_float32_at_any_size(tmp_path):
    data = tmp_path / "data"
    file = depth.depth_file(data, "trip/a.b/IMG_1.JPG")
    assert file == data / "depths" / "trip" / "a.b" / "IMG_1.JPG.npy"
    file.parent.mkdir(parents=True)
    values = np.linspace(0, 4, 12, dtype=np.float16).reshape(3, 4)
    np.save(file, values)
    assert depth.read_depth_model(data) == {}
    np.testing.assert_array_equal(depth.load_depth_map(file), values.astype(np.float32))
    large = depth.load_depth_map(file, (5, 7))
    assert large.shape == (5, 7) and large.dtype == np.float32
    np.testing.assert_allclose(large[::2, ::2], depth.load_depth_map(file, (3, 4)), atol=1e-6)
    (data / "depths" / "depth_model.json").write_text("{ damaged")
    assert depth.read_depth_model(data) == {}
    (data / "depths" / "depth_model.json").write_text('{"kind": "metres"}')
    assert depth.load_depth_map(file).max() == pytest.approx(1 / depth.MIN_METRES)


def test_flat_and_non_finite_outputs_are_handled():
    map_ok = np.linspace(1, 2, 12, dtype=np.float32).reshape(3, 4)
    assert depth.repair_depth(map_ok, "inverse depth")[1] == ""
    flat, warning = depth.repair_depth(np.full((3, 4), 7, np.float32), "inverse depth")
    assert "flat" in warning and (flat == 7).all()
    assert (depth.colour_indices(flat) == 0).all()
    holes = map_ok.copy()
    holes[0, :3] = np.nan, np.inf, 1e9
    repaired, warning = depth.repair_depth(holes, "inverse depth")
    assert "3 of 12" in warning and repaired[0, :3] == pytest.approx(holes[0, 3])
    assert depth.repair_depth(holes, "metres")[0][0, 0] == 2
    with pytest.raises(ValueError, match="no finite depth"):
        depth.repair_depth(np.full((3, 4), np.nan, np.float32), "inverse depth")


def test_a_dead_network_is_warned_about(collection, tmp_path, capsys):
    weights = tiny_weights()
    weights["depth_head.scratch.output_conv2.2.bias"] -= 100
    torch.save(weights, tmp_path / "dead.pth")
    assert depth.main(arguments(collection, tmp_path / "dead.pth")) == 0
    assert capsys.readouterr().out.count("flat: every pixel") == 5
    weights["depth_head.scratch.output_conv2.2.bias"] *= np.nan
    torch.save(weights, tmp_path / "nan.pth")
    assert depth.main(arguments(collection, tmp_path / "nan.pth")) == 1
    assert capsys.readouterr().out.count("no finite depth") == 5


def test_near_is_warm_in_pictures():
    ramp = np.tile(np.linspace(0, 1, 50), (20, 1))
    picture = depth.draw_depth(ramp)
    assert picture.mode == "P" and picture.size == (50, 20)
    colours = np.asarray(picture.convert("RGB")).astype(int)
    far, near = colours[0, 0], colours[0, -1]
    assert near.sum() > 500 and near[0] > near[2] and far.sum() < 300 and far[2] >= far[0]
    lightness = colours @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(lightness[0]) > -1).all()  # rises evenly: perceptual
    assert depth.draw_depth(ramp, legend=True).height > 20
    both = depth.draw_depth(ramp, photo_rgb=np.full((4, 4, 3), 200, np.uint8))
    assert both.mode == "RGB" and both.size == (100, 20)
    assert (np.asarray(both)[:, :50] == 200).all()


def test_pictures_change_without_the_network(collection, tiny_pth, capsys):
    assert depth.main(arguments(collection, tiny_pth)) == 0
    before = {path: path.read_bytes() for path in maps(collection)}
    capsys.readouterr()
    assert depth.main(arguments(collection, tiny_pth, "--side-by-side", "--contact-sheet")) == 0
    assert "5 redrawn" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in maps(collection)} == before
    with Image.open(collection / "depths" / "photo_0.jpg.png") as picture:
        assert picture.size == (2 * 84, 56)
    with Image.open(collection / "depths" / "contact_sheet.jpg") as sheet:
        assert sheet.width > 300
    assert depth.main(arguments(collection, tiny_pth, "--no-write-png")) == 0
    assert "5 unchanged" in capsys.readouterr().out


def test_a_map_is_small(tiny_network):
    height, width = depth.tensor_size(3000, 4000, 518)
    assert height * width * 2 < 0.75e6  # bytes as float16; float32 at 12 megapixels: 48e6


# ---------------------------------------------------------------- processes


def test_importing_is_cheap():
    heavy = "torch", "transformers", "cv2", "matplotlib", "timm", "pandas"
    code = f"import sys, depth_map_generator; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert done.stdout.strip() == "[]"


def start(data: Path, weights: Path, launcher: tuple[str, ...] = (), **options):
    command = [sys.executable, *launcher, str(REPOSITORY / "depth_map_generator.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen([*command, *arguments(data, weights)], env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)  # fmt: skip


def many_photos(data: Path, count: int) -> None:
    (data / "images").mkdir(parents=True)
    for number in range(count):
        draw_photo(number).save(data / "images" / f"photo_{number:03}.png")
    assert exif_extractor.main(["--data-dir", str(data)]) == 0


@pytest.mark.slow
def test_fifty_kills_leave_whole_files_and_the_same_tree(tmp_path, tiny_pth):
    import shutil

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    many_photos(whole, 60)
    shutil.copytree(whole, killed)
    begin = time.perf_counter()
    assert start(whole, tiny_pth).wait() == 0
    usual_s = time.perf_counter() - begin
    rng = random.Random(4)
    for kill in range(50):
        process = start(killed, tiny_pth)
        time.sleep(rng.uniform(0.4, 1.05) * usual_s)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for path in maps(killed):
            assert np.load(path).shape == (56, 84)
        for path in (killed / "depths").rglob("*.png"):
            Image.open(path).load()
        if kill % 5 == 4:  # much is done by now: leave half of it to do
            for path in rng.sample(maps(killed), len(maps(killed)) // 2):
                path.unlink()
    assert start(killed, tiny_pth).wait() == 0
    assert tree(killed) == tree(whole)
    assert not list(killed.rglob("*.tmp"))


@pytest.mark.slow
def test_two_processes_make_the_same_tree_as_one(tmp_path, tiny_pth):
    import shutil

    one, two = tmp_path / "one", tmp_path / "two"
    many_photos(one, 12)
    shutil.copytree(one, two)
    assert start(one, tiny_pth).wait() == 0
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29517")
    process = start(two, tiny_pth, launcher)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert "12 photos in the table: 12 written" in out
    assert tree(one) == tree(two)


@pytest.mark.slow
def test_a_rank_may_die(tmp_path, tiny_pth):
    data = tmp_path / "data"
    many_photos(data, 40)
    processes = []
    for rank in (0, 1):
        os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank),
                          MASTER_ADDR="127.0.0.1", MASTER_PORT="29519")  # fmt: skip
        processes.append(start(data, tiny_pth))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]
    while len(maps(data)) < 5 and processes[0].poll() is None:
        time.sleep(0.02)
    processes[1].kill()
    out, error = processes[0].communicate(timeout=300)
    processes[1].communicate()
    assert processes[0].returncode == 1, error
    assert "the rank that had it has ended" in out
    assert 20 <= len(maps(data)) < 40
    for path in maps(data):
        np.load(path)
    assert start(data, tiny_pth).wait() == 0
    assert len(maps(data)) == 40


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same_depth(tiny_pth):
    image = np.asarray(draw_photo(5))
    on_cpu = depth.estimate_depth(depth.load_network(str(tiny_pth), "x")[0], image, 56)
    network, _ = depth.load_network(str(tiny_pth), "x", "cuda")
    np.testing.assert_allclose(depth.estimate_depth(network, image, 56), on_cpu, rtol=1e-2)
    for precision in ("fp16", depth.pick_precision("auto", "cuda")):
        half = depth.measure_batch(network, [depth.preprocess(image, 56)] * 3, precision)
        assert rank_correlation(half[1], on_cpu) > 0.99
