"""Weights of Depth-Anything-V2: where they come from, and their names in both worlds.

In: a model name, file, folder or hub id. Out: a path; state dicts with official or hub names.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from density import silent, stop
from geophoto import downloads

if TYPE_CHECKING:
    import torch

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

# ---------------------------------------------------------------- names


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


# ---------------------------------------------------------------- files


def weights_url(name: str) -> str:
    """Where the official file depth_anything_v2_<name>.pth of a known name is published."""
    size = {"s": "Small", "b": "Base", "l": "Large"}[name[-1]]
    kinds = {"metric_hypersim": "Metric-Hypersim-", "metric_vkitti": "Metric-VKITTI-"}
    kind = kinds.get(name[:-5], "")
    repository = f"https://huggingface.co/depth-anything/Depth-Anything-V2-{kind}{size}"
    return f"{repository}/resolve/main/depth_anything_v2_{name}.pth"


def download_weights(
    name: str, path: Path, say: Callable[[str], None] = silent, bar: Callable = downloads.plain
) -> None:
    """Fetch a known official file to `path`, whole and with the published sha256, or stop."""
    url, sha256 = weights_url(name), KNOWN_SHA256[name]
    say(f"downloading {downloads.address(url)}")
    try:
        downloads.fetch(url, path, sha256, bar)
    except OSError as error:
        stop(f"no weights ({error}): put {path} there yourself, from {url} (sha256 {sha256}), "
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


def find_weights(
    model: str,
    checkpoint_dir: str | Path,
    say: Callable[[str], None] = silent,
    bar: Callable = downloads.plain,
) -> Path:
    """The file that `model` means, downloaded if need be; or stop, saying what to do.

    vits, vitb, vitl, metric_hypersim_vits … and demo mean depth_anything_v2_<model>.pth in
    `checkpoint_dir`; else `model` is a .pth, a folder in Hugging Face format, or a hub id.
    """
    named = model == "demo" or model in KNOWN_SHA256
    if not named and not model.endswith(".pth"):
        from transformers.utils import cached_file

        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # not every try
        try:
            return Path(str(cached_file(model, "model.safetensors")))
        except (OSError, ValueError) as error:
            stop(f"no depth model {model}: {str(error).splitlines()[0]}")
    path = Path(checkpoint_dir) / f"depth_anything_v2_{model}.pth" if named else Path(model)
    if not path.exists() and model in KNOWN_SHA256:
        download_weights(model, path, say, bar)
    if not path.is_file():
        comes = ", though it comes with the code" if model == "demo" else ""
        stop(f"no weights: {path} does not exist{comes}")
    return path
