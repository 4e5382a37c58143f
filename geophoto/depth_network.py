"""Depth-Anything-V2: build the network, run it on a photo.

In: weights, upright uint8 RGB (h, w, 3). Out: inverse depth (larger = nearer), float32 (H, W).
"""

from __future__ import annotations

import json
import math
import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from density import file_sha256, silent, stop
from geophoto.depth_weights import count_layers, find_weights, read_state_dict, to_hub_keys

if TYPE_CHECKING:
    import torch

PATCH_SIZE = 14  # px, side of a ViT patch in every DINOv2
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_ASPECT = 16  # longer strips would need more memory than machines have
MIN_METRES = 0.1  # metric depth is inverted from here on, so that 0 m stays finite
MAX_DEPTH_M = {"metric_hypersim": 20, "metric_vkitti": 80}  # sigmoid × this = metres
OUT_LAYERS = {12: [3, 6, 9, 12], 24: [5, 12, 18, 24], 40: [10, 20, 30, 40]}  # of V2, 1-based

# ---------------------------------------------------------------- network


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
    backbone = Dinov2Config(  # type: ignore[call-arg]  # transformers reads out_indices from kwargs
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


def use_official_positions(network: Any) -> Any:
    """Patch the one method in which transformers and the official network differ; returns it."""
    embeddings = network.backbone.embeddings
    embeddings.interpolate_pos_encoding = types.MethodType(interpolate_positions, embeddings)
    return network


def end_in_float32(network: Any) -> Any:
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


def load_transformers(source: Path | None, **given) -> Any:
    """Depth-Anything in fp32 by `from_pretrained(source, **given)`, every weight accounted for."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    architecture: Any = transformers.DepthAnythingForDepthEstimation
    network, loading = architecture.from_pretrained(
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


def load_hub_network(folder: Path) -> torch.nn.Module:
    """Depth-Anything in fp32 from a folder in Hugging Face format."""
    kind = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
    if kind != "depth_anything":
        raise ValueError(f"a {kind} network, not Depth-Anything")
    return load_transformers(folder, local_files_only=True)


def load_network(
    model: str,
    checkpoint_dir: str | Path,
    device: str = "cpu",
    say: Callable[[str], None] = silent,
):
    """Network (fp32, eval, on `device`) and what is known about it; see `find_weights`.

    The dict holds model, file, sha256, kind ("inverse depth" or "metres") and max_depth_m.
    Whatever cannot be had or read ends the run with exit 2 and one line.
    """
    path = find_weights(model, checkpoint_dir, say)
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


def speed_up(network: Any, compile: bool) -> Any:
    """The same network in the memory layout that convolutions like, compiled if wanted."""
    import torch

    network = network.to(memory_format=torch.channels_last)
    return torch.compile(network) if compile else network


def pick_device(device: str) -> str:
    """The device to run on; auto = cuda (each rank its own), then mps, then cpu."""
    import torch

    if device != "auto":
        try:
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as error:  # no such device, or torch without it
            stop(f"--device {device} cannot be used: {str(error).splitlines()[0]}")
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


# ---------------------------------------------------------------- photo


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

    height, width = tensor_size(image_rgb.shape[0], image_rgb.shape[1], input_size)
    image: Any = image_rgb.astype(np.float32)  # resizing bytes would round between pixels
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    mean, std = (np.array(values, np.float32) for values in (IMAGENET_MEAN, IMAGENET_STD))
    image = (image / 255 - mean) / std
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None])


def run_network(network: torch.nn.Module, batch: torch.Tensor, precision: str) -> torch.Tensor:
    """(n, 3, H, W) → float32 (n, H, W) on the device: what the network says, in its own unit."""
    import torch

    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    autocast = torch.autocast(batch.device.type, dtypes[precision], enabled=precision != "fp32")
    with torch.inference_mode(), autocast:
        return network(pixel_values=batch).predicted_depth.float()


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


def to_inverse(depth: np.ndarray, kind: str) -> np.ndarray:
    """Inverse depth (larger = nearer) as float32, whatever the kind that the network gives."""
    depth = depth.astype(np.float32)
    return 1 / np.maximum(depth, MIN_METRES) if kind == "metres" else depth


def estimate_depth(
    network: Any, image_rgb: np.ndarray, input_size: int, precision: str = "fp32"
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


def estimate_depths(network: Any, images: list[np.ndarray], input_size: int) -> list[np.ndarray]:
    """The same of several photos, those of one tensor size in one pass, in fp32."""
    import torch

    device = next(network.parameters()).device
    metric = network.config.depth_estimation_type == "metric"
    tensors = [preprocess(image, input_size) for image in images]
    found: dict[int, np.ndarray] = {}
    for shape in {tensor.shape for tensor in tensors}:
        alike = [i for i, tensor in enumerate(tensors) if tensor.shape == shape]
        batch = torch.from_numpy(np.concatenate([tensors[i] for i in alike])).to(device)
        found |= zip(alike, run_network(network, batch, "fp32").cpu().numpy(), strict=True)
    kind = "metres" if metric else "inverse depth"
    return [to_inverse(found[i], kind) for i in range(len(images))]


def resize_depth(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Depth (h, w) at another (height, width), as officially: bilinear with aligned corners."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(depth, np.float32))[None, None]
    resized = torch.nn.functional.interpolate(tensor, size, mode="bilinear", align_corners=True)
    return resized[0, 0].numpy()
