"""Depth maps on disk, data_dir/depths/: where they lie, how they are read, pictures of them.

In: a table name or a map. Out: inverse depth float32 (h, w), PIL pictures.
"""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import numpy as np

from density import write_atomically
from geophoto.depth_network import resize_depth, to_inverse
from geophoto.origins import Origin, file_stamp, read_origins, renew
from geophoto.pictures import open_upright, photo_file

LARGEST_FLOAT16 = 65504.0
CONTACT_SHEET_PAIRS = 240  # more would make a page that no viewer likes to open

# ---------------------------------------------------------------- files


def depth_file(data_dir: str | Path, filename: str) -> Path:
    """Where the depth map of a photo lies: data_dir/depths/<photo path>.npy."""
    return Path(data_dir) / "depths" / f"{filename}.npy"


SIDECAR_TEXTS = ("model", "file", "sha256", "kind", "precision")  # of depth_model.json


def read_depth_model(data_dir: str | Path) -> dict:
    """The sidecar depths/depth_model.json; empty when there is none or it is damaged, without the
    entries that should be texts and are none."""
    try:
        sidecar = json.loads((Path(data_dir) / "depths" / "depth_model.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(sidecar, dict):
        return {}
    return {k: v for k, v in sidecar.items() if k not in SIDECAR_TEXTS or isinstance(v, str)}


def load_depth_map(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Inverse depth (larger = nearer) as float32 (h, w), resized to `size` = (height, width).

    Metres are inverted: the depth_model.json of the depths/ above the map says what it holds. A
    file that holds no map raises ValueError or OSError.
    """
    try:
        depth = np.load(path, allow_pickle=False)
    except EOFError:
        raise ValueError(f"{path} is an empty file, no depth map") from None
    except MemoryError:
        raise ValueError(f"{path} claims to be larger than any depth map") from None
    if not is_map(depth) or not np.isfinite(depth).all():
        raise ValueError(f"{path} holds no depth map")
    sidecars = (read_depth_model(up.parent) for up in Path(path).parents if up.name == "depths")
    depth = to_inverse(depth, next(filter(None, sidecars), {}).get("kind", "inverse depth"))
    return depth if size is None or size == depth.shape else resize_depth(depth, size)


def is_map(depth: object) -> bool:
    """Whether np.load found an array of depths (h, w) that has pixels."""
    if not isinstance(depth, np.ndarray):  # an archive of several
        return False
    return depth.ndim == 2 and depth.dtype.kind == "f" and depth.size > 0


def name_fits(data_dir: Path, filename: str) -> bool:
    """Whether a map of that photo can have a name: most file systems stop at 255 bytes of it."""
    path = depth_file(data_dir, filename)
    for place in (path, data_dir / path.name):  # too long as a whole, or in its last part
        try:
            os.lstat(place)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return False
    return True


def depth_index(data_dir: str | Path) -> Path:
    """The journal that says from which state of its photo each map was made, data_dir/
    depth_index.jsonl; beside depths/, whose files are maps alone."""
    return Path(data_dir) / "depth_index.jsonl"


def belongs_to(path: Path, photo: Path, tag: int, origin: Origin | None, sha256: str = "") -> bool:
    """Whether the map at `path` was made from this photo as it is and is turned now.

    Without an origin (a map of an earlier version) it must be as new as the photo and its inode.
    """
    try:
        if origin is not None:
            return renew(origin, photo, tag, sha256) is not None
        _, mtime_ns, ctime_ns = file_stamp(photo)
        return path.stat().st_mtime_ns >= max(mtime_ns, ctime_ns)
    except OSError:
        return False


def without_map(photos, data_dir: Path) -> dict[str, str]:
    """Those of the Photos that have no depth map, or only one of another picture, each with the
    reason."""
    origins, missing = read_origins(depth_index(data_dir)), {}
    columns = photos.names, photos.files, photos.tag, photos.sha256
    for name, file, tag, sha256 in zip(*columns, strict=True):
        path = depth_file(data_dir, name)
        if not os.path.isfile(path):
            missing[name] = "no depth map"
        elif not belongs_to(path, file, int(tag), origins.get(name), sha256):
            missing[name] = "its depth map was made before the photo was changed"
    return missing


def is_finished(path: Path) -> bool:
    """Whether a whole map lies at `path`."""
    try:
        depth = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return is_map(depth) and depth.dtype == np.float16


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

    try:
        depth = draw_depth(load_depth_map(depth_file(data_dir, filename))).convert("RGB")
    except (OSError, ValueError):  # cut short by something else
        depth = Image.new("RGB", (side, side), "lightgrey")
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

    done = [name for name in filenames if os.path.isfile(depth_file(data_dir, name))]
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
