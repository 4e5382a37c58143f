"""Give every photo of the table its depth map: Depth-Anything-V2, one .npy and one .png per photo.

Reads data/exif_data.json and the photos, writes data/depths/<photo path>.npy (float16, inverse
depth at network resolution) with a picture beside each, and data/depths/depth_model.json.

    python depth_map_generator.py
    python depth_map_generator.py --depth-model demo --data-dir data/demo
    torchrun --nproc_per_node=2 depth_map_generator.py

An interrupted run goes on with the same command. Processes give the bytes that one process with
as many threads gives; another number of threads moves a few values by the last float16 digit.
"""

from __future__ import annotations

import argparse
import datetime
import errno
import hashlib
import itertools
import json
import logging
import math
import os
import re
import socket
import sys
import time
import types
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from density import spread_order, stop, sweep_temporaries, write_atomically
from exif_extractor import next_command, open_upright, photo_file, read_table

if TYPE_CHECKING:
    import torch

# ---------------------------------------------------------------- settings
DATA_DIR = "data"  # holds exif_data.json; depths/ is written below it
IMAGE_DIR = None  # the photos; None = DATA_DIR/images
CHECKPOINT_DIR = "checkpoints"  # where weights are looked for and downloaded to
DEPTH_MODEL = "vits"  # vits, vitb, vitl, metric_hypersim_vits …, demo; or .pth, HF folder, hub id
INPUT_SIZE = 518  # shorter side of what the network sees, px; larger = finer and slower
DEVICE = "auto"  # auto = cuda, then mps, then cpu
PRECISION = "auto"  # fp32, bf16 or fp16; auto = the fastest that the device has in hardware
BATCH_SIZE = None  # photos of one shape per pass; None = 1 on the CPU (faster there), else 8
WORKERS = 2  # threads that read photos ahead, and as many that write maps
COMPILE = False  # torch.compile: minutes to start, pays for thousands of photos
FAST_DECODE = False  # read JPEGs at reduced size: faster, depth differs slightly
WRITE_PNG = True  # a picture beside each map
SIDE_BY_SIDE = False  # the picture shows photo and depth
LEGEND = False  # the picture carries a thin far-near scale
# ------------------------------------------------------------------------

PATCH_SIZE = 14  # px, side of a ViT patch in every DINOv2
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_ASPECT = 16  # longer strips would need more memory than machines have
LARGEST_FLOAT16 = 65504.0
PICTURE_SETTINGS = ("side_by_side", "legend")  # a change of these redraws the pictures only
CONTACT_SHEET_PAIRS = 240  # more would make a page that no viewer likes to open
MIN_METRES = 0.1  # metric depth is inverted from here on, so that 0 m stays finite

# sha256 that Hugging Face publishes for each file depth_anything_v2_<name>.pth
KNOWN_SHA256 = {
    "vits": "715fade13be8f229f8a70cc02066f656f2423a59effd0579197bbf57860e1378",
    "vitb": "0d2b7002e62d39d655571c371333340bd88f67ab95050c03591555aa05645328",
    "vitl": "a7ea19fa0ed99244e67b624c72b8580b7e9553043245905be58796a608eb9345",
    "metric_hypersim_vits": "b782898d8a3e8be1f639de33837ed85e9b4b73e40f8f5e5cd99067588d722545",
    "metric_hypersim_vitb": "9dc9e274c5eff55c6daf27b660c0ced0eca4e8593a6da90cdcb04d2b4d3f3fa2",
    "metric_hypersim_vitl": "6f82ff2bc543ac02ddff4aa31fa363676a8305dd3ccf04e80e2af115a044cb6d",
    "metric_vkitti_vits": "9203e538d35255c90dda4b7fedb47ff33fe725497bcca3b1e53b3a65ee63f0cb",
    "metric_vkitti_vitb": "4dad67a7cc10b462bca48e6b8569c762b8eb3c1adada170a3851a6d3ba37bb3e",
    "metric_vkitti_vitl": "239b1054a369e66da2576e9a118d6d7c12d90dc8ebe609579a9a09cd8e05fe38",
}
MAX_DEPTH_M = {"metric_hypersim": 20, "metric_vkitti": 80}  # sigmoid × this = metres
OUT_LAYERS = {12: [3, 6, 9, 12], 24: [5, 12, 18, 24], 40: [10, 20, 30, 40]}  # of V2, 1-based

# Names of the official .pth against those of the published hub checkpoints.
BLOCK_NAMES = {
    "norm1": "norm1", "norm2": "norm2", "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1",
    "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    "mlp.w12": "mlp.weights_in", "mlp.w3": "mlp.weights_out",
}  # fmt: skip
OTHER_NAMES = {
    "pretrained.cls_token": "backbone.embeddings.cls_token",
    "pretrained.pos_embed": "backbone.embeddings.position_embeddings",
    "pretrained.mask_token": "backbone.embeddings.mask_token",
    "pretrained.patch_embed.proj": "backbone.embeddings.patch_embeddings.projection",
    "pretrained.norm": "backbone.layernorm",
    "depth_head.scratch.output_conv1": "head.conv1",
    "depth_head.scratch.output_conv2.0": "head.conv2",
    "depth_head.scratch.output_conv2.2": "head.conv3",
}

# ---------------------------------------------------------------- weights


def module_names(layers: int) -> dict[str, str]:
    """Official module or parameter name → hub name, for a network of so many blocks."""
    names = dict(OTHER_NAMES)
    for n in range(layers):
        for official, hub in BLOCK_NAMES.items():
            names[f"pretrained.blocks.{n}.{official}"] = f"backbone.encoder.layer.{n}.{hub}"
    for i in range(4):
        reassemble = f"neck.reassemble_stage.layers.{i}"
        names[f"depth_head.projects.{i}"] = f"{reassemble}.projection"
        names[f"depth_head.resize_layers.{i}"] = f"{reassemble}.resize"
        names[f"depth_head.scratch.layer{i + 1}_rn"] = f"neck.convs.{i}"
        official, hub = f"depth_head.scratch.refinenet{4 - i}", f"neck.fusion_stage.layers.{i}"
        names[f"{official}.out_conv"] = f"{hub}.projection"
        for unit in (1, 2):
            for conv in (1, 2):
                names[f"{official}.resConfUnit{unit}.conv{conv}"] = (
                    f"{hub}.residual_layer{unit}.convolution{conv}"
                )
    return names


def count_layers(state_dict: dict[str, torch.Tensor]) -> int:
    """Number of transformer blocks in a state dict, in either naming."""
    found = [re.match(r"(?:pretrained\.blocks|backbone\.encoder\.layer)\.(\d+)\.", k)
             for k in state_dict]  # fmt: skip
    return 1 + max((int(m[1]) for m in found if m), default=-1)


def _rename(key: str, names: dict[str, str]) -> str:
    if key in names:
        return names[key]
    module, _, parameter = key.rpartition(".")
    if module not in names:
        raise ValueError(f"not a Depth-Anything-V2 weight: {key}")
    return f"{names[module]}.{parameter}"


def to_hub_keys(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename an official state dict to the hub's names; `qkv` is split into its three thirds."""
    names = module_names(count_layers(state_dict))
    hub = {}
    for key, value in state_dict.items():
        if match := re.fullmatch(r"pretrained\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)", key):
            parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
            for part, third in parts:
                prefix = f"backbone.encoder.layer.{match[1]}.attention.attention"
                hub[f"{prefix}.{part}.{match[2]}"] = third
        else:
            hub[_rename(key, names)] = value
    return hub


def to_official_keys(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `to_hub_keys`; also takes `network.state_dict()` of transformers 5."""
    import torch

    state = {}
    for key, value in state_dict.items():
        key = re.sub(r"\.attention\.([qkv])_proj\.", lambda m: ".attention.attention."
                     + {"q": "query", "k": "key", "v": "value"}[m[1]] + ".", key)  # fmt: skip
        state[key.replace(".attention.o_proj.", ".attention.output.dense.")] = value
    names = {hub: official for official, hub in module_names(count_layers(state)).items()}
    official = {}
    for key, value in state.items():
        match = re.fullmatch(r"backbone\.encoder\.layer\.(\d+)\.attention\.attention\."
                             r"(query|key|value)\.(weight|bias)", key)  # fmt: skip
        if not match:
            official[_rename(key, names)] = value
        elif match[2] == "query":
            thirds = [state[key.replace("query", part)] for part in ("query", "key", "value")]
            official[f"pretrained.blocks.{match[1]}.attn.qkv.{match[3]}"] = torch.cat(thirds)
    return official


def network_config(state_dict: dict[str, torch.Tensor], max_depth_m: int | None = None):
    """DepthAnythingConfig read off the shapes of an official state dict.

    `max_depth_m` makes it the metric variant. Any other architecture is a ValueError.
    """
    from transformers import DepthAnythingConfig, Dinov2Config

    try:
        tokens, hidden = state_dict["pretrained.pos_embed"].shape[1:]
        projects = [len(state_dict[f"depth_head.projects.{i}.weight"]) for i in range(4)]
        fusion = len(state_dict["depth_head.scratch.layer1_rn.weight"])
        head = len(state_dict["depth_head.scratch.output_conv2.0.weight"])
        layers = count_layers(state_dict)
        first = "pretrained.blocks.0.mlp.fc1.weight"
        swiglu = first not in state_dict
        mlp_ratio = 4 if swiglu else len(state_dict[first]) // hidden
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(f"not a Depth-Anything-V2 checkpoint (no {error})") from error
    quarters = [max(1, layers * i // 4) for i in (1, 2, 3, 4)]
    backbone = Dinov2Config(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=hidden // 64,
        mlp_ratio=mlp_ratio, use_swiglu_ffn=swiglu, patch_size=PATCH_SIZE,
        image_size=PATCH_SIZE * math.isqrt(tokens - 1),
        out_indices=OUT_LAYERS.get(layers, quarters),
        reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    return DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=hidden, neck_hidden_sizes=projects,
        fusion_hidden_size=fusion, head_hidden_size=head, patch_size=PATCH_SIZE,
        depth_estimation_type="metric" if max_depth_m else "relative", max_depth=max_depth_m or 1,
    )  # fmt: skip


def interpolate_positions(embeddings, tokens: torch.Tensor, height: int, width: int):
    """Position embeddings (1, 1 + patches, hidden) for an input of height × width pixels.

    As DINOv2 and Depth-Anything-V2 do it: bicubic by the scale (side + 0.1) / trained side, which
    samples elsewhere than transformers' own `size=`; depth would differ by up to 1.7 %.
    """
    import torch

    weights = embeddings.position_embeddings
    side = math.isqrt(weights.shape[1] - 1)
    rows, columns = height // PATCH_SIZE, width // PATCH_SIZE
    if rows == columns == side:
        return weights
    grid = weights[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = ((rows + 0.1) / side, (columns + 0.1) / side)
    grid = torch.nn.functional.interpolate(grid, scale_factor=scale, mode="bicubic")
    patches = grid.flatten(2).transpose(1, 2).to(weights.dtype)
    return torch.cat((weights[:, :1], patches), dim=1)


def use_official_positions(network: torch.nn.Module) -> torch.nn.Module:
    """Patch the one method in which transformers and the official network differ; returns it."""
    embeddings = network.backbone.embeddings
    embeddings.interpolate_pos_encoding = types.MethodType(interpolate_positions, embeddings)
    return network


def end_in_float32(network: torch.nn.Module) -> torch.nn.Module:
    """Let the last two convolutions escape autocast: bf16 has 8 bits, too few to order far depths.

    Raised the rank correlation with fp32 from 0.9981 to 0.9997 on the worst of the demo photos.
    """
    import torch

    for layer in (network.head.conv2, network.head.conv3):

        def forward(x, original=layer.forward):
            with torch.autocast(x.device.type, enabled=False):
                return original(x.float())

        layer.forward = forward
    return network


def load_transformers(source: Path | None, **given) -> torch.nn.Module:
    """Depth-Anything in fp32 by `from_pretrained(source, **given)`, every weight accounted for."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    network, loading = transformers.DepthAnythingForDepthEstimation.from_pretrained(
        source, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **given
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if count := len(loading[problem]):
            problem = problem.replace("_", " ")
            raise ValueError(f"not a Depth-Anything-V2 checkpoint ({count} {problem})")
    return end_in_float32(use_official_positions(network)).eval()


def build_network(state_dict: dict[str, torch.Tensor], max_depth_m: int | None = None):
    """Depth-Anything-V2 in fp32 with the weights of an official state dict, in eval mode."""
    config = network_config(state_dict, max_depth_m)
    weights = {key: value.float() for key, value in to_hub_keys(state_dict).items()}
    return load_transformers(None, config=config, state_dict=weights)


def weights_url(name: str) -> str:
    """Where the official file depth_anything_v2_<name>.pth of a known name is published."""
    size = {"s": "Small", "b": "Base", "l": "Large"}[name[-1]]
    kinds = {"metric_hypersim": "Metric-Hypersim-", "metric_vkitti": "Metric-VKITTI-"}
    kind = kinds.get(name[:-5], "")
    repository = f"https://huggingface.co/depth-anything/Depth-Anything-V2-{kind}{size}"
    return f"{repository}/resolve/main/depth_anything_v2_{name}.pth"


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download_weights(name: str, path: Path, tries: int = 3) -> None:
    """Fetch a known official file to `path`, whole and with the published sha256, or stop."""
    import torch

    url, sha256 = weights_url(name), KNOWN_SHA256[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f"{path.name}.*.partial"):  # of killed downloads
        if time.time() - left.stat().st_mtime > 600:
            left.unlink(missing_ok=True)
    print(f"downloading {url}", flush=True)
    for attempt in range(1, tries + 1):
        try:  # writes a temporary, checks the sha256, then renames
            return torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256)
        except (OSError, RuntimeError, ValueError) as error:
            reason = error
            if isinstance(getattr(error, "reason", None), socket.gaierror):
                break  # no network at all: trying again cannot help
            time.sleep(attempt)
    stop(f"no weights ({reason}): put {path} there yourself, from {url} (sha256 {sha256}), "
         "or take the small model that comes with the code: --depth-model demo")  # fmt: skip


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a .pth file; never runs code from it. Anything else is a ValueError."""
    import torch

    try:
        with warnings.catch_warnings(action="ignore"):  # of odd pickles; the error says enough
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle, EOF, overflow …: torch documents no closed list
        reason = f"not a file of plain tensors, or damaged ({type(error).__name__})"
        raise ValueError(reason) from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError("not a Depth-Anything-V2 checkpoint (no plain table of tensors)")
    return state


def find_weights(model: str, checkpoint_dir: str | Path) -> Path:
    """The file that `model` means, downloaded if need be; or stop, saying what to do.

    vits, vitb, vitl, metric_hypersim_vits … and demo mean depth_anything_v2_<model>.pth in
    `checkpoint_dir`; else `model` is a .pth, a folder in Hugging Face format, or a hub id.
    """
    named = model == "demo" or model in KNOWN_SHA256
    if not named and not model.endswith(".pth"):
        from transformers.utils import cached_file

        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # not every try
        try:
            return Path(cached_file(model, "model.safetensors"))
        except (OSError, ValueError) as error:
            stop(f"no depth model {model}: {str(error).splitlines()[0]}")
    path = Path(checkpoint_dir) / f"depth_anything_v2_{model}.pth" if named else Path(model)
    if not path.exists() and model in KNOWN_SHA256:
        download_weights(model, path)
    if not path.is_file():
        comes = ", though it comes with the code" if model == "demo" else ""
        stop(f"no weights: {path} does not exist{comes}")
    return path


def load_hub_network(folder: Path) -> torch.nn.Module:
    """Depth-Anything in fp32 from a folder in Hugging Face format."""
    kind = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
    if kind != "depth_anything":
        raise ValueError(f"a {kind} network, not Depth-Anything")
    return load_transformers(folder, local_files_only=True)


def load_network(model: str, checkpoint_dir: str | Path, device: str = "cpu"):
    """Network (fp32, eval, on `device`) and what is known about it; see `find_weights`.

    The dict holds model, file, sha256, kind ("inverse depth" or "metres") and max_depth_m.
    Whatever cannot be had or read ends the run with exit 2 and one line.
    """
    path = find_weights(model, checkpoint_dir)
    try:
        if path.name.startswith("depth_anything_vit"):
            raise ValueError("a checkpoint of Depth-Anything V1, which reads other layers")
        if path.suffix == ".pth":
            max_depth_m = next((m for kind, m in MAX_DEPTH_M.items() if kind in path.name), None)
            network = build_network(read_state_dict(path), max_depth_m)
        else:
            network = load_hub_network(path.parent)
    except (ValueError, OSError) as error:
        stop(f"cannot use depth model {model}: {str(error).splitlines()[0]}")
    metric = network.config.depth_estimation_type == "metric"
    info = {
        "model": path.stem if path.suffix == ".pth" else model,
        "file": path.name,
        "sha256": file_sha256(path),
        "kind": "metres" if metric else "inverse depth",
        "max_depth_m": network.config.max_depth if metric else None,
    }
    return network.to(device), info


def report_weights(info: dict) -> None:
    """Print the sha256 beside the published one, and the licence where it is not Apache-2.0."""
    name = info["model"].removeprefix("depth_anything_v2_")
    published = KNOWN_SHA256.get(name)
    known = [known for known, sha256 in KNOWN_SHA256.items() if sha256 == info["sha256"]]
    says = f"the published {known[0]}" if known else "not a published file"
    print(f"weights {info['file']}: sha256 {info['sha256']} ({says}), {info['kind']}")
    if published and published != info["sha256"]:
        print(f"warning: {info['file']} is not the published one, sha256 {published}",
              file=sys.stderr)  # fmt: skip
    if size := re.search(r"vit[blg]$", known[0] if known else name):
        origin = "fine-tuned from weights under " if "metric" in name else ""
        print(f"licence of {size[0]}: {origin}CC-BY-NC-4.0, no commercial use (Small: Apache-2.0)")


def pick_device(device: str) -> str:
    """The device to run on; auto = cuda (each rank its own), then mps, then cpu."""
    import torch

    if device != "auto":
        return device
    if torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def pick_precision(precision: str, device: str) -> str:
    """fp32, bf16 or fp16; auto = half only where the device has instructions for it."""
    import torch

    if precision != "auto":
        return precision
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private: may go away
    fast = device == "cpu" and any(getattr(torch.cpu, p, lambda: False)() for p in probes)
    return "bf16" if fast else "fp32"


# ---------------------------------------------------------------- one photo


def tensor_size(height: int, width: int, input_size: int) -> tuple[int, int]:
    """(height, width) fed to the network: the shorter side becomes `input_size`, both ×14.

    As in the official pre-processing: to the nearest multiple of 14, never below `input_size`.
    """
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(f"{width} × {height} px is longer than {MAX_ASPECT}:1")
    scale = max(input_size / height, input_size / width)
    sides = []
    for side in (height * scale, width * scale):
        patches = round(side / PATCH_SIZE)
        if patches * PATCH_SIZE < input_size:
            patches = math.ceil(side / PATCH_SIZE)
        sides.append(patches * PATCH_SIZE)
    return sides[0], sides[1]


def preprocess(image_rgb: np.ndarray, input_size: int) -> np.ndarray:
    """uint8 RGB (h, w, 3) → float32 (1, 3, H, W), standardised as the official network wants it."""
    import cv2

    height, width = tensor_size(*image_rgb.shape[:2], input_size)
    image = image_rgb.astype(np.float32)  # resizing bytes would round between pixels
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    image = (image / 255 - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None])


def run_network(network: torch.nn.Module, batch: torch.Tensor, precision: str) -> torch.Tensor:
    """(n, 3, H, W) → float32 (n, H, W) on the device: what the network says, in its own unit."""
    import torch

    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    autocast = torch.autocast(batch.device.type, dtypes[precision], enabled=precision != "fp32")
    with torch.inference_mode(), autocast:
        return network(pixel_values=batch).predicted_depth.float()


def to_inverse(depth: np.ndarray, kind: str) -> np.ndarray:
    """Inverse depth (larger = nearer) as float32, whatever the kind that the network gives."""
    depth = depth.astype(np.float32)
    return 1 / np.maximum(depth, MIN_METRES) if kind == "metres" else depth


def estimate_depth(
    network: torch.nn.Module, image_rgb: np.ndarray, input_size: int, precision: str = "fp32"
) -> np.ndarray:
    """Inverse depth (larger = nearer) of one upright uint8 RGB photo: float32 (H, W).

    (H, W) is the network's resolution, see `tensor_size`.
    """
    import torch

    device = next(network.parameters()).device
    batch = torch.from_numpy(preprocess(image_rgb, input_size)).to(device)
    depth = run_network(network, batch, precision)[0].cpu().numpy()
    metric = network.config.depth_estimation_type == "metric"
    return to_inverse(depth, "metres" if metric else "inverse depth")


def resize_depth(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Depth (h, w) at another (height, width), as officially: bilinear with aligned corners."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(depth, np.float32))[None, None]
    resized = torch.nn.functional.interpolate(tensor, size, mode="bilinear", align_corners=True)
    return resized[0, 0].numpy()


# ---------------------------------------------------------------- files


def depth_file(data_dir: str | Path, filename: str) -> Path:
    """Where the depth map of a photo lies: data_dir/depths/<photo path>.npy."""
    return Path(data_dir) / "depths" / f"{filename}.npy"


def read_depth_model(data_dir: str | Path) -> dict:
    """The sidecar depths/depth_model.json; empty when there is none or it is damaged."""
    try:
        sidecar = json.loads((Path(data_dir) / "depths" / "depth_model.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return sidecar if isinstance(sidecar, dict) else {}


def load_depth_map(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Inverse depth (larger = nearer) as float32 (h, w), resized to `size` = (height, width).

    Metres are inverted: the depth_model.json of the depths/ above the map says what it holds.
    """
    depth = np.load(path, allow_pickle=False)
    sidecars = (read_depth_model(up.parent) for up in Path(path).parents if up.name == "depths")
    depth = to_inverse(depth, next(filter(None, sidecars), {}).get("kind", "inverse depth"))
    return depth if size is None or size == depth.shape else resize_depth(depth, size)


def is_finished(path: Path, photo: Path) -> bool:
    """Whether a whole map lies at `path` that is not older than its photo."""
    try:
        if path.stat().st_mtime_ns < photo.stat().st_mtime_ns:
            return False
        depth = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return depth.ndim == 2 and depth.dtype == np.float16


# ---------------------------------------------------------------- pictures


def colour_indices(depth: np.ndarray) -> np.ndarray:
    """Inverse depth (h, w) as uint8: 0 = farthest, 255 = nearest; a flat map is all 0."""
    low, high = float(depth.min()), float(depth.max())
    if not high > low:
        return np.zeros(depth.shape, np.uint8)
    return np.round((depth - low) * (255 / (high - low))).astype(np.uint8)


def draw_depth(depth: np.ndarray, legend: bool = False, photo_rgb: np.ndarray | None = None):
    """PIL picture of inverse depth (h, w): near = warm; with the photo on its left if given.

    The colours are matplotlib's inferno, whose lightness grows evenly.
    """
    import cv2
    from PIL import Image, ImageDraw

    height, width = depth.shape
    picture = Image.fromarray(colour_indices(depth), "P")
    if legend:
        bar = max(12, height // 24)
        scale = np.tile(np.linspace(0, 255, width).astype(np.uint8), (bar, 1))
        strip = Image.fromarray(scale, "P")
        pen, middle = ImageDraw.Draw(strip), bar / 2
        pen.text((4, middle), "far", fill=255, anchor="lm", font_size=bar - 3)
        pen.text((width - 4, middle), "near", fill=0, anchor="rm", font_size=bar - 3)
        page = Image.new("P", (width, height + bar))
        page.paste(picture, (0, 0))
        page.paste(strip, (0, height))
        picture = page
    column = np.arange(256, dtype=np.uint8)[:, None]
    picture.putpalette(cv2.applyColorMap(column, cv2.COLORMAP_INFERNO)[:, 0, ::-1].tobytes())
    if photo_rgb is None:
        return picture
    page = Image.new("RGB", (2 * width, picture.height), "white")
    page.paste(Image.fromarray(photo_rgb).resize((width, height)), (0, 0))
    page.paste(picture.convert("RGB"), (width, 0))
    return page


def draw_pair(data_dir: Path, image_dir: Path, filename: str, side: int):
    """PIL thumbnails of photo and depth side by side, each within side × side px, with the name."""
    from PIL import Image, ImageDraw

    depth = draw_depth(load_depth_map(depth_file(data_dir, filename))).convert("RGB")
    try:
        photo = open_upright(photo_file(image_dir, filename), max_side=2 * side)
    except (OSError, ValueError):  # gone since its map was made
        photo = Image.new("RGB", depth.size, "lightgrey")
    photo.thumbnail((side, side))
    page = Image.new("RGB", (2 * side, photo.height + 16), "white")
    page.paste(photo, (0, 0))
    page.paste(depth.resize(photo.size), (photo.width, 0))
    ImageDraw.Draw(page).text((0, photo.height + 2), filename[-52:], fill="black", font_size=11)
    return page


def save_contact_sheet(data_dir: Path, image_dir: Path, filenames: list[str]) -> Path | None:
    """One page of thumbnails photo | depth, depths/contact_sheet.jpg; None without any map.

    Beyond CONTACT_SHEET_PAIRS it shows an even choice of the photos.
    """
    from PIL import Image

    done = [name for name in filenames if depth_file(data_dir, name).exists()]
    done = done[:: max(1, math.ceil(len(done) / CONTACT_SHEET_PAIRS))]
    if not done:
        return None
    pairs = [draw_pair(data_dir, image_dir, name, 180) for name in done]
    columns, gap = min(4, len(pairs)), 10
    lines = [pairs[i : i + columns] for i in range(0, len(pairs), columns)]
    heights = [max(pair.height for pair in line) + gap for line in lines]
    page = Image.new("RGB", (columns * (360 + gap) + gap, sum(heights) + gap), "white")
    for n, line in enumerate(lines):
        for i, pair in enumerate(line):
            page.paste(pair, (gap + i * (360 + gap), gap + sum(heights[:n])))
    path = data_dir / "depths" / "contact_sheet.jpg"
    with write_atomically(path) as file:
        page.save(file, "JPEG", quality=88)
    return path


# ---------------------------------------------------------------- the run


@dataclass(frozen=True)
class Options:
    """What the run does with every photo. The first three decide whether old maps can stay."""

    sha256: str
    input_size: int
    fast_decode: bool
    side_by_side: bool
    legend: bool
    write_png: bool


@dataclass(frozen=True)
class Job:
    """One photo to work on; `draw_only` when its map is finished and only the picture is due."""

    filename: str
    photo: Path
    max_side: int | None  # px, JPEGs may be decoded down to this longer side
    draw_only: bool = False


def why_redo(sidecar: dict, options: Options, data_dir: Path) -> str:
    """Why the maps made under `sidecar` cannot stay; empty when they can."""
    if not sidecar:
        foreign = next((data_dir / "depths").rglob("*.npy"), None)
        return "no readable depth_model.json says what made them" if foreign else ""
    return ", ".join(
        f"{name} was {str(sidecar.get(name))[:12]} and is {str(getattr(options, name))[:12]}"
        for name in ("sha256", "input_size", "fast_decode")
        if sidecar.get(name) != getattr(options, name)
    )


def plan_jobs(
    table, data_dir: Path, image_dir: Path, options: Options, redo: bool, redraw: bool
) -> tuple[list[Job], dict[str, tuple[str, str]]]:
    """Jobs in an order that covers the map early, and the outcome of rows that need none."""
    lat, lon = (table[f"gps_{axis}"].to_numpy(float) for axis in ("latitude", "longitude"))
    jobs, outcomes = [], {}
    for row in table.iloc[spread_order(lat, lon)].itertuples():
        photo, path = photo_file(image_dir, row.filename), depth_file(data_dir, row.filename)
        sides, max_side = sorted((row.image_width, row.image_height)), None
        if options.fast_decode and sides[0] > 0 and sides[1] > 0:  # unknown sizes are nan
            max_side = math.ceil(options.input_size * sides[1] / sides[0])
        if row.status == "unreadable":
            outcomes[row.filename] = ("skipped", "unreadable according to the table")
        elif redo or not is_finished(path, photo):
            jobs.append(Job(row.filename, photo, max_side))
        elif options.write_png and (redraw or not path.with_suffix(".png").exists()):
            jobs.append(Job(row.filename, photo, max_side, draw_only=True))
        else:
            outcomes[row.filename] = ("unchanged", "")
    return jobs, outcomes


def read_job(job: Job, options: Options) -> tuple[np.ndarray | None, np.ndarray | None]:
    """What a job needs of its photo: tensor (1, 3, H, W); small uint8 RGB for the picture."""
    if job.draw_only and not options.side_by_side:
        return None, None
    image = open_upright(job.photo, max_side=job.max_side)
    tensor = None if job.draw_only else preprocess(np.asarray(image), options.input_size)
    if not options.side_by_side:
        return tensor, None
    size = tensor_size(image.height, image.width, options.input_size)
    return tensor, np.asarray(image.resize(size[::-1], reducing_gap=2))


def repair_depth(depth: np.ndarray, kind: str) -> tuple[np.ndarray, str]:
    """The map fit for float16, and a warning or "". Pixels that are no number become farthest."""
    good = np.isfinite(depth) & (np.abs(depth) <= LARGEST_FLOAT16)
    if not good.any():
        raise ValueError("the network gave no finite depth")
    if not good.all():
        farthest = depth[good].max() if kind == "metres" else depth[good].min()
        warning = f"{np.count_nonzero(~good)} of {depth.size} pixels not finite, set to farthest"
        return np.where(good, depth, farthest), warning
    flat = np.ptp(depth.astype(np.float16)) == 0
    return depth, "flat: every pixel has the same depth" if flat else ""


def write_job(
    job: Job, depth: np.ndarray | Exception | None, small_rgb: np.ndarray | None, data_dir: Path,
    kind: str, options: Options,
) -> tuple[str, str]:  # fmt: skip
    """Write the picture, then the map: its presence means that the photo is done."""
    path, warning = depth_file(data_dir, job.filename), ""
    if isinstance(depth, Exception):
        raise depth
    if depth is None:
        depth = np.load(path, allow_pickle=False)
    else:
        depth, warning = repair_depth(depth, kind)
    depth = depth.astype(np.float16)  # the picture shows what the file holds
    if options.write_png:
        picture = draw_depth(to_inverse(depth, kind), options.legend, small_rgb)
        with write_atomically(path.with_suffix(".png")) as file:
            picture.save(file, "PNG", compress_level=4)
    if job.draw_only:
        return "redrawn", ""
    with write_atomically(path) as file:
        np.save(file, depth, allow_pickle=False)
    return "written", warning


def failure(error: Exception) -> tuple[str, str]:
    """The outcome of a photo that met `error`; a full disk ends the run."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        stop(f"no space left on the disk for the depth maps ({error})")
    return "failed", f"{type(error).__name__}: {error}".splitlines()[0]


def read_ahead(
    pool: ThreadPoolExecutor, jobs: Iterable[Job], ahead: int, options: Options
) -> Iterator[tuple[Job, Future]]:
    """Jobs with the future of what they need, in order, so many of them being read ahead."""
    waiting, jobs = deque(), iter(jobs)
    while True:
        for job in itertools.islice(jobs, ahead - len(waiting)):
            waiting.append((job, pool.submit(read_job, job, options)))
        if not waiting:
            return
        yield waiting.popleft()


def batch_by_shape(
    reading: Iterable[tuple[Job, Future]], batch_size: int, outcomes: dict[str, tuple[str, str]]
) -> Iterator[list[tuple[Job, np.ndarray | None, np.ndarray | None]]]:
    """Gather (job, tensor, small photo) of one shape; photos that failed go to `outcomes`."""
    gathered: dict[tuple, list] = {}
    for job, future in reading:
        try:
            tensor, small_rgb = future.result()
        except Exception as error:  # one bad photo never ends a run
            outcomes[job.filename] = failure(error)
            continue
        shape = tensor.shape if tensor is not None else ()
        gathered.setdefault(shape, []).append((job, tensor, small_rgb))
        if len(gathered[shape]) == batch_size:
            yield gathered.pop(shape)
        elif sum(map(len, gathered.values())) > 4 * batch_size:  # photos of many odd shapes
            yield gathered.pop(max(gathered, key=lambda shape: len(gathered[shape])))
    yield from gathered.values()


def measure_batch(
    network: torch.nn.Module, tensors: list[np.ndarray], precision: str
) -> list[np.ndarray | Exception]:
    """float32 (H, W) for every tensor (1, 3, H, W), or the error that it met.

    A batch too large for the memory is done one by one; what overflows in half precision, in fp32.
    """
    import torch

    device = next(network.parameters()).device
    batch = torch.from_numpy(np.concatenate(tensors))
    batch = batch.pin_memory() if device.type == "cuda" else batch
    try:
        batch = batch.to(device, non_blocking=True, memory_format=torch.channels_last)
        depths = run_network(network, batch, precision).cpu().numpy()
        if precision != "fp32" and not np.isfinite(depths).all():
            depths = run_network(network, batch, "fp32").cpu().numpy()
        return list(depths)
    except (RuntimeError, MemoryError) as error:
        if len(tensors) == 1:
            return [error]
    return [measure_batch(network, [tensor], precision)[0] for tensor in tensors]


def run_jobs(
    network, jobs: list[Job], data_dir: Path, options: Options, kind: str, precision: str,
    batch_size: int, workers: int,
) -> tuple[dict[str, tuple[str, str]], float]:  # fmt: skip
    """Outcome of every job, and the seconds spent in the network.

    Reading and writing run in threads beside the network, at most a few photos ahead of it.
    """
    from tqdm import tqdm

    outcomes, writing, network_s = {}, deque(), 0.0
    quiet = int(os.environ.get("RANK", 0)) > 0
    with (
        ThreadPoolExecutor(workers) as readers,
        ThreadPoolExecutor(workers) as writers,
        tqdm(total=len(jobs), unit="photo", disable=quiet) as progress,
    ):
        reading = read_ahead(readers, jobs, workers + batch_size, options)
        batches = batch_by_shape(reading, batch_size, outcomes)
        for batch in itertools.chain(batches, [None]):  # None: wait for the last writes
            while len(writing) > (2 * workers if batch else 0):
                job, future = writing.popleft()
                error = future.exception()
                outcomes[job.filename] = failure(error) if error else future.result()
            progress.update(len(outcomes) - progress.n)
            if not batch:
                break
            depths = [None] * len(batch)
            if batch[0][1] is not None:
                start = time.perf_counter()
                depths = measure_batch(network, [tensor for _, tensor, _ in batch], precision)
                network_s += time.perf_counter() - start
            for (job, _, small_rgb), depth in zip(batch, depths, strict=True):
                task = (write_job, job, depth, small_rgb, data_dir, kind, options)
                writing.append((job, writers.submit(*task)))
    return outcomes, network_s


def prepare_outputs(data_dir: Path, sidecar: dict, redo: str, redraw: bool) -> None:
    """Clear away what the coming run must not keep, then write depth_model.json.

    In this order a killed run is resumed: as long as old outputs are left, so is the old sidecar.
    """
    depths = data_dir / "depths"
    for path in depths.rglob("*.npy"):
        if redo or redraw:
            path.with_suffix(".png").unlink(missing_ok=True)
        if redo:
            path.unlink()
    with write_atomically(depths / "depth_model.json", "w", encoding="utf-8") as file:
        json.dump(sidecar, file, indent=2)
        file.write("\n")


def join_ranks() -> tuple[int, int]:
    """(rank, number of ranks) under torchrun; (0, 1) without it. Gloo serves CPU and GPU alike."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        import torch.distributed

        week = datetime.timedelta(days=7)  # ranks meet again only after all their photos
        torch.distributed.init_process_group("gloo", timeout=week)
    return int(os.environ.get("RANK", 0)), world


def meet(world: int) -> None:
    """Wait until all ranks have come this far; stop when one of them has ended."""
    if world == 1:
        return
    import torch.distributed

    try:
        torch.distributed.barrier()
    except RuntimeError:
        stop("another rank has ended early; its own message says why")


def gather_outcomes(outcomes: dict, rank: int, world: int) -> dict[str, tuple[str, str]]:
    """The outcomes of all ranks on rank 0; those of ranks that died are simply absent."""
    if world == 1:
        return outcomes
    import torch.distributed

    gathered = [None] * world if rank == 0 else None
    try:
        torch.distributed.gather_object(outcomes, gathered)
    except RuntimeError as error:
        print(f"warning: not every rank has reported: {error}", file=sys.stderr)
    for other in gathered or ():
        outcomes = outcomes | (other or {})
    return outcomes


def generate_depth_maps(
    *, data_dir: str, image_dir: str | None, checkpoint_dir: str, depth_model: str,
    input_size: int, device: str, precision: str, batch_size: int | None, workers: int,
    compile: bool, fast_decode: bool, write_png: bool, side_by_side: bool, legend: bool,
    overwrite: bool, contact_sheet: bool,
) -> int:  # fmt: skip
    """Do the whole stage with the settings of the same names; returns the exit code."""
    # Read by OpenMP when torch loads: waiting threads must not spin on cores that others need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # else up to 10× slower on a busy machine
    rank, world = join_ranks()
    table, data_dir = read_table(data_dir, image_dir), Path(data_dir)
    image_dir = Path(image_dir) if image_dir else data_dir / "images"
    if rank > 0:
        meet(world)  # rank 0 alone downloads and sweeps
    sha256 = file_sha256(find_weights(depth_model, checkpoint_dir))
    if rank == 0:
        sweep_temporaries(data_dir / "depths")
        meet(world)
    options = Options(sha256, input_size, fast_decode, side_by_side, legend, write_png)
    old = read_depth_model(data_dir)
    redo = "--overwrite" if overwrite else why_redo(old, options, data_dir)
    redraw = write_png and any(old.get(k) != getattr(options, k) for k in PICTURE_SETTINGS)
    jobs, outcomes = plan_jobs(table, data_dir, image_dir, options, bool(redo), redraw)
    network, sidecar, network_s = None, old, 0.0
    if any(not job.draw_only for job in jobs):
        device = pick_device(device)
        precision = pick_precision(precision, device)
        network, info = load_network(depth_model, checkpoint_dir, device)
        network = speed_up(network, compile)
        sidecar = describe_maps(info, {} if redo else old, options, precision)
    elif redraw:
        sidecar = old | {name: getattr(options, name) for name in PICTURE_SETTINGS}
    meet(world)  # all ranks have the same plan; only now may the files change
    if rank == 0 and jobs:
        announce(sidecar, redo, len(jobs), len(table))
        prepare_outputs(data_dir, sidecar, redo, redraw)
    meet(world)
    start = time.perf_counter()
    if jobs:
        batch_size = batch_size or (8 if device.startswith("cuda") else 1)
        kind = sidecar.get("kind", "inverse depth")
        done, network_s = run_jobs(network, jobs[rank::world], data_dir, options, kind, precision,
                                   batch_size, workers)  # fmt: skip
        outcomes = gather_outcomes(outcomes | done, rank, world)
    seconds = time.perf_counter() - start
    if rank > 0:
        return 0
    if contact_sheet:
        print(f"contact sheet: {save_contact_sheet(data_dir, image_dir, list(table.filename))}")
    share = network_s / seconds
    return report(outcomes, list(table.filename), data_dir, image_dir, seconds, share)


def speed_up(network: torch.nn.Module, compile: bool) -> torch.nn.Module:
    """The same network in the memory layout that convolutions like, compiled if wanted."""
    import torch

    network = network.to(memory_format=torch.channels_last)
    return torch.compile(network) if compile else network


def describe_maps(info: dict, old: dict, options: Options, precision: str) -> dict:
    """What depth_model.json says. A run that goes on in another precision names both."""
    precisions = {precision, *old.get("precision", precision).split("+")}
    settings = {name: getattr(options, name) for name in ("input_size", "fast_decode")}
    for name in PICTURE_SETTINGS:  # unless pictures are drawn, they stay what they were
        settings[name] = getattr(options, name) if options.write_png else old.get(name, False)
    return info | {"precision": "+".join(sorted(precisions))} | settings


def announce(sidecar: dict, redo: str, jobs: int, rows: int) -> None:
    """Say what is about to be done and why."""
    report_weights(sidecar)
    if redo:
        print(f"all maps are made anew: {redo}")
    how = f"{sidecar['precision']}, shorter side {sidecar['input_size']} px"
    print(f"{jobs} of {rows} photos to do, {how}")


def report(
    outcomes: dict[str, tuple[str, str]], filenames: list[str], data_dir: Path, image_dir: Path,
    seconds: float, network_share: float,
) -> int:  # fmt: skip
    """Account for every row, name what went wrong, and say what comes next; the exit code."""
    lost = ("failed", "not reported: the rank that had it has ended")
    outcomes = {name: outcomes.get(name, lost) for name in filenames}
    for name, (outcome, reason) in outcomes.items():
        if reason:
            print(f"{'warning' if outcome == 'written' else outcome}: {name}: {reason}")
    counts = Counter(outcome for outcome, _ in outcomes.values())
    made = counts["written"] + counts["redrawn"]
    if made:
        print(f"{made / seconds:.2f} photos/s, {network_share:.0%} of the time in the network")
    listed = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items()))
    print(f"{len(outcomes)} photos in the table: {listed}")
    print(f"depth maps and pictures: {data_dir / 'depths'}")
    if counts["failed"]:
        print("failed photos are tried again by the same command")
    print(next_command("gps_orientation_trainer", data_dir, image_dir))
    return 1 if counts["failed"] else 0


# ---------------------------------------------------------------- command line


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Settings from the command line, with the constants above as defaults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    add("--data-dir", default=DATA_DIR, help="folder of exif_data.json and depths/")
    add("--image-dir", default=IMAGE_DIR, help="the photos (default: DATA_DIR/images)")
    add("--checkpoint-dir", default=CHECKPOINT_DIR, help="folder of the weights")
    models = "vits, vitb, vitl, metric_hypersim_vits …, demo; a .pth, a folder or a hub id"
    add("--depth-model", default=DEPTH_MODEL, help=models)
    add("--input-size", type=int, default=INPUT_SIZE, help="shorter side in px (%(default)s)")
    add("--device", default=DEVICE, help="auto, cpu, cuda, cuda:1, mps")
    add("--precision", default=PRECISION, choices=("auto", "fp32", "bf16", "fp16"))
    add("--batch-size", type=int, default=BATCH_SIZE, help="photos per pass (1 on CPU, else 8)")
    add("--workers", type=int, default=WORKERS, help="reading and writing threads (%(default)s)")
    add("--compile", action=switch, default=COMPILE, help="torch.compile the network")
    add("--fast-decode", action=switch, default=FAST_DECODE, help="read JPEGs at reduced size")
    add("--write-png", action=switch, default=WRITE_PNG, help="a picture beside each map")
    add("--side-by-side", action=switch, default=SIDE_BY_SIDE, help="pictures: photo | depth")
    add("--legend", action=switch, default=LEGEND, help="pictures with a thin far-near scale")
    add("--overwrite", action="store_true", help="make all maps anew")
    add("--contact-sheet", action="store_true", help="also write depths/contact_sheet.jpg")
    args = parser.parse_args(argv)
    for name in ("input_size", "workers", "batch_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            stop(f"--{name.replace('_', '-')} must be at least 1")
    return args


def main(argv: list[str] | None = None) -> int:
    """Make the depth maps; returns the exit code."""
    return generate_depth_maps(**vars(parse_args(argv)))


if __name__ == "__main__":
    raise SystemExit(main())
