"""The depth network equals the official one."""

import json
import math

import cv2
import numpy as np
import pytest
import torch
from rule_weights import (
    REPOSITORY,
    draw_photo,
    official_shapes,
    rank_correlation,
    rule_weights,
    tiny_weights,
)

from geophoto import depth_network, depth_weights, pictures

REFERENCE = REPOSITORY.parent / "shared" / "depth_reference"

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
    return depth_network.load_network(str(path), "nowhere")[0]


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
    assert depth_network.preprocess(image_rgb, input_size).shape == tuple(
        outputs[f"{name}_tensor_shape"]
    )

    ours = depth_network.estimate_depth(reference_network, image_rgb, input_size)
    official = outputs[f"{name}_network_depth"]
    assert ours.dtype == np.float32 and ours.shape == official.shape
    assert np.abs(ours - official).max() <= 1e-4 * np.ptp(official)
    if f"{name}_full_depth" in outputs:
        full = outputs[f"{name}_full_depth"]
        resized = depth_network.resize_depth(ours, full.shape)
        assert np.abs(resized - full).max() <= 1e-4 * np.ptp(full)


def test_without_the_official_positions_the_depth_differs(reference, reference_network):
    image_rgb = np.ascontiguousarray(reference[1]["wide_image_bgr"][..., ::-1])
    official = reference[1]["wide_network_depth"]
    embeddings = reference_network.backbone.embeddings
    del embeddings.interpolate_pos_encoding  # the library's own method shows again
    try:
        ours = depth_network.estimate_depth(reference_network, image_rgb, 140)
    finally:
        depth_network.use_official_positions(reference_network)
    assert np.abs(ours - official).max() > 1e-3 * np.ptp(official)


@pytest.mark.parametrize(
    "height, width, input_size, expected",
    [(3000, 4000, 518, (518, 686)), (4000, 3000, 518, (686, 518)), (480, 640, 518, (518, 686)),
     (100, 100, 518, (518, 518)), (1080, 1920, 518, (518, 924)), (600, 601, 300, (308, 308)),
     (200, 3000, 140, (140, 2100))],
)  # fmt: skip
def test_tensor_size(height, width, input_size, expected):
    assert depth_network.tensor_size(height, width, input_size) == expected


def test_endless_strips_are_refused():
    with pytest.raises(ValueError, match="longer than"):
        depth_network.tensor_size(10, 4000, 518)


# ---------------------------------------------------------------- formats of weights


@pytest.mark.parametrize(
    "hidden, layers, heads, out",
    [(64, 4, 1, [1, 2, 3, 4]), (128, 6, 2, [1, 3, 4, 6]), (64, 8, 1, [2, 4, 6, 8]),
     (384, 12, 6, [3, 6, 9, 12]), (1024, 24, 16, [5, 12, 18, 24]),
     (1536, 40, 24, [10, 20, 30, 40])],
)  # fmt: skip
def test_configuration_is_read_off_the_shapes(hidden, layers, heads, out):
    shapes = official_shapes(hidden, layers, side=37, neck=(48, 96, 192, 384), fusion=64, head=32)
    meta = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    config = depth_network.network_config(meta)
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
    expected = depth_network.estimate_depth(tiny_network, image, 56)
    tiny_network.save_pretrained(tmp_path / "saved")
    network, info = depth_network.load_network(str(tmp_path / "saved"), "nowhere")
    np.testing.assert_array_equal(depth_network.estimate_depth(network, image, 56), expected)
    assert info["file"] == "model.safetensors" and info["kind"] == "inverse depth"

    published = tmp_path / "published"  # names as on the hub, older than transformers 5
    published.mkdir()
    tiny_network.config.save_pretrained(published)
    weights = {k: v.contiguous() for k, v in depth_weights.to_hub_keys(tiny_weights()).items()}
    save_file(weights, published / "model.safetensors", metadata={"format": "pt"})
    network, _ = depth_network.load_network(str(published), "nowhere")
    np.testing.assert_array_equal(depth_network.estimate_depth(network, image, 56), expected)


def test_half_precision_weights_load_as_float32(tmp_path):
    path = tmp_path / "half.pth"
    torch.save({key: value.half() for key, value in tiny_weights().items()}, path)
    network, _ = depth_network.load_network(str(path), "nowhere")
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


# ---------------------------------------------------------------- the run


def test_a_batch_too_large_is_done_one_by_one(tiny_network, monkeypatch):
    tensors = [depth_network.preprocess(np.asarray(draw_photo(n)), 56) for n in range(3)]
    original = depth_network.run_network

    def small_memory(network, batch, precision):
        if len(batch) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return original(network, batch, precision)

    monkeypatch.setattr(depth_network, "run_network", small_memory)
    assert [d.shape for d in depth_network.measure_batch(tiny_network, tensors, "fp32")] == [
        (56, 84)
    ] * 3
    monkeypatch.setattr(
        depth_network, "run_network", lambda *_: (_ for _ in ()).throw(RuntimeError("x"))
    )
    assert isinstance(
        depth_network.measure_batch(tiny_network, tensors[:1], "fp32")[0], RuntimeError
    )


def test_overflow_in_half_precision_is_done_in_float32(tiny_network, monkeypatch):
    original = depth_network.run_network

    def overflow(network, batch, precision):
        result = original(network, batch, "fp32")
        return result if precision == "fp32" else result * math.inf

    monkeypatch.setattr(depth_network, "run_network", overflow)
    tensor = depth_network.preprocess(np.asarray(draw_photo(0)), 56)
    assert np.isfinite(depth_network.measure_batch(tiny_network, [tensor], "fp16")[0]).all()


def test_bf16_on_the_cpu_keeps_the_order_of_depths(tiny_network):
    image = np.asarray(draw_photo(3))
    full = depth_network.estimate_depth(tiny_network, image, 56)
    half = depth_network.estimate_depth(tiny_network, image, 56, "bf16")
    assert half.dtype == np.float32 and rank_correlation(full, half) > 0.99


@pytest.mark.slow
def test_demo_depth_hardly_depends_on_precision():
    photos = sorted((REPOSITORY / "data" / "demo" / "images").rglob("*.jpg"))[::60]
    if not photos or not (REPOSITORY / "checkpoints" / "depth_anything_v2_demo.pth").exists():
        pytest.skip("the demo is not here")
    network, _ = depth_network.load_network("demo", REPOSITORY / "checkpoints")
    for photo in photos:
        image = np.asarray(pictures.open_upright(photo))
        full = depth_network.estimate_depth(network, image, 518)
        assert (
            rank_correlation(full, depth_network.estimate_depth(network, image, 518, "bf16"))
            > 0.999
        )


def test_bf16_is_chosen_only_with_instructions_for_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert depth_network.pick_precision("auto", "cpu") == "fp32"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert depth_network.pick_precision("auto", "cpu") == "bf16"
    assert depth_network.pick_precision("fp16", "cpu") == "fp16"
    assert depth_network.pick_device("cpu") == "cpu"


# ---------------------------------------------------------------- processes


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same_depth(tiny_pth):
    image = np.asarray(draw_photo(5))
    on_cpu = depth_network.estimate_depth(
        depth_network.load_network(str(tiny_pth), "x")[0], image, 56
    )
    network, _ = depth_network.load_network(str(tiny_pth), "x", "cuda")
    np.testing.assert_allclose(depth_network.estimate_depth(network, image, 56), on_cpu, rtol=1e-2)
    for precision in ("fp16", depth_network.pick_precision("auto", "cuda")):
        half = depth_network.measure_batch(
            network, [depth_network.preprocess(image, 56)] * 3, precision
        )
        assert rank_correlation(half[1], on_cpu) > 0.99
