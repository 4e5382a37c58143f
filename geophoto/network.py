"""GPSPredictionNet: two backbones, one trunk, four heads and an auxiliary one.

In: `rgb`, `view` and perhaps `depth` as tensors. Out: raw outputs of the heads, see targets.decode.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import density
from geophoto.orientations import ORIENTATION_CLASSES, agree_views
from geophoto.targets import HEADS

LEVELS = 5  # feature maps, first to last, whose mean and spread are features too
SCALES = 2  # sizes at which the photo is seen, each half the one before
DEPTH_WEIGHT = 0.4  # of depth features beside RGB's: at 1 the demo's position error was 1/4 larger
GRID = 2  # cells per side of the features that the orientation head reads

# ---------------------------------------------------------------- network


class GPSPredictionNet(nn.Module):
    """Two backbones, one trunk, four heads and an auxiliary one for the sun.

    Input: a dict with `rgb` (B, 3, S, S) upright, `view` (B, 3, V, V) a centre square in one of
    the six orientations and, with depth, `depth` (B, 1, S, S). Output: see PredictionHeads.
    """

    def __init__(
        self, backbone: str = "resnet50", use_depth: bool = True, hidden: int = 256
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "backbone": backbone,
            "use_depth": use_depth,
            "hidden": hidden,
        }
        self.fixed_statistics = False  # True: batch norms keep their means and variances
        self.rgb_branch: Any = create_backbone(backbone, 3)
        self.depth_branch: Any = create_backbone(backbone, 1) if use_depth else None
        channels = self.rgb_branch.num_features
        blocks = SCALES * [2 * channels, *(4 * width for width in level_widths(self.rgb_branch))]
        blocks += [2 * channels] * use_depth
        self.heads = PredictionHeads(blocks, GRID * GRID * channels, hidden, use_depth)

    def train(self, mode: bool = True) -> GPSPredictionNet:
        super().train(mode)
        if self.fixed_statistics:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        features = {
            "pooled": self.pooled(batch),
            "grid": grid_features(self.rgb_branch, batch["view"]),
        }
        return self.heads({name: self.heads.project(name, v) for name, v in features.items()})

    def pooled(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the trunk reads of `rgb` and perhaps `depth`, (B, F)."""
        found = [rgb_features(self.rgb_branch, batch["rgb"])]
        if self.depth_branch is not None:
            found.append(depth_features(self.depth_branch, batch["depth"]))
        return torch.cat(found, dim=1)


class PredictionHeads(nn.Module):
    """The shared trunk and the heads: all that frozen mode trains.

    Input: a dict with the principal axes (B, hidden) of the features `pooled` (B, F) and `grid`
    (B, G), see project. Output: a dict with gps (B, 2), time (B, 2), altitude (B,), sun (B,), the
    sine of its elevation, orientation (B, 6) and trunk (B, hidden), the gallery's features. The
    orientation head reads the RGB grid alone: the depth of a turned photo is not the turned depth.
    """

    def __init__(self, blocks: list[int], grid: int, hidden: int, use_depth: bool = False) -> None:
        super().__init__()
        self.blocks, pooled = blocks, sum(blocks)  # of `pooled`: see rgb_features; perhaps depth
        self.block_weights = [1.0] * (len(blocks) - use_depth) + [DEPTH_WEIGHT] * use_depth
        for name, size in (("pooled", pooled), ("grid", grid)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))
        self.pooled_axes = nn.Linear(pooled, hidden, bias=False)
        self.grid_axes = nn.Linear(grid, hidden, bias=False)
        self.bend = nn.Sequential(
            nn.Dropout(0.5), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, hidden)
        )
        self.gps = nn.Linear(hidden, 2)
        self.time = nn.Linear(hidden, 2)
        self.altitude = nn.Linear(hidden, 1)
        self.sun = nn.Linear(hidden, 1)
        self.orientation = nn.Linear(hidden, len(ORIENTATION_CLASSES))
        self.dropout = nn.Dropout(0.5)
        for layer in (self.bend[-1], *(getattr(self, head) for head in HEADS)):
            nn.init.zeros_(layer.weight)  # starts as the trivial answer: the centre, the mean
            nn.init.zeros_(layer.bias)

    def project(self, name: str, features: torch.Tensor) -> torch.Tensor:
        """Features `pooled` or `grid` on their principal axes (B, hidden)."""
        mean, std = getattr(self, f"{name}_mean"), getattr(self, f"{name}_std")
        return getattr(self, f"{name}_axes")((features.float() - mean).div_(std))

    def forward(self, axes: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**self.answer(axes["pooled"]), "orientation": self.orient(axes["grid"])}

    def answer(self, axes: torch.Tensor) -> dict[str, torch.Tensor]:
        """Outputs of all heads but orientation: of the axes bent by what training adds."""
        trunk = axes + self.bend(axes)
        used = self.dropout(trunk)
        return {
            "gps": self.gps(used),
            "time": self.time(used),
            "altitude": self.altitude(used)[:, 0],
            "sun": self.sun(used)[:, 0],
            "trunk": trunk,
        }

    def orient(self, axes: torch.Tensor) -> torch.Tensor:
        """Logits (B, 6) of the orientation classes."""
        return self.orientation(self.dropout(axes))

    @torch.no_grad()
    def fit_axes(self, **features: np.ndarray) -> None:
        """Turn `pooled` (N, F) and `grid` (M, G) of training photos into principal axes.

        The features are standardised, each block counting alike however long it is (depth by
        DEPTH_WEIGHT), the axes scaled to a mean square of one over all axes together; they stay
        as they are while the frozen heads learn.
        """
        for name, given in features.items():
            values = torch.from_numpy(given).float()
            mean, std = values.mean(0), values.std(0, correction=0) + 1e-3
            if name == "pooled":
                sizes, weights = torch.tensor(self.blocks), torch.tensor(self.block_weights)
                share = (sizes * len(sizes) / sizes.sum()).sqrt() / weights
                std *= share.repeat_interleave(sizes)
            layer = getattr(self, f"{name}_axes")
            getattr(self, f"{name}_mean").copy_(mean)
            getattr(self, f"{name}_std").copy_(std)
            axes = principal_axes((values - mean).div_(std), layer.out_features)
            layer.weight.zero_()
            layer.weight[: len(axes)] = axes * math.sqrt(len(layer.weight) / values.shape[1])
            layer.weight.requires_grad_(False)


def principal_axes(values: torch.Tensor, count: int) -> torch.Tensor:
    """At most `count` orthonormal principal axes of centred rows (N, D), by the Gram matrix."""
    gram = values @ values.T if len(values) <= values.shape[1] else values.T @ values
    strength, vectors = torch.linalg.eigh(gram)
    kept = (strength > 1e-5 * strength[-1]).nonzero()[:, 0].flip(0)[:count]
    axes = vectors[:, kept].T
    return axes @ values / strength[kept, None].sqrt() if len(values) <= values.shape[1] else axes


def create_network(backbone: str, use_depth: bool, seed: int) -> GPSPredictionNet:
    torch.manual_seed(seed)
    try:
        return GPSPredictionNet(backbone, use_depth)
    except ValueError as error:
        density.stop(str(error))


# ---------------------------------------------------------------- backbones


def create_backbone(name: str, channels: int) -> Any:
    """A timm model without classifier and with random weights; raises ValueError if unknown."""
    import timm

    options: dict[str, Any] = {
        "pretrained": False,
        "num_classes": 0,
        "in_chans": channels,
        "global_pool": "",
    }
    try:
        return timm.create_model(name, dynamic_img_size=True, **options)  # ViT at any size
    except TypeError:
        return timm.create_model(name, **options)
    except RuntimeError as error:
        raise ValueError(f"{name!r} is no timm model: {error}") from None


def level_widths(backbone: Any) -> list[int]:
    """Channels of the feature levels that count as texture; raises ValueError without levels."""
    if not hasattr(backbone, "forward_intermediates"):
        raise ValueError(f"{type(backbone).__name__} does not give its intermediate feature maps")
    return [backbone.feature_info[level]["num_chs"] for level in spread_levels(backbone)]


def spread_levels(backbone: Any) -> list[int]:
    """Indices of at most LEVELS feature levels, evenly from the first to the last."""
    count = len(backbone.feature_info)
    return np.linspace(0, count - 1, min(count, LEVELS)).round().astype(int).tolist()


def as_map(backbone: Any, features: torch.Tensor) -> torch.Tensor:
    """Last features of a backbone as (B, C, h, w), whatever layout the architecture uses."""
    if features.ndim == 3:  # transformer tokens, class and register tokens first
        tokens = features[:, getattr(backbone, "num_prefix_tokens", 0) :]
        side = math.isqrt(tokens.shape[1])
        return tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)
    if features.shape[1] != backbone.num_features:  # Swin and its like: (B, h, w, C)
        return features.permute(0, 3, 1, 2)
    return features


def pool(features: torch.Tensor) -> torch.Tensor:
    """Mean and generalised mean (p = 3, Radenović 2018) of maps (B, C, h, w), side by side."""
    features = features.float().flatten(2)
    return torch.cat([features.mean(2), features.clamp(min=1e-6).pow(3).mean(2).pow(1 / 3)], 1)


def rgb_features(backbone: Any, images: torch.Tensor) -> torch.Tensor:
    """At each scale: pooled last features, then mean and spread of each level's channels in the
    upper and the lower half of the picture, (B, F).

    Means and spreads of early feature maps are what makes a texture or a style (Huang & Belongie
    2017): ground, plants and light of the hour, to which the last layer has grown blind. Sky and
    ground apart and a second scale lowered the mean log error of position on every set of photos
    tried.
    """
    found = []
    for scale in range(SCALES):
        images = F.avg_pool2d(images, 2) if scale else images
        images = images.contiguous(memory_format=torch.channels_last)  # much faster on a CPU
        last, levels = backbone.forward_intermediates(images, indices=spread_levels(backbone))
        found.append(pool(as_map(backbone, last)))
        for level in levels:
            middle = level.shape[2] / 2  # of an odd number of rows the middle one is in both
            for half in (level[:, :, : math.ceil(middle)], level[:, :, math.floor(middle) :]):
                half = half.float().flatten(2)
                found += [half.mean(2), half.std(2, correction=0)]
    return torch.cat(found, dim=1)


def depth_features(backbone: Any, depth: torch.Tensor) -> torch.Tensor:
    """Pooled last features of depth maps (B, 1, S, S), (B, 2C)."""
    depth = depth.contiguous(memory_format=torch.channels_last)
    return pool(as_map(backbone, backbone.forward_features(depth)))


def grid_features(backbone: Any, images: torch.Tensor) -> torch.Tensor:
    """Features averaged on a GRID × GRID raster, flattened (B, GRID²·C): what is where."""
    images = images.contiguous(memory_format=torch.channels_last)
    features = as_map(backbone, backbone.forward_features(images))
    return F.adaptive_avg_pool2d(features.float(), GRID).flatten(1)


# ---------------------------------------------------------------- predict


def view_logits(network: GPSPredictionNet, views: torch.Tensor) -> torch.Tensor:
    """What the orientation head says of six views (B, 6, 3, V, V) together, (B, 6, 6)."""
    grids = grid_features(network.rgb_branch, views.flatten(0, 1))
    logits = network.heads.orient(network.heads.project("grid", grids))
    return agree_views(logits.reshape(len(views), len(ORIENTATION_CLASSES), -1))


def predict_batch(network, inputs: dict, precision) -> dict[str, np.ndarray]:
    """Raw outputs for `rgb`, `views` (B, 6, …) and perhaps `depth`, as NumPy arrays."""
    views = predict_views(network, inputs["views"], precision)
    return predict_upright(network, inputs, precision) | {"views": views}


@torch.inference_mode()
def predict_views(network: GPSPredictionNet, views: torch.Tensor, precision) -> np.ndarray:
    """Logits (B, 6, 6) of all six views (B, 6, 3, V, V)."""
    with precision.autocast():
        return view_logits(network, views.to(precision.device)).float().cpu().numpy()


@torch.inference_mode()
def predict_upright(
    network: GPSPredictionNet, inputs: dict[str, torch.Tensor], precision
) -> dict[str, np.ndarray]:
    """Raw outputs of all heads but orientation for upright `rgb` and perhaps `depth`."""
    read = {k: v.to(precision.device) for k, v in inputs.items() if k != "views"}
    with precision.autocast():
        output = network.heads.answer(network.heads.project("pooled", network.pooled(read)))
    return {k: v.float().cpu().numpy() for k, v in output.items()}
