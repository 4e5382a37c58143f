"""Photos → network inputs → frozen features, kept on disk.

In: photos, depth maps, a network. Out: input tensors; StoredFeatures, float16 rows read from disk.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

import density
from geophoto.depth_maps import depth_file, load_depth_map
from geophoto.devices import (
    Precision,
    from_all,
    from_first,
    photo_threads,
    processes,
    rank,
    wait_for_all,
)
from geophoto.network import (
    SCALES,
    GPSPredictionNet,
    depth_features,
    grid_features,
    level_widths,
    rgb_features,
)
from geophoto.orientations import ORIENTATION_CLASSES, store_as
from geophoto.origins import known_sha256
from geophoto.photos import LEAST_PHOTOS, Photos
from geophoto.pictures import open_upright

FEATURES = 5  # version of the cached features; raised when the same photo gives others
CACHE_ROWS = 32  # photos whose features are written to disk together
PART = "part-{}"  # folder of what one process of several has computed

# ---------------------------------------------------------------- inputs


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


def picture_inputs(photo, size: int, backbone: Any) -> dict[str, torch.Tensor]:
    """Turn an upright PIL photo into network inputs: `rgb` (3, size, size), the whole picture,
    and `views` (6, 3, size/2, size/2), its centre square in the six orientations."""
    return pixel_inputs(*picture_pixels(photo, size), backbone)


def pixel_inputs(whole: np.ndarray, square: np.ndarray, backbone: Any) -> dict:
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


# ---------------------------------------------------------------- cache


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

    def take_in_parts(self) -> None:
        """Append what other processes have left in folders of their own, and remove these."""
        for folder in sorted(self.data.parent.glob(PART.format("*"))):
            part = FeatureCache(folder, self.width)
            every = StoredFeatures(part, list(part.row_of.values()))
            keys = list(part.row_of)
            for rows in np.array_split(np.arange(len(keys)), len(keys) // CACHE_ROWS + 1):
                new = np.array([row for row in rows if keys[row] not in self.row_of], int)
                if len(new):
                    self.append([keys[row] for row in new], every.read(new, slice(None)))
            part.close()
            shutil.rmtree(folder)

    def close(self) -> None:
        """Let other processes use the folder."""
        if self.lock is not None:
            self.lock.close()


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

    def take(self, kept: np.ndarray) -> StoredFeatures:
        return StoredFeatures(self.cache, self.rows[kept])

    def read(self, photos: np.ndarray, columns: slice) -> np.ndarray:
        """Features (len(photos), columns), float16."""
        shape = (self.cache.count, self.cache.width)
        return np.memmap(self.cache.data, np.float16, "r", shape=shape)[self.rows[photos], columns]


# ---------------------------------------------------------------- fill


def rgb_width(network: GPSPredictionNet) -> int:
    """How many of the numbers that the trunk reads come from RGB."""
    return sum(network.heads.blocks[: SCALES * (1 + len(level_widths(network.rgb_branch)))])


def contents_file(data_dir: Path) -> Path:
    """The journal of the bytes of photos and depth maps, data_dir/cache/contents.jsonl."""
    return data_dir / "cache" / "contents.jsonl"


def with_contents(photos: Photos, data_dir: Path, bar: Callable) -> Photos:
    """The photos with the sha256 of their files, which are read only where they are new: what they
    become does not depend on their names and times."""
    found = known_sha256(contents_file(data_dir), photos.names, photos.files, bar)
    return dataclasses.replace(photos, sha256=np.array(found, object))


def cached_rgb(network, photos: Photos, folder: Path, size: int, precision, bar):
    """Make sure that every photo has its row: what the trunk reads of RGB, then six grids."""
    backbone = network.rgb_branch
    width = rgb_width(network) + len(ORIENTATION_CLASSES) * network.heads.grid_mean.numel()

    def features(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        grids = grid_features(backbone, inputs["views"].flatten(0, 1))
        return torch.cat([rgb_features(backbone, inputs["rgb"]), grids.reshape(1, -1)], dim=1)

    def load(i: int) -> dict[str, torch.Tensor]:
        return picture_inputs(open_upright(photos.files[i], max_side=2 * size), size, backbone)

    keys = list(zip(photos.sha256.tolist(), photos.tag.tolist(), strict=True))
    return fill_cache((folder, width), keys, load, features, precision, bar, "RGB features")


def cached_depth(network, photos: Photos, folder: Path, size: int, precision, data_dir: Path, bar):
    """The same for depth maps: pooled features (2C). A map made from another state of its photo is
    no map of it, see depth_maps.without_map."""
    backbone = network.depth_branch
    place = folder, 2 * backbone.num_features
    maps = [depth_file(data_dir, name) for name in photos.names]

    def load(i: int) -> dict[str, torch.Tensor]:
        return {"depth": depth_input(load_depth_map(maps[i]), size)}

    def features(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return depth_features(backbone, inputs["depth"])

    names = [f"depths/{name}.npy" for name in photos.names]
    contents = from_first(lambda: known_sha256(contents_file(data_dir), names, maps, bar))
    keys = [(sha256,) for sha256 in contents]
    return fill_cache(place, keys, load, features, precision, bar, "depth features")


def fill_cache(place: tuple, keys, load, features, precision: Precision, bar, title: str):
    """Compute what the cache (its folder, the width of a row) lacks; returns the features and the
    failed photos with reasons. Of several processes each computes a part in a folder of its own;
    the first then has them all.

    A key begins with the sha256 of what the features are made of: equal files share a row. It is
    "" for a file that could not be read."""
    folder, width = place
    if not rank():
        cache = FeatureCache(folder, width)
        cache.take_in_parts()  # of a run that was interrupted
    wait_for_all()  # a part belongs to the first process until it has been taken in
    if rank():
        cache = FeatureCache(folder / PART.format(rank()), width)
    lacking: dict[tuple, int] = {}
    for i, key in enumerate(keys):
        if key not in cache.row_of:
            lacking.setdefault(key, i)
    first = from_first(lambda: lacking)
    own = list(first.values())[rank() :: processes()]
    found = compute_rows(cache, own, keys, load, features, precision, bar, title)
    if rank():
        cache.close()  # before the first process hears of it and takes it in
    failed = {i: reason for part in from_all(found) for i, reason in part.items()}
    if not rank():
        cache.take_in_parts()
        failed |= {i: failed[first[k]] for i, k in enumerate(keys) if k not in cache.row_of}
    return StoredFeatures(cache, [cache.row_of.get(key, -1) for key in keys]), failed


def compute_rows(
    cache: FeatureCache, missing: list[int], keys, load, features, precision: Precision, bar, title
) -> dict[int, str]:
    """Append the features of the photos `missing`; returns those that failed with reasons."""
    failed: dict[int, str] = {}

    on_cpu = precision.device.type == "cpu"

    def row_of(inputs: dict[str, torch.Tensor]) -> np.ndarray:
        batch = {k: v[None].to(precision.device) for k, v in inputs.items()}
        with torch.inference_mode(), precision.autocast():
            return features(batch)[0].float().cpu().numpy()

    def try_one(i: int):
        try:
            if not keys[i][0]:
                raise OSError("the file cannot be read")
            inputs = load(i)
        except (OSError, ValueError, SyntaxError, MemoryError) as error:
            return i, f"{type(error).__name__}: {error}"
        return i, row_of(inputs) if on_cpu else inputs

    rows: list[np.ndarray] = []
    done: list[tuple] = []
    with photo_threads(precision.device) as pool:
        made = bounded_map(pool, try_one, missing, ahead=8)
        for i, found in bar(made, total=len(missing), desc=title, unit="photo"):
            if isinstance(found, str):
                failed[i] = found
                continue
            rows.append(found if on_cpu else row_of(found))
            done.append(keys[i])
            if len(rows) == CACHE_ROWS:
                cache.append(done, np.stack(rows))
                rows, done = [], []
    if rows:
        cache.append(done, np.stack(rows))
    return failed


def bounded_map(pool: ThreadPoolExecutor, work: Callable, items: list, ahead: int) -> Iterator:
    """pool.map that never holds more than `ahead` results: memory stays flat."""
    waiting = []
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) >= ahead:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()


# ---------------------------------------------------------------- all photos


@dataclasses.dataclass
class FrozenData:
    """Cached features of the photos in use, read from disk by part."""

    photos: Photos
    rgb: StoredFeatures  # what the trunk sees of RGB; six grids per photo from column `first`
    depth: StoredFeatures | None  # what it sees of depth
    blocks: list[int]  # the parts of what the trunk sees, see PredictionHeads
    first: int
    grid: int  # numbers per grid

    def pooled(self, rows: np.ndarray) -> np.ndarray:
        """What the trunk sees of some photos, (len(rows), F), float16."""
        found = self.rgb.read(rows, slice(0, self.first))
        if self.depth is None:
            return found
        return np.concatenate([found, self.depth.read(rows, slice(None))], axis=1)

    def grids(self, rows: np.ndarray) -> torch.Tensor:
        """The grids of all six views of some photos, (len(rows), 6, grid), float32."""
        found = torch.from_numpy(self.rgb.read(rows, slice(self.first, None))).float()
        return found.reshape(len(rows), len(ORIENTATION_CLASSES), self.grid)


def frozen_features(
    photos: Photos, inputs: str, network: GPSPredictionNet, data_dir: Path, precision: Precision,
    options: dict, bar: Callable,
) -> tuple[FrozenData, dict[str, str]]:  # fmt: skip
    """Features of all photos that can be read, from the cache or made now, and the names of the
    others with reasons. `bar` wraps an iterable as tqdm does. Of several processes each makes a
    part, and only the first can read them."""
    if not photos.sha256.any():
        photos = with_contents(photos, data_dir, bar)
    network.to(precision.device).to(memory_format=torch.channels_last).eval()
    backbone, size = network.config["backbone"], options["image_size"]
    name = f"{backbone}-{options['weights']}-{size}-v{FEATURES}"
    folder = data_dir / "cache" / name.replace("/", "_")
    rgb, failed = cached_rgb(network, photos, folder / "rgb", size, precision, bar)
    depth = None
    if inputs == "depth":
        kind = f"depth-{options['depth_model']['sha256'][:8]}"
        depth, lost = cached_depth(network, photos, folder / kind, size, precision, data_dir, bar)
        failed |= lost
    kept = np.array([i for i in range(len(photos)) if i not in failed], int)
    if len(kept) < LEAST_PHOTOS:
        density.stop(f"only {len(kept)} photos could be read, at least {LEAST_PHOTOS} are needed")
    depth = depth.take(kept) if depth is not None else None
    heads: Any = network.heads
    first = rgb_width(network)
    data = FrozenData(
        photos.take(kept), rgb.take(kept), depth, heads.blocks, first, heads.grid_mean.numel()
    )
    return data, {photos.names[i]: reason for i, reason in failed.items()}
