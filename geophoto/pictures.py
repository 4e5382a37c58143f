"""Photos on disk: find them, open them upright or as stored.

In: a folder or a path. Out: table names (relative, POSIX, NFC) and files; RGB pictures of Pillow.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from density import stop
from geophoto.labels import read_photo
from geophoto.orientations import turn_image
from geophoto.sidecars import SIDECAR_SUFFIXES, match

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff",
                  ".webp", ".avif", ".heic", ".heif")  # fmt: skip
RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".srw", ".orf", ".rw2", ".raf",
                ".pef", ".3fr", ".iiq", ".x3f")  # fmt: skip
JPEG_PIXEL_LIMIT = 300_000_000  # a JPEG decodes smaller through `draft`; the largest phones: 200 MP
PIXEL_LIMIT = 89_478_485  # of all other formats: Pillow's own bomb warning, here an error

# ---------------------------------------------------------------- find


@dataclass
class Listing:
    """What a photo folder holds."""

    root: str
    names: list[str]  # table names: relative, POSIX, NFC, sorted
    disk: dict[str, str]  # table name → name on disk where it is spelled otherwise (NFD of macOS)
    raw: list[str]  # RAW files, sorted
    collisions: list[str]  # names on disk that equal another's after NFC
    unread: list[str]  # folders that could not be read, each with the reason
    beside: dict[
        str, tuple[str, str]
    ]  # name on disk → names of its XMP sidecar, Takeout file or ""

    def files(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Each table name with its file, and with those beside it where there are any.

        As text: a Path object costs more than reading the file.
        """
        root = os.path.join(self.root, "")
        for name in self.names:
            disk = self.disk.get(name, name)
            path = root + disk
            if disk in self.beside:
                folder = path[: -len(os.path.basename(disk))]
                sidecar, takeout = self.beside[disk]
                yield name, (path, sidecar and folder + sidecar, takeout and folder + takeout)
            else:
                yield name, (path,)


def scan(image_dir: str | Path) -> Listing:
    """List a photo folder, and what lies beside its photos. Hidden files and folders are left out;
    linked folders are followed once, so a loop of links ends."""
    root = os.fspath(image_dir)
    about = os.stat(root)
    raw: list[str] = []
    names: list[str] = []
    unread: list[str] = []
    beside: dict[str, tuple[str, str]] = {}
    folders, seen = [""], {(about.st_dev, about.st_ino)}
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(os.path.join(root, folder) if folder else root))
        except OSError as error:
            unread.append(f"{folder}: {error.strerror}")
            continue
        photos, others = [], []
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                about = entry.stat()
                if (about.st_dev, about.st_ino) not in seen:
                    seen.add((about.st_dev, about.st_ino))
                    folders.append(name)
                continue
            suffix = os.path.splitext(entry.name)[1].lower()
            if suffix in IMAGE_SUFFIXES and entry.is_file():
                photos.append(entry.name)
            elif suffix in SIDECAR_SUFFIXES and entry.is_file():
                others.append(entry.name)
            elif suffix in RAW_SUFFIXES:
                raw.append(name)
        above = f"{folder}/" if folder else ""
        names += [above + name for name in photos]
        if others:
            beside |= {above + name: pair for name, pair in match(photos, others).items()}
    names.sort()
    table: list[str] = []
    disk: dict[str, str] = {}
    collisions: list[str] = []
    for name in names:
        # Bytes that are no UTF-8 arrive as lone surrogates, which no JSON or CSV file may hold.
        spelled = name if name.isascii() else unicodedata.normalize("NFC", name)
        spelled = spelled.encode("utf-8", "replace").decode("utf-8")
        if spelled != name and (spelled in disk or os.path.lexists(os.path.join(root, spelled))):
            collisions.append(name)
            continue
        if spelled != name:
            disk[spelled] = name
        table.append(spelled)
    return Listing(root, sorted(table), disk, sorted(raw), collisions, unread, beside)


def find_photos(image_dir: str | Path) -> dict[str, Path]:
    """Map each table name (relative, POSIX, NFC) to its file, sorted by name."""
    return {name: Path(paths[0]) for name, paths in scan(image_dir).files()}


def photo_file(image_dir: str | Path, filename: str) -> Path:
    """Find the file of a table name, also where the disk spells it with decomposed accents."""
    path = Path(image_dir, filename)
    if path.exists() or filename.isascii():
        return path
    for form in ("NFD", "NFC"):
        other = Path(image_dir, unicodedata.normalize(form, filename))
        if other.exists():
            return other
    return find_photos(image_dir).get(filename, path)


def list_photos(paths: list[str]) -> dict[str, Path]:
    """Files as named, folders with all their photos; ends the run when one does not exist."""
    files: dict[str, Path] = {}
    for path in map(Path, paths):
        if path.is_dir():
            files |= {str(path / name): file for name, file in find_photos(path).items()}
        elif path.is_file():
            files[str(path)] = path
        else:
            stop(f"no photo or folder {path}")
    if not files:
        stop(f"no photos in {', '.join(paths)}")
    return files


# ---------------------------------------------------------------- open


def open_upright(path: str | Path, max_side: int | None = None) -> Image.Image:
    """Decode a photo to RGB, turned upright by its tag; never larger than `max_side`.

    Raises ValueError or OSError with the file's name and the reason.
    """
    return _open(Path(path), max_side, upright=True)


def open_stored(path: str | Path, max_side: int | None = None) -> Image.Image:
    """Decode a photo to RGB as its pixels are stored (HEIC: as the decoder gives it, upright)."""
    return _open(Path(path), max_side, upright=False)


def _open(path: Path, max_side: int | None, upright: bool) -> Image.Image:
    import warnings

    from PIL import Image

    Image.MAX_IMAGE_PIXELS = JPEG_PIXEL_LIMIT  # the limit by format is checked below, per file
    warnings.filterwarnings("ignore", module=r"PIL\.")  # on metadata: the table has its own codes
    about = read_photo(os.fspath(path))
    try:
        if about["_kind"] == "heic":
            import pillow_heif

            pillow_heif.register_heif_opener()
        with Image.open(path) as image:
            jpeg = image.format in ("JPEG", "MPO")
            if image.width * image.height > (JPEG_PIXEL_LIMIT if jpeg else PIXEL_LIMIT):
                raise ValueError(f"{image.width}×{image.height} pixels are too many")
            if max_side and jpeg:
                image.draft("RGB", (max_side, max_side))
            rgb = _to_rgb(image)
            arrives_upright = image.format == "TIFF"  # Pillow turns TIFF while loading
    except OSError as error:
        raise OSError(f"{path}: {error}") from error
    except MemoryError as error:
        raise ValueError(f"{path}: not enough memory") from error
    except Exception as error:  # hostile files raise whatever the decoder stumbled on
        raise ValueError(f"{path}: {error or type(error).__name__}") from error
    tag = about["orientation_tag"] or 1
    if max_side and max(rgb.size) > max_side:
        rgb.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    if arrives_upright == upright:
        return rgb
    return turn_image(rgb, tag, back=arrives_upright)


def _to_rgb(image: Image.Image) -> Image.Image:
    """First frame as 8-bit RGB: deep greys are scaled, transparency lies on white."""
    from PIL import Image

    image.load()
    if image.mode.startswith("I") or image.mode == "F":
        import numpy as np

        grey = np.nan_to_num(np.asarray(image, dtype=np.float64))
        low, high = (float(grey.min()), float(grey.max())) if image.mode == "F" else (0.0, 65535.0)
        grey = np.clip((grey - low) * (255.0 / max(high - low, 1e-12)), 0, 255)
        return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.copy() if image.mode == "RGB" else image.convert("RGB")
