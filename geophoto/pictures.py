"""Photos on disk: find them, open them upright or as stored.

In: a folder or a path. Out: table names (relative, POSIX, NFC) and files; RGB pictures of Pillow.
"""

from __future__ import annotations

import errno
import glob
import itertools
import math
import os
import stat
import threading
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from density import silent, stop
from geophoto.labels import read_photo
from geophoto.orientations import ORIENTATIONS, turn_image
from geophoto.sidecars import SIDECAR_SUFFIXES, match

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".jps", ".mpo", ".insp", ".png", ".apng",
                  ".bmp", ".dib", ".tif", ".tiff", ".webp", ".avif", ".avifs", ".heic", ".heics",
                  ".heif", ".heifs", ".hif")  # fmt: skip
RAW_SUFFIXES = (".3fr", ".arw", ".bay", ".cap", ".cr2", ".cr3", ".crw", ".dcr", ".dcs", ".dng",
                ".drf", ".eip", ".erf", ".fff", ".gpr", ".iiq", ".k25", ".kdc", ".mdc", ".mef",
                ".mos", ".mrw", ".nef", ".nrw", ".orf", ".ori", ".pef", ".ptx", ".raf", ".raw",
                ".rw2", ".rwl", ".rwz", ".sr2", ".srf", ".srw", ".x3f")  # fmt: skip
OTHER_SUFFIXES = (".ai", ".dcm", ".dds", ".emf", ".eps", ".exr", ".gif", ".hdr", ".ico", ".j2c",
                  ".j2k", ".jp2", ".jpf", ".jpm", ".jpx", ".jxl", ".jxr", ".hdp", ".wdp", ".kra",
                  ".pbm", ".pcx", ".pfm", ".pgm", ".pnm", ".ppm", ".psb", ".psd", ".qoi", ".svg",
                  ".svgz", ".tga", ".wmf", ".xcf")  # fmt: skip
SYSTEM_FOLDERS = frozenset(  # of file servers and systems, in lower case: thumbnails, bins, copies
    ("@eadir", "@recycle", "@recently-snapshot", "@sharebin", "@tmp", "#recycle", "#snapshot",
     "~snapshot", "$recycle.bin", "recycler", "system volume information", "lost+found",
     "__macosx", "network trash folder", "temporary items", "ipod photo cache")
)  # fmt: skip
NAMED = 20  # files of a kind named one by one before only their number is told
# Pictures that this pipeline writes → the file that lies beside them then. They are no photos.
OWN_PICTURES = dict.fromkeys(("position_errors.png", "map.png", "examples.png", "time.png",
                              "altitude.png", "orientation.png"), "metrics.json")  # fmt: skip
OWN_PICTURES["density.png"] = "density.html"
DEPTH_MARK = "depth_model.json"  # marks a folder of depth maps, none of which is a photo
MEGAPIXELS = 300.0  # limit of every format; the largest phones make 200. Decoding takes 8 bytes a
# pixel (JPEG: less by `draft`), so a small file that promises more is refused as a bomb.
LIMIT_VARIABLE = "GEOPHOTO_MEGAPIXELS"  # of the environment: holds for processes started later, too

LARGE_PIXELS = 32_000_000  # of such pictures a process holds one at a time
ONE_LARGE = threading.RLock()

# ---------------------------------------------------------------- find


class Listing:
    """What a photo folder holds; each list is sorted."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.names: list[str] = []  # table names: relative, POSIX, NFC
        self.disk: dict[str, str] = {}  # table name → name where the disk spells it otherwise (NFD)
        # Name on disk → names of the photo's XMP sidecar and Takeout file, "" where it has none.
        self.beside: dict[str, tuple[str, str]] = {}
        self.raw: list[str] = []  # RAW files
        self.other: list[str] = []  # pictures of formats that nothing here reads
        self.system: list[str] = []  # folders of the system or a file server
        self.own: list[str] = []  # what this pipeline wrote itself
        self.collisions: list[str] = []  # names that equal another's after NFC
        self.unread: list[str] = []  # what could not be reached, with the reason

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

    def left_out(self) -> list[str]:
        """Lines that name what is in the folder and not among the photos, and why."""
        told = (
            ("RAW, not supported", self.raw),
            ("of other formats, not supported", self.other),
            ("not reached", self.unread),
            ("folders of the system, left out", self.system),
            ("written by these scripts, left out", self.own),
            ("left out, name equal to another's after NFC", self.collisions),
        )
        return [
            f"{what}: {len(names)}: {', '.join(map(shown, names[:NAMED]))}"
            + " …" * (len(names) > NAMED)
            for what, names in told
            if names
        ]


def shown(name: str) -> str:
    """A name as one line can show it: line breaks and bytes that are no UTF-8 are written out."""
    return name if name.isprintable() else repr(name)


def scan(image_dir: str | Path) -> Listing:
    """List a photo folder, and what lies beside its photos.

    Hidden files and folders are left out; linked folders are followed once, so a loop of links
    ends. What cannot be reached is named; OSError only for the folder itself.
    """
    found = Listing(os.fspath(image_dir))
    about = os.stat(found.root)
    folders, seen = [""], {(about.st_dev, about.st_ino)}
    while folders:
        folder = folders.pop()
        path = os.path.join(found.root, folder) if folder else found.root
        try:
            entries = list(os.scandir(path))
            if not os.access(path, os.X_OK):  # its names can be listed, its files not opened
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            if not folder:
                raise
            found.unread.append(f"{folder} ({error.strerror})")
            continue
        present = {entry.name for entry in entries}
        if DEPTH_MARK in present and folder:
            found.own.append(f"{folder}/")
            continue
        others: list[str] = []
        first = len(found.names)
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{folder}/{entry.name}" if folder else entry.name
            try:
                inside = _sort_entry(entry, name, present, found, others)
            except OSError as error:  # a link to itself, one too long, one into a locked folder
                found.unread.append(f"{name} ({error.strerror})")
                continue
            if inside and inside not in seen:
                seen.add(inside)
                folders.append(name)
        if others:
            above = f"{folder}/" if folder else ""
            photos = [name.removeprefix(above) for name in found.names[first:]]
            found.beside |= {above + photo: pair for photo, pair in match(photos, others).items()}
    for names in (found.names, found.raw, found.other, found.system, found.own, found.unread):
        names.sort()
    _spell(found)
    return found


def _sort_entry(
    entry: os.DirEntry, name: str, present: set[str], found: Listing, others: list[str]
) -> tuple[int, int] | None:
    """Put a file where it belongs in the listing, or among the `others` of its folder; of a folder
    to look into, its identity."""
    suffix = os.path.splitext(entry.name)[1].lower()
    if entry.is_dir():
        if entry.name.lower() in SYSTEM_FOLDERS:
            found.system.append(name)
            return None
        about = os.stat(entry.path)  # entry.stat() knows no inode on Windows
        return about.st_dev, about.st_ino
    if suffix in IMAGE_SUFFIXES:
        if OWN_PICTURES.get(entry.name) in present:
            found.own.append(name)
        elif entry.is_file():
            found.names.append(name)
        else:
            gone = entry.is_symlink() and not os.path.exists(entry.path)
            found.unread.append(f"{name} ({'a link to nothing' if gone else 'no regular file'})")
    elif suffix in SIDECAR_SUFFIXES:
        if entry.is_file():
            others.append(entry.name)
    elif suffix in RAW_SUFFIXES:
        found.raw.append(name)
    elif suffix in OTHER_SUFFIXES:
        found.other.append(name)
    return None


def _spell(found: Listing) -> None:
    """Turn names on disk into table names, in NFC; of two that become equal the first stays."""
    table = []
    for name in found.names:
        # Bytes that are no UTF-8 arrive as lone surrogates, which no JSON or CSV file may hold.
        spelled = name if name.isascii() else unicodedata.normalize("NFC", name)
        spelled = spelled.encode("utf-8", "replace").decode("utf-8")
        if spelled != name:
            taken = os.path.lexists(os.path.join(found.root, spelled))
            if spelled in found.disk or taken:
                found.collisions.append(name)
                continue
            found.disk[spelled] = name
        table.append(spelled)
    found.names = sorted(table)


def find_photos(image_dir: str | Path) -> dict[str, Path]:
    """Map each table name (relative, POSIX, NFC) to its file, sorted by name."""
    return {name: Path(paths[0]) for name, paths in scan(image_dir).files()}


def photo_file(image_dir: str | Path, filename: str) -> Path:
    """Find the file of a table name, also where the disk spells it with decomposed accents, or with
    bytes that are no UTF-8, for which tables have question marks."""
    path = Path(image_dir, filename)
    plain = filename.isascii() and "?" not in filename
    if os.path.exists(path) or plain:  # Path.exists raises for a name too long
        return path
    for form in ("NFD", "NFC"):
        other = Path(image_dir, unicodedata.normalize(form, filename))
        if os.path.exists(other):
            return other
    return find_photos(image_dir).get(filename, path)


def list_photos(paths: list[str], say: Callable[[str], None] = silent) -> dict[str, Path]:
    """Files as named, folders with all their photos, and what patterns (`*`, `?`, `[…]`, `**`)
    stand for: photos and folders; `say` hears what a folder has besides.

    Ends the run when one does not exist.
    """
    files: dict[str, Path] = {}
    for path in itertools.chain.from_iterable(map(matching, paths)):
        try:
            if os.path.isdir(path):
                found = scan(path)
                files |= {str(Path(path, name)): Path(own[0]) for name, own in found.files()}
                for line in found.left_out():
                    say(f"{path}: {line}")
            elif stat.S_ISREG(os.stat(path).st_mode):
                files[str(Path(path))] = Path(path)
            else:
                stop(f"{path} is neither a photo nor a folder")
        except OSError as error:
            stop(f"no photo or folder {path} ({error.strerror})")
    if not files:
        stop(f"no photos in {', '.join(paths)}")
    return files


def matching(path: str) -> list[str]:
    """The path itself, or the photos and folders that a pattern finds; a file whose name looks like
    a pattern is itself."""
    if not glob.has_magic(path) or os.path.lexists(path):
        return [path]
    found = [
        one
        for one in sorted(glob.glob(path, recursive=True))
        if os.path.isdir(one) or one.lower().endswith(IMAGE_SUFFIXES)
    ]
    return found or [path]  # which does not exist: the caller says so


# ---------------------------------------------------------------- open


def limit_pixels(megapixels: float) -> None:
    """Refuse larger photos, of whatever format, in this process and in those that it starts."""
    if not 0 < megapixels < math.inf:
        stop("--pixel-limit must be a number of megapixels above 0")
    os.environ[LIMIT_VARIABLE] = str(megapixels)


def open_upright(path: str | Path, max_side: int | None = None) -> Image.Image:
    """Decode a photo to RGB, turned upright by its tag; never larger than `max_side`.

    Raises ValueError or OSError with the file's name and the reason; a photo that is stored with
    more pixels than limit_pixels allows is refused before it is decoded.
    """
    return _open(Path(path), max_side, upright=True)


def open_stored(path: str | Path, max_side: int | None = None) -> Image.Image:
    """Decode a photo to RGB as its pixels are stored (HEIC: as the decoder gives it, upright)."""
    return _open(Path(path), max_side, upright=False)


@contextmanager
def one_large(pixels: float) -> Iterator[None]:
    """What threads go through one by one while they hold a picture of so many pixels, if it is
    large: several at once would take several gigabytes."""
    if not pixels > LARGE_PIXELS:
        yield
        return
    import ctypes

    with ONE_LARGE:
        yield
        # GNU's malloc keeps what threads have freed; three such pictures would seem to be held.
        with suppress(AttributeError, OSError, TypeError):  # other systems have no such function
            ctypes.CDLL(None).malloc_trim(0)


def _open(path: Path, max_side: int | None, upright: bool) -> Image.Image:
    import warnings

    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # checked below, with one limit for every format
    warnings.filterwarnings("ignore", module=r"PIL\.")  # on metadata: the table has its own codes
    about = read_photo(os.fspath(path))
    try:
        if about["_kind"] == "heic":
            import pillow_heif

            pillow_heif.register_heif_opener()
        with Image.open(path) as image:
            limit = float(os.environ.get(LIMIT_VARIABLE, MEGAPIXELS))
            if image.width * image.height > limit * 1e6:
                raise ValueError(
                    f"{image.width}×{image.height} pixels are too many: "
                    f"{limit:g} megapixels are the limit (--pixel-limit)"
                )
            if max_side and image.format in ("JPEG", "MPO"):
                image.draft("RGB", (max_side, max_side))
            # Pillow turns TIFF while loading, by the tag that it finds itself
            turned = image.getexif().get(0x0112) if image.format == "TIFF" else 1
            with one_large(image.width * image.height):
                rgb = _to_rgb(image)
                if max_side and max(rgb.size) > max_side:
                    rgb.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    except OSError as error:
        raise OSError(f"{path}: {error}") from error
    except MemoryError as error:
        raise ValueError(f"{path}: not enough memory") from error
    except Exception as error:  # hostile files raise whatever the decoder stumbled on
        raise ValueError(f"{path}: {error or type(error).__name__}") from error
    turned = turned if turned in ORIENTATIONS else 1
    turn = (about["orientation_tag"] or 1) if upright else 1
    return rgb if turned == turn else turn_image(turn_image(rgb, turned, back=True), turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    """First frame as 8-bit RGB: deep greys are scaled, transparency lies on white."""
    image.load()
    if image.mode.startswith("I") or image.mode == "F":
        lows_highs = [(0.0, 65535.0)]
        if image.mode == "F":
            lows_highs = [(float(g.min()), float(g.max())) for g in map(_deep_grey, strips(image))]
        low, high = min(low for low, _ in lows_highs), max(high for _, high in lows_highs)
        return _paste(image, lambda strip: _scaled(_deep_grey(strip), low, high))
    if image.has_transparency_data:
        return _paste(image, _on_white)
    return image if image.mode == "RGB" else image.convert("RGB")


def strips(image: Image.Image) -> Iterator[Image.Image]:
    """A picture piece by piece from above: what is computed on it then takes little memory."""
    rows = max(1, 4_000_000 // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _paste(image: Image.Image, to_rgb: Callable[[Image.Image], Image.Image]) -> Image.Image:
    from PIL import Image

    whole, top = Image.new("RGB", image.size), 0
    for strip in strips(image):
        whole.paste(to_rgb(strip), (0, top))
        top += strip.height
    return whole


def _deep_grey(image: Image.Image) -> np.ndarray:
    import numpy as np

    return np.nan_to_num(np.asarray(image, dtype=np.float64))


def _scaled(grey: np.ndarray, low: float, high: float) -> Image.Image:
    import numpy as np
    from PIL import Image

    grey = np.clip((grey - low) * (255.0 / max(high - low, 1e-12)), 0, 255)
    return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    from PIL import Image

    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")
