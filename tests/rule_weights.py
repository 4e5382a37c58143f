"""Official-named depth weights made by a rule, and a small collection to run them on."""

import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import exif_extractor
from geophoto import depth_network

REPOSITORY = Path(__file__).parents[1]


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
    return depth_network.load_network(str(tiny_pth), "nowhere")[0]


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


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(a.ravel(), b.ravel()).statistic)
