"""Give every photo of the table its depth map: Depth-Anything-V2, one .npy and one .png per photo.

Reads data/exif_data.json and the photos, writes data/depths/<photo path>.npy (float16, inverse
depth at network resolution) with a picture beside each, and data/depths/depth_model.json.

    python depth_map_generator.py
    python depth_map_generator.py --depth-model demo --data-dir data/demo
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import socket
import sys
import types
import urllib.error
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from density import stop

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
# ---------------------------------------------------------------- end of settings

PATCH_SIZE = 14  # px, side of a ViT patch in every DINOv2
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
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
MAX_DEPTH_M = {"metric_hypersim": 20.0, "metric_vkitti": 80.0}  # sigmoid × this = metres
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


def network_config(state_dict: dict[str, torch.Tensor], max_depth_m: float | None = None):
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


def check_loading(loading: dict) -> None:
    """ValueError unless every weight of the network came from the checkpoint and none was left."""
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if count := len(loading[problem]):
            raise ValueError(
                f"not a Depth-Anything-V2 checkpoint ({count} {problem.replace('_', ' ')})"
            )


def build_network(state_dict: dict[str, torch.Tensor], max_depth_m: float | None = None):
    """Depth-Anything-V2 in fp32 with the weights of an official state dict, in eval mode."""
    import torch
    import transformers

    config = network_config(state_dict, max_depth_m)
    weights = {key: value.float() for key, value in to_hub_keys(state_dict).items()}
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    network, loading = transformers.DepthAnythingForDepthEstimation.from_pretrained(
        None, config=config, state_dict=weights, dtype=torch.float32,
        output_loading_info=True, ignore_mismatched_sizes=True,
    )  # fmt: skip
    check_loading(loading)
    return use_official_positions(network).eval()


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
    print(f"downloading {url}")
    for attempt in range(1, tries + 1):
        try:  # writes a temporary, checks the sha256, then renames
            return torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256)
        except (OSError, RuntimeError, ValueError) as error:
            print(f"download {attempt} of {tries} failed: {error}", file=sys.stderr)
            if isinstance(error, urllib.error.URLError) and isinstance(
                error.reason, socket.gaierror
            ):
                break  # no network at all: trying again cannot help
    stop(f"no weights: put {path} there yourself (from {url}, sha256 {sha256}), "
         "or take the small model that comes with the code: --depth-model demo")  # fmt: skip


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a .pth file; never runs code from it. Anything else is a ValueError."""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle, EOF, overflow …: torch documents no closed list
        reason = f"not a file of plain tensors, or damaged ({type(error).__name__})"
        raise ValueError(reason) from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError("not a Depth-Anything-V2 checkpoint (no plain table of tensors)")
    return state


def load_hub_folder(model: str) -> tuple[torch.nn.Module, Path]:
    """Network and weights file of a Hugging Face folder or hub id (downloaded when not cached)."""
    import torch
    import transformers
    from transformers.utils import cached_file

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    weights = Path(cached_file(model, "model.safetensors"))
    config = transformers.AutoConfig.from_pretrained(weights.parent, local_files_only=True)
    if config.model_type != "depth_anything":
        raise ValueError(f"holds a {config.model_type} network, not Depth-Anything")
    network, loading = transformers.DepthAnythingForDepthEstimation.from_pretrained(
        weights.parent, dtype=torch.float32, local_files_only=True,
        output_loading_info=True, ignore_mismatched_sizes=True,
    )  # fmt: skip
    check_loading(loading)
    return use_official_positions(network).eval(), weights


def find_weights(model: str, checkpoint_dir: str | Path) -> Path:
    """The .pth file that `model` means, downloaded if need be; or stop, saying what to do."""
    path = Path(model)
    if path.suffix != ".pth":
        path = Path(checkpoint_dir) / f"depth_anything_v2_{model}.pth"
        if not path.exists() and model in KNOWN_SHA256:
            download_weights(model, path)
    if not path.is_file():
        comes = ": it comes with the code (git checkout)" if model == "demo" else ""
        stop(f"no weights: {path} does not exist{comes}")
    return path


def load_network(model: str, checkpoint_dir: str | Path, device: str = "cpu"):
    """Network (fp32, eval, on `device`) and what is known about it, for any way to name a model.

    `model`: vits, vitb, vitl, metric_hypersim_vits … and demo mean depth_anything_v2_<model>.pth in
    `checkpoint_dir` (known ones are downloaded when absent); else a .pth, a folder or a hub id.
    The dict holds model, file, sha256, kind ("inverse depth" or "metres") and max_depth_m.
    Whatever cannot be had or read ends the run with exit 2 and one line.
    """
    try:
        if model == "demo" or model in KNOWN_SHA256 or model.endswith(".pth"):
            path = find_weights(model, checkpoint_dir)
            if re.match(r"depth_anything_vit", path.name):
                raise ValueError("a checkpoint of Depth-Anything V1, which reads other layers")
            max_depth_m = next((m for kind, m in MAX_DEPTH_M.items() if kind in path.name), None)
            network = build_network(read_state_dict(path), max_depth_m)
        else:
            network, path = load_hub_folder(model)
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
    """The device to run on; auto = cuda, then mps, then cpu."""
    import torch

    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
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
    image = image_rgb.astype(np.float32) / 255
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    image = (image - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
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

    Metres are inverted: their maps lie below a depths/depth_model.json that says so.
    """
    depth = np.load(path, allow_pickle=False)
    depths = next((folder for folder in Path(path).parents if folder.name == "depths"), None)
    kind = read_depth_model(depths.parent).get("kind", "inverse depth") if depths else ""
    depth = to_inverse(depth, kind)
    return depth if size is None or size == depth.shape else resize_depth(depth, size)
